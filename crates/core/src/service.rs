//! A service: a name and addresses with ports, served by workloads.

use std::sync::Arc;

use ipnet::IpNet;

use crate::ids::{Identity, ServiceKey};
use crate::workload::GatewayAddr;

/// One service of the mesh (`istio.workload.Service`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and hostname, unique together.
    pub key: ServiceKey,
    /// Name of the object.
    pub name: Arc<str>,
    /// Virtual addresses; empty for a headless service. A full-length prefix is a single address.
    pub addresses: Vec<ServiceAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Identities its endpoints may have beside the workload's own.
    pub subject_alt_names: Vec<Identity>,
    /// How an endpoint is picked.
    pub balancing: Balancing,
    /// Which address families callers may be given.
    pub ip_families: IpFamilies,
    /// The waypoint in front of it.
    pub waypoint: Option<Arc<GatewayAddr>>,
    /// Waypoints that share its connections by weight; when there are any, `waypoint` is not used.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whether it is the one that its hostname means where several claim it.
    pub canonical: bool,
    /// Whose callers it is for.
    pub visibility: Visibility,
}

impl Service {
    /// A service without addresses and ports, to be filled in.
    pub fn new(key: ServiceKey, name: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            name: name.into(),
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            balancing: Balancing::default(),
            ip_families: IpFamilies::default(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// Whether a caller of `namespace` may use it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        match &self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => &*self.key.namespace == namespace,
            Visibility::Namespaces(namespaces) => namespaces.iter().any(|shown| **shown == *namespace),
        }
    }

    /// The declared port that callers dial as `service_port`.
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }
}

/// One of several waypoints of a service, and its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub gateway: Arc<GatewayAddr>,
    /// Its share beside the others'.
    pub weight: u32,
}

/// Which callers a service exists for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    /// All.
    #[default]
    Public,
    /// Those of its own namespace.
    Namespace,
    /// Those of these namespaces; its own is among them or not.
    Namespaces(Arc<[Arc<str>]>),
}

/// A virtual address of a service: one address or a range.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAddr {
    /// Its network.
    pub network: Arc<str>,
    /// The range; `/32` and `/128` are single addresses.
    pub range: IpNet,
}

/// A port of a service, and where an endpoint serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// What callers dial.
    pub service_port: u16,
    /// What the endpoint listens on; 0 on a service means that each endpoint names its own.
    pub target_port: u16,
    /// What is spoken, as declared.
    pub app_protocol: AppProtocol,
}

/// The declared protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs, reason = "the names of protocols say it")]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// How endpoints of a service are ranked and which may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancing {
    /// What endpoints should share with the caller, most important first.
    pub preference: Vec<Scope>,
    /// What happens when they do not share it.
    pub mode: BalancingMode,
    /// Whether unhealthy endpoints may be used (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
    /// What keeps a caller with its endpoint (`sessionAffinity`).
    pub affinity: Affinity,
}

/// What the connections of one endpoint have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Affinity {
    /// Nothing.
    #[default]
    None,
    /// The address of the workload that opens them.
    ClientAddress,
}

/// What an endpoint and its caller may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of scopes say it")]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What a preference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BalancingMode {
    /// All endpoints are equal.
    #[default]
    Any,
    /// Only endpoints that share everything in the preference.
    Strict,
    /// The endpoints that share most; others when there are none.
    Failover,
    /// No endpoints are picked: connections go where the application dialled.
    Passthrough,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs, reason = "the names of families say it")]
pub enum IpFamilies {
    #[default]
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}
