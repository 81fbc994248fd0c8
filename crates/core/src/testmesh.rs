//! A small mesh written as text, for tests.
//!
//! ```text
//! pod shop/web-1 10.0.0.1,fd00::1 hbone node=n1 serves=shop/web:80>8080 policies=shop/p waypoint=shop/wp by=shop/wp:8080
//! svc shop/web 10.1.0.1 ports=80>8080 mode=failover:region,zone waypoint=shop/wp!bypass
//! ```

use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::NetworkAddr;
use crate::egress::Egress;
use crate::ids::{Identity, ServiceKey, TrustDomain, WorkloadUid};
use crate::service::{
    Affinity, Balancing, BalancingMode, IpFamilies, Port, Scope, Service, ServiceAddr, Visibility, WeightedWaypoint,
};
use crate::snapshot::{Change, Snapshot};
use crate::traversal::Traversal;
use crate::workload::{
    GatewayAddr, GatewayDestination, Health, Locality, NetworkMode, ServicePorts, TunnelProtocol, Workload,
};

pub(crate) fn mesh(text: &str) -> Snapshot {
    Snapshot::default().apply(changes(text))
}

pub(crate) fn changes(text: &str) -> Vec<Change> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(line).collect()
}

/// `shop/web` is the service `web.shop.svc` of namespace `shop`.
pub(crate) fn key(name: &str) -> ServiceKey {
    let (namespace, name) = name.split_once('/').unwrap();
    format!("{namespace}/{name}.{namespace}.svc").parse().unwrap()
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    let (namespace, name) = name.split_once('/').unwrap();
    WorkloadUid::of_pod("c", namespace, name)
}

fn line(text: &str) -> Change {
    let mut words = text.split_whitespace();
    let (kind, name) = (words.next().unwrap(), words.next().unwrap());
    match kind {
        "pod" => Change::Workload(pod(name, words)),
        "svc" => Change::Service(svc(name, words)),
        "-pod" => Change::RemoveWorkload(uid(name)),
        "-svc" => Change::RemoveService(key(name)),
        _ => panic!("{text}"),
    }
}

fn gateway(text: &str) -> Arc<GatewayAddr> {
    let (text, bypass) = text.strip_suffix("!bypass").map_or((text, false), |text| (text, true));
    let destination = match text.parse() {
        Ok(ip) => GatewayDestination::Address(NetworkAddr { network: "".into(), ip }),
        Err(_) => GatewayDestination::Service(key(text)),
    };
    Arc::new(GatewayAddr { destination, hbone_port: 15008, bypass })
}

fn ports(text: &str) -> Vec<Port> {
    let port = |pair: &str| {
        let (service_port, target_port) = pair.split_once('>').unwrap();
        Port {
            service_port: service_port.parse().unwrap(),
            target_port: target_port.parse().unwrap(),
            ..Port { service_port: 0, target_port: 0, app_protocol: Default::default() }
        }
    };
    text.split(',').map(port).collect()
}

/// `shop/wp:80+81`: the waypoint `shop/wp`, whose account has its name, and the ports behind it.
fn traversal(text: &str) -> Traversal {
    let (waypoint, ports) = text.split_once(':').unwrap_or((text, ""));
    let (namespace, account) = waypoint.split_once('/').unwrap();
    Traversal {
        waypoint: waypoint.into(),
        identities: [Identity::new(TrustDomain::default(), namespace, account).unwrap()].into(),
        ports: ports.split('+').filter(|port| !port.is_empty()).map(|port| port.parse().unwrap()).collect(),
    }
}

fn pod<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Workload {
    let (namespace, short) = name.split_once('/').unwrap();
    let account = short.split('-').next().unwrap();
    let identity = Identity::new(TrustDomain::default(), namespace, account).unwrap();
    let mut w = Workload { cluster: "c".into(), ..Workload::new(uid(name), short, identity) };
    let mut locality = Locality::default();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("hbone", _) => w.protocol = TunnelProtocol::Hbone,
            ("unhealthy", _) => w.health = Health::Unhealthy,
            ("registry-only", value) => w.egress = Egress::RegistryOnly { origin: value.into() },
            ("hostnet", _) => w.network_mode = NetworkMode::HostNetwork,
            ("uid", value) => w.uid = value.parse().unwrap(),
            ("host", value) => w.hostname = Some(value.parse().unwrap()),
            ("node", value) => w.node = value.into(),
            ("network", value) => w.network = value.into(),
            ("weight", value) => w.capacity = value.parse().unwrap(),
            ("region", value) => locality.region = value.into(),
            ("zone", value) => locality.zone = value.into(),
            ("waypoint", value) => w.waypoint = Some(gateway(value)),
            ("by", value) => w.traversal = value.split(',').map(traversal).collect(),
            ("policies", value) => w.policies = value.split(',').map(Arc::from).collect(),
            ("serves", value) => {
                let served = |text: &str| {
                    let (name, on) = text.split_once(':').unwrap_or((text, ""));
                    let on = if on.is_empty() { Vec::new() } else { ports(&on.replace('+', ",")) };
                    ServicePorts { service: key(name), ports: on.into() }
                };
                w.services = value.split(',').map(served).collect();
            }
            (ips, "") => w.addresses = ips.split(',').map(|ip| ip.parse().unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }
    w.locality = Arc::new(locality);
    w
}

fn svc<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Service {
    let mut s = Service::new(key(name), name.split_once('/').unwrap().1);
    let mut network: Arc<str> = "".into();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("canonical", _) => s.canonical = true,
            ("private", _) => s.visibility = Visibility::Namespace,
            ("shown", value) => s.visibility = Visibility::Namespaces(value.split(',').map(Arc::from).collect()),
            ("unhealthy-too", _) => s.balancing.allow_unhealthy = true,
            ("affinity", _) => s.balancing.affinity = Affinity::ClientAddress,
            ("v4", _) => s.ip_families = IpFamilies::Ipv4Only,
            ("v6", _) => s.ip_families = IpFamilies::Ipv6Only,
            ("network", value) => network = value.into(),
            ("ports", value) => s.ports = ports(value),
            ("san", value) => s.subject_alt_names.push(value.parse().unwrap()),
            ("waypoint", value) => s.waypoint = Some(gateway(value)),
            ("waypoints", value) => {
                let weighted = |text: &str| {
                    let (name, weight) = text.split_once(':').unwrap();
                    WeightedWaypoint { gateway: gateway(name), weight: weight.parse().unwrap() }
                };
                s.weighted_waypoints = value.split(',').map(weighted).collect();
            }
            ("mode", value) => {
                let (mode, scopes) = value.split_once(':').unwrap_or((value, ""));
                let scope = |text: &str| match text {
                    "region" => Scope::Region,
                    "zone" => Scope::Zone,
                    "node" => Scope::Node,
                    "network" => Scope::Network,
                    _ => panic!("{text}"),
                };
                let mode = match mode {
                    "strict" => BalancingMode::Strict,
                    "failover" => BalancingMode::Failover,
                    "passthrough" => BalancingMode::Passthrough,
                    _ => panic!("{mode}"),
                };
                let preference = scopes.split(',').filter(|s| !s.is_empty()).map(scope).collect();
                s.balancing = Balancing { preference, mode, ..s.balancing };
            }
            (vips, "") => {
                let vip = |text: &str| -> IpNet {
                    text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<std::net::IpAddr>().unwrap()))
                };
                s.addresses =
                    vips.split(',').map(|v| ServiceAddr { network: network.clone(), range: vip(v) }).collect();
            }
            other => panic!("{other:?}"),
        }
    }
    s
}
