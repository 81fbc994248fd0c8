//! The group `networking.istio.io`. Fields that are not here mean nothing to us.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a `ServiceEntry` says: hosts that are no service of Kubernetes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// Names that callers know.
    pub hosts: Option<Vec<String>>,
    /// Virtual addresses: single ones or ranges.
    pub addresses: Option<Vec<String>>,
    /// What is served.
    pub ports: Option<Vec<EntryPort>>,
    /// `MESH_EXTERNAL` or `MESH_INTERNAL`.
    pub location: Option<String>,
    /// `NONE`, `STATIC`, `DNS`, `DNS_ROUND_ROBIN` or `DYNAMIC_DNS`.
    pub resolution: Option<String>,
    /// Endpoints written down here.
    pub endpoints: Option<Vec<WorkloadEntrySpec>>,
    /// Endpoints by their labels.
    pub workload_selector: Option<LabelSelector>,
    /// Namespaces that see it: `.` is its own, `*` all.
    pub export_to: Option<Vec<String>>,
    /// Identities of endpoints beside their own.
    pub subject_alt_names: Option<Vec<String>>,
}

/// A port of a `ServiceEntry`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// What callers dial.
    pub number: Option<i64>,
    /// What is spoken.
    pub protocol: Option<String>,
    /// Its name, by which endpoints refer to it.
    pub name: Option<String>,
    /// What endpoints listen on, if not on the same.
    pub target_port: Option<i64>,
}

/// What a `WorkloadEntry` says, and an endpoint within a `ServiceEntry`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// An IP address or a name to resolve.
    pub address: Option<String>,
    /// By name of the port, where it is another number here.
    pub ports: Option<BTreeMap<String, i64>>,
    /// Its labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// The network of its address.
    pub network: Option<String>,
    /// Region, zone and subzone with slashes between them.
    pub locality: Option<String>,
    /// Its share beside others.
    pub weight: Option<i64>,
    /// Who it speaks as.
    pub service_account: Option<String>,
}

/// Labels that something must have.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// All of these.
    pub labels: Option<BTreeMap<String, String>>,
}

/// What a `Sidecar` says that is not about sidecars.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Which workloads it is for; without it, all of the namespace.
    pub workload_selector: Option<LabelSelector>,
    /// What they may do with destinations that nobody declared.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// What workloads may do with destinations that nobody declared.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundTrafficPolicy {
    /// `ALLOW_ANY` or `REGISTRY_ONLY`.
    pub mode: Option<String>,
}
