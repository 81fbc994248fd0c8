//! Dials other nodes from inside a pod.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loam_core::addr::NextHop;
use loam_node::Kind;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::config::CONNECT_TIMEOUT;
use crate::endpoints::Fault;
use crate::pods::{Pod, SocketError};

/// How long a refusal by a peer that never answered on its HBONE port is doubted: the mesh knows it as enrolled, but
/// its node may be in the middle of it.
const FIRST_CONTACT_PATIENCE: Duration = Duration::from_secs(2);

/// The same for a peer that did answer before. Short, since applications shall learn of a dead node at once.
const PATIENCE: Duration = Duration::from_millis(60);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(15);

/// Peers remembered; when it is full the memory starts anew, which costs patience and nothing else.
const MAX_PEERS: usize = 100_000;

/// Which peers have answered on their HBONE port.
#[derive(Debug, Default)]
pub struct Reached {
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

    /// Forgets the peers at these addresses: others are there, or nobody.
    pub(crate) fn forget(&self, addresses: &HashSet<IpAddr>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|peer| !addresses.contains(&peer.ip()));
    }
}

/// Whose fault it is that a dial failed.
pub(crate) fn fault(error: &io::Error) -> Fault {
    if error.get_ref().is_some_and(|inner| inner.is::<SocketError>()) {
        return Fault::Final;
    }
    match error.kind() {
        io::ErrorKind::TimedOut => Fault::Silence,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Fault::Endpoint,
        // Such as ports that are all in use towards this one address.
        _ => Fault::Way,
    }
}

/// Connects from inside `pod` in the clear.
pub(crate) async fn dial(pod: &Pod, to: NextHop) -> io::Result<TcpStream> {
    let connect = async {
        let socket = pod.socket(Kind::outbound(to.ip())).await.map_err(io::Error::other)?;
        socket.connect(to.get()).await
    };
    timeout(CONNECT_TIMEOUT, connect)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {to}"))))
}

/// Connects to the HBONE port of a peer, with patience for one that refuses.
pub(crate) async fn dial_tunnel(pod: Arc<Pod>, reached: Arc<Reached>, to: NextHop) -> io::Result<TcpStream> {
    let patience = if reached.contains(to) { PATIENCE } else { FIRST_CONTACT_PATIENCE };
    let began = Instant::now();
    loop {
        match dial(&pod, to).await {
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
