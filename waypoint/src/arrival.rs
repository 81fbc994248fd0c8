//! A CONNECT that reaches this waypoint: who asks for what, and in which protocol.

use std::str::FromStr;
use std::sync::Arc;

use loam_core::addr::{DownstreamAddr, NetworkAddr, OrigDst};
use loam_core::authority::Authority;
use loam_core::headers::baggage::Baggage;
use loam_core::ids::Identity;
use loam_core::outbound::Refusal;
use loam_core::reason::Reason;
use loam_core::snapshot::Snapshot;
use loam_core::waypoint::{Query, Target, target};
use loam_hbone::{Handler, Incoming, Malformed, Request};
use tokio::time::timeout;

use crate::access_log::Origin;
use crate::engine::{Engine, Session};
use crate::limits::BINDING_PATIENCE;
use crate::metrics::{Peer, PeerLabels};
use crate::sniff::{Declared, Protocol, sniff};
use crate::stream::Io;
use crate::{serve, tcp};

/// Answers the CONNECTs of tunnels.
pub struct Arrivals(Arc<Engine>);

impl Arrivals {
    /// Serves them by `engine`.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }
}

impl Handler for Arrivals {
    async fn connect(&self, mut incoming: Box<Incoming>) {
        let engine = &self.0;
        let request = incoming.request().clone();
        let origin = Arc::new(origin(engine, &request));
        let found = tokio::select! {
            biased;
            found = find(engine, &request) => found,
            () = incoming.gone() => return,
        };
        let target = match found {
            Ok(target) => target,
            Err(Refusal { reason, detail, .. }) => {
                incoming.refuse(reason);
                return engine.log.begin_connection(origin).fail(reason, &detail);
            }
        };
        let labels = Baggage::of(&engine.own.workload()).to_string();
        // It fails when the peer has gone, which nobody misses.
        let Some(stream) = incoming.accept_stream(Some(&labels)) else { return };
        let session = Arc::new(Session { engine: engine.clone(), origin, target });
        speak(session, stream).await;
    }

    fn malformed(&self, peer: &Identity, peer_addr: DownstreamAddr, error: &Malformed) {
        let source = Peer { identity: Some(peer.clone()), ..Peer::default() };
        let labels = Arc::new(PeerLabels::of(&source));
        let asked = OrigDst::new(peer_addr.get());
        let origin = Origin { source, labels, downstream: peer_addr, asked };
        self.0.log.begin_connection(Arc::new(origin)).fail(error.reason(), error);
    }
}

/// Speaks with a client in what it begins with.
pub async fn speak(session: Arc<Session>, stream: impl Io) {
    let engine = session.engine.clone();
    let sniffed = tokio::select! {
        sniffed = sniff(stream, Declared::from(session.target.app_protocol())) => sniffed,
        // It has not said anything that would be lost.
        () = engine.drain.forced() => return,
    };
    match sniffed {
        None => {}
        Some((Protocol::Http1, io)) => serve::http1(session, io).await,
        Some((Protocol::Http2, io)) => serve::http2(session, io).await,
        Some((Protocol::Opaque, io)) => tcp::carry(&session, io).await,
    }
}

/// What `request` asks for. What is not bound to this waypoint may be so in a moment: this process and the caller's
/// ztunnel are told apart.
async fn find(engine: &Engine, request: &Request) -> Result<Target, Refusal> {
    let find = |snapshot: &Snapshot| {
        let local = engine.own.workload_in(snapshot);
        let caller_namespace = request.peer.namespace();
        target(snapshot, &Query { local: &local, caller_namespace, authority: &request.authority })
    };
    let found = find(&engine.mesh.load());
    match found {
        Err(refusal) if refusal.reason == Reason::AuthorityMismatch => {
            timeout(BINDING_PATIENCE, engine.mesh.wait_for(|snapshot| find(snapshot).ok())).await.map_err(|_| refusal)
        }
        found => found,
    }
}

/// Who sent `request`. Its certificate says it; its address only tells which of the workloads with that identity.
fn origin(engine: &Engine, request: &Request) -> Origin {
    let local = engine.own.workload();
    let at = NetworkAddr { network: local.network.clone(), ip: request.peer_addr.ip() };
    let snapshot = engine.mesh.load();
    let workload = snapshot.workload_at(&at).filter(|workload| workload.identity == request.peer).cloned();
    // What a workload says of itself counts only where nobody else knows it.
    let said = request.headers.baggage.as_deref().filter(|_| workload.is_none());
    let baggage = said.and_then(|text| Baggage::from_str(text).ok()).map(Box::new);
    let source = Peer { workload, identity: Some(request.peer.clone()), baggage };
    let asked = match &request.authority {
        Authority::Addr(addr) => OrigDst::new(*addr),
        Authority::Host(_, port) => OrigDst::new((std::net::Ipv4Addr::UNSPECIFIED, *port).into()),
    };
    Origin { labels: Arc::new(PeerLabels::of(&source)), source, downstream: request.peer_addr, asked }
}
