//! The pods of the mesh: one on each node, and those of the controller.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use crate::capture::node;
use crate::names::PROXY_CONTAINER;

/// The mesh on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePod {
    /// The node.
    pub node: String,
    /// The pod of the mesh.
    pub pod: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Its version.
    pub version: String,
    /// How often its containers were started again.
    pub restarts: i32,
    /// Why one of them does not run, or what the last one that ended said; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

/// The mesh by node. While a pod replaces another, the ready one counts, and of two the younger.
pub fn by_node(pods: &[Pod]) -> BTreeMap<String, NodePod> {
    let mut nodes: BTreeMap<String, (Standby, NodePod)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !node(pod).is_empty()) {
        let of = NodePod {
            node: node(pod).to_owned(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            ready: is_ready(pod),
            version: version(pod, PROXY_CONTAINER),
            restarts: pod
                .status
                .iter()
                .flat_map(|s| s.container_statuses.iter().flatten())
                .map(|c| c.restart_count)
                .sum(),
            trouble: trouble(pod),
        };
        let standby = (of.ready, pod.metadata.creation_timestamp.clone().map(|time| time.0));
        match nodes.get(&of.node) {
            Some((other, _)) if *other >= standby => {}
            Some(_) | None => drop(nodes.insert(of.node.clone(), (standby, of))),
        }
    }
    nodes.into_iter().map(|(node, (_, pod))| (node, pod)).collect()
}

/// How well a pod stands for its node.
type Standby = (bool, Option<jiff::Timestamp>);

/// Whether a pod is ready and stays.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Longest trouble that is told.
const MAX_TROUBLE_CHARS: usize = 400;

/// Why a pod that is not ready is not: what a container waits for, or the last line of what one said when it ended.
pub fn trouble(pod: &Pod) -> String {
    if is_ready(pod) {
        return String::new();
    }
    let told = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).find_map(|container| {
        let states = [&container.last_state, &container.state];
        let ended = states.into_iter().flatten().filter_map(|state| state.terminated.as_ref()?.message.as_deref());
        let waits = container.state.iter().filter_map(|state| state.waiting.as_ref()?.message.as_deref());
        let text = ended.chain(waits).find(|text| !text.trim().is_empty())?;
        let line = text.trim().lines().next_back()?;
        Some(format!("{}: {}", container.name, line.chars().take(MAX_TROUBLE_CHARS).collect::<String>()))
    });
    told.unwrap_or_default()
}

/// The version of a container by its image, or of the first container; empty where no tag says it.
pub fn version(pod: &Pod, container: &str) -> String {
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers[..]);
    let container = containers.iter().find(|c| c.name == container).or(containers.first());
    container.and_then(|c| c.image.as_deref()).map(tag).unwrap_or_default().to_owned()
}

/// The tag of an image: what follows the last colon, unless that is the port of a registry.
fn tag(image: &str) -> &str {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    named.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/')).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_an_image_is_its_version() {
        assert_eq!(tag("ghcr.io/loam-mesh/loam-agent:0.1.0"), "0.1.0");
        assert_eq!(tag("localhost:5000/loam-agent"), "");
        assert_eq!(tag("localhost:5000/loam-agent:1@sha256:00"), "1");
        assert_eq!(tag("loam-agent"), "");
    }

    #[test]
    fn a_pod_that_is_not_ready_tells_what_it_said_when_it_ended() {
        let trouble = |ready: &str, states: &str| {
            let yaml = format!(
                "{{status: {{conditions: [{{type: Ready, status: '{ready}'}}], containerStatuses: [{{name: discovery, \
                 image: i, imageID: i, ready: false, restartCount: 3, {states}}}]}}}}"
            );
            trouble(&serde_saphyr::from_str(&yaml).unwrap())
        };
        let waits = "state: {waiting: {reason: CrashLoopBackOff, message: back-off}}";
        let ended =
            "lastState: {terminated: {exitCode: 1, message: \"started\\nSecret a/cacerts has no ca-key.pem\\n\"}}";
        let both = format!("{waits}, {ended}");
        assert_eq!(trouble("False", &both), "discovery: Secret a/cacerts has no ca-key.pem");
        assert_eq!(trouble("False", waits), "discovery: back-off");
        assert_eq!(trouble("True", &both), "");
        assert_eq!(trouble("False", "state: {running: {}}"), "");
    }

    #[test]
    fn the_ready_pod_stands_for_its_node_while_another_comes() {
        let pod = |name: &str, created: &str, ready: &str| -> Pod {
            let yaml = format!(
                "{{metadata: {{name: {name}, creationTimestamp: '2026-01-01T00:00:{created}Z'}}, spec: {{nodeName: a, \
                 containers: []}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            );
            serde_saphyr::from_str(&yaml).unwrap()
        };
        let of = |pods: &[Pod]| by_node(pods)["a"].pod.clone();
        assert_eq!(of(&[pod("old", "01", "True"), pod("new", "02", "False")]), "old");
        assert_eq!(of(&[pod("new", "02", "True"), pod("old", "01", "True")]), "new");
    }
}
