//! `loam status`: what is installed, which namespaces are enrolled, which pods are captured, and why others are not.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use loam_kube::Permission;
use loam_manifest::enrol::namespace_in;
use serde::Serialize;
use serde_json::Value;

use crate::capture::{Standing, State, ended, node};
use crate::fault::Fault;
use crate::mtls::{self, Demand};
use crate::names::CONTROLLER;
use crate::node::{self as nodes, NodePod};
use crate::output::{Look, Report};
use crate::session::{Mesh, Session};
use crate::style::Tone;
use crate::table::{Cell, Table};

/// Pods that wait and are listed in a table; all of them are in the other forms.
const MAX_SHOWN: usize = 20;

/// The mesh at a glance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The namespace of the mesh itself.
    system_namespace: String,
    controller: Option<Controller>,
    nodes: Vec<Node>,
    /// Those with a pod in the mesh, or that ask for it.
    namespaces: Vec<Enrolled>,
    /// Pods that are not where they belong.
    waiting: Vec<PodView>,
    /// Captured pods that NetworkPolicies keep tunnels from.
    blocked: Vec<PodView>,
}

#[derive(Debug, Serialize)]
struct Controller {
    name: &'static str,
    ready: i32,
    wanted: i32,
    version: String,
}

#[derive(Debug, Serialize)]
struct Node {
    #[serde(flatten)]
    mesh: NodePod,
    captured: usize,
    waiting: usize,
}

#[derive(Debug, Serialize)]
struct Enrolled {
    name: String,
    /// Whether the namespace itself asks for the mesh; otherwise single pods do.
    labelled: bool,
    captured: usize,
    waiting: usize,
    outside: usize,
    mtls: Demand,
}

/// A pod.
#[derive(Debug, Clone, Serialize)]
struct PodView {
    namespace: String,
    name: String,
    node: String,
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// One namespace, pod by pod.
#[derive(Debug, Serialize)]
pub struct Detail {
    name: String,
    labelled: bool,
    mtls: Demand,
    pods: Vec<PodView>,
}

/// Objects from which all of it follows.
struct Facts {
    mesh: Mesh,
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    peer_authentications: Vec<Value>,
}

/// Finds out what `loam status` shows.
pub async fn overview(session: &Session) -> Result<Overview, Fault> {
    let mesh = session.installed().await?;
    let (namespaces, pods) = tokio::try_join!(session.cluster.list(None, None), session.cluster.list(None, None))?;
    let peer_authentications = peer_authentications(session).await?;
    Ok(overview_of(&session.system, &Facts { mesh, namespaces, pods, peer_authentications }))
}

/// Finds out what `loam status NAMESPACE` shows.
pub async fn detail(session: &Session, name: &str) -> Result<Detail, Fault> {
    let namespace = session.namespace(name).await?;
    let mesh = session.installed().await?;
    let pods = session.cluster.list(Some(name), None).await?;
    let peer_authentications = peer_authentications(session).await?;
    let facts = Facts { mesh, namespaces: vec![namespace], pods, peer_authentications };
    let labelled = facts.namespaces.iter().any(namespace_in);
    let mtls = Demand::of(&facts.peer_authentications, &session.system, name);
    Ok(Detail { name: name.to_owned(), labelled, mtls, pods: views(&facts) })
}

/// PeerAuthentications in the newest version that the server knows; none where it knows none.
async fn peer_authentications(session: &Session) -> Result<Vec<Value>, Fault> {
    let permission =
        Permission { verb: "list", group: "security.istio.io", resource: "peerauthentications", namespace: None };
    for path in mtls::PATHS {
        if let Some(objects) = session.cluster.list_at(path, &permission).await? {
            return Ok(objects);
        }
    }
    Ok(Vec::new())
}

/// Every pod that has not ended, by namespace and name.
fn views(facts: &Facts) -> Vec<PodView> {
    let name = |namespace: &Namespace| namespace.metadata.name.clone().unwrap_or_default();
    let labelled: BTreeMap<String, bool> = facts.namespaces.iter().map(|n| (name(n), namespace_in(n))).collect();
    let view = |pod: &Pod| {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labelled = labelled.get(&namespace).copied().unwrap_or_default();
        let standing = Standing::of(pod, labelled, &facts.mesh.nodes);
        let name = pod.metadata.name.clone().unwrap_or_default();
        let (state, reason, node) = (standing.state(), standing.reason(), node(pod).to_owned());
        PodView { namespace, name, node, state, reason }
    };
    let mut views: Vec<_> = facts.pods.iter().filter(|pod| !ended(pod)).map(view).collect();
    views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    views
}

fn overview_of(system: &str, facts: &Facts) -> Overview {
    let views = views(facts);
    let count = |fits: &dyn Fn(&PodView) -> bool, state: State| {
        views.iter().filter(|view| view.state == state && fits(view)).count()
    };
    let node = |mesh: &NodePod| {
        let here = |view: &PodView| view.node == mesh.node;
        Node {
            captured: count(&here, State::Captured),
            waiting: count(&here, State::Waiting) + count(&here, State::Leaving),
            mesh: mesh.clone(),
        }
    };
    let enrolled = |namespace: &Namespace| {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let here = |view: &PodView| view.namespace == name;
        let labelled = namespace_in(namespace);
        let captured = count(&here, State::Captured);
        let waiting = count(&here, State::Waiting) + count(&here, State::Leaving);
        let mtls = Demand::of(&facts.peer_authentications, system, &name);
        let outside = count(&here, State::Outside);
        (labelled || captured + waiting > 0).then_some(Enrolled { name, labelled, captured, waiting, outside, mtls })
    };
    let mut namespaces: Vec<Enrolled> = facts.namespaces.iter().filter_map(enrolled).collect();
    namespaces.sort_by(|a, b| a.name.cmp(&b.name));
    let is_blocked = |view: &PodView| view.state == State::Captured && !view.reason.is_empty();
    let is_waiting = |view: &PodView| matches!(view.state, State::Waiting | State::Leaving);
    Overview {
        system_namespace: system.to_owned(),
        controller: facts.mesh.controller.as_ref().map(|deployment| Controller {
            name: CONTROLLER,
            ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0),
            wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            version: facts.mesh.controller_pods.first().map(|pod| nodes::version(pod, "")).unwrap_or_default(),
        }),
        nodes: facts.mesh.nodes.values().map(node).collect(),
        namespaces,
        waiting: views.iter().filter(|view| is_waiting(view)).cloned().collect(),
        blocked: views.iter().filter(|view| is_blocked(view)).cloned().collect(),
    }
}

impl Report for Overview {
    fn text(&self, look: Look) -> String {
        let (style, wide) = (look.style, look.wide());
        let mut parts = vec![self.controller_table().text(style), self.node_table(wide).text(style)];
        match self.namespaces.is_empty() {
            true => {
                parts.push(format!("No namespace is enrolled. To enrol one: {}\n", look.typed("loam enroll NAMESPACE")))
            }
            false => parts.push(self.namespace_table().text(style)),
        }
        for pods in [&self.waiting, &self.blocked].into_iter().filter(|pods| !pods.is_empty()) {
            let shown = if wide { pods.len() } else { pods.len().min(MAX_SHOWN) };
            let mut text = pod_table(&pods[..shown]).text(style);
            if shown < pods.len() {
                text.push_str(&format!("and {} more; -o wide shows all\n", pods.len() - shown));
            }
            parts.push(text);
        }
        parts.join("\n")
    }
}

impl Overview {
    fn controller_table(&self) -> Table {
        let mut table = Table::new(["CONTROLLER", "READY", "VERSION"]);
        match &self.controller {
            Some(controller) => {
                let good = controller.ready > 0 && controller.ready >= controller.wanted;
                let ready = format!("{}/{}", controller.ready, controller.wanted);
                let name = format!("{}/{}", self.system_namespace, controller.name);
                table.row([name.into(), judged(ready, good), (&controller.version).into()]);
            }
            None => table.row([
                format!("{}/{CONTROLLER}", self.system_namespace).into(),
                judged("missing", false),
                "".into(),
            ]),
        }
        table
    }

    fn node_table(&self, wide: bool) -> Table {
        let more: &[&str] = if wide { &["RESTARTS"] } else { &[] };
        let heading = ["NODE", "POD", "READY", "VERSION", "CAPTURED", "WAITING"];
        let mut table = Table::new(heading.into_iter().chain(more.iter().copied()));
        for node in &self.nodes {
            let mesh = &node.mesh;
            let mut cells: Vec<Cell> = vec![
                (&mesh.node).into(),
                (&mesh.pod).into(),
                judged(if mesh.ready { "yes" } else { "no" }, mesh.ready),
                (&mesh.version).into(),
                node.captured.into(),
                waiting(node.waiting),
            ];
            if wide {
                cells.push(mesh.restarts.into());
            }
            table.row(cells);
        }
        table
    }

    fn namespace_table(&self) -> Table {
        let mut table = Table::new(["NAMESPACE", "ENROLLED", "CAPTURED", "WAITING", "OUTSIDE", "MTLS"]);
        for namespace in &self.namespaces {
            table.row([
                (&namespace.name).into(),
                if namespace.labelled { "yes" } else { "single pods" }.into(),
                namespace.captured.into(),
                waiting(namespace.waiting),
                namespace.outside.into(),
                namespace.mtls.as_str().into(),
            ]);
        }
        table
    }
}

impl Report for Detail {
    fn text(&self, look: Look) -> String {
        let enrolled = if self.labelled { "is enrolled" } else { "is not enrolled" };
        let mtls = match self.mtls {
            Demand::Strict => "connections without mutual TLS are refused",
            Demand::Permissive => "connections without mutual TLS are let in",
        };
        let table = match self.pods.is_empty() {
            true => "It has no pods.\n".to_owned(),
            false => pod_table(&self.pods).text(look.style),
        };
        format!("Namespace {} {enrolled}; {mtls} ({}).\n\n{table}", self.name, self.mtls.as_str())
    }
}

fn pod_table(pods: &[PodView]) -> Table {
    let mut table = Table::new(["POD", "NODE", "STATE", "WHY"]);
    for pod in pods {
        let tone = match pod.state {
            State::Captured if pod.reason.is_empty() => Tone::Good,
            State::Captured => Tone::Doubtful,
            State::Waiting | State::Leaving => Tone::Doubtful,
            State::Outside => Tone::Plain,
        };
        table.row([
            format!("{}/{}", pod.namespace, pod.name).into(),
            (&pod.node).into(),
            Cell::toned(pod.state.as_str(), tone),
            (&pod.reason).into(),
        ]);
    }
    table
}

fn judged(text: impl ToString, good: bool) -> Cell {
    Cell::toned(text, if good { Tone::Good } else { Tone::Bad })
}

fn waiting(count: usize) -> Cell {
    Cell::toned(count, if count == 0 { Tone::Plain } else { Tone::Doubtful })
}
