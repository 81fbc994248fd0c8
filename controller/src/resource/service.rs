//! A service, reduced.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service as K8sService, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use loam_core::service::{Affinity, AppProtocol, Balancing, BalancingMode, IpFamilies, Scope};

use super::use_waypoint::{UseWaypoint, is_of_gateway};
use super::{Flaw, Labels, is_tcp, quoted, usable_ip, usable_port};

/// Says where traffic goes first, on a service or a namespace.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Most ports of one service; Kubernetes itself stops far below.
const MAX_PORTS: usize = 1_000;

/// What matters about a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its virtual addresses; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// What its callers and its endpoints have to do with each other.
    pub membership: Membership,
    /// Where traffic goes first, if it says so itself.
    pub distribution: Option<Distribution>,
    /// Whether only endpoints of the caller's node count.
    pub node_local: bool,
    /// Whether endpoints that are not ready count.
    pub allow_unhealthy: bool,
    /// What keeps a caller with its endpoint.
    pub affinity: Affinity,
    /// Address families of its callers.
    pub ip_families: IpFamilies,
    /// What it says about the waypoint in front of it.
    pub waypoint: UseWaypoint,
    /// Whether it is a gateway's own.
    pub of_gateway: bool,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// The part of a service that decides which workloads serve it, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    /// Which pods serve it; empty when slices tell.
    pub selector: Labels,
    /// Its TCP ports.
    pub ports: Box<[Port]>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name; slices refer to it.
    pub name: Box<str>,
    /// What callers dial.
    pub number: u16,
    /// What an endpoint listens on.
    pub target: Target,
    /// What is spoken.
    pub protocol: AppProtocol,
}

/// Where an endpoint serves a port.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The same number everywhere.
    Number(u16),
    /// The port with this name, which each pod may have elsewhere.
    Name(Box<str>),
}

/// Where traffic goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Anywhere.
    Any,
    /// The caller's zone, then its region.
    SameZone,
    /// The caller's node, then as [`Distribution::SameZone`].
    SameNode,
}

impl Service {
    /// How endpoints are picked, given what the namespace says about it.
    pub fn balancing(&self, of_namespace: Option<Distribution>) -> Balancing {
        let balancing = match self.node_local {
            true => Balancing { mode: BalancingMode::Strict, preference: vec![Scope::Node], ..Balancing::default() },
            false => toward(self.distribution.or(of_namespace)),
        };
        Balancing { allow_unhealthy: self.allow_unhealthy, affinity: self.affinity, ..balancing }
    }
}

/// How endpoints are picked when traffic goes there first.
pub fn toward(distribution: Option<Distribution>) -> Balancing {
    let wider = [Scope::Network, Scope::Region, Scope::Zone];
    let (mode, preference) = match distribution.unwrap_or(Distribution::Any) {
        Distribution::Any => (BalancingMode::Any, Vec::new()),
        Distribution::SameZone => (BalancingMode::Failover, wider.to_vec()),
        Distribution::SameNode => (BalancingMode::Failover, [&wider[..], &[Scope::Subzone, Scope::Node]].concat()),
    };
    Balancing { mode, preference, ..Balancing::default() }
}

/// Reads a service; `None` for one that is only an alias of a name, which DNS resolves.
pub fn read(service: K8sService, flaws: &mut Vec<Flaw>) -> Option<Service> {
    let annotation = service.metadata.annotations.as_ref().and_then(|a| a.get(TRAFFIC_DISTRIBUTION)).cloned();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let waypoint = UseWaypoint::read(&service.metadata, namespace, flaws);
    let mut spec = service.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let selector = spec.selector.take().unwrap_or_default().into();
    Some(Service {
        addresses: addresses(&spec, flaws),
        membership: Membership { selector, ports: ports(spec.ports.take().unwrap_or_default(), flaws) },
        distribution: spec.traffic_distribution.or(annotation).and_then(|text| distribution(&text, flaws)),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        allow_unhealthy: spec.publish_not_ready_addresses == Some(true),
        affinity: affinity(spec.session_affinity.as_deref().unwrap_or_default(), flaws),
        ip_families: ip_families(&spec.ip_families.unwrap_or_default()),
        waypoint,
        of_gateway: is_of_gateway(service.metadata.labels.as_ref()),
        generation: service.metadata.generation,
    })
}

fn addresses(spec: &ServiceSpec, flaws: &mut Vec<Flaw>) -> Vec<IpAddr> {
    let mut given = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter(|ip| !ip.is_empty()).peekable();
    if given.peek().is_none() {
        // An API server would have given it one.
        flaws.push("has no clusterIP: callers reach its pods only at their own addresses".to_owned());
    }
    let mut addresses = Vec::new();
    for text in given.filter(|ip| *ip != "None") {
        match usable_ip(text) {
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) => addresses.push(ip),
            Err(flaw) => flaws.push(flaw),
        }
    }
    addresses
}

fn ports(given: Vec<ServicePort>, flaws: &mut Vec<Flaw>) -> Box<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for port in given.into_iter().filter(|p| is_tcp(p.protocol.as_deref())) {
        match read_port(port) {
            Ok(port) if ports.iter().any(|p| p.number == port.number) => {
                flaws.push(format!("port {} is there twice: the first counts", port.number));
            }
            Ok(port) if ports.len() < MAX_PORTS => ports.push(port),
            Ok(port) => flaws.push(format!("port {} is left out: there are {MAX_PORTS} already", port.number)),
            Err(flaw) => flaws.push(flaw),
        }
    }
    ports.into()
}

fn read_port(port: ServicePort) -> Result<Port, Flaw> {
    let number = usable_port("port", port.port)?;
    let target = match port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(number),
        Some(IntOrString::Int(target)) => Target::Number(usable_port("target port", target)?),
        Some(IntOrString::String(name)) if name.is_empty() => Target::Number(number),
        // A number in quotes is a number to kube-proxy as well.
        Some(IntOrString::String(name)) => match name.parse::<i32>() {
            Ok(target) => Target::Number(usable_port("target port", target)?),
            Err(_) => Target::Name(name.into()),
        },
    };
    let name = port.name.unwrap_or_default();
    let protocol = protocol(port.app_protocol.as_deref(), &name);
    Ok(Port { name: name.into(), number, target, protocol })
}

/// What is spoken: as declared, or as the name of the port begins (`http-web`).
pub fn protocol(declared: Option<&str>, port_name: &str) -> AppProtocol {
    let word = declared.filter(|p| !p.is_empty()).unwrap_or_else(|| port_name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// Reads where traffic goes first; an unknown word is told and means nothing.
pub fn distribution(text: &str, flaws: &mut Vec<Flaw>) -> Option<Distribution> {
    match text {
        "" => None,
        "Any" => Some(Distribution::Any),
        "PreferClose" | "PreferSameZone" => Some(Distribution::SameZone),
        "PreferSameNode" => Some(Distribution::SameNode),
        other => {
            let word: String = other.chars().take(64).collect();
            flaws.push(format!(
                "traffic distribution {word:?} is not Any, PreferClose, PreferSameZone or PreferSameNode"
            ));
            None
        }
    }
}

fn affinity(text: &str, flaws: &mut Vec<Flaw>) -> Affinity {
    match text {
        "" | "None" => Affinity::None,
        "ClientIP" => Affinity::ClientAddress,
        other => {
            flaws.push(format!("sessionAffinity {} is neither None nor ClientIP: None is used", quoted(other)));
            Affinity::None
        }
    }
}

fn ip_families(families: &[String]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|f| f == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}
