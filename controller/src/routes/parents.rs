//! What a route is for.

use std::collections::BTreeSet;
use std::sync::Arc;

use loam_core::service::Port;
use loam_manifest::gateway::ParentRef;

use super::ACCEPTED;
use crate::resource::{Name, quoted};
use crate::status::{Condition, Reason};

/// The group of kinds of the Gateway API.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The group of `ServiceEntry`.
const ISTIO_GROUP: &str = "networking.istio.io";

/// What a route names as its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// A service of Kubernetes.
    Service(Name),
    /// A `ServiceEntry`.
    Entry(Name),
    /// A `Gateway`.
    Gateway(Name),
    /// A service by a group that is none.
    Misspelt,
    /// Something that is not ours to speak about.
    Foreign,
}

/// What a parent has to do with a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The service ports that the route is for.
    pub ports: BTreeSet<u16>,
}

/// What a route of `namespace` names.
pub fn parent(namespace: &Arc<str>, reference: &ParentRef) -> Parent {
    let name = || Name {
        namespace: reference.namespace.as_deref().map_or_else(|| Arc::clone(namespace), Arc::from),
        name: reference.name.as_str().into(),
    };
    let group = reference.group.as_deref().unwrap_or(GATEWAY_GROUP);
    match (group, reference.kind.as_deref().unwrap_or("Gateway")) {
        ("", "Service") => Parent::Service(name()),
        (ISTIO_GROUP, "ServiceEntry") => Parent::Entry(name()),
        (GATEWAY_GROUP, "Gateway") => Parent::Gateway(name()),
        ("core" | "v1", "Service") => Parent::Misspelt,
        _ => Parent::Foreign,
    }
}

/// The ports of a parent that a reference means. `named` are the ports with their names.
pub fn attach(reference: &ParentRef, named: &[(&str, Port)]) -> Result<Attached, Condition> {
    let means = |(name, port): &&(&str, Port)| {
        reference.section_name.as_deref().is_none_or(|section| section == *name)
            && reference.port.is_none_or(|number| number == i64::from(port.service_port))
    };
    let ports: BTreeSet<u16> = named.iter().filter(means).map(|(_, port)| port.service_port).collect();
    if !ports.is_empty() {
        return Ok(Attached { ports });
    }
    let message = match (&reference.section_name, reference.port) {
        (Some(section), Some(port)) => format!("the parent has no port {port} with the name {}", quoted(section)),
        (Some(section), None) => format!("the parent has no port with the name {}", quoted(section)),
        (None, Some(port)) => format!("the parent has no port {port}"),
        (None, None) => "the parent has no TCP port".to_owned(),
    };
    Err(Condition::is_not(ACCEPTED, Reason::NoMatchingParent, message))
}
