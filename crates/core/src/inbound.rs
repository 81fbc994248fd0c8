//! Where does a connection that reaches a local workload go? (snapshot, query) -> plan, or a refusal with its reason.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::addr::{OrigDst, is_own_port};
use crate::authority::Authority;
use crate::balance;
use crate::outbound::Destination;
pub use crate::outbound::Refusal;
use crate::reason::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// A CONNECT that reached a workload's HBONE port.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The workload.
    pub local: &'a Workload,
    /// The address and port on which the tunnel arrived.
    pub arrived_at: OrigDst,
    /// What the CONNECT asks for.
    pub authority: &'a Authority,
}

/// What to dial inside the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The application.
    pub upstream: SocketAddr,
    /// The service it is part of: the one that was asked for by name, else the first that has this port.
    pub service: Option<Arc<Service>>,
}

/// Decides what a CONNECT leads to: the address at which the tunnel arrived, or a port of a service that the workload
/// serves. A tunnel to one workload is no way to another.
pub fn plan(snapshot: &Snapshot, query: &Query<'_>) -> Result<Plan, Refusal> {
    let Query { local, arrived_at, authority } = query;
    refuse_foreign(local, *arrived_at)?;
    let plan = match authority {
        Authority::Addr(addr) if addr.ip() != arrived_at.ip() => {
            let detail = format!("{authority} was asked for at {}", arrived_at.ip());
            return Err(refuse(Reason::AuthorityMismatch, detail, None));
        }
        Authority::Addr(addr) => Plan { upstream: *addr, service: service_on(snapshot, local, addr.port()) },
        Authority::Host(hostname, port) => {
            let service = snapshot.service_named(hostname, local.namespace());
            let Some(service) = service.filter(|s| local.ports_of(&s.key).is_some()) else {
                let detail = format!("{} does not serve {hostname}", local.uid);
                return Err(refuse(Reason::AuthorityMismatch, detail, service.cloned()));
            };
            let Some(target) = balance::target_port(service, local, *port) else {
                let detail = format!("service {} has no port {port}", service.key);
                return Err(refuse(Reason::PortUnknown, detail, Some(service.clone())));
            };
            Plan { upstream: SocketAddr::new(arrived_at.ip(), target), service: Some(service.clone()) }
        }
    };
    // After the port was resolved: a service port may map to one of ours.
    refuse_own_ports(plan)
}

/// Decides what a connection in the clear leads to: what it dialled.
pub fn plan_plaintext(snapshot: &Snapshot, local: &Workload, arrived_at: OrigDst) -> Result<Plan, Refusal> {
    refuse_foreign(local, arrived_at)?;
    let service = service_on(snapshot, local, arrived_at.port());
    refuse_own_ports(Plan { upstream: arrived_at.get(), service })
}

/// Policies are about the workload's addresses. Whatever else leads here, such as loopback from inside the pod or an
/// address that the mesh does not know, could come back to us for ever or pass beside a policy.
fn refuse_foreign(local: &Workload, arrived_at: OrigDst) -> Result<(), Refusal> {
    if local.owns(arrived_at.ip()) {
        return Ok(());
    }
    let detail = format!("{} is not an address of {}", arrived_at.ip(), local.uid);
    Err(refuse(Reason::AuthorityMismatch, detail, None))
}

fn refuse_own_ports(plan: Plan) -> Result<Plan, Refusal> {
    if is_own_port(plan.upstream.port()) {
        let detail = format!("{} is a listener of the mesh", plan.upstream);
        return Err(refuse(Reason::Loop, detail, plan.service));
    }
    Ok(plan)
}

fn refuse(reason: Reason, detail: String, service: Option<Arc<Service>>) -> Refusal {
    Refusal { reason, detail, destination: Destination { service, ..Destination::default() } }
}

/// The first service of `local` with an endpoint on `port`.
fn service_on(snapshot: &Snapshot, local: &Workload, port: u16) -> Option<Arc<Service>> {
    local.services.iter().find_map(|listed| {
        let service = snapshot.service(&listed.service)?;
        let mut ports = listed.ports.iter().chain(&service.ports);
        ports.any(|p| p.target_port == port).then(|| service.clone())
    })
}

#[cfg(test)]
mod tests;
