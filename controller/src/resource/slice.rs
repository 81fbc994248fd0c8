//! A slice of endpoints, reduced.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint as K8sEndpoint, EndpointSlice};
use loam_core::workload::Health;

use super::{Flaw, Name, is_tcp, usable_ip, usable_port, usable_text};

/// Which service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Most endpoints of one slice: what an API server accepts.
const MAX_ENDPOINTS: usize = 1_000;

/// What matters about a slice of endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Its service.
    pub service: Name,
    /// Who serves it.
    pub endpoints: Vec<Endpoint>,
    /// Its TCP ports by name; `None` is every port, at its own number.
    pub ports: Vec<(Box<str>, Option<u16>)>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    /// A pod that is known by name.
    Pod {
        /// The pod.
        pod: Name,
        /// Whether it may be picked for this service; it may be ready for another.
        health: Health,
    },
    /// Something that is only known by address.
    Address {
        /// Its address.
        ip: IpAddr,
        /// Whether it may be picked.
        health: Health,
        /// Its node, if the slice knows it.
        node: Arc<str>,
        /// Its zone, if the slice knows it.
        zone: Arc<str>,
    },
}

impl Slice {
    /// Whether `pod`, whose own addresses are `own`, may be picked; `None` when the slice does not have it.
    pub fn health_of(&self, pod: &Name, own: &[IpAddr]) -> Option<Health> {
        let mut found = self.endpoints.iter().filter_map(|endpoint| match endpoint {
            Endpoint::Pod { pod: named, health } if named == pod => Some(*health),
            Endpoint::Address { ip, health, .. } if own.contains(ip) => Some(*health),
            Endpoint::Pod { .. } | Endpoint::Address { .. } => None,
        });
        let first = found.next()?;
        Some(if found.all(|health| health == Health::Unhealthy) { first } else { Health::Healthy })
    }

    /// Where a port of the service is served, given its name and, for a slice that allows every port, its target.
    pub fn port(&self, name: &str, target: Option<u16>) -> Option<u16> {
        let (_, number) = self.ports.iter().find(|(n, _)| **n == *name)?;
        number.or(target)
    }
}

/// Reads a slice; `None` for one that belongs to no service or has names instead of addresses.
pub fn read(slice: EndpointSlice, flaws: &mut Vec<Flaw>) -> Option<Slice> {
    let namespace: Arc<str> = slice.metadata.namespace.as_deref().unwrap_or_default().into();
    let service = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_LABEL));
    let Some(service) = service.filter(|name| !name.is_empty()) else {
        flaws.push(format!("belongs to no service: it has no label {SERVICE_LABEL}"));
        return None;
    };
    let service = Name::new(Arc::clone(&namespace), service.as_str());
    match slice.address_type.as_str() {
        "IPv4" | "IPv6" => {}
        other => {
            let word: String = other.chars().take(64).collect();
            flaws.push(format!("address type {word:?} is neither IPv4 nor IPv6"));
            return None;
        }
    }
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints {
        if endpoints.len() >= MAX_ENDPOINTS {
            flaws.push(format!("has more than {MAX_ENDPOINTS} endpoints; the others are left out"));
            break;
        }
        match read_endpoint(&namespace, &endpoint, flaws) {
            Ok(endpoint) if endpoints.contains(&endpoint) => {}
            Ok(endpoint) => endpoints.push(endpoint),
            Err(flaw) => flaws.push(flaw),
        }
    }
    let mut ports = Vec::new();
    for port in slice.ports.into_iter().flatten().filter(|p| is_tcp(p.protocol.as_deref())) {
        let name = port.name.unwrap_or_default().into_boxed_str();
        match port.port.map(|number| usable_port("port", number)).transpose() {
            Ok(number) => ports.push((name, number)),
            Err(flaw) => flaws.push(flaw),
        }
    }
    Some(Slice { service, endpoints, ports })
}

fn read_endpoint(namespace: &Arc<str>, endpoint: &K8sEndpoint, flaws: &mut Vec<Flaw>) -> Result<Endpoint, Flaw> {
    // An endpoint that ends may still serve, but nothing new is sent to it.
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.is_none_or(|c| c.ready != Some(false) && c.terminating != Some(true));
    let health = if ready { Health::Healthy } else { Health::Unhealthy };
    let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
    if let Some(name) = target.and_then(|t| t.name.as_deref()).filter(|n| !n.is_empty()) {
        // A reference across namespaces would let one namespace speak for the pods of another.
        return Ok(Endpoint::Pod { pod: Name::new(Arc::clone(namespace), name), health });
    }
    // Addresses beyond the first have no meaning (discovery.k8s.io/v1).
    let first = endpoint.addresses.first().ok_or_else(|| "an endpoint has no address".to_owned())?;
    Ok(Endpoint::Address {
        ip: usable_ip(first)?,
        health,
        node: usable_text("node", endpoint.node_name.as_deref().unwrap_or_default(), flaws).into(),
        zone: usable_text("zone", endpoint.zone.as_deref().unwrap_or_default(), flaws).into(),
    })
}
