//! Plans of a waypoint for what stands behind it: where a connection goes from there, no waypoint being on the way.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Destination, Picked, Plan, Query, Unplanned, past_waypoints, to_endpoint};
use crate::balance;
use crate::ids::WorkloadUid;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// Decides which endpoint of `service` a connection goes to. The port of the original destination is the service's; its
/// address tells the family alone, unless the service lets connections through to where they were going.
pub fn plan_endpoint(snapshot: &Snapshot, query: &Query<'_>, service: &Arc<Service>) -> Result<Plan, Unplanned> {
    let destination = Destination { service: Some(service.clone()), ..Destination::default() };
    past_waypoints(snapshot, query, service, destination)
}

/// To the endpoint `uid` of `service`, if it may be picked: a session holds it.
pub fn plan_held(snapshot: &Snapshot, query: &Query<'_>, service: &Arc<Service>, uid: &WorkloadUid) -> Option<Plan> {
    let endpoint = snapshot.workload(uid).filter(|endpoint| endpoint.ports_of(&service.key).is_some())?;
    if endpoint.network != query.source.network || !balance::may_be_used(service, endpoint) {
        return None;
    }
    let port = balance::target_port(service, endpoint, query.original_dst.port())?;
    let addr = SocketAddr::new(balance::address(service.ip_families, endpoint, query.original_dst.ip())?, port);
    let destination =
        Destination { workload: Some(endpoint.clone()), service: Some(service.clone()), ..Destination::default() };
    let picked = Some(Picked { endpoint: addr, doubtful: false });
    Some(to_endpoint(query.source, endpoint, addr, &service.subject_alt_names, picked, destination))
}

/// To the workload whose address was dialled.
pub fn plan_workload(query: &Query<'_>, workload: &Arc<Workload>) -> Plan {
    let destination = Destination { workload: Some(workload.clone()), ..Destination::default() };
    to_endpoint(query.source, workload, query.original_dst.get(), &[], None, destination)
}
