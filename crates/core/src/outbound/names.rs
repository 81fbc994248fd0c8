//! Endpoints that are known by name only: which of a name's addresses is dialled, and what that address means.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Destination, Picked, Plan, Query, Refusal, Unplanned, own_listener, plan, to_endpoint};
use crate::addr::{NetworkAddr, OrigDst, is_own_port};
use crate::balance;
use crate::ids::Hostname;
use crate::reason::Reason;
use crate::service::{BalancingMode, IpFamilies};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The name.
    pub host: Hostname,
    /// Its addresses, or why there are none.
    pub addresses: Result<Arc<[IpAddr]>, Arc<str>>,
}

/// Where an endpoint serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spot {
    At(SocketAddr),
    /// Where this name leads to, which is not known yet.
    Unresolved(Hostname),
}

impl Query<'_> {
    /// Where an endpoint serves that is known by `host`: at one of the addresses that are left. Which of them is left
    /// to chance; those in the family of the caller and those that are not set aside come first.
    pub(super) fn spot(&self, families: IpFamilies, host: &Hostname, port: u16) -> Option<Spot> {
        let Some(resolved) = self.names.iter().find(|resolved| resolved.host == *host) else {
            return Some(Spot::Unresolved(host.clone()));
        };
        let addresses = resolved.addresses.as_deref().unwrap_or_default();
        let other_family = |ip: IpAddr| ip.is_ipv4() != self.original_dst.ip().is_ipv4();
        let first = (self.entropy % (addresses.len().max(1) as u64)) as usize;
        let (before, after) = addresses.split_at(first);
        let left = after.iter().chain(before).filter(|ip| is_place(**ip) && balance::allows(families, **ip));
        let left = left.map(|ip| SocketAddr::new(*ip, port)).filter(|addr| !self.tried.contains(addr));
        left.min_by_key(|addr| (self.standings.of(*addr).aside, other_family(addr.ip()))).map(Spot::At)
    }

    /// Why names that were asked for lead nowhere, for people; none when all of them lead somewhere.
    pub(super) fn unresolved(&self, families: IpFamilies) -> Option<String> {
        let why = |resolved: &Resolved| match &resolved.addresses {
            Err(why) => Some(format!("{}: {why}", resolved.host)),
            Ok(addresses) => {
                let leads_somewhere = addresses.iter().any(|ip| is_place(*ip) && balance::allows(families, *ip));
                (!leads_somewhere).then(|| format!("{}: has no address that can be dialled", resolved.host))
            }
        };
        let all: Vec<_> = self.names.iter().filter_map(why).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Whether an address is a place on a network. A name server can say what it likes, and nobody who was declared lives
/// on the caller's own loopback.
fn is_place(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// To an address that a name leads to. One that the mesh knows means what it means to whoever dials it: a pod of the
/// mesh is not reached in the clear because somebody wrote down its name.
pub(super) fn to_resolved(
    snapshot: &Snapshot,
    query: &Query<'_>,
    endpoint: &Arc<Workload>,
    picked: Picked,
    destination: Destination,
) -> Result<Plan, Refusal> {
    let (source, addr) = (query.source, picked.endpoint);
    let known = NetworkAddr { network: source.network.clone(), ip: addr.ip() };
    let own = source.owns(addr.ip());
    if own && is_own_port(addr.port()) {
        return Err(Refusal { destination, ..own_listener(addr) });
    }
    let service = snapshot.service_at(&known, source.namespace());
    let balanced = service.is_some_and(|service| service.balancing.mode != BalancingMode::Passthrough);
    if own || (!balanced && snapshot.workload_at(&known).is_none()) {
        let destination = Destination { workload: Some(endpoint.clone()), ..destination };
        return Ok(to_endpoint(source, endpoint, addr, &[], Some(picked), destination));
    }
    let plan = plan(snapshot, &Query { original_dst: OrigDst::new(addr), names: &[], ..*query });
    match plan {
        Ok(plan) => Ok(plan.on_behalf_of(destination, picked)),
        Err(Unplanned::Refused(refusal)) => {
            Err(Refusal { destination, detail: format!("{}: {}", endpoint.name, refusal.detail), ..refusal })
        }
        Err(Unplanned::Unresolved(host)) => Err(Refusal {
            destination,
            ..Refusal::new(
                Reason::Loop,
                format!("{} leads to {addr}, a service whose endpoint is a name again: {host}", endpoint.name),
            )
        }),
    }
}

impl Plan {
    /// The same for a connection that was meant for `dialled`, and may be tried on other endpoints of it.
    fn on_behalf_of(mut self, dialled: Destination, by_name: Picked) -> Self {
        let (Plan::Direct { picked, destination, .. } | Plan::Tunnel { picked, destination, .. }) = &mut self;
        destination.service = dialled.service;
        picked.get_or_insert(by_name);
        self
    }
}

#[cfg(test)]
mod tests;
