//! Waypoints on the way out: which one a connection goes through, at which of its endpoints, and when it goes through
//! none.

use std::net::SocketAddr;
use std::sync::Arc;

use super::names::Spot;
use super::{Destination, NotPicked, Plan, Query, Refusal, expected, pick};
use crate::addr::NextHop;
use crate::authority::Authority;
use crate::balance::{self, NoEndpoint};
use crate::reason::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddr, GatewayDestination, Health, Workload};

/// A waypoint that should be on the way and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// The waypoint.
    pub waypoint: Arc<GatewayAddr>,
    /// [`Reason::WaypointMissing`] or [`Reason::WaypointNotReady`].
    pub why: Reason,
}

/// The waypoints in front of `service`, in the order in which one connection takes them: the one that is drawn by
/// weight, and where that is not there, one that could have been.
pub(super) fn of_service(service: &Service, entropy: u64) -> impl Iterator<Item = &Arc<GatewayAddr>> + Clone {
    let weighted = &service.weighted_waypoints[..];
    let drawn = balance::draw_weighted(weighted.iter().map(|w| w.weight), entropy);
    // Waypoints whose weights are all 0 still stand in front of the service.
    let unweighted = || service.waypoint.as_ref().or_else(|| weighted.first().map(|w| &w.gateway));
    let first = drawn.map_or_else(unweighted, |i| Some(&weighted[i].gateway));
    let others = weighted.iter().enumerate().filter(move |(i, w)| drawn.is_some_and(|d| d != *i) && w.weight > 0);
    first.into_iter().chain(others.map(|(_, w)| &w.gateway))
}

/// Whether `source` is itself one of the waypoints in front of `service`, whatever its share is.
pub(super) fn is_of(snapshot: &Snapshot, source: &Workload, service: &Service) -> bool {
    let mut all = service.waypoint.iter().chain(service.weighted_waypoints.iter().map(|w| &w.gateway));
    all.any(|gateway| is_at(snapshot, source, gateway))
}

/// To the first of `gateways` that is there. `None` where the connection goes on as though there were none: since there
/// is none, or since somebody asked for that while it is absent, which `destination` then tells.
pub(super) fn through<'a>(
    snapshot: &Snapshot,
    query: &Query<'_>,
    gateways: impl Iterator<Item = &'a Arc<GatewayAddr>> + Clone,
    destination: &mut Destination,
) -> Result<Option<Plan>, Refusal> {
    let mut first = None;
    for gateway in gateways.clone() {
        match to(snapshot, query, gateway, destination) {
            Ok(plan) => return Ok(Some(plan)),
            Err(refusal) => {
                first.get_or_insert((gateway, refusal));
            }
        }
    }
    let Some((gateway, refusal)) = first else { return Ok(None) };
    // One that was tried and does not answer is there: whoever disturbs it must not be rewarded with a way past it.
    let anew = Query { tried: &[], tunnels_only: false, ..*query };
    let is_absent = |gateway| to(snapshot, &anew, gateway, destination).is_err_and(|r| r.destination.absent.is_some());
    if gateway.bypass && gateways.clone().all(is_absent) {
        destination.absent = refusal.destination.absent;
        return Ok(None);
    }
    Err(refusal)
}

/// To an endpoint of a waypoint, which is asked for what the application dialled.
fn to(
    snapshot: &Snapshot,
    query: &Query<'_>,
    gateway: &Arc<GatewayAddr>,
    destination: &Destination,
) -> Result<Plan, Refusal> {
    let refuse = |reason, detail| Refusal { reason, detail, destination: destination.clone() };
    let absent = |why, what: &str| {
        let mut refusal = refuse(why, format!("waypoint {gateway} {what}"));
        refusal.destination.absent = Some(Absent { waypoint: gateway.clone(), why });
        refusal
    };
    let missing = || absent(Reason::WaypointMissing, "is not known");
    let not_ready = || absent(Reason::WaypointNotReady, "has no ready endpoint");
    let elsewhere = || refuse(Reason::NetworkUnreachable, format!("waypoint {gateway} is in another network"));
    let source = query.source;

    let (waypoint, next_hop, names, picked) = match service_of(snapshot, source, gateway) {
        Some(service) => {
            // The HBONE port of a waypoint's service may be left undeclared; then it is the endpoint's.
            let declared = service.port(gateway.hbone_port).map(|_| gateway.hbone_port);
            let at = |waypoint: &Workload| {
                let ip = balance::address(service.ip_families, waypoint, query.original_dst.ip())?;
                let port = declared.and_then(|port| balance::target_port(service, waypoint, port));
                Some(Spot::At(SocketAddr::new(ip, port.unwrap_or(gateway.hbone_port))))
            };
            // Whatever protocol a waypoint is said to speak, it is reached in a tunnel.
            let way = Query { tunnels_only: false, ..*query };
            let (waypoint, picked) = pick(snapshot, &way, service, declared, at).map_err(|none| match none {
                NotPicked::None(NoEndpoint::Unusable) | NotPicked::Unresolved(_) => not_ready(),
                NotPicked::None(NoEndpoint::OtherNetwork) => elsewhere(),
            })?;
            (waypoint, picked.endpoint, &service.subject_alt_names[..], Some(picked))
        }
        None => {
            let GatewayDestination::Address(addr) = &gateway.destination else { return Err(missing()) };
            let waypoint = snapshot.workload_at(addr).ok_or_else(missing)?;
            if waypoint.network != source.network {
                return Err(elsewhere());
            }
            match waypoint.health {
                Health::Healthy => {}
                Health::Unhealthy => return Err(not_ready()),
            }
            (waypoint, SocketAddr::new(addr.ip, gateway.hbone_port), &[][..], None)
        }
    };
    Ok(Plan::Tunnel {
        next_hop: NextHop::new(next_hop),
        authority: Authority::from(query.original_dst.get()),
        expect: expected(waypoint, names),
        peer: waypoint.uid.clone(),
        picked,
        destination: Destination { workload: Some(waypoint.clone()), ..destination.clone() },
    })
}

/// The service that a gateway address stands for, if it does not stand for a workload.
fn service_of<'a>(snapshot: &'a Snapshot, source: &Workload, gateway: &GatewayAddr) -> Option<&'a Arc<Service>> {
    match &gateway.destination {
        GatewayDestination::Service(key) => snapshot.service(key),
        GatewayDestination::Address(addr) => snapshot.service_at(addr, source.namespace()),
    }
}

/// Whether `source` is itself an endpoint of the gateway.
pub(crate) fn is_at(snapshot: &Snapshot, source: &Workload, gateway: &GatewayAddr) -> bool {
    match service_of(snapshot, source, gateway) {
        Some(service) => source.ports_of(&service.key).is_some(),
        None => match &gateway.destination {
            GatewayDestination::Address(addr) => source.network == addr.network && source.owns(addr.ip),
            GatewayDestination::Service(key) => source.ports_of(key).is_some(),
        },
    }
}
