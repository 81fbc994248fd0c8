//! The receiving end: an accepted tunnel and the CONNECTs in it.

use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason as Code, RecvStream, SendStream};
use loam_core::addr::DownstreamAddr;
use loam_core::ids::Identity;
use loam_core::reason::Reason;
use loam_tls::{Credentials, HandshakeError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::flow::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_FRAME_BYTES, MAX_LOCAL_ERROR_RESETS, MAX_PENDING_RESETS,
    MAX_REQUEST_HEADER_BYTES, MAX_SEND_BUFFER_BYTES, STREAM_WINDOW, Unread,
};
use crate::outcome::{End, Hooks, Relay, Side};
use crate::relay::{self, Stream};
use crate::request::{self, ConnectHeaders, Malformed, Request};
use crate::socket::{Held, KEEPALIVE, prepare};
use crate::stream::TunnelStream;
use crate::transport::{Batched, MAX_BATCH_BYTES, batched};
use crate::upkeep::{Loss, Upkeep};

/// Longest wait for the HTTP/2 preface after TLS.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// Streams that a tunnel may have reset before they were answered, beyond those it let live. A client whose
/// connections come and go stays far below; rapid reset (CVE-2023-44487) does not.
const MAX_EARLY_RESETS: usize = 1000;

/// What an accepted tunnel may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Streams at a time.
    pub max_streams: u32,
    /// How long a tunnel may exist before its first CONNECT.
    pub first_request_timeout: Duration,
    /// What one stream may send ahead of its reader, in bytes. Where streams are taken as [`TunnelStream`]s, the
    /// windows of all must fit into the tunnel's 64 MiB, so that readers that stop freeze none of the others.
    pub stream_window: u32,
}

impl Default for Limits {
    /// Twice what Istio's clients put into one tunnel, and a minute.
    fn default() -> Self {
        Self { max_streams: 200, first_request_timeout: Duration::from_secs(60), stream_window: STREAM_WINDOW }
    }
}

/// Answers the CONNECTs of tunnels.
pub trait Handler: Send + Sync + 'static {
    /// Answers one, and carries its connection. It runs in a task of its own, which ends at the latest with the tunnel.
    fn connect(&self, incoming: Box<Incoming>) -> impl Future<Output = ()> + Send;

    /// Hears of a request that was answered with 400 because it is no plain CONNECT to a readable authority.
    fn malformed(&self, peer: &Identity, peer_addr: DownstreamAddr, error: &Malformed);
}

/// An orderly end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Requests that arrived in it.
    pub requests: u64,
}

/// Why a tunnel ended badly. Its streams were reset.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket had gone before we could use it.
    #[error("use the accepted socket: {0}")]
    Socket(io::Error),
    /// TLS failed, or the peer proved no identity that we accept, or that we accept no more.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// HTTP/2 did not begin, or no CONNECT came.
    #[error("no {0} in time")]
    Slow(&'static str),
    /// HTTP/2 was violated, overused, or its connection broke.
    #[error("http/2: {0}")]
    Http2(h2::Error),
    /// The tunnel broke beneath HTTP/2.
    #[error(transparent)]
    Lost(#[from] Loss),
}

impl ServeError {
    /// The reason for logs and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            ServeError::Tls(error) => error.reason(),
            ServeError::Socket(_) | ServeError::Slow(_) | ServeError::Http2(_) | ServeError::Lost(_) => {
                Reason::TunnelFailure
            }
        }
    }
}

/// Serves one accepted connection until it ends. When `drain` is ready, the peer is told to send no more requests,
/// and the tunnel ends with its last stream; whoever wants an earlier end has [`Hooks`] for each stream, or drops this
/// future, which resets everything. So does the loss of the roots that explain the peer's certificate.
pub async fn serve<H: Handler>(
    socket: TcpStream,
    credentials: &Credentials,
    limits: &Limits,
    handler: &Arc<H>,
    drain: impl Future<Output = ()> + Send,
) -> Result<Served, ServeError> {
    let peer_addr = DownstreamAddr::new(socket.peer_addr().map_err(ServeError::Socket)?);
    prepare(&socket, KEEPALIVE).map_err(ServeError::Socket)?;
    let (mut tls, peer) = loam_tls::accept(socket, credentials).await?;
    tls.get_mut().1.set_buffer_limit(Some(MAX_BATCH_BYTES));
    let (io, outlet) = batched(tls);
    let handshake = Builder::new()
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_REQUEST_HEADER_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.max_streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .data_frame_budget(DATA_FRAME_BUDGET)
        .handshake(io);
    let mut connection = timeout(PREFACE_TIMEOUT, handshake)
        .await
        .map_err(|_| ServeError::Slow("HTTP/2 preface"))?
        .map_err(ServeError::Http2)?;
    let tunnel =
        Arc::new(Tunnel { peer: peer.identity, peer_addr, unread: Arc::default(), early_resets: AtomicUsize::new(0) });
    let pings = connection.ping_pong().expect("the handle for PING is taken once");
    let upkeep = Upkeep::new(outlet, pings, tunnel.unread.clone());

    let mut streams = JoinSet::new();
    let mut requests = 0;
    // A client may reset streams whose handlers still run: those count too, or resetting would buy room for more.
    let max_handlers = 2 * limits.max_streams as usize;
    let ended = {
        let mut end = Driver { connection, upkeep };
        let (mut drain, mut lost) = (pin!(drain), pin!(peer.proof.lost()));
        let mut draining = false;
        let mut late = pin!(sleep(limits.first_request_timeout));
        loop {
            let event = poll_fn(|cx| {
                if !draining && drain.as_mut().poll(cx).is_ready() {
                    draining = true;
                    end.connection.graceful_shutdown();
                }
                while let Poll::Ready(Some(joined)) = streams.poll_join_next(cx) {
                    report(joined);
                }
                if let Poll::Ready(error) = lost.as_mut().poll(cx) {
                    return Poll::Ready(Event::Ended(Err(HandshakeError::Peer(error).into())));
                }
                if requests == 0 && late.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Ended(Err(ServeError::Slow("CONNECT"))));
                }
                end.turn(cx)
            });
            match event.await {
                Event::Request(request, respond) => {
                    requests += 1;
                    if streams.len() >= max_handlers || tunnel.early_resets.load(Ordering::Relaxed) > MAX_EARLY_RESETS {
                        end.connection.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
                        continue;
                    }
                    receive(request, respond, &tunnel, handler, &mut streams);
                }
                // A peer that drops a tunnel without streams, however roughly, harms nobody.
                Event::Ended(Err(ServeError::Http2(error))) if error.is_io() && streams.is_empty() => break Ok(()),
                Event::Ended(Err(ServeError::Lost(Loss::Write(_)))) if streams.is_empty() => break Ok(()),
                Event::Ended(result) => break result,
            }
        }
        // The connection is dropped here, so that streams learn of the end.
    };
    while let Some(joined) = streams.join_next().await {
        report(joined);
    }
    ended.map(|()| Served { requests })
}

fn report(joined: Result<(), tokio::task::JoinError>) {
    if let Err(error) = joined {
        tracing::error!(%error, "a stream's task ended badly");
    }
}

fn receive<H: Handler>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    tunnel: &Arc<Tunnel>,
    handler: &Arc<H>,
    streams: &mut JoinSet<()>,
) {
    match request::read_connect(&request) {
        Ok(authority) => {
            let (head, recv) = request.into_parts();
            let request = Request {
                authority,
                headers: ConnectHeaders::read(&head.headers),
                peer: tunnel.peer.clone(),
                peer_addr: tunnel.peer_addr,
            };
            let incoming = Box::new(Incoming { request, stream: Some((respond, recv)), tunnel: tunnel.clone() });
            let handler = handler.clone();
            streams.spawn(async move { handler.connect(incoming).await });
        }
        Err(error) => {
            handler.malformed(&tunnel.peer, tunnel.peer_addr, &error);
            // It fails on a stream that is gone.
            let _ = respond.send_response(request::refused(error.reason()), true);
        }
    }
}

/// What the streams of a tunnel share.
#[derive(Debug)]
struct Tunnel {
    peer: Identity,
    peer_addr: DownstreamAddr,
    unread: Arc<Unread>,
    early_resets: AtomicUsize,
}

type Io = TlsStream<TcpStream>;

struct Driver {
    connection: Connection<Batched<Io>, Bytes>,
    upkeep: Upkeep<Io>,
}

enum Event {
    Request(http::Request<RecvStream>, SendResponse<Bytes>),
    Ended(Result<(), ServeError>),
}

impl Driver {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => return Poll::Ready(Event::Request(request, respond)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Ended(Err(ServeError::Http2(error)))),
            Poll::Ready(None) => return Poll::Ready(Event::Ended(Ok(()))),
            Poll::Pending => {}
        }
        let connection = &mut self.connection;
        match self.upkeep.poll(cx, |window| connection.set_initial_window_size(window)) {
            Poll::Ready(Err(loss)) => Poll::Ready(Event::Ended(Err(loss.into()))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

/// A CONNECT that waits for its answer. Dropping it resets the stream.
pub struct Incoming {
    request: Request,
    /// Taken by the answer.
    stream: Option<(SendResponse<Bytes>, RecvStream)>,
    tunnel: Arc<Tunnel>,
}

impl Incoming {
    /// What it asks for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Ends when the peer no longer waits for the answer: there is no use in dialling on.
    pub async fn gone(&mut self) {
        match &mut self.stream {
            Some((respond, _)) => {
                // An error says the same: the tunnel is gone.
                let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Refuses it; the status follows from the reason (400, 401 or 503).
    pub fn refuse(mut self, reason: Reason) {
        if let Some((mut respond, _)) = self.stream.take() {
            // It fails on a stream that is gone.
            let _ = respond.send_response(request::refused(reason), true);
        }
    }

    /// Answers 200, with the labels of the local workload, and carries the stream to `app`, the upstream, until both
    /// sides are done with it.
    pub fn accept(mut self, app: TcpStream, baggage: Option<&str>, hooks: Hooks) -> Relay {
        // Held before the future first runs: dropping it unpolled must reset the application too.
        let app = Held::new(app);
        let Some((send, recv)) = self.agree(baggage) else {
            return Box::pin(ready(hooks.meter.outcome(End::Reset(Side::Downstream))));
        };
        let stream = Stream { send, recv, unread: self.tunnel.unread.clone(), slot: None };
        relay::relay_tunnel(stream, app, Side::Upstream, hooks)
    }

    /// Answers 200, with the labels of the local workload, and gives the stream away. `None` when the peer has gone.
    pub fn accept_stream(mut self, baggage: Option<&str>) -> Option<TunnelStream> {
        self.agree(baggage).map(|(send, recv)| TunnelStream::new(send, recv, None))
    }

    fn agree(&mut self, baggage: Option<&str>) -> Option<(SendStream<Bytes>, RecvStream)> {
        let answered = self.stream.take().and_then(|(mut respond, recv)| {
            respond.send_response(request::accepted(baggage), false).ok().map(|send| (send, recv))
        });
        if answered.is_none() {
            self.count_early_reset();
            return None;
        }
        // Streams that live pay for some that do not.
        let early = &self.tunnel.early_resets;
        let _ = early.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        answered
    }

    fn count_early_reset(&self) {
        self.tunnel.early_resets.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some((respond, _)) = &mut self.stream
            && respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            self.count_early_reset();
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("request", &self.request).finish_non_exhaustive()
    }
}
