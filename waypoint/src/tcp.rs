//! Connections that are no HTTP: carried as they are.

use loam_core::outbound::Plan;
use loam_core::reason::Reason;
use loam_core::waypoint::Target;
use tokio::io::copy_bidirectional_with_sizes;

use crate::connect::Way;
use crate::engine::{NotReached, Reached, Session};
use crate::exchange::route_opaque;
use crate::metrics::Peer;
use crate::stream::{Io, Metered};

/// Read at once in either direction.
const BUFFER_BYTES: usize = 32 << 10;

/// Carries `downstream` to an endpoint of what `session` asks for, until both sides are done or this process ends.
pub async fn carry(session: &Session, downstream: impl Io) {
    let engine = &session.engine;
    let _guard = engine.drain.guard();
    let mut record = engine.log.begin_connection(session.origin.clone());
    let target = match route_opaque(session) {
        Ok(target) => target,
        Err(failure) => return record.fail(Reason::NoHealthyUpstream, &failure.as_str()),
    };
    if let Target::Service { service, port, .. } = &target {
        record.service = Some((service.clone(), port.service_port));
    }
    let Reached { stream: mut upstream, plan, place, busy: _busy, entry: _entry } = match engine.reach(&target).await {
        Ok(reached) => reached,
        Err(NotReached { reason, error }) => return record.fail(reason, &error),
    };
    record.upstream = Some(place.endpoint);
    record.destination = peer(&plan, &place.way);
    record.open();
    let mut downstream = Metered::new(downstream, record.meter());
    let carried = tokio::select! {
        carried = copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER_BYTES, BUFFER_BYTES) => carried,
        () = engine.drain.forced() => return record.fail(Reason::Drained, &"closed because this process ends"),
    };
    // Both streams are reset when they are dropped before they were shut down.
    match carried {
        Ok(_) => record.finish(),
        Err(error) => record.fail(Reason::Reset, &error),
    }
}

/// Who is at the end of `plan`, for logs and metrics.
pub fn peer(plan: &Plan, way: &Way) -> Peer {
    let workload = plan.destination().workload.clone();
    let identity = match way {
        Way::Tunnel { expect, .. } => match &expect[..] {
            [only] => Some(only.clone()),
            _ => workload.as_ref().map(|workload| workload.identity.clone()),
        },
        Way::Direct => None,
    };
    Peer { workload, identity, baggage: None }
}
