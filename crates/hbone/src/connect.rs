//! One CONNECT from our side: the request, its answer, and the connection carried after it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::StatusCode;
use loam_core::addr::NextHop;
use loam_core::authority::Authority;
use loam_core::reason::Reason;
use loam_tls::{Credentials, HandshakeError};
use tokio::net::TcpStream;

use crate::flow::Unread;
use crate::outcome::{Hooks, Relay, Side};
use crate::pool::Slot;
use crate::relay::{self, Stream};
use crate::request::ConnectHeaders;
use crate::socket::Held;
use crate::stream::TunnelStream;

/// Longest wait for the answer to CONNECT; the peer dials its application meanwhile.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens the TCP connection of a tunnel.
///
/// Any `Fn(NextHop)` that returns such a future will do.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `next_hop`. Time limits and retries of the TCP connection are the dialler's.
    fn dial(&self, next_hop: NextHop) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + '_>>;
}

impl<F, Dialling> Dial for F
where
    F: Fn(NextHop) -> Dialling + Send + Sync + 'static,
    Dialling: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    fn dial(&self, next_hop: NextHop) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + '_>> {
        Box::pin(self(next_hop))
    }
}

/// What to ask of a peer, and what is needed should a tunnel have to be made for it.
#[derive(Clone)]
pub struct OpenRequest {
    /// What the stream shall lead to.
    pub authority: Authority,
    /// How the connection describes itself.
    pub headers: ConnectHeaders,
    /// Proof of the source identity. A tunnel made with older ones takes no further streams.
    pub credentials: Arc<Credentials>,
    /// Dials the next hop from the right place with the right socket.
    pub dialer: Arc<dyn Dial>,
}

/// Why there is no stream. Waiters of one dial share its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The next hop was not reached.
    #[error("dial {next_hop}: {error}")]
    Dial {
        /// What was dialled.
        next_hop: NextHop,
        /// The dialler's error.
        #[source]
        error: Arc<io::Error>,
    },
    /// It was reached, and TLS failed. Includes a peer that is not among the acceptable ones: it never sees a CONNECT.
    #[error("tls with {next_hop}: {error}")]
    Tls {
        /// What was dialled.
        next_hop: NextHop,
        /// The cause.
        #[source]
        error: Arc<HandshakeError>,
    },
    /// The tunnel died, or began to close, before it answered. No byte of the application was taken, so the caller may
    /// try again; the pool already did so [`MAX_ATTEMPTS`](crate::Pool::MAX_ATTEMPTS) times.
    #[error("tunnel to {next_hop} ended before it answered: {error}")]
    Retryable {
        /// The other end of the tunnel.
        next_hop: NextHop,
        /// What became of it.
        error: String,
    },
    /// The peer reset the stream instead of answering.
    #[error("{next_hop} reset CONNECT: {reason}")]
    Reset {
        /// The other end of the tunnel.
        next_hop: NextHop,
        /// HTTP/2's code.
        reason: h2::Reason,
    },
    /// The peer answered with a refusal.
    #[error("{next_hop} refused CONNECT: {status}")]
    Refused {
        /// The other end of the tunnel.
        next_hop: NextHop,
        /// Its answer.
        status: StatusCode,
    },
    /// The peer did not answer.
    #[error("{next_hop} did not answer CONNECT within {ANSWER_TIMEOUT:?}")]
    Timeout {
        /// The other end of the tunnel.
        next_hop: NextHop,
    },
    /// The authority cannot be sent.
    #[error("write CONNECT: {0}")]
    Unsendable(String),
    /// There are as many tunnels to this peer as may be.
    #[error("too many tunnels to {next_hop}")]
    Full {
        /// The other end.
        next_hop: NextHop,
    },
    /// The pool is draining.
    #[error("the tunnels are closing")]
    Closed,
}

impl OpenError {
    /// The reason for logs and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            OpenError::Dial { error, .. } => match error.kind() {
                io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
                io::ErrorKind::TimedOut => Reason::ConnectTimeout,
                _ => Reason::ConnectFailed,
            },
            OpenError::Tls { error, .. } => error.reason(),
            OpenError::Retryable { .. } => Reason::TunnelFailure,
            OpenError::Reset { .. } | OpenError::Refused { .. } => Reason::PeerRefused,
            OpenError::Timeout { .. } => Reason::ConnectTimeout,
            OpenError::Unsendable(_) => Reason::Internal,
            OpenError::Full { .. } => Reason::Overload,
            OpenError::Closed => Reason::Drained,
        }
    }
}

/// A stream that the peer answered with 200. Dropping it resets the stream.
pub struct Opened {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    pub(crate) unread: Arc<Unread>,
    pub(crate) baggage: Option<String>,
    /// Occupies a place in its tunnel while it lives.
    pub(crate) slot: Slot,
}

impl Opened {
    /// Labels of the workload that answered.
    pub fn baggage(&self) -> Option<&str> {
        self.baggage.as_deref()
    }

    /// Carries an application's connection until both sides are done with it. `app` is the downstream.
    pub fn carry(self, app: TcpStream, hooks: Hooks) -> Relay {
        // Held before the future first runs: dropping it unpolled must reset the application too.
        let app = Held::new(app);
        let Self { send, recv, unread, baggage: _, slot } = self;
        relay::relay_tunnel(Stream { send, recv, unread, slot: Some(slot) }, app, Side::Downstream, hooks)
    }

    /// The stream as bytes to read and to write.
    pub fn into_stream(self) -> TunnelStream {
        let Self { send, recv, unread: _, baggage: _, slot } = self;
        TunnelStream::new(send, recv, Some(slot))
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("stream", &self.send.stream_id()).finish_non_exhaustive()
    }
}
