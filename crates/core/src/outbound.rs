//! Where does a connection that a local workload opened go? (snapshot, query) -> plan, or a refusal with its reason.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::addr::{NetworkAddr, NextHop, OrigDst, is_own_port};
use crate::authority::Authority;
use crate::balance::{self, Alike, Ask, By, NoEndpoint, Standing, Standings};
use crate::egress;
use crate::ids::{Hostname, Identity, WorkloadUid};
use crate::reason::Reason;
use crate::service::{BalancingMode, Service};
use crate::snapshot::Snapshot;
use crate::workload::{TunnelProtocol, Workload};

mod behind;
mod names;
mod waypoint;

pub use behind::{plan_endpoint, plan_held, plan_workload};
pub use names::Resolved;
use names::Spot;
pub use waypoint::Absent;
pub(crate) use waypoint::is_at;

/// A connection that wants to go out.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The workload that opened it.
    pub source: &'a Workload,
    /// What it dialled.
    pub original_dst: OrigDst,
    /// By what an endpoint is chosen.
    pub by: By,
    /// Decides among equals.
    pub entropy: u64,
    /// What is known of endpoints beyond the mesh configuration.
    pub standings: &'a dyn Standings,
    /// Endpoints that it was tried on in vain; they are out of the question.
    pub tried: &'a [SocketAddr],
    /// Whether endpoints in the clear are out of the question, too.
    pub tunnels_only: bool,
    /// What became of the names that were asked for since the first try.
    pub names: &'a [Resolved],
}

impl<'a> Query<'a> {
    /// The first try of a connection, nothing being known of endpoints.
    pub fn new(source: &'a Workload, original_dst: OrigDst, entropy: u64) -> Self {
        Self {
            source,
            original_dst,
            by: By::Service,
            entropy,
            standings: &Alike,
            tried: &[],
            tunnels_only: false,
            names: &[],
        }
    }
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// In the clear.
    Direct {
        /// What to dial.
        upstream: NextHop,
        /// The endpoint, if the application left the choice to us.
        picked: Option<Picked>,
        /// What that is, as far as the mesh knows.
        destination: Destination,
    },
    /// In an HBONE tunnel.
    Tunnel {
        /// The far end of the tunnel.
        next_hop: NextHop,
        /// What to ask it for.
        authority: Authority,
        /// Who may be there: one of these.
        expect: Vec<Identity>,
        /// The workload at the far end.
        peer: WorkloadUid,
        /// The endpoint, if the application left the choice to us.
        picked: Option<Picked>,
        /// What the tunnel leads to, as far as the mesh knows.
        destination: Destination,
    },
}

/// An endpoint that was picked among those of a service: another one may stand in for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked {
    /// Where it serves.
    pub endpoint: SocketAddr,
    /// Whether it is set aside and was picked for want of a better one.
    pub doubtful: bool,
}

impl Plan {
    /// The endpoint, if the application left the choice to us.
    pub fn picked(&self) -> Option<Picked> {
        match self {
            Plan::Direct { picked, .. } | Plan::Tunnel { picked, .. } => *picked,
        }
    }

    /// What the connection leads to.
    pub fn destination(&self) -> &Destination {
        match self {
            Plan::Direct { destination, .. } | Plan::Tunnel { destination, .. } => destination,
        }
    }
}

/// What a connection leads to, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Destination {
    /// The workload that is dialled: the endpoint, or the waypoint in front of it.
    pub workload: Option<Arc<Workload>>,
    /// The service that the application dialled.
    pub service: Option<Arc<Service>>,
    /// The waypoint that should be on the way and is not there: why it is refused, or what it goes past.
    pub absent: Option<Absent>,
}

/// The decision not to carry a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// Why, for metrics.
    pub reason: Reason,
    /// Why, for the log.
    pub detail: String,
    /// What it would have led to.
    pub destination: Destination,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplanned {
    /// The connection is not to be carried.
    Refused(Refusal),
    /// It goes to an endpoint that is known by this name only: its addresses are to be found out, and told with the
    /// next [`Query`].
    Unresolved(Hostname),
}

impl From<Refusal> for Unplanned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Refusal {
    /// One that is not about a known destination.
    pub fn new(reason: Reason, detail: String) -> Self {
        Self { reason, detail, destination: Destination::default() }
    }
}

/// Decides where a connection goes. In this order: the caller itself; the service of a virtual address (through its
/// waypoint, else to one of its endpoints); the workload of an address (through its waypoint, else to it); a service
/// whose range has the address; else where it was going anyway.
pub fn plan(snapshot: &Snapshot, query: &Query<'_>) -> Result<Plan, Unplanned> {
    let Query { source, original_dst, .. } = query;
    let (ip, port) = (original_dst.ip(), original_dst.port());
    let own = ip.is_loopback() || ip.is_unspecified() || source.owns(ip);
    if own && is_own_port(port) {
        return Err(own_listener(*original_dst).into());
    }
    if own {
        // It never leaves the pod, so there is nothing to protect and nobody to ask.
        return Ok(direct(query, Destination::default()));
    }

    let addr = NetworkAddr { network: source.network.clone(), ip };
    let service = snapshot.service_at(&addr, source.namespace());
    if let Some(service) = service.filter(|s| s.balancing.mode != BalancingMode::Passthrough || has_waypoint(s)) {
        return to_service(snapshot, query, service);
    }
    if let Some(workload) = snapshot.workload_at(&addr) {
        return Ok(to_workload(snapshot, query, workload, service)?);
    }
    match service.or_else(|| snapshot.service_around(&addr, source.namespace())) {
        Some(service) => to_service(snapshot, query, service),
        None => {
            egress::to_undeclared(source, *original_dst)?;
            Ok(direct(query, Destination::default()))
        }
    }
}

fn own_listener(addr: impl std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Loop, format!("{addr} is a listener of the mesh in the caller's own pod"))
}

fn direct(query: &Query<'_>, destination: Destination) -> Plan {
    Plan::Direct { upstream: NextHop::new(query.original_dst.get()), picked: None, destination }
}

fn has_waypoint(service: &Service) -> bool {
    service.waypoint.is_some() || !service.weighted_waypoints.is_empty()
}

fn to_service(snapshot: &Snapshot, query: &Query<'_>, service: &Arc<Service>) -> Result<Plan, Unplanned> {
    let mut destination = Destination { service: Some(service.clone()), ..Destination::default() };
    if has_waypoint(service) && !waypoint::is_of(snapshot, query.source, service) {
        let gateways = waypoint::of_service(service, query.entropy);
        if let Some(plan) = waypoint::through(snapshot, query, gateways, &mut destination)? {
            return Ok(plan);
        }
    }
    past_waypoints(snapshot, query, service, destination)
}

/// To an endpoint of `service`, or where the connection was going if no endpoints are picked for it.
fn past_waypoints(
    snapshot: &Snapshot,
    query: &Query<'_>,
    service: &Arc<Service>,
    destination: Destination,
) -> Result<Plan, Unplanned> {
    let (source, port) = (query.source, query.original_dst.port());
    let refuse = |reason, detail| Refusal { reason, detail, destination: destination.clone() };
    if service.balancing.mode == BalancingMode::Passthrough {
        egress::through(source, query.original_dst, service)?;
        return Ok(direct(query, destination));
    }
    if service.port(port).is_none() {
        return Err(refuse(Reason::PortUnknown, format!("service {} has no port {port}", service.key)).into());
    }
    let at = |endpoint: &Workload| {
        let port = balance::target_port(service, endpoint, port)?;
        if let Some(host) = endpoint.known_as() {
            return query.spot(service.ip_families, host, port);
        }
        let ip = balance::address(service.ip_families, endpoint, query.original_dst.ip())?;
        Some(Spot::At(SocketAddr::new(ip, port)))
    };
    let found = pick(snapshot, query, service, Some(port), at).map_err(|none| match none {
        NotPicked::Unresolved(host) => Unplanned::Unresolved(host),
        NotPicked::None(NoEndpoint::Unusable) => {
            let none = format!("service {} has no usable endpoint for port {port}", service.key);
            match query.unresolved(service.ip_families) {
                None => refuse(Reason::NoHealthyUpstream, none).into(),
                Some(why) => refuse(Reason::NameUnresolved, format!("{none}: {why}")).into(),
            }
        }
        NotPicked::None(NoEndpoint::OtherNetwork) => {
            let only_elsewhere = format!("service {} has endpoints in other networks only", service.key);
            refuse(Reason::NetworkUnreachable, only_elsewhere).into()
        }
    })?;
    let (endpoint, picked) = found;
    if endpoint.uid == source.uid && is_own_port(picked.endpoint.port()) {
        return Err(Refusal { destination, ..own_listener(picked.endpoint) }.into());
    }
    if endpoint.known_as().is_some() && endpoint.protocol == TunnelProtocol::None {
        return Ok(names::to_resolved(snapshot, query, endpoint, picked, destination)?);
    }
    let destination = Destination { workload: Some(endpoint.clone()), ..destination };
    let names = &service.subject_alt_names;
    Ok(to_endpoint(query.source, endpoint, picked.endpoint, names, Some(picked), destination))
}

fn to_workload(
    snapshot: &Snapshot,
    query: &Query<'_>,
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
) -> Result<Plan, Refusal> {
    let mut destination =
        Destination { workload: Some(workload.clone()), service: service.cloned(), ..Destination::default() };
    let gateways = workload.waypoint.iter();
    if gateways.clone().all(|gateway| !is_at(snapshot, query.source, gateway))
        && let Some(plan) = waypoint::through(snapshot, query, gateways, &mut destination)?
    {
        return Ok(plan);
    }
    Ok(to_endpoint(query.source, workload, query.original_dst.get(), &[], None, destination))
}

/// To `addr` of `endpoint`, as that endpoint is reached.
fn to_endpoint(
    source: &Workload,
    endpoint: &Workload,
    addr: SocketAddr,
    other_names: &[Identity],
    picked: Option<Picked>,
    destination: Destination,
) -> Plan {
    match endpoint.protocol {
        // A service may pick its own caller; that never leaves the pod.
        _ if endpoint.uid == source.uid => Plan::Direct { upstream: NextHop::new(addr), picked, destination },
        TunnelProtocol::None => Plan::Direct { upstream: NextHop::new(addr), picked, destination },
        TunnelProtocol::Hbone => Plan::Tunnel {
            next_hop: NextHop::new(SocketAddr::new(addr.ip(), crate::addr::HBONE_PORT)),
            authority: Authority::from(addr),
            expect: expected(endpoint, other_names),
            peer: endpoint.uid.clone(),
            picked,
            destination,
        },
    }
}

fn expected(workload: &Workload, other_names: &[Identity]) -> Vec<Identity> {
    std::iter::once(&workload.identity).chain(other_names).cloned().collect()
}

/// Why no endpoint was picked.
enum NotPicked {
    None(NoEndpoint),
    /// One was, and this name has to be resolved first.
    Unresolved(Hostname),
}

/// An endpoint of `service`, and where it serves. `at` gives the place to dial, if there is one.
fn pick<'a>(
    snapshot: &'a Snapshot,
    query: &Query<'_>,
    service: &Service,
    service_port: Option<u16>,
    at: impl Fn(&Workload) -> Option<Spot>,
) -> Result<(&'a Arc<Workload>, Picked), NotPicked> {
    let unusable = || NotPicked::None(NoEndpoint::Unusable);
    let members = snapshot.members(&service.key).ok_or_else(unusable)?;
    let picker = members.picker().ok_or_else(unusable)?;
    let workloads = members.workloads();
    let standing = |member: usize| {
        let endpoint = workloads.get(member)?;
        let spot = at(endpoint)?;
        let tunnel = endpoint.protocol == TunnelProtocol::Hbone || endpoint.uid == query.source.uid;
        if query.tunnels_only && !tunnel {
            return None;
        }
        match spot {
            Spot::At(addr) => (!query.tried.contains(&addr)).then(|| query.standings.of(addr)),
            Spot::Unresolved(_) => Some(Standing::default()),
        }
    };
    let ask = Ask { caller: query.source, service_port, by: query.by, entropy: query.entropy };
    let picked = picker.pick(service, &ask, standing).map_err(NotPicked::None)?;
    let endpoint = workloads.get(picked.member).ok_or_else(unusable)?;
    match at(endpoint).ok_or_else(unusable)? {
        Spot::At(addr) => Ok((endpoint, Picked { endpoint: addr, doubtful: picked.doubtful })),
        Spot::Unresolved(host) => Err(NotPicked::Unresolved(host)),
    }
}

#[cfg(test)]
mod tests;
