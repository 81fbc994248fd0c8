//! How a carried connection ended, and what its owner may do with it while it lives.

use std::fmt;
use std::future::{self, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loam_core::reason::Reason;

/// The result of a carried connection, consumed by its one access log line.
///
/// Directions are named from the downstream's point of view, who connected to us: on the sending node that is the
/// application, on the receiving node the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that went from the downstream to the upstream.
    pub bytes_sent: u64,
    /// Bytes that went from the upstream to the downstream.
    pub bytes_received: u64,
    /// How it ended.
    pub end: End,
}

/// How a carried connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides finished (FIN) and every byte was handed on.
    Finished,
    /// One side reset the connection, and the other saw a reset.
    Reset(Side),
    /// The tunnel under the stream died, and the application saw a reset.
    TunnelLost,
    /// Its owner ended it through [`Hooks`], and both sides saw a reset.
    Aborted(Reason),
}

impl End {
    /// The reason for logs and metrics; an ordinary end has none.
    pub fn reason(self) -> Option<Reason> {
        match self {
            End::Finished => None,
            End::Reset(_) => Some(Reason::Reset),
            End::TunnelLost => Some(Reason::TunnelFailure),
            End::Aborted(reason) => Some(reason),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Finished => f.write_str("finished"),
            End::Reset(Side::Downstream) => f.write_str("reset by the downstream"),
            End::Reset(Side::Upstream) => f.write_str("reset by the upstream"),
            End::TunnelLost => f.write_str("the tunnel was lost"),
            End::Aborted(reason) => write!(f, "ended by us: {}", reason.as_str()),
        }
    }
}

/// One of the two sides of a carried connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Downstream,
    /// Whom we connected to.
    Upstream,
}

/// Bytes of a connection while it lives; directions as in [`Outcome`].
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    /// Bytes from the downstream to the upstream so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the upstream to the downstream so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts bytes that `from` wrote.
    pub(crate) fn add(&self, from: Side, bytes: usize) {
        let counter = match from {
            Side::Downstream => &self.sent,
            Side::Upstream => &self.received,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The outcome with the bytes so far.
    pub(crate) fn outcome(&self, end: End) -> Outcome {
        Outcome { bytes_sent: self.sent(), bytes_received: self.received(), end }
    }
}

/// A connection while it is carried. Dropping it resets both sides.
///
/// On the heap: a connection lives in it for much longer than in all that led to it, and whatever that needed is free
/// again when only this is kept.
pub type Relay = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What the owner of a connection keeps in hand while the engine carries it.
pub struct Hooks {
    /// On the heap: every future that it is handed through would have room for it.
    pub(crate) abort: Pin<Box<dyn Future<Output = Reason> + Send>>,
    pub(crate) meter: Arc<Meter>,
}

impl Hooks {
    /// Nothing ends the connection but its two sides.
    pub fn none() -> Self {
        Self::abort_on(future::pending())
    }

    /// When `abort` is ready, both sides are reset for its reason: a policy changed, the workload left, a drain is over.
    pub fn abort_on(abort: impl Future<Output = Reason> + Send + 'static) -> Self {
        Self { abort: Box::pin(abort), meter: Arc::default() }
    }

    /// Counts into `meter`, so that bytes are seen before the connection ends. It must be fresh.
    pub fn meter(self, meter: Arc<Meter>) -> Self {
        Self { meter, ..self }
    }
}
