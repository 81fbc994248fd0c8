//! Where a pod stands with the mesh, from what the API server knows of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use loam_manifest::enrol::{Why, Wish};
use serde::Serialize;

use crate::names::{BLOCKED, ENROLLED, REDIRECTION};
use crate::node::NodePod;

/// Where a pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its traffic is in the mesh.
    Captured,
    /// Its traffic is in the mesh, and NetworkPolicies keep tunnels from it.
    Blocked(String),
    /// It belongs to the mesh and is not captured.
    Waiting(String),
    /// It does not belong to the mesh any more and is still captured.
    Leaving,
    /// It does not belong to the mesh.
    Outside(Why),
}

/// A word for where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "see `Standing`")]
pub enum State {
    Captured,
    Waiting,
    Leaving,
    Outside,
}

impl State {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Captured => "captured",
            State::Waiting => "waiting",
            State::Leaving => "leaving",
            State::Outside => "outside",
        }
    }
}

impl Standing {
    /// Where `pod` stands in a namespace that is enrolled or not, with what runs on the nodes.
    pub fn of(pod: &Pod, namespace_in: bool, nodes: &BTreeMap<String, NodePod>) -> Self {
        let annotated = pod.metadata.annotations.as_ref().and_then(|all| all.get(REDIRECTION));
        let annotated = annotated.is_some_and(|value| value == "enabled");
        let told = condition(pod);
        match Wish::of(pod).under(namespace_in) {
            // What an agent found out counts for more than what an annotation remembers.
            Ok(()) => match told {
                Some(Told { captured: false, why, .. }) => Self::Waiting(why),
                Some(Told { blocked: true, why, .. }) => Self::Blocked(why),
                Some(Told { .. }) => Self::Captured,
                None if annotated => Self::Captured,
                None => Self::Waiting(untold(pod, nodes)),
            },
            Err(_) if annotated => Self::Leaving,
            Err(why) => Self::Outside(why),
        }
    }

    /// The word for it.
    pub fn state(&self) -> State {
        match self {
            Self::Captured | Self::Blocked(_) => State::Captured,
            Self::Waiting(_) => State::Waiting,
            Self::Leaving => State::Leaving,
            Self::Outside(_) => State::Outside,
        }
    }

    /// Why, where there is something to say.
    pub fn reason(&self) -> String {
        match self {
            Self::Captured => String::new(),
            Self::Blocked(why) | Self::Waiting(why) => why.clone(),
            Self::Leaving => "the node has not let it go yet".to_owned(),
            Self::Outside(why) => why.to_string(),
        }
    }
}

/// Whether a pod has run to its end: nobody captures it any more.
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The node of a pod; empty while it has none.
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// What an agent says of a pod.
struct Told {
    captured: bool,
    /// NetworkPolicies keep tunnels from it.
    blocked: bool,
    why: String,
}

fn condition(pod: &Pod) -> Option<Told> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let told = conditions.iter().find(|condition| condition.type_ == ENROLLED)?;
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let why = text(&told.message).or_else(|| text(&told.reason)).unwrap_or_else(|| "the agent does not say why".into());
    Some(Told { captured: told.status == "True", blocked: told.reason.as_deref() == Some(BLOCKED), why })
}

/// Why nothing is told of a pod that belongs to the mesh.
fn untold(pod: &Pod, nodes: &BTreeMap<String, NodePod>) -> String {
    let has_address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty());
    match node(pod) {
        "" => "it has no node yet".to_owned(),
        node => match nodes.get(node) {
            None => format!("the mesh does not run on its node, {node}"),
            Some(mesh) if !mesh.ready => format!("pod {} of the mesh is not ready on its node, {node}", mesh.pod),
            Some(_) if !has_address => "it has no address yet".to_owned(),
            Some(_) => format!("its node, {node}, has not captured it yet"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn nodes() -> BTreeMap<String, NodePod> {
        let of = |node: &str, ready| {
            let pod = NodePod { node: node.into(), pod: format!("ztunnel-{node}"), ready, ..NodePod::default() };
            (node.to_owned(), pod)
        };
        [of("a", true), of("b", false)].into()
    }

    #[test]
    fn what_the_agent_says_counts_for_more_than_what_an_annotation_remembers() {
        let told = |annotation: &str, status: &str| {
            let yaml = format!(
                "{{metadata: {{annotations: {{ambient.istio.io/redirection: {annotation}}}}}, spec: {{nodeName: a, \
                 containers: []}}, status: {{podIP: 10.0.0.1, conditions: [{status}]}}}}"
            );
            Standing::of(&pod(&yaml), true, &nodes())
        };
        let no = "{type: loam.dev/Enrolled, status: 'False', reason: NoCertificate, message: no certificate yet}";
        let yes = "{type: loam.dev/Enrolled, status: 'True'}";
        let blocked = "{type: loam.dev/Enrolled, status: 'True', reason: TunnelsBlocked, message: a policy}";
        assert_eq!(told("enabled", blocked), Standing::Blocked("a policy".into()));
        assert_eq!(told("enabled", ""), Standing::Captured);
        assert_eq!(told("''", yes), Standing::Captured);
        assert_eq!(told("enabled", no), Standing::Waiting("no certificate yet".into()));
        assert_eq!(told("''", ""), Standing::Waiting("its node, a, has not captured it yet".into()));
    }

    #[test]
    fn a_pod_of_which_nothing_is_told_waits_for_what_is_missing() {
        let waits = |spec: &str, status: &str| {
            let yaml = format!("{{metadata: {{}}, spec: {{{spec}containers: []}}, status: {{{status}}}}}");
            Standing::of(&pod(&yaml), true, &nodes()).reason()
        };
        assert_eq!(waits("", ""), "it has no node yet");
        assert_eq!(waits("nodeName: a, ", ""), "it has no address yet");
        assert_eq!(waits("nodeName: b, ", "podIP: 10.0.0.1"), "pod ztunnel-b of the mesh is not ready on its node, b");
        assert_eq!(waits("nodeName: c, ", "podIP: 10.0.0.1"), "the mesh does not run on its node, c");
    }

    #[test]
    fn a_pod_that_is_let_go_is_leaving_until_it_is_outside() {
        let yaml = "metadata: {annotations: {ambient.istio.io/redirection: enabled}}";
        assert_eq!(Standing::of(&pod(yaml), false, &nodes()), Standing::Leaving);
        assert_eq!(Standing::of(&pod("metadata: {}"), false, &nodes()), Standing::Outside(Why::NotAsked));
    }
}
