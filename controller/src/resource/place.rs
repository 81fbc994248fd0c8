//! What a pod inherits from where it is: its namespace and its node.

use k8s_openapi::api::core::v1::{Namespace as K8sNamespace, Node};
use loam_core::workload::Locality;
use loam_manifest::enrol;

use super::egress::{Mode, of_namespace};
use super::service::TRAFFIC_DISTRIBUTION;
use super::service::{Distribution, distribution};
use super::use_waypoint::UseWaypoint;
use super::{Flaw, Labels, usable_text};

/// What a namespace says about all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// Its labels, by which gateways choose whom they admit.
    pub labels: Labels,
    /// The waypoint of all that is in it unless it says otherwise.
    pub waypoint: UseWaypoint,
    /// Whether its pods belong to the mesh unless they say otherwise.
    pub in_mesh: bool,
    /// Where its services send traffic first unless they say otherwise.
    pub distribution: Option<Distribution>,
    /// What its workloads may do with destinations that nobody declared, unless a `Sidecar` says otherwise.
    pub egress: Option<Mode>,
}

/// Reads a namespace.
pub fn namespace(object: &K8sNamespace, flaws: &mut Vec<Flaw>) -> Namespace {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(TRAFFIC_DISTRIBUTION));
    Namespace {
        labels: object.metadata.labels.clone().unwrap_or_default().into(),
        waypoint: UseWaypoint::read(&object.metadata, name, flaws),
        in_mesh: enrol::namespace_in(object),
        distribution: annotation.and_then(|text| distribution(text, flaws)),
        egress: of_namespace(object, flaws),
    }
}

/// Where a node stands.
pub fn locality(node: &Node, flaws: &mut Vec<Flaw>) -> Locality {
    let mut label = |key: &str| {
        let value = node.metadata.labels.as_ref().and_then(|l| l.get(key));
        usable_text(key, value.map_or("", String::as_str), flaws).into()
    };
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}
