//! Where rules send requests.

use std::sync::Arc;

use loam_core::http::backend::{BackendService, InvalidRef, Upstream};
use loam_manifest::gateway::ObjectRef;

use super::Neighbours;
use crate::resource::{Name, quoted};
use crate::status::Reason;

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unresolved {
    pub(super) why: InvalidRef,
    pub(super) message: String,
}

impl Unresolved {
    pub(super) fn reason(&self) -> Reason {
        match self.why {
            InvalidRef::InvalidKind => Reason::InvalidKind,
            InvalidRef::BackendNotFound => Reason::BackendNotFound,
            InvalidRef::RefNotPermitted => Reason::RefNotPermitted,
            InvalidRef::UnsupportedProtocol | InvalidRef::UnmetPolicy => Reason::UnsupportedProtocol,
        }
    }

    /// What stands for it: its share of the requests is answered with an error.
    pub(super) fn upstream(&self) -> Upstream {
        Upstream::Invalid { reference: self.message.as_str().into(), why: self.why }
    }
}

/// Where a reference of an object of `namespace` leads. Other namespaces need no grant: a route of a mesh sends callers
/// where they could go by themselves (GEP-1294).
pub(super) fn resolve(
    namespace: &Arc<str>,
    reference: &ObjectRef,
    neighbours: &impl Neighbours,
) -> Result<Upstream, Unresolved> {
    let unresolved = |why, message: String| Err(Unresolved { why, message });
    let (group, kind) =
        (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("Service"));
    if (group, kind) != ("", "Service") {
        let message = format!("{} of group {} cannot be a backend", quoted(kind), quoted(group));
        return unresolved(InvalidRef::InvalidKind, message);
    }
    let name = Name {
        namespace: reference.namespace.as_deref().map_or_else(|| Arc::clone(namespace), Arc::from),
        name: reference.name.as_str().into(),
    };
    let Some((service, ports)) = neighbours.service(&name) else {
        return unresolved(InvalidRef::BackendNotFound, format!("Service {} does not exist", brief(&name)));
    };
    let number = reference.port.unwrap_or_default();
    let Some(port) = ports.iter().map(|p| p.service_port).find(|port| i64::from(*port) == number) else {
        let message = match reference.port {
            Some(port) => format!("Service {name} has no port {port}"),
            None => format!("the reference to Service {name} says no port"),
        };
        return unresolved(InvalidRef::BackendNotFound, message);
    };
    if let Some(why) = neighbours.unmet(&name, port) {
        return unresolved(InvalidRef::UnmetPolicy, format!("Service {name}: {why}"));
    }
    Ok(Upstream::Service(BackendService { service, port, subset: None }))
}

/// A name that anybody may have written.
fn brief(name: &Name) -> String {
    name.to_string().chars().filter(|c| !c.is_control()).take(128).collect()
}
