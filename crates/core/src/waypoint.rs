//! What is a CONNECT about that reached a waypoint? (snapshot, query) -> target, or a refusal with its reason.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::addr::{NetworkAddr, OrigDst, is_own_port};
use crate::authority::Authority;
use crate::outbound::{self, Destination, Plan, Refusal, Unplanned, is_at};
use crate::reason::Reason;
use crate::service::{AppProtocol, BalancingMode, Port, Service};
use crate::snapshot::Snapshot;
use crate::traversal;
use crate::workload::Workload;

/// A CONNECT that reached a waypoint.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The waypoint's own workload.
    pub local: &'a Workload,
    /// Namespace of who asks, as proven: services may be visible to some namespaces only.
    pub caller_namespace: &'a str,
    /// What the CONNECT asks for.
    pub authority: &'a Authority,
}

/// What stands behind the waypoint and is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A port of a service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// Its port.
        port: Port,
        /// The address that the application dialled; unspecified where it is not known.
        asked: OrigDst,
    },
    /// A port of one workload.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// What is spoken on the port, as the first service says that has it.
        app_protocol: AppProtocol,
        /// The address that the application dialled.
        asked: OrigDst,
    },
}

impl Target {
    /// What is spoken, as declared.
    pub fn app_protocol(&self) -> AppProtocol {
        match self {
            Target::Service { port, .. } => port.app_protocol,
            Target::Workload { app_protocol, .. } => *app_protocol,
        }
    }

    /// The address and port that the application dialled.
    pub fn asked(&self) -> OrigDst {
        match self {
            Target::Service { asked, .. } | Target::Workload { asked, .. } => *asked,
        }
    }

    /// What it is, for logs and metrics.
    pub fn destination(&self) -> Destination {
        match self {
            Target::Service { service, .. } => Destination { service: Some(service.clone()), ..Destination::default() },
            Target::Workload { workload, .. } => {
                Destination { workload: Some(workload.clone()), ..Destination::default() }
            }
        }
    }

    /// The way to it, where no route says otherwise. `query` gives what is known of endpoints; its original
    /// destination is [`asked`](Self::asked).
    pub fn plan(&self, snapshot: &Snapshot, query: &outbound::Query<'_>) -> Result<Plan, Unplanned> {
        match self {
            Target::Service { service, .. } => outbound::plan_endpoint(snapshot, query, service),
            Target::Workload { workload, .. } => Ok(outbound::plan_workload(query, workload)),
        }
    }
}

/// Decides what a CONNECT is about. Only what is bound to this waypoint may be asked for: whoever could ask for more
/// would speak to it with the waypoint's identity.
pub fn target(snapshot: &Snapshot, query: &Query<'_>) -> Result<Target, Refusal> {
    let Query { local, caller_namespace, authority } = query;
    match authority {
        Authority::Host(hostname, port) => match snapshot.service_named(hostname, caller_namespace) {
            Some(service) => {
                let vip = service.addresses.first().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.range.addr());
                to_service(snapshot, local, service, OrigDst::new(SocketAddr::new(vip, *port)))
            }
            None => Err(foreign(format!("no service is called {hostname}"), Destination::default())),
        },
        Authority::Addr(addr) => {
            let asked = OrigDst::new(*addr);
            let at = NetworkAddr { network: local.network.clone(), ip: asked.ip() };
            if let Some(service) = snapshot.service_at(&at, caller_namespace) {
                return to_service(snapshot, local, service, asked);
            }
            if let Some(workload) = snapshot.workload_at(&at) {
                return to_workload(snapshot, local, workload, asked);
            }
            match snapshot.service_around(&at, caller_namespace) {
                Some(service) => to_service(snapshot, local, service, asked),
                None => Err(foreign(format!("{addr} is neither a service nor a workload"), Destination::default())),
            }
        }
    }
}

fn to_service(
    snapshot: &Snapshot,
    local: &Workload,
    service: &Arc<Service>,
    asked: OrigDst,
) -> Result<Target, Refusal> {
    let destination = Destination { service: Some(service.clone()), ..Destination::default() };
    let mut gateways = service.weighted_waypoints.iter().map(|w| &w.gateway).chain(&service.waypoint);
    if !gateways.any(|gateway| is_at(snapshot, local, gateway)) {
        return Err(foreign(format!("service {} is not bound to this waypoint", service.key), destination));
    }
    // Also a service without routes has a table. Serving one whose routes are not known would go round them.
    if snapshot.routes(&service.key).is_none() {
        return Err(foreign(format!("the routes of service {} are not known here", service.key), destination));
    }
    let port = match service.port(asked.port()) {
        Some(port) => *port,
        None if service.balancing.mode == BalancingMode::Passthrough => {
            Port { service_port: asked.port(), target_port: asked.port(), app_protocol: AppProtocol::Unknown }
        }
        None => {
            let detail = format!("service {} has no port {}", service.key, asked.port());
            return Err(Refusal { reason: Reason::PortUnknown, detail, destination });
        }
    };
    Ok(Target::Service { service: service.clone(), port, asked })
}

fn to_workload(
    snapshot: &Snapshot,
    local: &Workload,
    workload: &Arc<Workload>,
    asked: OrigDst,
) -> Result<Target, Refusal> {
    let destination = Destination { workload: Some(workload.clone()), ..Destination::default() };
    if !workload.waypoint.as_ref().is_some_and(|gateway| is_at(snapshot, local, gateway)) {
        return Err(foreign(format!("workload {} is not bound to this waypoint", workload.uid), destination));
    }
    if is_own_port(asked.port()) {
        let detail = format!("{asked} is a listener of the mesh");
        return Err(Refusal { reason: Reason::Loop, detail, destination });
    }
    // Nothing is let pass that somebody asked to have judged.
    if traversal::is_by(workload, asked.port(), &local.identity) {
        let detail =
            format!("a policy decides about workload {}, and waypoints do not evaluate policies", workload.uid);
        return Err(foreign(detail, destination));
    }
    Ok(Target::Workload { workload: workload.clone(), app_protocol: spoken(snapshot, workload, asked.port()), asked })
}

/// What is spoken on a port of a workload.
fn spoken(snapshot: &Snapshot, workload: &Workload, port: u16) -> AppProtocol {
    let said = |listed: &crate::workload::ServicePorts| {
        let own = listed.ports.iter().find(|p| p.target_port == port)?;
        match own.app_protocol {
            AppProtocol::Unknown => snapshot.service(&listed.service)?.port(own.service_port).map(|p| p.app_protocol),
            said => Some(said),
        }
    };
    workload.services.iter().find_map(said).unwrap_or_default()
}

fn foreign(detail: String, destination: Destination) -> Refusal {
    Refusal { reason: Reason::AuthorityMismatch, detail, destination }
}

#[cfg(test)]
mod tests;
