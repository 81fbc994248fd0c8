//! `loam enroll` and `loam unenroll`: the label of a namespace, and what follows for each of its pods.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use loam_manifest::enrol::{MODE_LABEL, Why, Wish, namespace_in};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::args;
use crate::capture::{Standing, State, ended, node};
use crate::code::Code;
use crate::fault::Fault;
use crate::node::NodePod;
use crate::output::{Look, Report};
use crate::session::Session;
use crate::style::Tone;
use crate::table::{Cell, Table};

/// Pause between two looks at what is waited for.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Makes an injector bring a sidecar to every new pod.
pub const INJECTION_LABEL: &str = "istio-injection";

/// Pods that are named when the wait is over.
const MAX_NAMED: usize = 5;

/// What was done, and what follows for each pod.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    namespace: String,
    /// Whether the namespace is to be enrolled, or to leave.
    enroll: bool,
    /// Whether it was so before.
    already: bool,
    dry_run: bool,
    pods: Vec<PodPlan>,
    notes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct PodPlan {
    name: String,
    node: String,
    outcome: Outcome,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// What follows for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    WillBeCaptured,
    StaysCaptured,
    WillLeave,
    StaysOutside,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::WillBeCaptured => "will be captured",
            Outcome::StaysCaptured => "stays captured",
            Outcome::WillLeave => "will leave",
            Outcome::StaysOutside => "stays outside",
        }
    }
}

/// Enrols a namespace, or lets it go.
pub async fn run(session: &Session, args: &args::Enroll, enroll: bool) -> Result<Plan, Fault> {
    let namespace = session.namespace(&args.namespace).await?;
    if enroll {
        refuse_excluded(&args.namespace)?;
    }
    let mesh = session.mesh().await?;
    let pods: Vec<Pod> = session.cluster.list(Some(&args.namespace), None).await?;
    let mut plan = plan(&namespace, &pods, &mesh.nodes, enroll);
    plan.dry_run = args.dry_run;
    if mesh.daemons.is_none() {
        plan.notes.push("The mesh is not installed, and nothing is captured before it is.".to_owned());
    }
    let label = if enroll { json!("ambient") } else { json!(null) };
    let change = json!({"metadata": {"labels": {MODE_LABEL: label}}});
    session.cluster.patch::<Namespace>(None, &args.namespace, &change, args.dry_run).await?;
    if args.wait {
        wait(session, args, enroll).await?;
    }
    Ok(plan)
}

/// A namespace whose pods the mesh never takes is not worth a label.
fn refuse_excluded(namespace: &str) -> Result<(), Fault> {
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(namespace.to_owned());
    match Wish::of(&pod) {
        Wish::Never(Why::ExcludedNamespace) => Err(Fault::new(
            Code::NeverEnrolled,
            format!("enrol namespace {namespace}"),
            "the nodes themselves depend on what runs in it, so its pods are never captured",
            "kubectl get namespaces",
        )),
        Wish::Never(_) | Wish::In | Wish::Out | Wish::Inherit => Ok(()),
    }
}

fn plan(namespace: &Namespace, pods: &[Pod], nodes: &BTreeMap<String, NodePod>, enroll: bool) -> Plan {
    let labelled = namespace_in(namespace);
    let of = |pod: &Pod| {
        let before = Standing::of(pod, labelled, nodes).state();
        let is_in = matches!(before, State::Captured | State::Leaving);
        let (outcome, reason) = match (Wish::of(pod).under(enroll), is_in) {
            (Ok(()), true) if !enroll => (Outcome::StaysCaptured, "its own label asks for it".to_owned()),
            (Ok(()), false) if !enroll => (Outcome::WillBeCaptured, "its own label asks for it".to_owned()),
            (Ok(()), true) => (Outcome::StaysCaptured, String::new()),
            (Ok(()), false) => (Outcome::WillBeCaptured, String::new()),
            (Err(_), true) => (Outcome::WillLeave, String::new()),
            (Err(Why::NotAsked), false) => (Outcome::StaysOutside, String::new()),
            (Err(why), false) => (Outcome::StaysOutside, why.to_string()),
        };
        let name = pod.metadata.name.clone().unwrap_or_default();
        PodPlan { name, node: node(pod).to_owned(), outcome, reason }
    };
    let mut pods: Vec<PodPlan> = pods.iter().filter(|pod| !ended(pod)).map(of).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    let mut notes = Vec::new();
    let name = namespace.metadata.name.clone().unwrap_or_default();
    let labels = namespace.metadata.labels.as_ref();
    if enroll && labels.is_some_and(|labels| labels.get(INJECTION_LABEL).is_some_and(|value| value == "enabled")) {
        notes.push(format!(
            "New pods get a sidecar and stay outside, because of the label {INJECTION_LABEL}=enabled. To take it away: \
             kubectl label namespace {name} {INJECTION_LABEL}-"
        ));
    }
    Plan { namespace: name, enroll, already: labelled == enroll, dry_run: false, pods, notes }
}

/// Waits until every pod of the namespace is where it belongs.
async fn wait(session: &Session, args: &args::Enroll, enroll: bool) -> Result<(), Fault> {
    let end = Instant::now() + args.timeout;
    loop {
        let nodes = session.mesh().await?.nodes;
        let pods: Vec<Pod> = session.cluster.list(Some(&args.namespace), None).await?;
        let left = unsettled(&pods, enroll, &nodes);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() + PAUSE > end {
            return Err(late(args, enroll, &left));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The pods that are not where they belong, and why.
fn unsettled(pods: &[Pod], enroll: bool, nodes: &BTreeMap<String, NodePod>) -> Vec<(String, String)> {
    let pods = pods.iter().filter(|pod| !ended(pod) && pod.metadata.deletion_timestamp.is_none());
    let left = pods.filter_map(|pod| {
        let standing = Standing::of(pod, enroll, nodes);
        let awaited = if enroll { State::Waiting } else { State::Leaving };
        let name = pod.metadata.name.clone().unwrap_or_default();
        (standing.state() == awaited).then(|| (name, standing.reason()))
    });
    left.collect()
}

fn late(args: &args::Enroll, enroll: bool, left: &[(String, String)]) -> Fault {
    let verb = if enroll { "captured" } else { "let go" };
    let what = format!("wait until the pods of namespace {} are {verb}", args.namespace);
    let mut why = format!("after {} s this is so for all but {}", args.timeout.as_secs(), left.len());
    for (name, reason) in left.iter().take(MAX_NAMED) {
        why.push_str(&format!("\n{name}: {reason}"));
    }
    if left.len() > MAX_NAMED {
        why.push_str("\n...");
    }
    Fault::new(Code::Late, what, why, format!("loam status {}", args.namespace))
}

impl Report for Plan {
    fn text(&self, look: Look) -> String {
        let done = match (self.already, self.dry_run, self.enroll) {
            (true, _, true) => "is enrolled already",
            (true, _, false) => "is not enrolled",
            (false, true, true) => "would be enrolled",
            (false, true, false) => "would leave the mesh",
            (false, false, true) => "is enrolled",
            (false, false, false) => "leaves the mesh",
        };
        let mut text = format!("Namespace {} {done}.\n", self.namespace);
        if self.pods.is_empty() {
            text.push_str("It has no pods.\n");
        } else {
            let mut table = Table::new(["POD", "NODE", "THEN", "WHY"]);
            for pod in &self.pods {
                let tone = match pod.outcome {
                    Outcome::WillBeCaptured | Outcome::StaysCaptured => Tone::Good,
                    Outcome::WillLeave => Tone::Doubtful,
                    Outcome::StaysOutside => Tone::Plain,
                };
                let then = Cell::toned(pod.outcome.as_str(), tone);
                table.row([(&pod.name).into(), (&pod.node).into(), then, (&pod.reason).into()]);
            }
            text.push('\n');
            text.push_str(&table.text(look.style));
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, more: &str) -> Pod {
        let yaml = format!("{{metadata: {{name: {name}, namespace: shop{more}}}, spec: {{containers: []}}}}");
        serde_saphyr::from_str(&yaml).unwrap()
    }

    fn namespace(labels: &str) -> Namespace {
        serde_saphyr::from_str(&format!("metadata: {{name: shop, labels: {{{labels}}}}}")).unwrap()
    }

    const CAPTURED: &str = ", annotations: {ambient.istio.io/redirection: enabled}";

    fn outcomes(labels: &str, enroll: bool) -> Vec<(Outcome, String)> {
        let own = ", labels: {istio.io/dataplane-mode: ambient}";
        let pods = [
            pod("a-plain", ""),
            pod("b-captured", CAPTURED),
            pod("c-out", ", labels: {istio.io/dataplane-mode: none}"),
            pod("d-own", own),
            pod("e-sidecar", ", annotations: {sidecar.istio.io/status: x}"),
        ];
        let plan = plan(&namespace(labels), &pods, &BTreeMap::new(), enroll);
        plan.pods.into_iter().map(|pod| (pod.outcome, pod.reason)).collect()
    }

    #[test]
    fn every_pod_is_told_what_follows_for_it() {
        use Outcome::{StaysCaptured, StaysOutside, WillBeCaptured, WillLeave};
        let opted_out = (StaysOutside, Why::OptedOut.to_string());
        let sidecar = (StaysOutside, Why::Sidecar.to_string());
        let plain = |outcome| (outcome, String::new());
        assert_eq!(
            outcomes("", true),
            [plain(WillBeCaptured), plain(StaysCaptured), opted_out.clone(), plain(WillBeCaptured), sidecar.clone()]
        );
        let own = (WillBeCaptured, "its own label asks for it".to_owned());
        assert_eq!(
            outcomes("istio.io/dataplane-mode: ambient", false),
            [plain(StaysOutside), plain(WillLeave), opted_out, own, sidecar]
        );
    }

    #[test]
    fn a_namespace_with_injection_is_warned_of() {
        let notes = |labels: &str, enroll| plan(&namespace(labels), &[], &BTreeMap::new(), enroll).notes.len();
        assert_eq!((notes("istio-injection: enabled", true), notes("istio-injection: enabled", false)), (1, 0));
        assert_eq!(notes("istio-injection: disabled", true), 0);
    }

    #[test]
    fn pods_that_end_or_stay_outside_are_not_waited_for() {
        let ended = serde_saphyr::from_str("{metadata: {name: job}, status: {phase: Succeeded}}").unwrap();
        let pods = [pod("a", ""), pod("b", CAPTURED), pod("c", ", labels: {istio.io/dataplane-mode: none}"), ended];
        let names = |enroll| unsettled(&pods, enroll, &BTreeMap::new()).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(names(true), ["a"]);
        assert_eq!(names(false), ["b"]);
    }

    #[test]
    fn the_namespace_of_the_nodes_is_refused() {
        assert_eq!(refuse_excluded("kube-system").unwrap_err().code, Code::NeverEnrolled);
        assert!(refuse_excluded("shop").is_ok());
    }
}
