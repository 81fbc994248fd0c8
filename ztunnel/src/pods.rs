//! The pods that this ztunnel serves, as the keeper hands them over: their listeners, and sockets made inside them.
//!
//! [`Pods`] is the handle, [`Link`] the task behind it, which finds the keeper again when it is lost. What has been
//! received stays usable meanwhile: listeners, the sockets in stock, open connections.

mod dns;
mod link;
mod pool;

pub use dns::DnsSockets;
pub use link::Link;

use link::Command;
use loam_node::message::PodRef;
use loam_node::{Kind, ListenerKind, PodInfo, Resolv};
use pool::{Pool, Take};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long a connection waits for a socket. The keeper makes a batch in a few milliseconds; a longer wait means that it
/// is gone, and a new one is there within seconds or not at all.
pub const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// None came in time.
    #[error("no socket from the keeper within {SOCKET_TIMEOUT:?} ({0})")]
    Timeout(Status),
    /// The keeper could not make one.
    #[error("no socket from the keeper: {0}")]
    Refused(String),
    /// Too many connections of this pod wait for one.
    #[error("too many connections wait for a socket from the keeper")]
    Busy,
}

/// How things stand with the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not connected, and why.
    Disconnected(String),
    /// Connected; the pods are being told.
    Connected,
    /// Every pod has been told, changes follow.
    Synced,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disconnected(why) => write!(f, "not connected: {why}"),
            Self::Connected => f.write_str("connected, pods are being told"),
            Self::Synced => f.write_str("connected"),
        }
    }
}

/// Something that happened to the set of pods.
#[derive(Debug)]
pub enum Event {
    /// Serve this pod, then [`Pods::ack`] it.
    Added(Arc<Pod>),
    /// Accept no more for this pod. Its last `Arc` tells the keeper that its last connection has ended, so let every
    /// connection hold one.
    Removed(Arc<Pod>),
    /// Another ztunnel serves: accept no more at all, let connections end, leave.
    Retire,
}

/// Handle to the pods. Clones are cheap and mean the same pods.
#[derive(Debug, Clone)]
pub struct Pods {
    view: watch::Sender<View>,
    status: watch::Sender<Status>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What subscribers see.
#[derive(Debug, Default)]
struct View {
    pods: HashMap<String, Arc<Pod>>,
    retired: bool,
}

impl Pods {
    /// The pods of the keeper that listens at `socket`, and the task to run for them.
    pub fn new(socket: PathBuf) -> (Self, Link) {
        // Unbounded in type only: acks are one per pod and state, needs one per pod and kind, the rest one per pod.
        let (commands, received) = mpsc::unbounded_channel();
        let pods = Self {
            view: watch::Sender::new(View::default()),
            status: watch::Sender::new(Status::Disconnected("not tried yet".into())),
            commands,
        };
        let link = Link::new(socket, pods.clone(), received);
        (pods, link)
    }

    /// What happens from now on, beginning with the pods that are there.
    pub fn subscribe(&self) -> Events {
        Events { view: self.view.subscribe(), seen: HashMap::new(), retired: false, due: VecDeque::new(), fresh: true }
    }

    /// How things stand with the keeper, to be watched for readiness.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The pods that are there.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.view.borrow().pods.values().cloned().collect()
    }

    /// Says that a pod is served, certificate and all, or why it is not. May be said again when that changes.
    pub fn ack(&self, pod: &Pod, result: Result<(), String>) {
        let mut stay = pod.stay();
        stay.ack = Some(result);
        self.send(Command::Ack { pod: pod.uid().into() });
    }

    /// Says that the pods of the first snapshot are served, as far as they can be, so that older ztunnels may retire.
    pub fn serving(&self) {
        self.send(Command::Serving);
    }

    /// Says that this ztunnel accepts no more. Open connections still get sockets.
    pub fn leaving(&self) {
        self.send(Command::Leaving);
    }

    fn send(&self, command: Command) {
        // Without a link there is nobody to tell, and the process is ending.
        let _ = self.commands.send(command);
    }
}

/// Events for one subscriber. Nothing is lost by being slow: what was added and removed in between never shows.
#[derive(Debug)]
pub struct Events {
    view: watch::Receiver<View>,
    seen: HashMap<String, Arc<Pod>>,
    retired: bool,
    due: VecDeque<Event>,
    fresh: bool,
}

impl Events {
    /// The next event; None when the handle and its task are gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Some(event);
            }
            if !std::mem::take(&mut self.fresh) {
                self.view.changed().await.ok()?;
            }
            self.compare();
        }
    }

    fn compare(&mut self) {
        let view = self.view.borrow_and_update();
        let stays = |pod: &Arc<Pod>| view.pods.get(pod.uid()).is_some_and(|current| Arc::ptr_eq(current, pod));
        self.due.extend(self.seen.extract_if(|_, pod| !stays(pod)).map(|(_, pod)| Event::Removed(pod)));
        for (uid, pod) in &view.pods {
            if !self.seen.contains_key(uid) {
                self.seen.insert(uid.clone(), pod.clone());
                self.due.push_back(Event::Added(pod.clone()));
            }
        }
        if view.retired && !std::mem::replace(&mut self.retired, true) {
            self.due.push_back(Event::Retire);
        }
    }
}

/// A pod in our care.
#[derive(Debug)]
pub struct Pod {
    info: PodInfo,
    listeners: [Arc<TcpListener>; 3],
    dns: Option<DnsSockets>,
    pools: [Arc<Pool>; Kind::ALL.len()],
    stay: Mutex<Stay>,
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<Status>,
}

/// What the keeper and we have told each other about a pod.
#[derive(Debug)]
struct Stay {
    /// The keeper process that counts the incarnation.
    keeper: u64,
    pod: PodRef,
    ack: Option<Result<(), String>>,
    /// Whether the keeper waits to hear that the pod has drained.
    removed: bool,
}

impl Pod {
    /// What the agent knows about it.
    pub fn info(&self) -> &PodInfo {
        &self.info
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.info.uid
    }

    /// One of its listeners. The accepted socket's local address is the original destination.
    pub fn listener(&self, kind: ListenerKind) -> Arc<TcpListener> {
        let [outbound, inbound, hbone] = &self.listeners;
        match kind {
            ListenerKind::Outbound => outbound.clone(),
            ListenerKind::Inbound => inbound.clone(),
            ListenerKind::Hbone => hbone.clone(),
        }
    }

    /// Where its questions to name servers arrive; none if they are not captured.
    pub fn dns(&self) -> Option<&DnsSockets> {
        self.dns.as_ref()
    }

    /// How it resolves names by itself; none where the agent does not know.
    pub fn resolv(&self) -> Option<&Resolv> {
        self.info.resolv.as_ref()
    }

    /// A TCP socket made inside the pod, neither bound nor connected.
    pub async fn socket(&self, kind: Kind) -> Result<TcpSocket, SocketError> {
        if kind.is_udp() {
            return Err(SocketError::Refused(format!("{kind:?} is no kind of TCP socket")));
        }
        let fd = self.descriptor(kind).await?;
        // Tokio takes over an unconnected socket only in the shape of a stream.
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
    }

    /// A UDP socket made inside the pod, neither bound nor connected, to ask the name server at `server` with. The
    /// kernel draws its port when it is connected; asking each question with a socket of its own keeps forged answers
    /// out.
    pub async fn asking_socket(&self, server: IpAddr) -> Result<UdpSocket, SocketError> {
        let fd = self.descriptor(Kind::asking(server)).await?;
        UdpSocket::from_std(std::net::UdpSocket::from(fd)).map_err(|error| SocketError::Refused(error.to_string()))
    }

    async fn descriptor(&self, kind: Kind) -> Result<OwnedFd, SocketError> {
        let Some(pool) = self.pools.iter().find(|pool| pool.kind() == kind) else {
            return Err(SocketError::Refused(format!("{kind:?} is no kind of socket")));
        };
        let (taken, need) = pool.take(Instant::now())?;
        if let Some(count) = need {
            self.need(pool, count);
        }
        match taken {
            Take::Ready(fd) => Ok(fd),
            Take::Wait(waiting) => match tokio::time::timeout(SOCKET_TIMEOUT, waiting).await {
                Ok(Ok(supplied)) => supplied,
                Ok(Err(_)) => Err(SocketError::Refused("the pool is gone".into())),
                Err(_) => Err(SocketError::Timeout(self.status.borrow().clone())),
            },
        }
    }

    fn need(&self, pool: &Arc<Pool>, count: usize) {
        let (keeper, pod) = {
            let stay = self.stay();
            (stay.keeper, stay.pod.clone())
        };
        // Without a link nobody answers, and the one who waits learns it from the timeout.
        let _ = self.commands.send(Command::Need { keeper, pod, pool: pool.clone(), count });
    }

    fn stay(&self) -> MutexGuard<'_, Stay> {
        self.stay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let stay = self.stay.get_mut().unwrap_or_else(PoisonError::into_inner);
        if stay.removed {
            let drained = Command::Drained { keeper: stay.keeper, pod: stay.pod.clone() };
            // Without a link there is no keeper that waits.
            let _ = self.commands.send(drained);
        }
    }
}

#[cfg(test)]
mod tests;
