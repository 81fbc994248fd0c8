//! A connection that a pod opens: decide, dial, carry, finish.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use loam_core::addr::{DownstreamAddr, NextHop, OrigDst};
use loam_core::authority::Authority;
use loam_core::egress;
use loam_core::headers::baggage::Baggage;
use loam_core::headers::forwarded::Forwarded;
use loam_core::headers::traceparent::Traceparent;
use loam_core::ids::{Hostname, Identity};
use loam_core::outbound::{Destination, Plan, Query, Refusal, Resolved, Unplanned, plan};
use loam_core::reason::Reason;
use loam_core::traversal;
use loam_core::workload::Workload;
use loam_hbone::{ConnectHeaders, Hooks, OpenError, OpenRequest, Opened, Relay, TunnelKey, relay_plain};
use loam_tls::HandshakeError;
use tokio::net::TcpStream;

use crate::access_log::{Late, OpenRecord, Record};
use crate::endpoints::{Connection, Failure, Fault, Place, Tries, Unreached, reach as reach_endpoint};
use crate::enrolled::{Caller, Enrolled};
use crate::metrics::{Direction, Peer};
use crate::reach;

/// Tunnels whose handshake was cut before one connection is given up. The other end was replaced meanwhile; no byte
/// of the application was taken.
const MAX_CUT_HANDSHAKES: usize = 3;

/// Carries one connection that `from`, in the pod, opened.
pub(crate) fn carry(pod: Arc<Enrolled>, socket: TcpStream, from: SocketAddr) -> impl Future<Output = ()> + Send {
    // What leads to a carried connection is on the heap, and gone when the connection is carried.
    let established = Box::pin(async move { establish(&pod, socket, from).await });
    async move {
        if let Some(Carried { record, relay, place }) = established.await {
            record.finish(relay.await);
            drop(place);
        }
    }
}

/// A connection that an upstream took.
struct Carried {
    record: OpenRecord,
    relay: Relay,
    /// Counts it at its endpoint while it lives.
    place: Option<Place>,
}

/// Decides and dials; a connection that is not to be carried was refused.
async fn establish(pod: &Arc<Enrolled>, socket: TcpStream, from: SocketAddr) -> Option<Carried> {
    let Ok(dialled) = socket.local_addr().map(OrigDst::new) else {
        loam_hbone::reset(socket);
        return None;
    };
    let downstream = DownstreamAddr::new(from);
    let mut record = pod.proxy().log.begin(Direction::Outbound, downstream, dialled);
    if let Err(error) = loam_hbone::prepare(&socket, loam_hbone::KEEPALIVE) {
        return refuse(socket, record, Reason::Reset, &error);
    }
    let Some(caller) = pod.caller().await else {
        return refuse(socket, record, Reason::WorkloadUnknown, &"the mesh configuration does not have this pod");
    };
    let entropy = rand::random();
    let mut reached = Call::new(pod, caller.workload(), downstream, dialled, entropy, &mut record).reach().await;
    // Whether a newcomer may leave the mesh is not known here; the answer is on its way.
    if let (Caller::Newcomer(_), Err(Unreached::Refused(Refusal { reason: Reason::NotRegistered, .. }))) =
        (&caller, &reached)
    {
        let Some(known) = pod.workload().await else {
            let unknown = "nobody declares the destination, and the mesh configuration, which says whether this pod may \
                           go there, does not have the pod";
            return refuse(socket, record, Reason::WorkloadUnknown, &unknown);
        };
        reached = Call::new(pod, &known, downstream, dialled, entropy, &mut record).reach().await;
    }
    match reached {
        Ok((upstream, place)) => {
            let is_egress = place.is_none() && record.facts().destination.workload.is_none();
            let record = record.open();
            let hooks = match is_egress {
                true => Hooks::abort_on(egress_end(pod.clone(), record.late(), dialled)),
                false => Hooks::abort_on(pod.end_of_all()),
            };
            let hooks = hooks.meter(record.meter());
            let relay = match upstream {
                Upstream::Plain(stream) => relay_plain(socket, stream, hooks),
                Upstream::Tunnel(opened) => opened.carry(socket, hooks),
            };
            Some(Carried { record, relay, place })
        }
        Err(Unreached::Refused(Refusal { reason, detail, destination })) => {
            describe(&mut record, &destination);
            refuse(socket, record, reason, &detail)
        }
        Err(Unreached::Failed { reason, error }) => refuse(socket, record, reason, &error),
    }
}

/// When a connection to a destination for which no endpoint was picked must end although neither side wants it to: its
/// pod or this process ends, or the pod may reach only what is declared by now.
fn egress_end(pod: Arc<Enrolled>, late: Late, dialled: OrigDst) -> impl Future<Output = Reason> + Send {
    let mut changes = pod.egress();
    // A change between the decision and here counts as well.
    changes.mark_changed();
    async move {
        let end_of_all = pod.end_of_all();
        let forbidden = async {
            while changes.changed().await.is_ok() {
                let refusal =
                    pod.known_workload().and_then(|source| egress::forbids(&pod.proxy().mesh.load(), &source, dialled));
                if let Some(refusal) = refusal {
                    return late.refuse(refusal.reason, refusal.detail);
                }
            }
            Reason::WorkloadGone
        };
        tokio::select! {
            reason = end_of_all => reason,
            reason = forbidden => reason,
        }
    }
}

/// A connection on the way to its upstream.
struct Call<'a> {
    pod: &'a Arc<Enrolled>,
    source: &'a Arc<Workload>,
    downstream: DownstreamAddr,
    dialled: OrigDst,
    entropy: u64,
    record: &'a mut Record,
}

/// Who took a connection.
enum Upstream {
    Plain(TcpStream),
    Tunnel(Opened),
}

impl Connection for Call<'_> {
    type Upstream = Upstream;

    fn decide(&self, tries: &Tries) -> Result<Plan, Unplanned> {
        let proxy = self.pod.proxy();
        let query = Query {
            standings: &*proxy.endpoints,
            tried: &tries.endpoints,
            tunnels_only: tries.tunnels_only,
            names: &tries.names,
            ..Query::new(self.source, self.dialled, self.entropy)
        };
        plan(&proxy.mesh.load(), &query)
    }

    async fn resolve(&self, host: &Hostname) -> Resolved {
        self.pod.names().resolve(host, self.source).await
    }

    fn describe(&mut self, plan: &Plan, number: usize) {
        describe(self.record, plan.destination());
        let facts = self.record.facts();
        facts.tries = number;
        match plan {
            Plan::Direct { upstream, .. } => {
                facts.addr = upstream.get();
                facts.authority = None;
                facts.secured = false;
                facts.source.identity = None;
            }
            Plan::Tunnel { next_hop, authority, expect, destination, .. } => {
                facts.addr = next_hop.get();
                facts.authority = Some(authority.clone());
                facts.secured = true;
                facts.source.identity = Some(self.source.identity.clone());
                facts.destination.identity = proven(expect, destination);
            }
        }
    }

    async fn open(&self, plan: &Plan) -> Result<Upstream, Failure> {
        match plan {
            Plan::Direct { upstream, .. } => self.direct(*upstream).await.map(Upstream::Plain),
            Plan::Tunnel { next_hop, authority, expect, destination, .. } => {
                let host = destination.service.as_ref().map(|service| service.key.hostname.clone());
                let opened = self.tunnel(*next_hop, authority.clone(), expect.clone(), host).await;
                opened.map(Upstream::Tunnel).map_err(|failure| telling_waypoint(failure, authority.port(), destination))
            }
        }
    }
}

impl<'a> Call<'a> {
    fn new(
        pod: &'a Arc<Enrolled>,
        source: &'a Arc<Workload>,
        downstream: DownstreamAddr,
        dialled: OrigDst,
        entropy: u64,
        record: &'a mut Record,
    ) -> Self {
        record.facts().source.workload = Some(source.clone());
        Self { pod, source, downstream, dialled, entropy, record }
    }

    async fn reach(mut self) -> Result<(Upstream, Option<Place>), Unreached> {
        let proxy = self.pod.proxy();
        reach_endpoint(&proxy.endpoints, &mut self, proxy.mesh.watch()).await
    }

    async fn direct(&self, upstream: NextHop) -> Result<TcpStream, Failure> {
        let dialled = async {
            let stream = reach::dial(self.pod.pod(), upstream).await?;
            loam_hbone::prepare(&stream, loam_hbone::KEEPALIVE)?;
            Ok(stream)
        };
        dialled.await.map_err(|error| Failure {
            reason: connect_reason(&error),
            fault: reach::fault(&error),
            unproven: false,
            error: format!("dial {upstream}: {error}"),
        })
    }

    async fn tunnel(
        &self,
        next_hop: NextHop,
        authority: Authority,
        expect: Vec<Identity>,
        host: Option<Hostname>,
    ) -> Result<Opened, Failure> {
        let (pod, proxy, source) = (self.pod, self.pod.proxy(), self.source);
        let credentials = proxy.identities.get(&source.identity).await.map_err(|error| Failure {
            reason: error.reason(),
            fault: Fault::Final,
            unproven: false,
            error: error.to_string(),
        })?;
        let key = Arc::new(TunnelKey::new(source.identity.clone(), expect, next_hop, pod.uid().clone()));
        let (socket, reached) = (pod.pod().clone(), proxy.reached.clone());
        let request = OpenRequest {
            authority,
            headers: ConnectHeaders {
                baggage: Some(Baggage::of(source).to_string()),
                forwarded: Some(Forwarded::new(self.downstream.get(), host).to_string()),
                traceparent: Some(Traceparent::new(rand::random(), rand::random()).to_string()),
            },
            credentials,
            dialer: Arc::new(move |to| reach::dial_tunnel(socket.clone(), reached.clone(), to)),
        };
        let mut cut = 0;
        loop {
            match proxy.tunnels.open(&key, &request).await {
                Ok(opened) => return Ok(opened),
                Err(OpenError::Tls { error, .. })
                    if matches!(*error, HandshakeError::Closed(_)) && cut < MAX_CUT_HANDSHAKES =>
                {
                    cut += 1;
                }
                Err(error) => return Err(failure(&error)),
            }
        }
    }
}

/// The failure with the waypoint that should have been used, as far as it is known here, where that is why.
fn telling_waypoint(mut failure: Failure, port: u16, destination: &Destination) -> Failure {
    if let (Reason::WaypointRequired, Some(workload)) = (failure.reason, &destination.workload) {
        for waypoint in traversal::waypoints(workload, port) {
            failure.error.push_str(&format!("; port {port} is reached by way of waypoint {waypoint}"));
        }
    }
    failure
}

fn failure(error: &OpenError) -> Failure {
    Failure {
        reason: match error {
            OpenError::Refused { status: StatusCode::MISDIRECTED_REQUEST, .. } => Reason::WaypointRequired,
            error => error.reason(),
        },
        fault: fault(error),
        unproven: matches!(error, OpenError::Tls { .. }),
        error: error.to_string(),
    }
}

/// Whose fault it is that there is no tunnel, or no stream in it.
fn fault(error: &OpenError) -> Fault {
    match error {
        OpenError::Dial { error, .. } => reach::fault(error),
        OpenError::Tls { error, .. } if matches!(**error, HandshakeError::Timeout) => Fault::Silence,
        OpenError::Timeout { .. } => Fault::Silence,
        OpenError::Tls { .. } | OpenError::Retryable { .. } | OpenError::Reset { .. } => Fault::Endpoint,
        OpenError::Refused { status, .. } => match *status {
            status if status.is_server_error() => Fault::Endpoint,
            // It does not serve what we asked for: its address has passed to another workload.
            StatusCode::BAD_REQUEST => Fault::Way,
            // A policy there denies it, and going round a denial is not ours to do; nor is going past a waypoint.
            _ => Fault::Final,
        },
        OpenError::Full { .. } => Fault::Way,
        OpenError::Unsendable(_) | OpenError::Closed => Fault::Final,
    }
}

fn describe(record: &mut Record, destination: &Destination) {
    let facts = record.facts();
    facts.destination = Peer { workload: destination.workload.clone(), ..Peer::default() };
    facts.service = destination.service.clone();
    facts.absent_waypoint = destination.absent.clone().map(Box::new);
}

/// Whom the tunnel proves to be at the other end, where only one may be there.
fn proven(expect: &[Identity], destination: &Destination) -> Option<Identity> {
    match expect {
        [only] => Some(only.clone()),
        _ => destination.workload.as_ref().map(|workload| workload.identity.clone()),
    }
}

fn refuse<T>(socket: TcpStream, record: Record, reason: Reason, error: &dyn std::fmt::Display) -> Option<T> {
    loam_hbone::reset(socket);
    record.refuse(reason, error);
    None
}

/// How a connection ends that could not be made.
pub(crate) fn connect_reason(error: &std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    }
}
