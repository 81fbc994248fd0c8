//! The task of one tunnel: dials it, keeps it going, closes it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use loam_tls::{HandshakeError, PeerError, Proof};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::book::{TunnelId, TunnelKey};
use super::{Inner, PoolConfig};
use crate::connect::{OpenError, OpenRequest};
use crate::flow::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_FRAME_BYTES, MAX_LOCAL_ERROR_RESETS, MAX_RESPONSE_HEADER_BYTES,
    MAX_SEND_BUFFER_BYTES, Unread,
};
use crate::socket::prepare;
use crate::transport::{Batched, MAX_BATCH_BYTES, batched};
use crate::upkeep::{Loss, Upkeep};

/// A dialler that forgets its own time limit must not hold everyone who waits for the tunnel.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The stream limit until the peer tells its own: a number that no SETTINGS frame can carry.
const UNTOLD_LIMIT: usize = usize::MAX - 1;

/// What others see of a tunnel.
pub(super) struct Tunnel {
    stage: watch::Sender<Stage>,
    close: Notify,
    pub(super) unread: Arc<Unread>,
}

#[derive(Clone)]
pub(super) enum Stage {
    Dialing,
    Up(SendRequest<Bytes>),
    /// It was not made, or died.
    Failed(OpenError),
    /// We closed it.
    Closed,
}

impl Tunnel {
    pub(super) fn new() -> Self {
        Self { stage: watch::Sender::new(Stage::Dialing), close: Notify::new(), unread: Arc::default() }
    }

    /// Tells whenever something happens to it.
    pub(super) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// To send requests with, while it is up.
    pub(super) fn requests(&self) -> Option<SendRequest<Bytes>> {
        match &*self.stage.borrow() {
            Stage::Up(requests) => Some(requests.clone()),
            Stage::Dialing | Stage::Failed(_) | Stage::Closed => None,
        }
    }

    /// Ends it; it must have no streams.
    pub(super) fn close(&self) {
        self.close.notify_one();
    }
}

type Io = TlsStream<TcpStream>;

/// Dials a tunnel and keeps it until it is closed or dies.
pub(super) async fn run(
    pool: Arc<Inner>,
    key: Arc<TunnelKey>,
    id: TunnelId,
    tunnel: Arc<Tunnel>,
    request: OpenRequest,
) {
    let established = {
        let establish = establish(&key, &request, &pool.config, &tunnel);
        tokio::select! {
            biased;
            () = tunnel.close.notified() => None,
            established = establish => Some(established),
        }
    };
    // A tunnel outlives the connection it was made for: let go of what came with that.
    drop(request);
    let last = match established {
        None => Stage::Closed,
        Some(Err(error)) => Stage::Failed(error),
        Some(Ok(Established { requests, connection, upkeep, proof })) => {
            pool.lock().book.connected(&key, id, Instant::now());
            tunnel.stage.send_replace(Stage::Up(requests));
            Driver { pool: &pool, key: &key, id, tunnel: &tunnel, connection, upkeep }.run(proof).await
        }
    };
    {
        let mut guard = pool.lock();
        guard.book.gone(&key, id);
        guard.tunnels.remove(&id);
    }
    // After the book: whoever is woken finds it changed.
    tunnel.stage.send_replace(last);
}

struct Established {
    requests: SendRequest<Bytes>,
    connection: Connection<Batched<Io>, Bytes>,
    upkeep: Upkeep<Io>,
    proof: Proof,
}

async fn establish(
    key: &TunnelKey,
    request: &OpenRequest,
    config: &PoolConfig,
    tunnel: &Tunnel,
) -> Result<Established, OpenError> {
    let next_hop = key.next_hop;
    let dial_error = |error| OpenError::Dial { next_hop, error: Arc::new(error) };
    let tls_error = |error| OpenError::Tls { next_hop, error: Arc::new(error) };
    let socket = timeout(DIAL_TIMEOUT, request.dialer.dial(next_hop))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(dial_error)?;
    prepare(&socket, config.keepalive).map_err(dial_error)?;
    let (mut tls, peer) = loam_tls::connect(socket, &request.credentials, key.expect()).await.map_err(tls_error)?;
    tls.get_mut().1.set_buffer_limit(Some(MAX_BATCH_BYTES));
    let (io, outlet) = batched(tls);
    let (requests, mut connection) = Builder::new()
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(MAX_RESPONSE_HEADER_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .initial_max_send_streams(UNTOLD_LIMIT)
        .enable_push(false)
        .handshake(io)
        .await
        .map_err(|error| {
            tls_error(HandshakeError::Closed(error.get_io().map_or(io::ErrorKind::Other, io::Error::kind)))
        })?;
    let pings = connection.ping_pong().expect("the handle for PING is taken once");
    let upkeep = Upkeep::new(outlet, pings, tunnel.unread.clone());
    Ok(Established { requests, connection, upkeep, proof: peer.proof })
}

struct Driver<'a> {
    pool: &'a Inner,
    key: &'a TunnelKey,
    id: TunnelId,
    tunnel: &'a Tunnel,
    connection: Connection<Batched<Io>, Bytes>,
    upkeep: Upkeep<Io>,
}

/// Why a tunnel is over.
enum Over {
    /// The roots that explain the peer's certificate are gone.
    Untrusted(PeerError),
    Broken(String),
}

impl Driver<'_> {
    async fn run(mut self, proof: Proof) -> Stage {
        let tunnel = self.tunnel;
        let (mut close, mut lost) = (pin!(tunnel.close.notified()), pin!(proof.lost()));
        let mut closing = false;
        let mut limit = UNTOLD_LIMIT;
        let over = poll_fn(|cx| {
            if !closing && close.as_mut().poll(cx).is_ready() {
                closing = true;
                // The last handle that could open a stream: without it HTTP/2 says GOAWAY and ends.
                tunnel.stage.send_replace(Stage::Closed);
            }
            if let Poll::Ready(error) = lost.as_mut().poll(cx) {
                return Poll::Ready(Over::Untrusted(error));
            }
            self.turn(cx, &mut limit).map(Over::Broken)
        })
        .await;
        if closing {
            return Stage::Closed;
        }
        let next_hop = self.key.next_hop;
        Stage::Failed(match (over, self.upkeep.tls_failure()) {
            (Over::Untrusted(error), _) => OpenError::Tls { next_hop, error: Arc::new(error.into()) },
            (Over::Broken(_), Some(error)) => OpenError::Tls { next_hop, error },
            (Over::Broken(error), None) => OpenError::Retryable { next_hop, error },
        })
    }

    /// One turn; ready with the cause when the tunnel is over.
    fn turn(&mut self, cx: &mut Context<'_>, limit: &mut usize) -> Poll<String> {
        if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(match result {
                Ok(()) => "closed by the peer".to_owned(),
                Err(error) => error.to_string(),
            });
        }
        let told = self.connection.max_concurrent_send_streams();
        if told != *limit {
            *limit = told;
            self.pool.lock().book.limited(self.key, self.id, told);
            // Wakes those who wait to know it.
            self.tunnel.stage.send_modify(|_| {});
        }
        let connection = &mut self.connection;
        match self.upkeep.poll(cx, |window| connection.set_initial_window_size(window)) {
            Poll::Ready(Ok(())) => {
                if self.pool.lock().book.idle_expired(self.key, self.id, Instant::now()) {
                    self.tunnel.close();
                }
                Poll::Pending
            }
            Poll::Ready(Err(loss @ (Loss::Silent | Loss::Write(_)))) => Poll::Ready(loss.to_string()),
            Poll::Pending => Poll::Pending,
        }
    }
}
