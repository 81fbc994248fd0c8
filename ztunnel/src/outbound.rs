//! A connection that a pod opens: decide, dial, carry, finish.

use std::net::SocketAddr;
use std::sync::Arc;

use loam_core::addr::{DownstreamAddr, NextHop, OrigDst};
use loam_core::authority::Authority;
use loam_core::headers::baggage::Baggage;
use loam_core::headers::forwarded::Forwarded;
use loam_core::headers::traceparent::Traceparent;
use loam_core::ids::Identity;
use loam_core::outbound::{Destination, Plan, Query, Refusal, plan};
use loam_core::reason::Reason;
use loam_core::workload::Workload;
use loam_hbone::{ConnectHeaders, Hooks, OpenError, OpenRequest, Opened, TunnelKey, relay_plain};
use loam_tls::HandshakeError;
use tokio::net::TcpStream;

use crate::access_log::Record;
use crate::enrolled::Enrolled;
use crate::metrics::{Direction, Peer};
use crate::reach;

/// Tunnels whose handshake was cut before one connection is given up. The other end was replaced meanwhile; no byte
/// of the application was taken.
const MAX_CUT_HANDSHAKES: usize = 3;

/// Carries one connection that `from`, in the pod, opened.
pub(crate) async fn carry(pod: Arc<Enrolled>, socket: TcpStream, from: SocketAddr) {
    let Ok(dialled) = socket.local_addr().map(OrigDst::new) else { return loam_hbone::reset(socket) };
    let downstream = DownstreamAddr::new(from);
    let mut record = pod.proxy().log.begin(Direction::Outbound, downstream, dialled);
    if let Err(error) = loam_hbone::prepare(&socket, loam_hbone::KEEPALIVE) {
        return refuse(socket, record, Reason::Reset, &error);
    }
    let Some(source) = pod.workload().await else {
        return refuse(socket, record, Reason::WorkloadUnknown, &"the mesh configuration does not have this pod");
    };
    record.facts().source.workload = Some(source.clone());
    let decided =
        plan(&pod.proxy().mesh.load(), &Query { source: &source, original_dst: dialled, entropy: rand::random() });
    match decided {
        Err(refusal) => {
            describe(&mut record, &refusal.destination);
            let Refusal { reason, detail, .. } = refusal;
            refuse(socket, record, reason, &detail);
        }
        Ok(Plan::Direct { upstream, destination }) => {
            describe(&mut record, &destination);
            direct(&pod, socket, record, upstream).await;
        }
        Ok(Plan::Tunnel { next_hop, authority, expect, peer: _, destination }) => {
            describe(&mut record, &destination);
            let facts = record.facts();
            facts.addr = next_hop.get();
            facts.authority = Some(authority.clone());
            facts.secured = true;
            facts.source.identity = Some(source.identity.clone());
            facts.destination.identity = proven(&expect, &destination);
            let ask = Ask { next_hop, authority, expect, host: destination.service.as_ref().map(|s| &s.key.hostname) };
            match open(&pod, &source, downstream, &ask).await {
                Ok(opened) => {
                    let record = record.open();
                    let hooks = Hooks::abort_on(pod.end_of_outbound()).meter(record.meter());
                    record.finish(opened.carry(socket, hooks).await);
                }
                Err((reason, error)) => refuse(socket, record, reason, &error),
            }
        }
    }
}

async fn direct(pod: &Enrolled, socket: TcpStream, mut record: Record, upstream: NextHop) {
    record.facts().addr = upstream.get();
    match reach::dial(pod.pod(), upstream).await {
        Ok(stream) => {
            if let Err(error) = loam_hbone::prepare(&stream, loam_hbone::KEEPALIVE) {
                return refuse(socket, record, Reason::ConnectFailed, &error);
            }
            let record = record.open();
            let hooks = Hooks::abort_on(pod.end_of_outbound()).meter(record.meter());
            record.finish(relay_plain(socket, stream, hooks).await);
        }
        Err(error) => refuse(socket, record, connect_reason(&error), &format_args!("dial {upstream}: {error}")),
    }
}

/// What to ask of which peer.
struct Ask<'a> {
    next_hop: NextHop,
    authority: Authority,
    expect: Vec<Identity>,
    host: Option<&'a loam_core::ids::Hostname>,
}

async fn open(
    pod: &Arc<Enrolled>,
    source: &Workload,
    downstream: DownstreamAddr,
    ask: &Ask<'_>,
) -> Result<Opened, (Reason, String)> {
    let proxy = pod.proxy();
    let credentials =
        proxy.identities.get(&source.identity).await.map_err(|error| (error.reason(), error.to_string()))?;
    let key = Arc::new(TunnelKey::new(source.identity.clone(), ask.expect.clone(), ask.next_hop, pod.uid().clone()));
    let (socket, reached) = (pod.pod().clone(), proxy.reached.clone());
    let request = OpenRequest {
        authority: ask.authority.clone(),
        headers: ConnectHeaders {
            baggage: Some(Baggage::of(source).to_string()),
            forwarded: Some(Forwarded::new(downstream.get(), ask.host.cloned()).to_string()),
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
            Err(error) => return Err((error.reason(), error.to_string())),
        }
    }
}

fn describe(record: &mut Record, destination: &Destination) {
    let facts = record.facts();
    facts.destination = Peer { workload: destination.workload.clone(), ..Peer::default() };
    facts.service = destination.service.clone();
}

/// Whom the tunnel proves to be at the other end, where only one may be there.
fn proven(expect: &[Identity], destination: &Destination) -> Option<Identity> {
    match expect {
        [only] => Some(only.clone()),
        _ => destination.workload.as_ref().map(|workload| workload.identity.clone()),
    }
}

fn refuse(socket: TcpStream, record: Record, reason: Reason, error: &dyn std::fmt::Display) {
    loam_hbone::reset(socket);
    record.refuse(reason, error);
}

/// How a connection ends that could not be made.
pub(crate) fn connect_reason(error: &std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    }
}
