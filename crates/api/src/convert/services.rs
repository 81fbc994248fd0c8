//! `istio.workload.Service`.

use loam_core::service::{
    Affinity, Balancing, BalancingMode, IpFamilies, Scope, Service, ServiceAddr, Visibility, WeightedWaypoint,
};

use super::workloads::gateway;
use super::{FieldError, named, ports, range, text};
use crate::intern::Interner;
use crate::workload as wire;
use crate::workload::load_balancing as lb;

pub(super) fn read(interner: &mut Interner, message: wire::Service) -> Result<Service, FieldError> {
    let key = interner.service_key(&message.namespace, &message.hostname).map_err(named("namespace/hostname"))?;
    let mut addresses = Vec::with_capacity(message.addresses.len());
    for (i, addr) in message.addresses.iter().enumerate() {
        let field = format!("addresses[{i}]");
        let network = text(interner, &format!("{field}.network"), &addr.network)?;
        addresses.push(ServiceAddr { network, range: range(&field, &addr.address, addr.length)? });
    }
    let mut weighted_waypoints = Vec::with_capacity(message.weighted_waypoints.len());
    for (i, weighted) in message.weighted_waypoints.into_iter().enumerate() {
        let field = format!("weighted_waypoints[{i}].destination");
        let gateway = gateway(interner, &field, weighted.destination)?;
        let gateway = gateway.ok_or_else(|| FieldError::new(field, "is missing"))?;
        weighted_waypoints.push(WeightedWaypoint { gateway, weight: weighted.weight });
    }
    let mut visible_to = Vec::with_capacity(message.visible_to.len());
    for (i, namespace) in message.visible_to.iter().enumerate() {
        visible_to.push(text(interner, &format!("visible_to[{i}]"), namespace)?);
    }
    Ok(Service {
        key,
        name: text(interner, "name", &message.name)?,
        addresses,
        ports: ports(&message.ports)?,
        // Other forms of names mean nothing to a verifier of SPIFFE identities.
        subject_alt_names: message.subject_alt_names.iter().filter_map(|san| san.parse().ok()).collect(),
        balancing: balancing(message.load_balancing.unwrap_or_default()),
        ip_families: match wire::IpFamilies::try_from(message.ip_families) {
            Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::Ipv4Only,
            Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::Ipv6Only,
            Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
            Ok(wire::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
        },
        waypoint: gateway(interner, "waypoint", message.waypoint)?,
        weighted_waypoints,
        canonical: message.canonical,
        visibility: match wire::Visibility::try_from(message.visibility) {
            Ok(wire::Visibility::Public) => Visibility::Public,
            Ok(wire::Visibility::Namespace) if !visible_to.is_empty() => Visibility::Namespaces(visible_to.into()),
            // What is shown to some is not shown to all.
            Ok(wire::Visibility::Namespace) | Err(_) => Visibility::Namespace,
        },
    })
}

fn balancing(message: wire::LoadBalancing) -> Balancing {
    let scope = |number: &i32| match lb::Scope::try_from(*number) {
        Ok(lb::Scope::Region) => Some(Scope::Region),
        Ok(lb::Scope::Zone) => Some(Scope::Zone),
        Ok(lb::Scope::Subzone) => Some(Scope::Subzone),
        Ok(lb::Scope::Node) => Some(Scope::Node),
        Ok(lb::Scope::Cluster) => Some(Scope::Cluster),
        Ok(lb::Scope::Network) => Some(Scope::Network),
        Ok(lb::Scope::UnspecifiedScope) | Err(_) => None,
    };
    Balancing {
        preference: message.routing_preference.iter().filter_map(scope).collect(),
        mode: match lb::Mode::try_from(message.mode) {
            Ok(lb::Mode::Strict) => BalancingMode::Strict,
            Ok(lb::Mode::Failover) => BalancingMode::Failover,
            Ok(lb::Mode::Passthrough) => BalancingMode::Passthrough,
            Ok(lb::Mode::UnspecifiedMode) | Err(_) => BalancingMode::Any,
        },
        allow_unhealthy: lb::HealthPolicy::try_from(message.health_policy) == Ok(lb::HealthPolicy::AllowAll),
        affinity: match lb::Affinity::try_from(message.affinity) {
            Ok(lb::Affinity::ClientAddress) => Affinity::ClientAddress,
            Ok(lb::Affinity::NoAffinity) | Err(_) => Affinity::None,
        },
    }
}
