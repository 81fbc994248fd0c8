//! `istio.workload.Workload`.

use std::collections::BTreeMap;
use std::sync::Arc;

use loam_core::addr::NetworkAddr;
use loam_core::egress::Egress;
use loam_core::ids::{Identity, TrustDomain, WorkloadUid};
use loam_core::traversal::Traversal;
use loam_core::workload::{
    GatewayAddr, GatewayDestination, Health, Locality, NetworkMode, ServicePorts, TunnelProtocol, Workload,
    WorkloadKind,
};

use super::{FieldError, ip, named, port, ports, text, valid_text};
use crate::intern::Interner;
use crate::workload as wire;

/// Most addresses of one workload; dual-stack pods have two.
const MAX_ADDRESSES: usize = 64;

/// What the wire leaves out.
pub(crate) const DEFAULT_SERVICE_ACCOUNT: &str = "default";
pub(crate) const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(super) fn read(interner: &mut Interner, message: wire::Workload) -> Result<Workload, FieldError> {
    // Names are unique, so not worth sharing.
    let uid: WorkloadUid = message.uid.parse().map_err(named("uid"))?;
    let protocol = match wire::TunnelProtocol::try_from(message.tunnel_protocol) {
        Ok(wire::TunnelProtocol::None) => TunnelProtocol::None,
        Ok(wire::TunnelProtocol::Hbone) => TunnelProtocol::Hbone,
        Ok(wire::TunnelProtocol::LegacyIstioMtls) => {
            return Err(FieldError::new("tunnel_protocol", "LEGACY_ISTIO_MTLS is not supported"));
        }
        Err(_) => return Err(FieldError::new("tunnel_protocol", format!("{} is not known", message.tunnel_protocol))),
    };
    let mut addresses = Vec::with_capacity(message.addresses.len().min(MAX_ADDRESSES));
    for (i, bytes) in message.addresses.iter().enumerate() {
        let field = format!("addresses[{i}]");
        let address = ip(&field, bytes)?;
        if addresses.contains(&address) {
            return Err(FieldError::new(field, format!("{address} is there twice")));
        }
        if i == MAX_ADDRESSES {
            return Err(FieldError::new("addresses", format!("more than {MAX_ADDRESSES}")));
        }
        addresses.push(address);
    }
    let hostname = match message.hostname.as_str() {
        "" => None,
        name => Some(interner.hostname(name).map_err(named("hostname"))?),
    };
    let policies = message.authorization_policies.iter().enumerate().map(|(i, key)| {
        let field = format!("authorization_policies[{i}]");
        match key.split_once('/') {
            Some((_, name)) if !name.is_empty() => text(interner, &field, key),
            _ => Err(FieldError::new(field, format!("{key:?} is not namespace/name"))),
        }
    });
    let policies = policies.collect::<Result<Vec<_>, _>>()?;
    Ok(Workload {
        uid,
        name: valid_text("name", &message.name)?.into(),
        identity: identity(interner, &message)?,
        addresses,
        hostname,
        network: text(interner, "network", &message.network)?,
        protocol,
        network_mode: match wire::NetworkMode::try_from(message.network_mode) {
            Ok(wire::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
            Ok(wire::NetworkMode::Standard) | Err(_) => NetworkMode::Standard,
        },
        node: text(interner, "node", &message.node)?,
        canonical_name: text(interner, "canonical_name", &message.canonical_name)?,
        canonical_revision: text(interner, "canonical_revision", &message.canonical_revision)?,
        kind: match wire::WorkloadType::try_from(message.workload_type) {
            Ok(wire::WorkloadType::Deployment) => WorkloadKind::Deployment,
            Ok(wire::WorkloadType::Cronjob) => WorkloadKind::CronJob,
            Ok(wire::WorkloadType::Job) => WorkloadKind::Job,
            Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadKind::Pod,
        },
        owner: text(interner, "workload_name", &message.workload_name)?,
        cluster: text(interner, "cluster_id", or(&message.cluster_id, DEFAULT_CLUSTER))?,
        locality: locality(interner, message.locality)?,
        health: match wire::WorkloadStatus::try_from(message.status) {
            Ok(wire::WorkloadStatus::Healthy) => Health::Healthy,
            // A state that we do not know is one in which we do not send connections.
            Ok(wire::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
        },
        capacity: message.capacity.unwrap_or(1),
        services: services(interner, &message.services)?,
        policies: interner.policies(policies),
        waypoint: gateway(interner, "waypoint", message.waypoint)?,
        network_gateway: gateway(interner, "network_gateway", message.network_gateway)?,
        egress: egress(interner, message.egress)?,
        traversal: traversal(interner, &message.traversal)?,
    })
}

fn egress(interner: &mut Interner, message: Option<wire::Egress>) -> Result<Egress, FieldError> {
    let Some(message) = message else { return Ok(Egress::AllowAny) };
    match wire::egress::Mode::try_from(message.mode) {
        Ok(wire::egress::Mode::AllowAny) => Ok(Egress::AllowAny),
        // A mode that we do not know restricts something that we would not: the strictest is right.
        Ok(wire::egress::Mode::RegistryOnly) | Err(_) => {
            let origin = text(interner, "egress.origin", or(&message.origin, "the outbound traffic policy"))?;
            Ok(Egress::RegistryOnly { origin })
        }
    }
}

/// The waypoints by which ports are reached. One that cannot be read is an error: without it anybody could go past it.
fn traversal(interner: &mut Interner, messages: &[wire::Traversal]) -> Result<Arc<[Traversal]>, FieldError> {
    let mut rules = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let field = |name: &str| format!("traversal[{i}].{name}");
        let identity =
            |(n, text): (usize, &String)| text.parse::<Identity>().map_err(named(&field(&format!("identities[{n}]"))));
        let ports = message.ports.iter().enumerate().map(|(n, number)| port(&field(&format!("ports[{n}]")), *number));
        rules.push(Traversal {
            waypoint: text(interner, &field("waypoint"), &message.waypoint)?,
            identities: message.identities.iter().enumerate().map(identity).collect::<Result<_, _>>()?,
            ports: ports.collect::<Result<_, _>>()?,
        });
    }
    Ok(interner.traversal(rules))
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn identity(interner: &mut Interner, message: &wire::Workload) -> Result<Identity, FieldError> {
    let domain =
        interner.trust_domain(or(&message.trust_domain, TrustDomain::DEFAULT)).map_err(named("trust_domain"))?;
    let namespace = text(interner, "namespace", &message.namespace)?;
    let account = text(interner, "service_account", or(&message.service_account, DEFAULT_SERVICE_ACCOUNT))?;
    Identity::shared(domain, namespace, account).map_err(named("identity"))
}

fn locality(interner: &mut Interner, message: Option<wire::Locality>) -> Result<Arc<Locality>, FieldError> {
    let message = message.unwrap_or_default();
    let locality = Locality {
        region: text(interner, "locality.region", &message.region)?,
        zone: text(interner, "locality.zone", &message.zone)?,
        subzone: text(interner, "locality.subzone", &message.subzone)?,
    };
    Ok(interner.locality(locality))
}

fn services(
    interner: &mut Interner,
    messages: &BTreeMap<String, wire::PortList>,
) -> Result<Arc<[ServicePorts]>, FieldError> {
    let mut services = Vec::with_capacity(messages.len());
    for (name, list) in messages {
        let field = || format!("services[{name}]");
        let (namespace, hostname) =
            name.split_once('/').ok_or_else(|| FieldError::new(field(), "the key is not namespace/hostname"))?;
        let service = interner.service_key(namespace, hostname).map_err(named(&field()))?;
        let ports = ports(&list.ports).map_err(|e| e.within(field()))?;
        services.push(ServicePorts { service, ports: interner.ports(ports) });
    }
    Ok(interner.services(services))
}

/// A waypoint or gateway. One that cannot be read is an error: going on without it would go around it.
pub(super) fn gateway(
    interner: &mut Interner,
    field: &str,
    message: Option<wire::GatewayAddress>,
) -> Result<Option<Arc<GatewayAddr>>, FieldError> {
    let Some(message) = message else { return Ok(None) };
    let destination = match message.destination {
        Some(wire::gateway_address::Destination::Hostname(name)) => {
            let key = interner.service_key(&name.namespace, &name.hostname);
            GatewayDestination::Service(key.map_err(named(&format!("{field}.hostname")))?)
        }
        Some(wire::gateway_address::Destination::Address(addr)) => GatewayDestination::Address(NetworkAddr {
            network: text(interner, &format!("{field}.address.network"), &addr.network)?,
            ip: ip(&format!("{field}.address"), &addr.address)?,
        }),
        None => return Err(FieldError::new(format!("{field}.destination"), "is missing or of an unknown kind")),
    };
    let hbone_port = port(&format!("{field}.hbone_mtls_port"), message.hbone_mtls_port)?;
    Ok(Some(interner.gateway(GatewayAddr { destination, hbone_port, bypass: message.bypass_when_absent })))
}
