//! A `Gateway` and its class, reduced to what a waypoint is.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_manifest::gateway::{
    GatewayClassSpec, GatewaySpec, LabelExpression, LabelSelector, Listener as WrittenListener, ParametersRef,
};

use super::{Flaw, Labels, quoted};

/// Whose waypoints are ours: Istio's name for it, so that classes and dashboards of Istio stay as they are.
pub const CONTROLLER: &str = "istio.io/mesh-controller";
/// The class whose gateways are waypoints, whether or not anybody made the object.
pub const CLASS: &str = "istio-waypoint";
/// Where waypoints listen.
pub const HBONE_PORT: u16 = 15_008;
/// The protocol of a waypoint's listener.
pub const HBONE: &str = "HBONE";
/// Says on a Gateway or its class whose traffic it takes.
const TRAFFIC_LABEL: &str = "istio.io/waypoint-for";

/// Says with the value `optional` that pods behind the waypoint may be reached past it, policies or not.
const TRAVERSAL: &str = "loam.dev/waypoint-traversal";

/// Most listeners of one gateway, as Kubernetes has it.
const MAX_LISTENERS: usize = 64;

/// Whose traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Of services.
    Service,
    /// Of workloads, dialled at their own addresses.
    Workload,
    /// Of both.
    All,
    /// Nobody's.
    None,
}

impl Traffic {
    /// Whether it takes what is dialled at a service's address.
    pub fn has_services(self) -> bool {
        matches!(self, Traffic::Service | Traffic::All)
    }

    /// Whether it takes what is dialled at a workload's own address.
    pub fn has_workloads(self) -> bool {
        matches!(self, Traffic::Workload | Traffic::All)
    }

    fn read(metadata: &ObjectMeta, flaws: &mut Vec<Flaw>) -> Option<Self> {
        match metadata.labels.as_ref()?.get(TRAFFIC_LABEL)?.as_str() {
            "service" => Some(Traffic::Service),
            "workload" => Some(Traffic::Workload),
            "all" => Some(Traffic::All),
            "none" => Some(Traffic::None),
            "" => None,
            other => {
                let other = quoted(other);
                flaws.push(format!(
                    "label {TRAFFIC_LABEL} {other} is not service, workload, all or none: it is ignored"
                ));
                None
            }
        }
    }
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Traffic::Service => "services",
            Traffic::Workload => "workloads",
            Traffic::All => "services and workloads",
            Traffic::None => "nobody",
        })
    }
}

/// What matters about a `GatewayClass`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Class {
    /// Whether its gateways are ours.
    pub is_ours: bool,
    /// Whose traffic its waypoints take, if it says so.
    pub traffic: Option<Traffic>,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// What matters about a `Gateway`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Its class.
    pub class: Arc<str>,
    /// Whose traffic it takes, if it says so.
    pub traffic: Option<Traffic>,
    /// Where it listens.
    pub listeners: Box<[Listener]>,
    /// Addresses that are asked for: whoever asks brings the waypoint along.
    pub addresses: Box<[Arc<str>]>,
    /// Whether what it protects is reached through it only.
    pub must_be_passed: bool,
    /// What is made for it.
    pub infrastructure: Infrastructure,
    /// What it is known by as long as it lives.
    pub uid: Arc<str>,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// What is made for a waypoint.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Infrastructure {
    /// Labels of it.
    pub labels: BTreeMap<String, String>,
    /// Annotations of it.
    pub annotations: BTreeMap<String, String>,
    /// The object with more about it.
    pub parameters: Option<ParametersRef>,
}

/// Where a waypoint listens.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Its name.
    pub name: Arc<str>,
    /// Its port.
    pub port: i64,
    /// Its protocol.
    pub protocol: Arc<str>,
    /// Who may attach.
    pub admits: Admits,
}

impl Listener {
    /// Whether it is one that a waypoint has.
    pub fn is_hbone(&self) -> bool {
        &*self.protocol == HBONE && self.port == i64::from(HBONE_PORT)
    }
}

/// Which namespaces may attach.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Admits {
    /// All.
    All,
    /// The gateway's own.
    #[default]
    Same,
    /// Those with labels.
    Labelled(LabelSelector),
    /// None.
    Nobody,
}

impl Admits {
    /// Whether something of `namespace`, which has `labels`, may attach to a gateway of the namespace `own`.
    pub fn admits(&self, own: &str, namespace: &str, labels: &Labels) -> bool {
        match self {
            Admits::All => true,
            Admits::Same => own == namespace,
            Admits::Labelled(selector) => selects(selector, labels),
            Admits::Nobody => false,
        }
    }
}

/// Whether a selector selects something with `labels`. An empty one selects everything; an operator that nobody knows
/// selects nothing.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let expression = |e: &LabelExpression| {
        let value = labels.get(&e.key);
        let among = value.is_some_and(|value| e.values.iter().any(|v| v == value));
        match e.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value.as_str()))
        && selector.match_expressions.iter().all(expression)
}

/// Reads a class.
pub fn class(metadata: &ObjectMeta, spec: &GatewayClassSpec, flaws: &mut Vec<Flaw>) -> Class {
    let is_ours = spec.controller_name.as_deref() == Some(CONTROLLER) && is_waypoint_class(metadata);
    Class { is_ours, traffic: Traffic::read(metadata, flaws), generation: metadata.generation }
}

/// Istio's controller has other classes, whose gateways are no waypoints.
fn is_waypoint_class(metadata: &ObjectMeta) -> bool {
    !matches!(metadata.name.as_deref(), Some("istio-east-west" | "istio-remote" | "istio-agentgateway-waypoint"))
}

/// Reads a gateway.
pub fn gateway(metadata: ObjectMeta, spec: GatewaySpec, flaws: &mut Vec<Flaw>) -> Gateway {
    let traffic = Traffic::read(&metadata, flaws);
    if spec.listeners.len() > MAX_LISTENERS {
        flaws.push(format!("has more than {MAX_LISTENERS} listeners: the others are ignored"));
    }
    let infrastructure = spec.infrastructure.unwrap_or_default();
    let must_be_passed = match metadata.annotations.as_ref().and_then(|a| a.get(TRAVERSAL)).map(String::as_str) {
        None | Some("required") => true,
        Some("optional") => false,
        Some(other) => {
            let other = quoted(other);
            flaws.push(format!("annotation {TRAVERSAL} {other} is neither required nor optional: required is used"));
            true
        }
    };
    Gateway {
        must_be_passed,
        class: spec.gateway_class_name.unwrap_or_default().into(),
        traffic,
        listeners: spec.listeners.into_iter().take(MAX_LISTENERS).map(|l| listener(l, flaws)).collect(),
        addresses: spec.addresses.into_iter().filter_map(|a| a.value).map(Arc::from).collect(),
        infrastructure: Infrastructure {
            labels: infrastructure.labels,
            annotations: infrastructure.annotations,
            parameters: infrastructure.parameters_ref,
        },
        uid: metadata.uid.unwrap_or_default().into(),
        generation: metadata.generation,
    }
}

fn listener(written: WrittenListener, flaws: &mut Vec<Flaw>) -> Listener {
    let namespaces = written.allowed_routes.and_then(|allowed| allowed.namespaces).unwrap_or_default();
    let admits = match (namespaces.from.as_deref().unwrap_or("Same"), namespaces.selector) {
        ("All", _) => Admits::All,
        ("Same", _) => Admits::Same,
        ("Selector", Some(selector)) => Admits::Labelled(selector),
        ("Selector" | "None", _) => Admits::Nobody,
        (other, _) => {
            let (name, other) = (quoted(&written.name), quoted(other));
            flaws.push(format!("listener {name} admits nobody: {other} is not All, Same, Selector or None"));
            Admits::Nobody
        }
    };
    Listener { name: written.name.into(), port: written.port, protocol: written.protocol.into(), admits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> (Gateway, Vec<Flaw>) {
        let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: infra}\n";
        let mut state = loam_manifest::read([("m.yaml", format!("{head}spec: {yaml}\n").as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        let Some(loam_manifest::Object::Gateway(object)) = state.objects.pop() else { panic!("no gateway") };
        let mut flaws = Vec::new();
        (gateway(object.metadata, object.spec, &mut flaws), flaws)
    }

    /// Whether a namespace may attach, which has the label `team=red`.
    fn admitted(allowed: &str, namespace: &str) -> bool {
        let listener =
            format!("{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {allowed}}}}}");
        let (gateway, _) = read(&format!("{{gatewayClassName: istio-waypoint, listeners: [{listener}]}}"));
        let labels = BTreeMap::from([("team".to_owned(), "red".to_owned())]).into();
        assert!(gateway.listeners[0].is_hbone());
        gateway.listeners[0].admits.admits("infra", namespace, &labels)
    }

    #[test]
    fn a_listener_admits_whom_it_says() {
        assert!(admitted("{}", "infra") && !admitted("{}", "shop"));
        assert!(admitted("{from: All}", "shop"));
        assert!(admitted("{from: Selector, selector: {matchLabels: {team: red}}}", "shop"));
        assert!(!admitted("{from: Selector, selector: {matchLabels: {team: blue}}}", "shop"));
        let expression = |text: &str| format!("{{from: Selector, selector: {{matchExpressions: [{text}]}}}}");
        assert!(admitted(&expression("{key: team, operator: In, values: [blue, red]}"), "shop"));
        assert!(!admitted(&expression("{key: team, operator: NotIn, values: [blue, red]}"), "shop"));
        assert!(admitted(&expression("{key: other, operator: DoesNotExist}"), "shop"));
        assert!(!admitted(&expression("{key: other, operator: Exists}"), "shop"));
        assert!(!admitted("{from: Selector}", "shop") && !admitted("{from: Friends}", "infra"));
    }
}
