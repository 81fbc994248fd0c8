//! Connections that reach a pod: CONNECTs in HBONE tunnels, and plaintext.

mod arrival;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use loam_core::addr::{DownstreamAddr, NetworkAddr, OrigDst};
use loam_core::headers::baggage::Baggage;
use loam_core::ids::Identity;
use loam_core::inbound::{Query, Refusal, plan, plan_plaintext};
use loam_core::reason::Reason;
use loam_core::snapshot::Snapshot;
use loam_core::workload::Workload;
use loam_hbone::{Handler, Hooks, Incoming, Limits, Malformed, Relay, relay_plain};
use tokio::net::TcpStream;

use crate::access_log::{OpenRecord, Record};
use crate::deliver::Delivery;
use crate::enrolled::Enrolled;
use crate::metrics::{Direction, Peer};
use crate::outbound::connect_reason;
use arrival::Arrival;

/// Serves one connection to the pod's HBONE port.
pub(crate) async fn tunnel(pod: Arc<Enrolled>, socket: TcpStream, from: SocketAddr) {
    let Ok(arrived_at) = socket.local_addr().map(OrigDst::new) else { return loam_hbone::reset(socket) };
    let downstream = DownstreamAddr::new(from);
    let refuse = |reason, error: &dyn std::fmt::Display| {
        let mut record = pod.proxy().log.begin(Direction::Inbound, downstream, arrived_at);
        record.facts().destination.workload = pod.known_workload();
        record.refuse(reason, error);
    };
    let Some(local) = pod.workload().await else {
        loam_hbone::reset(socket);
        return refuse(Reason::WorkloadUnknown, &"the mesh configuration does not have this pod");
    };
    let credentials = match pod.proxy().identities.get(&local.identity).await {
        Ok(credentials) => credentials,
        Err(error) => {
            loam_hbone::reset(socket);
            return refuse(error.reason(), &error);
        }
    };
    let (handler, limits) = (Arc::new(Arrivals { pod: pod.clone(), arrived_at }), Limits::default());
    let served = loam_hbone::serve(socket, &credentials, &limits, &handler, pod.drain_begins());
    tokio::select! {
        // Its streams are reset with it.
        _ = pod.end_of_all() => {}
        served = served => if let Err(error) = served {
            // A tunnel that broke has ended its connections, and each has its own line; a handshake has nobody else.
            match error {
                loam_hbone::ServeError::Tls(_) | loam_hbone::ServeError::Slow(_) => refuse(error.reason(), &error),
                other => tracing::debug!(peer = %downstream, error = %other, "tunnel ended"),
            }
        },
    }
}

/// Answers the CONNECTs of one tunnel.
struct Arrivals {
    pod: Arc<Enrolled>,
    arrived_at: OrigDst,
}

impl Handler for Arrivals {
    async fn connect(&self, incoming: Box<Incoming>) {
        // What leads to a carried connection is on the heap, and gone when the connection is carried.
        if let Some(Carried { record, relay, delivery: _delivery }) = Box::pin(self.establish(incoming)).await {
            record.finish(relay.await);
        }
    }

    fn malformed(&self, peer: &Identity, peer_addr: DownstreamAddr, error: &Malformed) {
        let mut record = self.pod.proxy().log.begin(Direction::Inbound, peer_addr, self.arrived_at);
        record.facts().secured = true;
        record.facts().source.identity = Some(peer.clone());
        record.facts().destination.workload = self.pod.known_workload();
        record.refuse(error.reason(), error);
    }
}

impl Arrivals {
    /// Decides and dials; a connection that is not to be carried was refused.
    async fn establish(&self, incoming: Box<Incoming>) -> Option<Carried> {
        let pod = &self.pod;
        let request = incoming.request();
        let (downstream, peer) = (request.peer_addr, request.peer.clone());
        let mut record = pod.proxy().log.begin(Direction::Inbound, downstream, self.arrived_at);
        let facts = record.facts();
        facts.secured = true;
        facts.authority = Some(request.authority.clone());
        let said = request.headers.baggage.as_deref().and_then(|text| Baggage::from_str(text).ok());
        facts.source.baggage = said.map(Box::new);
        let Some(local) = pod.known_workload() else {
            return refuse(incoming, record, Reason::WorkloadUnknown, &"the mesh configuration lost this pod");
        };
        let snapshot = pod.proxy().mesh.load();
        let query = Query { local: &local, arrived_at: self.arrived_at, authority: &request.authority };
        let decided = plan(&snapshot, &query);
        describe(&mut record, &snapshot, &local, downstream, Some(&peer));
        drop(snapshot);
        let plan = match decided {
            Ok(plan) => plan,
            Err(refusal) => {
                record.facts().service = refusal.destination.service;
                return refuse(incoming, record, refusal.reason, &refusal.detail);
            }
        };
        let (mut incoming, upstream) = (incoming, plan.upstream);
        record.facts().service = plan.service;
        let mut arrival = Arrival::new(pod, Some(peer), downstream.ip(), upstream);
        let dialled = tokio::select! {
            biased;
            dialled = async {
                arrival.permit(pod, &local, &mut record).await?;
                Ok(pod.deliveries().dial(pod.pod(), downstream.ip(), upstream).await)
            } => dialled,
            () = incoming.gone() => {
                record.refuse(Reason::Reset, "the peer no longer waits");
                return None;
            }
        };
        match dialled {
            Err((reason, detail)) => refuse(incoming, record, reason, &detail),
            Ok(Ok((app, delivery))) => {
                if let Err(error) = loam_hbone::prepare(&app, loam_hbone::KEEPALIVE) {
                    return refuse(incoming, record, Reason::ConnectFailed, &error);
                }
                let record = record.open();
                let hooks = Hooks::abort_on(arrival.end(pod.clone(), record.late())).meter(record.meter());
                let labels = Baggage::of(&local).to_string();
                Some(Carried { record, relay: incoming.accept(app, Some(&labels), hooks), delivery })
            }
            Ok(Err(error)) => {
                refuse(incoming, record, connect_reason(&error), &format_args!("dial {upstream}: {error}"))
            }
        }
    }
}

/// A connection on its way to the application.
struct Carried {
    record: OpenRecord,
    relay: Relay,
    delivery: Delivery,
}

/// Serves one connection that reached the pod in the clear.
pub(crate) fn plaintext(pod: Arc<Enrolled>, socket: TcpStream, from: SocketAddr) -> impl Future<Output = ()> + Send {
    let established = Box::pin(async move { establish_plaintext(&pod, socket, from).await });
    async move {
        if let Some(Carried { record, relay, delivery: _delivery }) = established.await {
            record.finish(relay.await);
        }
    }
}

async fn establish_plaintext(pod: &Arc<Enrolled>, socket: TcpStream, from: SocketAddr) -> Option<Carried> {
    let Ok(arrived_at) = socket.local_addr().map(OrigDst::new) else {
        loam_hbone::reset(socket);
        return None;
    };
    let downstream = DownstreamAddr::new(from);
    let mut record = pod.proxy().log.begin(Direction::Inbound, downstream, arrived_at);
    let refuse = |socket, record: Record, reason, error: &dyn std::fmt::Display| {
        loam_hbone::reset(socket);
        record.refuse(reason, error);
        None
    };
    if pod.deliveries().is_own(downstream.get()) {
        return refuse(socket, record, Reason::Loop, &"our own delivery came back: the redirect is damaged");
    }
    if let Err(error) = loam_hbone::prepare(&socket, loam_hbone::KEEPALIVE) {
        return refuse(socket, record, Reason::Reset, &error);
    }
    let Some(local) = pod.workload().await else {
        return refuse(socket, record, Reason::WorkloadUnknown, &"the mesh configuration does not have this pod");
    };
    let snapshot = pod.proxy().mesh.load();
    let decided = plan_plaintext(&snapshot, &local, arrived_at);
    describe(&mut record, &snapshot, &local, downstream, None);
    drop(snapshot);
    let plan = match decided {
        Ok(plan) => plan,
        Err(Refusal { reason, detail, .. }) => return refuse(socket, record, reason, &detail),
    };
    let upstream = plan.upstream;
    record.facts().service = plan.service;
    let mut arrival = Arrival::new(pod, None, downstream.ip(), upstream);
    if let Err((reason, detail)) = arrival.permit(pod, &local, &mut record).await {
        return refuse(socket, record, reason, &detail);
    }
    match pod.deliveries().dial(pod.pod(), downstream.ip(), upstream).await {
        Ok((app, delivery)) => {
            if let Err(error) = loam_hbone::prepare(&app, loam_hbone::KEEPALIVE) {
                return refuse(socket, record, Reason::ConnectFailed, &error);
            }
            let record = record.open();
            let hooks = Hooks::abort_on(arrival.end(pod.clone(), record.late())).meter(record.meter());
            Some(Carried { record, relay: relay_plain(socket, app, hooks), delivery })
        }
        Err(error) => refuse(socket, record, connect_reason(&error), &format_args!("dial {upstream}: {error}")),
    }
}

fn describe(
    record: &mut Record,
    snapshot: &Snapshot,
    local: &Arc<Workload>,
    downstream: DownstreamAddr,
    identity: Option<&Identity>,
) {
    let addr = NetworkAddr { network: local.network.clone(), ip: downstream.ip() };
    let source = snapshot.workload_at(&addr).cloned();
    let facts = record.facts();
    // An address that another identity speaks from is not that workload's: a waypoint or gateway stands there.
    let named = source.filter(|workload| identity.is_none_or(|identity| workload.identity == *identity));
    // What a workload says of itself counts only where nobody else knows it.
    let baggage = facts.source.baggage.take().filter(|_| named.is_none());
    facts.source = Peer { workload: named, identity: identity.cloned(), baggage };
    let proven = identity.map(|_| local.identity.clone());
    facts.destination = Peer { workload: Some(local.clone()), identity: proven, baggage: None };
}

fn refuse<T>(incoming: Box<Incoming>, record: Record, reason: Reason, error: &dyn std::fmt::Display) -> Option<T> {
    incoming.refuse(reason);
    record.refuse(reason, error);
    None
}
