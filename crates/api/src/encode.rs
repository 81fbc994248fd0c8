//! From the mesh's own types to messages. Equal values give equal bytes.

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use loam_core::egress::Egress;
use loam_core::http::route::ServiceRoutes;
use loam_core::http::traffic::ServiceTraffic;
use loam_core::ids::TrustDomain;
use loam_core::policy::{Action, Match, Policy, Scope as PolicyScope, StringMatch};
use loam_core::service::{Affinity, AppProtocol, BalancingMode, IpFamilies, Port, Scope, Service, Visibility};
use loam_core::traversal::Traversal;
use loam_core::workload::{
    GatewayAddr, GatewayDestination, Health, NetworkMode, TunnelProtocol, Workload, WorkloadKind,
};
use prost::Message;

mod filters;
mod routes;
mod traffic;

use crate::convert::{DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT};
use crate::{security, workload};

/// The resource of a workload: its name and its body, an encoded [`workload::Address`].
pub fn workload(value: &Workload) -> (String, Bytes) {
    let message = workload::Address { r#type: Some(workload::address::Type::Workload(value.into())) };
    (value.uid.to_string(), message.encode_to_vec().into())
}

/// The resource of a service: its name and its body, an encoded [`workload::Address`].
pub fn service(value: &Service) -> (String, Bytes) {
    let message = workload::Address { r#type: Some(workload::address::Type::Service(value.into())) };
    (value.key.to_string(), message.encode_to_vec().into())
}

/// The resource of a policy: its name and its body, an encoded [`security::Authorization`].
pub fn policy(value: &Policy) -> (String, Bytes) {
    (value.key.to_string(), security::Authorization::from(value).encode_to_vec().into())
}

/// The resource of a service's routes for the waypoint `gateway` (`namespace/name`): its name and its body, an encoded
/// [`crate::waypoint::ServiceRoutes`].
pub fn routes(gateway: &str, value: &ServiceRoutes) -> (String, Bytes) {
    (format!("{gateway}/{}", value.service), routes::message(gateway, value).encode_to_vec().into())
}

/// The resource of how a service is spoken to by the waypoint `gateway`: its name and its body, an encoded
/// [`crate::waypoint::ServiceTraffic`].
pub fn traffic(gateway: &str, value: &ServiceTraffic) -> (String, Bytes) {
    (format!("{gateway}/{}", value.service), traffic::message(gateway, value).encode_to_vec().into())
}

impl From<&Workload> for workload::Workload {
    fn from(value: &Workload) -> Self {
        let locality = &value.locality;
        let locality = workload::Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            subzone: locality.subzone.to_string(),
        };
        let ports_of = |s: &loam_core::workload::ServicePorts| {
            (s.service.to_string(), workload::PortList { ports: s.ports.iter().map(port).collect() })
        };
        Self {
            name: value.name.to_string(),
            namespace: value.namespace().to_owned(),
            addresses: value.addresses.iter().copied().map(ip).collect(),
            network: value.network.to_string(),
            tunnel_protocol: match value.protocol {
                TunnelProtocol::None => workload::TunnelProtocol::None,
                TunnelProtocol::Hbone => workload::TunnelProtocol::Hbone,
            }
            .into(),
            trust_domain: unless(value.identity.trust_domain().as_str(), TrustDomain::DEFAULT),
            service_account: unless(value.identity.service_account(), DEFAULT_SERVICE_ACCOUNT),
            waypoint: value.waypoint.as_deref().map(gateway),
            node: value.node.to_string(),
            canonical_name: value.canonical_name.to_string(),
            canonical_revision: value.canonical_revision.to_string(),
            workload_type: match value.kind {
                WorkloadKind::Pod => workload::WorkloadType::Pod,
                WorkloadKind::Deployment => workload::WorkloadType::Deployment,
                WorkloadKind::CronJob => workload::WorkloadType::Cronjob,
                WorkloadKind::Job => workload::WorkloadType::Job,
            }
            .into(),
            workload_name: value.owner.to_string(),
            native_tunnel: false,
            authorization_policies: value.policies.iter().map(ToString::to_string).collect(),
            status: match value.health {
                Health::Healthy => workload::WorkloadStatus::Healthy,
                Health::Unhealthy => workload::WorkloadStatus::Unhealthy,
            }
            .into(),
            cluster_id: unless(&value.cluster, DEFAULT_CLUSTER),
            network_gateway: value.network_gateway.as_deref().map(gateway),
            uid: value.uid.to_string(),
            hostname: value.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            services: value.services.iter().map(ports_of).collect(),
            application_tunnel: None,
            locality: (locality != workload::Locality::default()).then_some(locality),
            network_mode: match value.network_mode {
                NetworkMode::Standard => workload::NetworkMode::Standard,
                NetworkMode::HostNetwork => workload::NetworkMode::HostNetwork,
            }
            .into(),
            capacity: (value.capacity != 1).then_some(value.capacity),
            egress: egress(&value.egress),
            traversal: value.traversal.iter().map(traversal).collect(),
        }
    }
}

impl From<&Service> for workload::Service {
    fn from(value: &Service) -> Self {
        let address = |addr: &loam_core::service::ServiceAddr| workload::NetworkAddress {
            network: addr.network.to_string(),
            address: ip(addr.range.addr()),
            length: (addr.range.prefix_len() < addr.range.max_prefix_len()).then(|| addr.range.prefix_len().into()),
        };
        let weighted = |w: &loam_core::service::WeightedWaypoint| workload::WeightedWaypoint {
            destination: Some(gateway(&w.gateway)),
            weight: w.weight,
        };
        let balancing = balancing(value);
        Self {
            name: value.name.to_string(),
            namespace: value.key.namespace.to_string(),
            hostname: value.key.hostname.to_string(),
            addresses: value.addresses.iter().map(address).collect(),
            ports: value.ports.iter().map(port).collect(),
            subject_alt_names: value.subject_alt_names.iter().map(ToString::to_string).collect(),
            waypoint: value.waypoint.as_deref().map(gateway),
            load_balancing: (balancing != workload::LoadBalancing::default()).then_some(balancing),
            ip_families: match value.ip_families {
                IpFamilies::Automatic => workload::IpFamilies::Automatic,
                IpFamilies::Ipv4Only => workload::IpFamilies::Ipv4Only,
                IpFamilies::Ipv6Only => workload::IpFamilies::Ipv6Only,
                IpFamilies::Dual => workload::IpFamilies::Dual,
            }
            .into(),
            canonical: value.canonical,
            ingress_use_waypoint: false,
            weighted_waypoints: value.weighted_waypoints.iter().map(weighted).collect(),
            visibility: match &value.visibility {
                Visibility::Public => workload::Visibility::Public,
                Visibility::Namespace | Visibility::Namespaces(_) => workload::Visibility::Namespace,
            }
            .into(),
            visible_to: match &value.visibility {
                Visibility::Public | Visibility::Namespace => Vec::new(),
                Visibility::Namespaces(namespaces) => namespaces.iter().map(ToString::to_string).collect(),
            },
        }
    }
}

impl From<&Policy> for security::Authorization {
    fn from(value: &Policy) -> Self {
        let rule = |rule: &loam_core::policy::Rule| security::Rule {
            clauses: rule
                .clauses
                .iter()
                .map(|clause| security::Clause { matches: clause.matches.iter().map(one_match).collect() })
                .collect(),
        };
        Self {
            name: value.key.split_once('/').map_or(&*value.key, |(_, name)| name).to_owned(),
            namespace: value.namespace.to_string(),
            scope: match value.scope {
                PolicyScope::Global => security::Scope::Global,
                PolicyScope::Namespace => security::Scope::Namespace,
                PolicyScope::Workload => security::Scope::WorkloadSelector,
            }
            .into(),
            action: match value.action {
                Action::Allow => security::Action::Allow,
                Action::Deny => security::Action::Deny,
            }
            .into(),
            rules: value.rules.iter().map(rule).collect(),
            dry_run: value.dry_run,
        }
    }
}

fn egress(value: &Egress) -> Option<workload::Egress> {
    match value {
        Egress::AllowAny => None,
        Egress::RegistryOnly { origin } => {
            Some(workload::Egress { mode: workload::egress::Mode::RegistryOnly.into(), origin: origin.to_string() })
        }
    }
}

fn traversal(value: &Traversal) -> workload::Traversal {
    workload::Traversal {
        waypoint: value.waypoint.to_string(),
        identities: value.identities.iter().map(ToString::to_string).collect(),
        ports: value.ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

/// Text, or nothing when it is what the wire leaves out.
fn unless(text: &str, default: &str) -> String {
    if text == default { String::new() } else { text.to_owned() }
}

fn ip(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

fn port(port: &Port) -> workload::Port {
    workload::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: match port.app_protocol {
            AppProtocol::Unknown => workload::AppProtocol::Unknown,
            AppProtocol::Http11 => workload::AppProtocol::Http11,
            AppProtocol::Http2 => workload::AppProtocol::Http2,
            AppProtocol::Grpc => workload::AppProtocol::Grpc,
            AppProtocol::Tcp => workload::AppProtocol::Tcp,
            AppProtocol::Tls => workload::AppProtocol::Tls,
        }
        .into(),
    }
}

fn gateway(value: &GatewayAddr) -> workload::GatewayAddress {
    use workload::gateway_address::Destination;
    let destination = match &value.destination {
        GatewayDestination::Address(addr) => Destination::Address(workload::NetworkAddress {
            network: addr.network.to_string(),
            address: ip(addr.ip),
            length: None,
        }),
        GatewayDestination::Service(key) => Destination::Hostname(workload::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
    };
    workload::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: value.hbone_port.into(),
        bypass_when_absent: value.bypass,
    }
}

fn balancing(service: &Service) -> workload::LoadBalancing {
    use workload::load_balancing as lb;
    let scope = |scope: &Scope| -> i32 {
        match scope {
            Scope::Region => lb::Scope::Region,
            Scope::Zone => lb::Scope::Zone,
            Scope::Subzone => lb::Scope::Subzone,
            Scope::Node => lb::Scope::Node,
            Scope::Cluster => lb::Scope::Cluster,
            Scope::Network => lb::Scope::Network,
        }
        .into()
    };
    workload::LoadBalancing {
        routing_preference: service.balancing.preference.iter().map(scope).collect(),
        mode: match service.balancing.mode {
            BalancingMode::Any => lb::Mode::UnspecifiedMode,
            BalancingMode::Strict => lb::Mode::Strict,
            BalancingMode::Failover => lb::Mode::Failover,
            BalancingMode::Passthrough => lb::Mode::Passthrough,
        }
        .into(),
        health_policy: match service.balancing.allow_unhealthy {
            true => lb::HealthPolicy::AllowAll,
            false => lb::HealthPolicy::OnlyHealthy,
        }
        .into(),
        affinity: match service.balancing.affinity {
            Affinity::None => lb::Affinity::NoAffinity,
            Affinity::ClientAddress => lb::Affinity::ClientAddress,
        }
        .into(),
    }
}

fn one_match(m: &Match) -> security::Match {
    let strings = |values: &[StringMatch]| values.iter().map(string).collect();
    let ranges = |values: &[IpNet]| -> Vec<security::Address> {
        let range = |net: &IpNet| security::Address { address: ip(net.addr()), length: net.prefix_len().into() };
        values.iter().map(range).collect()
    };
    let ports = |values: &[u16]| values.iter().map(|port| u32::from(*port)).collect();
    let accounts = |values: &[loam_core::policy::ServiceAccount]| -> Vec<security::ServiceAccountMatch> {
        let account = |a: &loam_core::policy::ServiceAccount| security::ServiceAccountMatch {
            namespace: a.namespace.to_string(),
            service_account: a.name.to_string(),
        };
        values.iter().map(account).collect()
    };
    security::Match {
        namespaces: strings(&m.namespaces),
        not_namespaces: strings(&m.not_namespaces),
        principals: strings(&m.principals),
        not_principals: strings(&m.not_principals),
        source_ips: ranges(&m.source_ips),
        not_source_ips: ranges(&m.not_source_ips),
        destination_ips: ranges(&m.destination_ips),
        not_destination_ips: ranges(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
    }
}

fn string(value: &StringMatch) -> security::StringMatch {
    use security::string_match::MatchType;
    let match_type = match value {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    security::StringMatch { match_type: Some(match_type) }
}
