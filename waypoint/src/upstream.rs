//! Connections to endpoints on which requests are sent, kept as long as they are of use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::body::RequestBody;
use crate::connect::{Connect, Place, Unreached};
use crate::limits::{
    HTTP2_CONNECTION_WINDOW, HTTP2_STREAM_WINDOW, MAX_HEAD_BYTES, MAX_HEADERS, MAX_STREAMS_PER_CONNECTION,
};
use crate::stream::Stream;

/// How long a connection without requests is kept. Many servers close theirs after a minute or more; what they close
/// sooner is found by trying.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks for idle connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Connections to one endpoint, which is Envoy's number: beyond it requests are refused at once.
pub const MAX_CONNECTIONS: usize = 1024;

/// What is spoken with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of versions say it")]
pub enum Version {
    Http1,
    Http2,
}

/// What two requests must have in common to share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hop {
    /// The endpoint.
    pub place: Place,
    /// What is spoken with it.
    pub version: Version,
}

/// The connections of this process to all endpoints.
pub struct Upstreams {
    connect: Arc<dyn Connect>,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    hops: Mutex<HashMap<Arc<Hop>, Hops>>,
    tasks: Mutex<JoinSet<()>>,
}

/// The connections to one endpoint.
#[derive(Default)]
struct Hops {
    /// All there are, also those being opened.
    open: usize,
    /// HTTP/1 without a request; the last was used last.
    idle: Vec<Idle>,
    /// HTTP/2.
    shared: Vec<Shared>,
    /// Held while one opens a connection that others may share.
    opening: Arc<tokio::sync::Mutex<()>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    since: Instant,
}

impl Shared {
    fn has_room(&self) -> bool {
        !self.sender.is_closed() && self.streams.load(Ordering::Relaxed) < MAX_STREAMS_PER_CONNECTION
    }
}

/// An answer that has begun.
pub struct Answered {
    /// It.
    pub response: Response<Incoming>,
    /// The connection on which it comes.
    pub lease: Lease,
}

/// A connection while an answer comes on it. Dropped before [`Lease::finish`] it is not used again.
pub struct Lease(Kind);

enum Kind {
    Http1 { inner: Arc<Inner>, hop: Arc<Hop>, sender: http1::SendRequest<RequestBody> },
    Http2 { _place: StreamPlace },
}

/// A stream's place in a connection, given back when dropped.
struct StreamPlace(Arc<AtomicUsize>);

impl StreamPlace {
    fn take(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// The answer came to its end: the connection may take another request.
    pub fn finish(self) {
        if let Kind::Http1 { inner, hop, sender } = self.0
            && !sender.is_closed()
            && let Some(hops) = inner.lock().get_mut(&hop)
        {
            hops.idle.push(Idle { sender, since: Instant::now() });
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// There is no connection.
    Unreached {
        /// Why.
        error: Unreached,
        /// The request, which was not sent.
        request: Box<Request<RequestBody>>,
    },
    /// There are [`MAX_CONNECTIONS`] to this endpoint.
    Full,
    /// The connection broke.
    Broken {
        /// How.
        error: hyper::Error,
        /// Whether it had carried requests before: it may have been closed for idleness when this one came.
        reused: bool,
        /// The request, if it was not sent.
        request: Option<Box<Request<RequestBody>>>,
    },
}

/// Why there is no connection.
enum Unopened {
    Unreached(Unreached),
    Full,
    Broken(hyper::Error),
}

impl Unopened {
    /// What it means for a request.
    fn to(self, request: Request<RequestBody>) -> Unanswered {
        let request = Box::new(request);
        match self {
            Unopened::Unreached(error) => Unanswered::Unreached { error, request },
            Unopened::Full => Unanswered::Full,
            Unopened::Broken(error) => Unanswered::Broken { error, reused: false, request: Some(request) },
        }
    }
}

impl Upstreams {
    /// Connections that `connect` opens.
    pub fn new(connect: Arc<dyn Connect>) -> Self {
        Self { connect, inner: Arc::default() }
    }

    /// Sends `request` and waits for the head of its answer. A request that a kept connection did not take goes to
    /// another.
    pub async fn send(&self, hop: &Arc<Hop>, request: Request<RequestBody>) -> Result<Answered, Unanswered> {
        match hop.version {
            Version::Http1 => self.send_http1(hop, request).await,
            Version::Http2 => self.send_http2(hop, request).await,
        }
    }

    async fn send_http1(&self, hop: &Arc<Hop>, mut request: Request<RequestBody>) -> Result<Answered, Unanswered> {
        loop {
            let (mut sender, reused) = match self.idle(hop) {
                Some(sender) => (sender, true),
                None => match self.open_http1(hop).await {
                    Ok(sender) => (sender, false),
                    Err(unopened) => return Err(unopened.to(request)),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease(Kind::Http1 { inner: self.inner.clone(), hop: hop.clone(), sender });
                    return Ok(Answered { response, lease });
                }
                Err(mut error) => match error.take_message() {
                    // Each takes one connection out of the list of idle ones.
                    Some(unsent) if reused => request = unsent,
                    unsent => {
                        let request = unsent.map(Box::new);
                        return Err(Unanswered::Broken { error: error.into_error(), reused, request });
                    }
                },
            }
        }
    }

    async fn send_http2(&self, hop: &Arc<Hop>, mut request: Request<RequestBody>) -> Result<Answered, Unanswered> {
        loop {
            let (mut sender, place, reused) = match self.share(hop).await {
                Ok(shared) => shared,
                Err(unopened) => return Err(unopened.to(request)),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Answered { response, lease: Lease(Kind::Http2 { _place: place }) }),
                Err(mut error) => match error.take_message() {
                    // A closed connection is not shared again.
                    Some(unsent) if reused && sender.is_closed() => request = unsent,
                    unsent => {
                        let request = unsent.map(Box::new);
                        return Err(Unanswered::Broken { error: error.into_error(), reused, request });
                    }
                },
            }
        }
    }

    /// An idle connection that is still open.
    fn idle(&self, hop: &Arc<Hop>) -> Option<http1::SendRequest<RequestBody>> {
        let mut guard = self.inner.lock();
        let idle = &mut guard.get_mut(hop)?.idle;
        idle.retain(|idle| !idle.sender.is_closed());
        // One that is not ready yet still sends the request that was answered already.
        let at = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.remove(at).sender)
    }

    async fn open_http1(&self, hop: &Arc<Hop>) -> Result<http1::SendRequest<RequestBody>, Unopened> {
        let (io, place) = self.open(hop).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(io))
            .await
            .map_err(Unopened::Broken)?;
        self.inner.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(place);
        });
        Ok(sender)
    }

    /// A connection with room for one more stream, and whether it had carried others.
    async fn share(&self, hop: &Arc<Hop>) -> Result<(http2::SendRequest<RequestBody>, StreamPlace, bool), Unopened> {
        if let Some((sender, place)) = self.shared(hop) {
            return Ok((sender, place, true));
        }
        let opening = self.inner.lock().entry(hop.clone()).or_default().opening.clone();
        let _one = opening.lock().await;
        if let Some((sender, place)) = self.shared(hop) {
            return Ok((sender, place, true));
        }
        let (io, opened) = self.open(hop).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .handshake(TokioIo::new(io))
            .await
            .map_err(Unopened::Broken)?;
        self.inner.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(opened);
        });
        let shared = Shared { sender, streams: Arc::default(), since: Instant::now() };
        let taken = (shared.sender.clone(), StreamPlace::take(&shared.streams), false);
        self.inner.lock().entry(hop.clone()).or_default().shared.push(shared);
        Ok(taken)
    }

    fn shared(&self, hop: &Arc<Hop>) -> Option<(http2::SendRequest<RequestBody>, StreamPlace)> {
        let mut guard = self.inner.lock();
        let shared = &mut guard.get_mut(hop)?.shared;
        shared.retain(|shared| !shared.sender.is_closed());
        let found = shared.iter_mut().find(|shared| shared.has_room())?;
        found.since = Instant::now();
        Some((found.sender.clone(), StreamPlace::take(&found.streams)))
    }

    async fn open(&self, hop: &Arc<Hop>) -> Result<(Stream, OpenPlace), Unopened> {
        let place = OpenPlace::take(&self.inner, hop).ok_or(Unopened::Full)?;
        let io = self.connect.connect(&hop.place).await.map_err(Unopened::Unreached)?;
        Ok((io, place))
    }

    /// Opens a connection for something that is not HTTP, or is more than a request.
    pub async fn connect(&self, place: &Place) -> Result<Stream, Unreached> {
        self.connect.connect(place).await
    }

    /// Closes connections that were idle for [`IDLE_TIMEOUT`], as long as it runs.
    pub async fn sweep(&self) -> std::convert::Infallible {
        let mut tick = interval(SWEEP_INTERVAL);
        loop {
            tick.tick().await;
            self.inner.sweep(Instant::now());
        }
    }

    /// How many connections there are, also those being opened.
    pub fn count(&self) -> usize {
        self.inner.lock().values().map(|hops| hops.open).sum()
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Hop>, Hops>> {
        // Nothing that runs under the lock can leave the map half changed.
        self.hops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(connection);
    }

    fn sweep(&self, now: Instant) {
        let is_fresh = |since: Instant| now.saturating_duration_since(since) < IDLE_TIMEOUT;
        // Dropped after the lock is free again.
        let mut stale = Vec::new();
        self.lock().retain(|_, hops| {
            stale.extend(hops.idle.extract_if(.., |idle| idle.sender.is_closed() || !is_fresh(idle.since)));
            hops.shared.retain(|shared| {
                let is_busy = shared.streams.load(Ordering::Relaxed) > 0 || is_fresh(shared.since);
                is_busy && !shared.sender.is_closed()
            });
            hops.open > 0 || Arc::strong_count(&hops.opening) > 1
        });
    }
}

/// A connection's place among those to its endpoint, given back when dropped.
struct OpenPlace {
    inner: Arc<Inner>,
    hop: Arc<Hop>,
}

impl OpenPlace {
    fn take(inner: &Arc<Inner>, hop: &Arc<Hop>) -> Option<Self> {
        let mut guard = inner.lock();
        let hops = guard.entry(hop.clone()).or_default();
        if hops.open >= MAX_CONNECTIONS {
            return None;
        }
        hops.open += 1;
        Some(Self { inner: inner.clone(), hop: hop.clone() })
    }
}

impl Drop for OpenPlace {
    fn drop(&mut self) {
        if let Some(hops) = self.inner.lock().get_mut(&self.hop) {
            hops.open = hops.open.saturating_sub(1);
        }
    }
}
