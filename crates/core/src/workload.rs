//! A workload: an addressed instance of something that runs, with the identity it speaks as.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::NetworkAddr;
use crate::egress::Egress;
use crate::ids::{Hostname, Identity, ServiceKey, WorkloadUid};
use crate::service::Port;
use crate::traversal::Traversal;

/// One workload of the mesh (`istio.workload.Workload`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Unique name.
    pub uid: WorkloadUid,
    /// Name of the object, such as the pod's.
    pub name: Arc<str>,
    /// Who it is: trust domain, namespace, service account.
    pub identity: Identity,
    /// Its own addresses; empty when it is known by `hostname` only.
    pub addresses: Vec<IpAddr>,
    /// Name to resolve when there is no address.
    pub hostname: Option<Hostname>,
    /// The network its addresses belong to.
    pub network: Arc<str>,
    /// How to reach it.
    pub protocol: TunnelProtocol,
    /// Whether its addresses are those of its node, shared with others.
    pub network_mode: NetworkMode,
    /// Node it runs on; empty outside a node.
    pub node: Arc<str>,
    /// What it calls itself: app and version for telemetry.
    pub canonical_name: Arc<str>,
    /// See `canonical_name`.
    pub canonical_revision: Arc<str>,
    /// Kind of the object that owns it.
    pub kind: WorkloadKind,
    /// Name of the owning object, such as the Deployment's.
    pub owner: Arc<str>,
    /// Cluster it belongs to.
    pub cluster: Arc<str>,
    /// Where it stands; shared by all workloads of a place.
    pub locality: Arc<Locality>,
    /// Whether it may be picked.
    pub health: Health,
    /// Weight among the endpoints of a service; 1 unless said otherwise.
    pub capacity: u32,
    /// Services it serves, with the ports it serves them on; the endpoints of a service usually share the list.
    pub services: Arc<[ServicePorts]>,
    /// Selector policies that apply to it, as `namespace/name`, beyond those of namespace and mesh.
    pub policies: Arc<[Arc<str>]>,
    /// The waypoint in front of it.
    pub waypoint: Option<Arc<GatewayAddr>>,
    /// The gateway through which other networks reach it.
    pub network_gateway: Option<Arc<GatewayAddr>>,
    /// What it may do with destinations that nobody declared.
    pub egress: Egress,
    /// The waypoints by which alone ports of it are reached.
    pub traversal: Arc<[Traversal]>,
}

/// A service that a workload serves, and where: the target port of each service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePorts {
    /// The service.
    pub service: ServiceKey,
    /// Its ports as this workload serves them.
    pub ports: Arc<[Port]>,
}

impl Workload {
    /// A healthy workload without addresses, services or policies, to be filled in.
    pub fn new(uid: WorkloadUid, name: impl Into<Arc<str>>, identity: Identity) -> Self {
        let empty: Arc<str> = Arc::default();
        Self {
            uid,
            name: name.into(),
            identity,
            addresses: Vec::new(),
            hostname: None,
            network: empty.clone(),
            protocol: TunnelProtocol::default(),
            network_mode: NetworkMode::default(),
            node: empty.clone(),
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            kind: WorkloadKind::default(),
            owner: empty.clone(),
            cluster: empty,
            locality: Arc::default(),
            health: Health::default(),
            capacity: 1,
            services: Arc::default(),
            policies: Arc::default(),
            waypoint: None,
            network_gateway: None,
            egress: Egress::default(),
            traversal: Arc::default(),
        }
    }

    /// Its namespace, which is part of its identity.
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }

    /// Whether `ip` is one of its own addresses. Those of a node are not its own.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.network_mode == NetworkMode::Standard && self.addresses.contains(&ip)
    }

    /// The name to resolve in order to reach it, where it is known by that only.
    pub fn known_as(&self) -> Option<&Hostname> {
        self.hostname.as_ref().filter(|_| self.addresses.is_empty())
    }

    /// The ports on which it serves `service`, if it does.
    pub fn ports_of(&self, service: &ServiceKey) -> Option<&[Port]> {
        self.services.iter().find(|s| s.service == *service).map(|s| &*s.ports)
    }
}

/// How the bytes of a connection reach a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TunnelProtocol {
    /// In the clear.
    #[default]
    None,
    /// In an HBONE tunnel to port 15008.
    Hbone,
}

/// Whose addresses a workload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// Its node's: an address does not name the workload.
    HostNetwork,
}

/// Whether a workload may receive new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// It may.
    #[default]
    Healthy,
    /// Not ready, or terminating.
    Unhealthy,
}

/// Kind of the object that owns a workload; names the baggage key `k8s.<kind>.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds say it")]
pub enum WorkloadKind {
    #[default]
    Pod,
    Deployment,
    CronJob,
    Job,
}

/// Place of a workload, widest first; an unknown part is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Such as a cloud region.
    pub region: Arc<str>,
    /// Such as an availability zone.
    pub zone: Arc<str>,
    /// Such as a rack.
    pub subzone: Arc<str>,
}

/// Where a gateway or waypoint listens for HBONE.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddr {
    /// Its address or its service.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_port: u16,
    /// Whether connections go past it while it is not there, which somebody asked for; else they are refused.
    pub bypass: bool,
}

/// How a gateway is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// By address: a workload's or a service's.
    Address(NetworkAddr),
    /// By service.
    Service(ServiceKey),
}

impl fmt::Display for GatewayAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Address(addr) => write!(f, "{addr}:{}", self.hbone_port),
            GatewayDestination::Service(key) => write!(f, "{key}:{}", self.hbone_port),
        }
    }
}
