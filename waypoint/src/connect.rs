//! Connections to endpoints: inside tunnels where they speak HBONE, else in the clear.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use loam_core::addr::NextHop;
use loam_core::authority::Authority;
use loam_core::headers::baggage::Baggage;
use loam_core::ids::Identity;
use loam_core::outbound::Plan;
use loam_core::reason::Reason;
use loam_hbone::{ConnectHeaders, KEEPALIVE, OpenError, OpenRequest, Pool, TunnelKey};
use loam_tls::HandshakeError;
use loam_tls::store::Store;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::config::CONNECT_TIMEOUT;
use crate::own::Own;
use crate::stream::{Plain, Stream};

/// How long a refusal by a peer that never answered on its HBONE port is doubted: the mesh knows it as enrolled, but
/// its node may be in the middle of it.
const FIRST_CONTACT_PATIENCE: Duration = Duration::from_secs(2);

/// The same for a peer that did answer before. Short, since callers shall learn of a dead node at once.
const PATIENCE: Duration = Duration::from_millis(60);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(15);

/// Peers remembered; when it is full the memory starts anew, which costs patience and nothing else.
const MAX_PEERS: usize = 100_000;

/// How long a peer is asked again that says it may be reached through another waypoint only: at a change of waypoints
/// its node may be told after us.
const MISDIRECTED_PATIENCE: Duration = Duration::from_secs(2);

/// Before it is asked again for the first time; each further time twice as long.
const MISDIRECTED_PAUSE: Duration = Duration::from_millis(50);

/// Tunnels whose handshake was cut before one connection is given up: the other end was replaced meanwhile.
const MAX_CUT_HANDSHAKES: usize = 3;

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Way {
    /// In the clear.
    Direct,
    /// In a tunnel.
    Tunnel {
        /// The far end of the tunnel.
        next_hop: NextHop,
        /// What to ask it for.
        authority: Authority,
        /// Who may be there: one of these.
        expect: Vec<Identity>,
    },
}

/// An endpoint and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Where it serves.
    pub endpoint: SocketAddr,
    /// How it is reached.
    pub way: Way,
}

impl Place {
    /// Where `plan` leads.
    pub fn of(plan: &Plan) -> Self {
        match plan {
            Plan::Direct { upstream, .. } => Self { endpoint: upstream.get(), way: Way::Direct },
            Plan::Tunnel { next_hop, authority, expect, picked, .. } => Self {
                endpoint: match (picked, authority) {
                    (Some(picked), _) => picked.endpoint,
                    (None, Authority::Addr(addr)) => *addr,
                    (None, Authority::Host(_, port)) => SocketAddr::new(next_hop.ip(), *port),
                },
                way: Way::Tunnel { next_hop: *next_hop, authority: authority.clone(), expect: expect.clone() },
            },
        }
    }
}

/// Why an endpoint was not connected to. No byte of a request was taken.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct Unreached {
    /// Why, for metrics.
    pub reason: Reason,
    /// Why, for the log.
    pub error: String,
    /// Whether another endpoint may be tried: not after a decision, nor after a fault of ours.
    pub another: bool,
    /// Whether it speaks against the endpoint.
    pub endpoint: bool,
}

/// Opens connections.
pub trait Connect: Send + Sync + 'static {
    /// Opens one. Takes a bounded time.
    fn connect<'a>(&'a self, place: &'a Place) -> Pin<Box<dyn Future<Output = Result<Stream, Unreached>> + Send + 'a>>;
}

/// Opens connections as this waypoint.
pub struct Connector {
    pool: Pool,
    identities: Store,
    own: Arc<Own>,
    reached: Arc<Reached>,
}

impl Connector {
    /// Opens tunnels of `pool` with the certificate that `identities` have.
    pub fn new(pool: Pool, identities: Store, own: Arc<Own>) -> Self {
        Self { pool, identities, own, reached: Arc::default() }
    }

    /// The tunnels.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    async fn tunnel(&self, next_hop: NextHop, authority: &Authority, expect: &[Identity]) -> Result<Stream, Unreached> {
        let identity = self.own.identity();
        let credentials = self.identities.get(identity).await.map_err(|error| Unreached {
            reason: error.reason(),
            error: error.to_string(),
            another: false,
            endpoint: false,
        })?;
        let key = Arc::new(TunnelKey::new(identity.clone(), expect.to_vec(), next_hop, self.own.uid().clone()));
        let reached = self.reached.clone();
        let request = OpenRequest {
            authority: authority.clone(),
            headers: ConnectHeaders {
                baggage: Some(Baggage::of(&self.own.workload()).to_string()),
                ..ConnectHeaders::default()
            },
            credentials,
            dialer: Arc::new(move |to| dial_tunnel(reached.clone(), to)),
        };
        let mut cut = 0;
        let (began, mut pause) = (Instant::now(), MISDIRECTED_PAUSE);
        loop {
            match self.pool.open(&key, &request).await {
                Ok(opened) => return Ok(Box::new(opened.into_stream())),
                Err(OpenError::Refused { status: StatusCode::MISDIRECTED_REQUEST, .. })
                    if began.elapsed() + pause < MISDIRECTED_PATIENCE =>
                {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(OpenError::Tls { error, .. })
                    if matches!(*error, HandshakeError::Closed(_)) && cut < MAX_CUT_HANDSHAKES =>
                {
                    cut += 1;
                }
                Err(error) => return Err(unopened(&error)),
            }
        }
    }
}

impl Connect for Connector {
    fn connect<'a>(&'a self, place: &'a Place) -> Pin<Box<dyn Future<Output = Result<Stream, Unreached>> + Send + 'a>> {
        Box::pin(async move {
            match &place.way {
                Way::Tunnel { next_hop, authority, expect } => self.tunnel(*next_hop, authority, expect).await,
                Way::Direct => {
                    let dialled = async {
                        let socket = dial(NextHop::new(place.endpoint)).await?;
                        loam_hbone::prepare(&socket, KEEPALIVE)?;
                        Ok(socket)
                    };
                    let socket = dialled.await.map_err(|error| undialled(place.endpoint, &error))?;
                    Ok(Box::new(Plain::new(socket)) as Stream)
                }
            }
        })
    }
}

fn undialled(endpoint: SocketAddr, error: &io::Error) -> Unreached {
    Unreached {
        reason: match error.kind() {
            io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
            io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        },
        error: format!("dial {endpoint}: {error}"),
        another: true,
        endpoint: is_endpoints(error),
    }
}

/// Whether it speaks against the endpoint that it could not be dialled.
fn is_endpoints(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

fn unopened(error: &OpenError) -> Unreached {
    let (another, endpoint) = match error {
        OpenError::Dial { error, .. } => (true, is_endpoints(error)),
        OpenError::Tls { .. } | OpenError::Timeout { .. } | OpenError::Retryable { .. } | OpenError::Reset { .. } => {
            (true, true)
        }
        OpenError::Refused { status, .. } => match *status {
            status if status.is_server_error() => (true, true),
            // It does not serve what we asked for: its address has passed to another workload.
            StatusCode::BAD_REQUEST => (true, false),
            // A policy there denies it, and going round a denial is not ours to do.
            _ => (false, false),
        },
        OpenError::Full { .. } => (true, false),
        OpenError::Unsendable(_) | OpenError::Closed => (false, false),
    };
    Unreached { reason: error.reason(), error: error.to_string(), another, endpoint }
}

/// Which peers have answered on their HBONE port.
#[derive(Debug, Default)]
struct Reached {
    peers: Mutex<HashSet<NextHop>>,
}

impl Reached {
    fn contains(&self, peer: NextHop) -> bool {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    fn insert(&self, peer: NextHop) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS {
            peers.clear();
        }
        peers.insert(peer);
    }
}

async fn dial(to: NextHop) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(to.get()))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {to}"))))
}

/// Connects to the HBONE port of a peer, with patience for one that refuses.
async fn dial_tunnel(reached: Arc<Reached>, to: NextHop) -> io::Result<TcpStream> {
    let patience = if reached.contains(to) { PATIENCE } else { FIRST_CONTACT_PATIENCE };
    let began = Instant::now();
    loop {
        match dial(to).await {
            Ok(stream) => {
                reached.insert(to);
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && began.elapsed() < patience => {
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
