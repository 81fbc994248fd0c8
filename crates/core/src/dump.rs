//! A snapshot as text for people and tools: the fields that dashboards read from a ztunnel's `/config_dump`.

mod waypoints;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

pub use waypoints::{WaypointView, waypoints};

use crate::balance;
use crate::egress::Egress;
use crate::policy::{Action, Policy, Scope};
use crate::service::{BalancingMode, Service};
use crate::snapshot::{Members, Snapshot};
use crate::traversal::Traversal;
use crate::workload::{GatewayAddr, GatewayDestination, Health, Locality, NetworkMode, TunnelProtocol, Workload};

/// What the mesh looks like to a proxy, sorted by name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump<'a> {
    /// Workloads by uid.
    pub workloads: Vec<WorkloadView<'a>>,
    /// Services by namespace and hostname.
    pub services: Vec<ServiceView<'a>>,
    /// Policies by namespace and name.
    pub policies: Vec<PolicyView<'a>>,
}

impl<'a> Dump<'a> {
    /// The whole snapshot.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let mut workloads: Vec<_> = snapshot.workloads().map(|w| WorkloadView::of(w)).collect();
        workloads.sort_by_key(|w| w.uid);
        let mut services: Vec<_> = snapshot.services().filter_map(|m| ServiceView::of(m)).collect();
        services.sort_by_key(|s| (s.namespace, s.hostname));
        let mut policies: Vec<_> = snapshot.policies().map(|p| PolicyView::of(p)).collect();
        policies.sort_by_key(|p| (p.namespace, p.name));
        Self { workloads, services, policies }
    }
}

/// One workload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the workload")]
pub struct WorkloadView<'a> {
    pub uid: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    pub workload_ips: &'a [IpAddr],
    pub protocol: &'static str,
    pub trust_domain: &'a str,
    pub service_account: &'a str,
    pub workload_name: &'a str,
    pub workload_type: &'static str,
    pub canonical_name: &'a str,
    pub canonical_revision: &'a str,
    pub cluster_id: &'a str,
    pub network: &'a str,
    pub network_mode: &'static str,
    pub node: &'a str,
    pub status: &'static str,
    pub capacity: u32,
    pub locality: LocalityView<'a>,
    pub services: Vec<String>,
    pub authorization_policies: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<GatewayView>,
    /// Who restricts it to destinations of the registry, if somebody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_only: Option<&'a str>,
    /// The waypoints by which alone ports of it are reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traversal: Vec<TraversalView<'a>>,
}

impl<'a> WorkloadView<'a> {
    /// The view of `workload`.
    pub fn of(workload: &'a Workload) -> Self {
        use crate::workload::WorkloadKind;
        Self {
            uid: workload.uid.as_str(),
            name: &workload.name,
            namespace: workload.namespace(),
            workload_ips: &workload.addresses,
            protocol: match workload.protocol {
                TunnelProtocol::None => "TCP",
                TunnelProtocol::Hbone => "HBONE",
            },
            trust_domain: workload.identity.trust_domain().as_str(),
            service_account: workload.identity.service_account(),
            workload_name: &workload.owner,
            workload_type: match workload.kind {
                WorkloadKind::Pod => "pod",
                WorkloadKind::Deployment => "deployment",
                WorkloadKind::CronJob => "cronjob",
                WorkloadKind::Job => "job",
            },
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            cluster_id: &workload.cluster,
            network: &workload.network,
            network_mode: match workload.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            node: &workload.node,
            status: status(workload.health),
            capacity: workload.capacity,
            locality: LocalityView::of(&workload.locality),
            services: workload.services.iter().map(|s| s.service.to_string()).collect(),
            authorization_policies: workload.policies.iter().map(|key| &**key).collect(),
            waypoint: workload.waypoint.as_deref().map(GatewayView::of),
            network_gateway: workload.network_gateway.as_deref().map(GatewayView::of),
            registry_only: match &workload.egress {
                Egress::AllowAny => None,
                Egress::RegistryOnly { origin } => Some(origin),
            },
            traversal: workload.traversal.iter().map(TraversalView::of).collect(),
        }
    }
}

/// A waypoint by which alone ports are reached.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the rule")]
pub struct TraversalView<'a> {
    pub waypoint: &'a str,
    pub identities: Vec<String>,
    /// Empty: all.
    pub ports: &'a [u16],
}

impl<'a> TraversalView<'a> {
    fn of(rule: &'a Traversal) -> Self {
        let identities = rule.identities.iter().map(ToString::to_string).collect();
        Self { waypoint: &rule.waypoint, identities, ports: &rule.ports }
    }
}

fn status(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

/// Where a workload stands; unknown parts are left out.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the locality")]
pub struct LocalityView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub region: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub subzone: &'a str,
}

impl<'a> LocalityView<'a> {
    fn of(locality: &'a Locality) -> Self {
        Self { region: &locality.region, zone: &locality.zone, subzone: &locality.subzone }
    }
}

/// A waypoint or gateway.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the gateway")]
pub struct GatewayView {
    /// `network/address` or `namespace/hostname`.
    pub destination: String,
    pub hbone_mtls_port: u16,
    /// Whether connections go past it while it is not there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bypass_when_absent: bool,
}

impl GatewayView {
    fn of(gateway: &GatewayAddr) -> Self {
        let destination = match &gateway.destination {
            GatewayDestination::Address(addr) => addr.to_string(),
            GatewayDestination::Service(key) => key.to_string(),
        };
        Self { destination, hbone_mtls_port: gateway.hbone_port, bypass_when_absent: gateway.bypass }
    }
}

/// One service with its endpoints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the service")]
pub struct ServiceView<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub hostname: &'a str,
    /// `network/address`, with the length of a range.
    pub vips: Vec<String>,
    /// Service port to target port; 0 where each endpoint names its own.
    pub ports: BTreeMap<u16, u16>,
    pub endpoints: BTreeMap<&'a str, EndpointView<'a>>,
    pub subject_alt_names: Vec<String>,
    pub load_balancer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayView>,
}

impl<'a> ServiceView<'a> {
    /// The view of a service that has arrived.
    pub fn of(members: &'a Members) -> Option<Self> {
        let service: &'a Service = members.service()?;
        let endpoints = members.workloads().iter().map(|w| (w.uid.as_str(), EndpointView::of(service, w)));
        Some(Self {
            name: &service.name,
            namespace: &service.key.namespace,
            hostname: service.key.hostname.as_str(),
            vips: service.addresses.iter().map(vip).collect(),
            ports: service.ports.iter().map(|p| (p.service_port, p.target_port)).collect(),
            endpoints: endpoints.collect(),
            subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
            load_balancer: match service.balancing.mode {
                BalancingMode::Any => "Any",
                BalancingMode::Strict => "Strict",
                BalancingMode::Failover => "Failover",
                BalancingMode::Passthrough => "Passthrough",
            },
            waypoint: service.waypoint.as_deref().map(GatewayView::of),
        })
    }
}

fn vip(addr: &crate::service::ServiceAddr) -> String {
    match addr.range.prefix_len() == addr.range.max_prefix_len() {
        true => format!("{}/{}", addr.network, addr.range.addr()),
        false => format!("{}/{}", addr.network, addr.range),
    }
}

/// One endpoint of a service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the endpoint")]
pub struct EndpointView<'a> {
    pub workload_uid: &'a str,
    /// Service port to the port of this endpoint.
    pub port: BTreeMap<u16, u16>,
    pub status: &'static str,
}

impl<'a> EndpointView<'a> {
    fn of(service: &Service, workload: &'a Workload) -> Self {
        let target = |port: u16| Some((port, balance::target_port(service, workload, port)?));
        Self {
            workload_uid: workload.uid.as_str(),
            port: service.ports.iter().filter_map(|p| target(p.service_port)).collect(),
            status: status(workload.health),
        }
    }
}

/// One policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the policy")]
pub struct PolicyView<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub scope: &'static str,
    pub action: &'static str,
    pub dry_run: bool,
    /// How many alternatives it has.
    pub rules: usize,
}

impl<'a> PolicyView<'a> {
    fn of(policy: &'a Policy) -> Self {
        Self {
            name: policy.key.split_once('/').map_or(&*policy.key, |(_, name)| name),
            namespace: &policy.namespace,
            scope: match policy.scope {
                Scope::Global => "Global",
                Scope::Namespace => "Namespace",
                Scope::Workload => "WorkloadSelector",
            },
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            dry_run: policy.dry_run,
            rules: policy.rules.len(),
        }
    }
}
