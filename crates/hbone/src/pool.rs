//! Tunnels in use, shared by connections that may share one.

mod book;
mod tunnel;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use h2::Reason as Code;
use http::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::connect::{ANSWER_TIMEOUT, OpenError, OpenRequest, Opened};
use crate::flow::STREAM_WINDOW;
use crate::request::{response_baggage, write_connect};
use crate::socket::Keepalive;
pub use book::TunnelKey;
use book::{Book, Decision, MAX_TUNNELS_PER_KEY, TunnelId};
use tunnel::{Stage, Tunnel};

/// How the tunnels of a pool are made.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// For the sockets of tunnels.
    pub keepalive: Keepalive,
    /// What one stream may be sent ahead of its reader, in bytes; see [`Limits`](crate::Limits::stream_window).
    pub stream_window: u32,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { keepalive: Keepalive::default(), stream_window: STREAM_WINDOW }
    }
}

/// What a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Tunnels, also those being dialled or about to close.
    pub tunnels: usize,
    /// Streams in them.
    pub streams: usize,
}

/// The tunnels of one ztunnel, made on demand, shared and closed when idle. Dropping it ends them all at once.
pub struct Pool {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: PoolConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    book: Book,
    tunnels: HashMap<TunnelId, Arc<Tunnel>>,
    tasks: JoinSet<()>,
    draining: bool,
}

impl State {
    fn close(&mut self, ids: Vec<TunnelId>) {
        for id in ids {
            if let Some(tunnel) = self.tunnels.remove(&id) {
                tunnel.close();
            }
        }
    }
}

/// How one try to open a stream failed.
enum Failure {
    /// Nothing was sent, and the tunnel is out of the way: the next try takes another.
    Stale,
    Error(OpenError),
}

impl Pool {
    /// Tunnels that may die under a connection before it is told. None of its bytes was taken by then.
    pub const MAX_ATTEMPTS: usize = 3;

    /// A pool without tunnels.
    pub fn new(config: PoolConfig) -> Self {
        Self { inner: Arc::new(Inner { config, state: Mutex::default() }) }
    }

    /// Asks the peer for a stream, in a tunnel that may have to be made first.
    ///
    /// Of many callers with one key one dials and the others wait for its tunnel; if the dial fails, it fails for all
    /// of them. A tunnel that dies before it answered is replaced, at most [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS) times.
    pub async fn open(&self, key: &Arc<TunnelKey>, request: &OpenRequest) -> Result<Opened, OpenError> {
        let mut attempts = 0;
        let mut stale = 0;
        loop {
            match self.attempt(key, request).await {
                Ok(opened) => return Ok(opened),
                // Each retires a tunnel, so there cannot be more of them.
                Err(Failure::Stale) if stale < MAX_TUNNELS_PER_KEY => stale += 1,
                Err(Failure::Stale) => return Err(OpenError::Full { next_hop: key.next_hop }),
                Err(Failure::Error(error)) => {
                    attempts += 1;
                    if attempts >= Self::MAX_ATTEMPTS || !matches!(error, OpenError::Retryable { .. }) {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn attempt(&self, key: &Arc<TunnelKey>, request: &OpenRequest) -> Result<Opened, Failure> {
        loop {
            match self.decide(key, request).map_err(Failure::Error)? {
                Place::Taken(slot, tunnel) => return slot.connect(&tunnel, request).await,
                Place::Soon(mut stage) => {
                    if stage.changed().await.is_ok()
                        && let Stage::Failed(error) = &*stage.borrow_and_update()
                    {
                        return Err(Failure::Error(error.clone()));
                    }
                }
            }
        }
    }

    fn decide(&self, key: &Arc<TunnelKey>, request: &OpenRequest) -> Result<Place, OpenError> {
        let mut guard = self.inner.lock();
        let state = &mut *guard;
        if state.draining {
            return Err(OpenError::Closed);
        }
        let mut close = Vec::new();
        let decision = state.book.open(key, request.credentials.not_after(), Instant::now(), &mut close);
        state.close(close);
        match decision {
            Decision::Use(id) => match state.tunnels.get(&id).cloned() {
                Some(tunnel) => Ok(Place::Taken(Slot { pool: self.inner.clone(), key: key.clone(), id }, tunnel)),
                None => Err(OpenError::Closed),
            },
            // Subscribed under the lock under which the book changes: no change is missed.
            Decision::Wait(id) => match state.tunnels.get(&id) {
                Some(tunnel) => Ok(Place::Soon(tunnel.stage())),
                None => Err(OpenError::Closed),
            },
            Decision::Dial(id) => {
                let tunnel = Arc::new(Tunnel::new());
                let stage = tunnel.stage();
                state.tunnels.insert(id, tunnel.clone());
                while state.tasks.try_join_next().is_some() {}
                let pool = self.inner.clone();
                state.tasks.spawn(tunnel::run(pool, key.clone(), id, tunnel, request.clone()));
                Ok(Place::Soon(stage))
            }
            Decision::Full => Err(OpenError::Full { next_hop: key.next_hop }),
        }
    }

    /// Retires the tunnels to these addresses: they belong to other workloads than before, or to none. What lives in
    /// the tunnels goes on, as far as there is somebody at the other end.
    pub fn retire_peers(&self, peers: &HashSet<IpAddr>) {
        self.retire(|book, close| book.retire_peers(peers, close));
    }

    /// Retires the tunnels of a pod that left. Living streams go on.
    pub fn forget_pod(&self, pod: &str) {
        self.retire(|book, close| book.forget_pod(pod, close));
    }

    fn retire(&self, which: impl FnOnce(&mut Book, &mut Vec<TunnelId>)) {
        let mut guard = self.inner.lock();
        let mut close = Vec::new();
        which(&mut guard.book, &mut close);
        guard.close(close);
    }

    /// Opens no more streams, lets the living ones go on, and ends with the last tunnel.
    pub async fn drain(&self) {
        let mut tasks = {
            let mut guard = self.inner.lock();
            guard.draining = true;
            let mut close = Vec::new();
            guard.book.retire_all(&mut close);
            guard.close(close);
            std::mem::take(&mut guard.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    /// What it holds.
    pub fn stats(&self) -> PoolStats {
        let (tunnels, streams) = self.inner.lock().book.counts();
        PoolStats { tunnels, streams }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.inner.lock().tasks.abort_all();
    }
}

enum Place {
    Taken(Slot, Arc<Tunnel>),
    Soon(watch::Receiver<Stage>),
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps further streams away from a tunnel.
    fn retire(&self, key: &TunnelKey, id: TunnelId) {
        let mut guard = self.lock();
        if guard.book.retire(key, id) {
            guard.close(vec![id]);
        }
    }
}

/// A stream's place in a tunnel, given back when dropped.
pub(crate) struct Slot {
    pool: Arc<Inner>,
    key: Arc<TunnelKey>,
    id: TunnelId,
}

impl Slot {
    /// Sends CONNECT and waits for its answer.
    async fn connect(self, tunnel: &Tunnel, request: &OpenRequest) -> Result<Opened, Failure> {
        let next_hop = self.key.next_hop;
        let connect = write_connect(&request.authority, &request.headers)
            .map_err(|error| Failure::Error(OpenError::Unsendable(error.to_string())))?;
        let Some(requests) = tunnel.requests() else {
            self.pool.retire(&self.key, self.id);
            return Err(Failure::Stale);
        };
        let answer = async {
            // The peer may have said GOAWAY since.
            let Ok(mut requests) = requests.ready().await else { return Err(Failure::Stale) };
            let Ok((answer, send)) = requests.send_request(connect, false) else { return Err(Failure::Stale) };
            drop(requests);
            match answer.await {
                Ok(response) => Ok((response, send)),
                Err(error) => Err(Failure::Error(self.unanswered(tunnel, &error).await)),
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        let (response, send) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                if matches!(failure, Failure::Stale | Failure::Error(OpenError::Retryable { .. })) {
                    self.pool.retire(&self.key, self.id);
                }
                return Err(failure);
            }
            Err(_) => return Err(Failure::Error(OpenError::Timeout { next_hop })),
        };
        let (head, recv) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(Failure::Error(OpenError::Refused { next_hop, status: head.status }));
        }
        Ok(Opened { send, recv, unread: tunnel.unread.clone(), baggage: response_baggage(&head.headers), slot: self })
    }

    /// What it means that a CONNECT was not answered.
    async fn unanswered(&self, tunnel: &Tunnel, error: &h2::Error) -> OpenError {
        /// The tunnel's task learns of its end in the same instant as the stream does.
        const MOMENT: Duration = Duration::from_secs(1);

        let next_hop = self.key.next_hop;
        match error.reason() {
            Some(reason) if error.is_reset() && reason != Code::REFUSED_STREAM => {
                return OpenError::Reset { next_hop, reason };
            }
            _ => {}
        }
        if error.is_io() {
            // The tunnel knows better why: TLS may have refused us.
            let mut stage = tunnel.stage();
            let over = stage.wait_for(|stage| matches!(stage, Stage::Failed(_) | Stage::Closed));
            if let Ok(Ok(stage)) = timeout(MOMENT, over).await
                && let Stage::Failed(error) = &*stage
            {
                return error.clone();
            }
        }
        OpenError::Retryable { next_hop, error: error.to_string() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut guard = self.pool.lock();
        if guard.book.ended(&self.key, self.id, Instant::now()) {
            guard.close(vec![self.id]);
        }
    }
}
