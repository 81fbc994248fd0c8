//! Connections of agents and ztunnels: who may speak, the greeting, packets in, packets out.

use super::place::SharedListeners;
use loam_node::message::{
    FromAgent, FromZtunnel, Goodbye, Hello, MessageError, ToAgent, ToZtunnel, VERSION, Welcome, Wire, cut, encode,
    to_agent, to_ztunnel,
};
use loam_node::socket::Peer;
use loam_node::{MAX_PODS, Socket, SocketError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

/// How long a peer may take to greet, and to take a farewell.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Packets that wait for one peer to read: a whole snapshot, and answers beside it. A peer that lets more pile up does
/// not read, and is cut off.
const MAX_OUTBOX: usize = 4 * MAX_PODS;

/// A connection, counted over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId(pub(super) u64);

/// What connections report to the keeper.
#[derive(Debug)]
pub(super) enum Report {
    /// An agent has greeted; it is let in by the reply.
    AgentHello { id: ConnectionId, outbox: Outbox, socket: Arc<Socket>, reply: oneshot::Sender<Result<(), String>> },
    /// A request of the agent.
    FromAgent { id: ConnectionId, message: FromAgent, fds: Vec<OwnedFd> },
    /// The agent's connection has ended.
    AgentGone { id: ConnectionId },
    /// A ztunnel has greeted.
    ProxyHello { id: ConnectionId, outbox: Outbox, leaving: bool },
    /// A message of a ztunnel.
    FromProxy { id: ConnectionId, message: FromZtunnel, fds: Vec<OwnedFd> },
    /// A ztunnel's connection has ended.
    ProxyGone { id: ConnectionId },
}

/// Where packets for a peer are left. Never waits.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    packets: mpsc::Sender<Outgoing>,
    overflow: Arc<Notify>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fds: Fds,
    // Held until the descriptors are with the kernel: it bounds how many are under way.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Descriptors that travel.
#[derive(Debug)]
pub(super) enum Fds {
    /// None.
    None,
    /// These, which are closed here once they are sent.
    Own(Vec<OwnedFd>),
    /// A pod's listeners, of which the keeper keeps a copy; those for names only if `dns` is set.
    Listeners { listeners: SharedListeners, dns: bool },
}

impl Fds {
    fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::None => Vec::new(),
            Self::Own(fds) => fds.iter().map(AsFd::as_fd).collect(),
            Self::Listeners { listeners, dns } => listeners.fds(*dns).map(AsFd::as_fd).collect(),
        }
    }
}

impl Outbox {
    fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (packets, outgoing) = mpsc::channel(MAX_OUTBOX);
        (Self { packets, overflow: Arc::new(Notify::new()) }, outgoing)
    }

    /// Leaves a packet. A peer that is gone or stuck loses it, and with it its connection.
    pub(super) fn send<M: Wire>(&self, message: &M, fds: Fds, permit: Option<OwnedSemaphorePermit>) {
        let bytes = match encode(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "a message of the keeper cannot be sent");
                return;
            }
        };
        if self.packets.try_send(Outgoing { bytes, fds, _permit: permit }).is_err() {
            self.overflow.notify_one();
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer did not read, {MAX_OUTBOX} packets wait")]
    Stuck,
    #[error("no greeting within {GREETING_TIMEOUT:?}")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the keeper stops")]
    Stopping,
}

impl End {
    /// What the peer is told, if it can still listen.
    fn farewell(&self) -> Option<String> {
        match self {
            Self::Closed | Self::Stuck | Self::Silent | Self::Refused(_) | Self::Socket(SocketError::Io(_)) => None,
            Self::Socket(_) | Self::Message(_) | Self::Stopping => Some(cut(self.to_string())),
        }
    }
}

/// Which of the two kinds of peers a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Agent,
    Ztunnel { uid: u32 },
}

impl Role {
    pub(super) fn admits(self, peer: Peer) -> bool {
        match self {
            Self::Agent => peer.uid == 0,
            Self::Ztunnel { uid } => peer.uid == 0 || peer.uid == uid,
        }
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(
    socket: Socket,
    role: Role,
    id: ConnectionId,
    keeper_number: u64,
    reports: mpsc::Sender<Report>,
) {
    let socket = Arc::new(socket);
    let (outbox, outgoing) = Outbox::new();
    let end = match greet(&socket, role, id, keeper_number, &outbox, &reports).await {
        Ok(()) => {
            tracing::info!(?role, id = id.0, "connected");
            let end = exchange(&socket, role, id, &outbox, outgoing, &reports).await;
            let gone = match role {
                Role::Agent => Report::AgentGone { id },
                Role::Ztunnel { .. } => Report::ProxyGone { id },
            };
            // The keeper stops when nobody takes reports.
            let _ = reports.send(gone).await;
            end
        }
        Err(end) => end,
    };
    if let Some(reason) = end.farewell() {
        let goodbye = farewell(&socket, role, reason);
        // It is a courtesy; the log has the reason as well.
        let _ = tokio::time::timeout(GREETING_TIMEOUT, goodbye).await;
    }
    match end {
        End::Closed => tracing::info!(?role, id = id.0, "disconnected"),
        end => tracing::warn!(?role, id = id.0, reason = %end, "connection ended"),
    }
}

async fn farewell(socket: &Socket, role: Role, reason: String) -> Result<(), SocketError> {
    let goodbye = Goodbye { reason };
    match role {
        Role::Agent => {
            let answer = Some(to_agent::Answer::Goodbye(goodbye));
            socket.send_message(&ToAgent { id: 0, answer }, &[]).await
        }
        Role::Ztunnel { .. } => socket.send_message(&ToZtunnel::from(to_ztunnel::Said::Goodbye(goodbye)), &[]).await,
    }
}

/// Lets the peer in, or says why not.
async fn greet(
    socket: &Arc<Socket>,
    role: Role,
    id: ConnectionId,
    keeper: u64,
    outbox: &Outbox,
    reports: &mpsc::Sender<Report>,
) -> Result<(), End> {
    let admission = admit(socket, role, id, outbox, reports).await;
    let (version, error) = match &admission {
        Ok(admitted) => (admitted.version, String::new()),
        Err(End::Refused(why)) => (VERSION, cut(why.clone())),
        Err(_) => return admission.map(drop),
    };
    let welcome = Welcome { version, keeper, error };
    let sent = tokio::time::timeout(GREETING_TIMEOUT, socket.send_message(&welcome, &[])).await;
    let Admitted { version, leaving } = admission?;
    tracing::debug!(?role, id = id.0, version, "greeted");
    sent.map_err(|_| End::Stuck)??;
    if let Role::Ztunnel { .. } = role {
        // After the welcome, so that no pod goes before it.
        let hello = Report::ProxyHello { id, outbox: outbox.clone(), leaving };
        reports.send(hello).await.map_err(|_| End::Stopping)?;
    }
    Ok(())
}

/// A peer that is let in.
struct Admitted {
    /// The version that is spoken with it.
    version: u32,
    /// It leaves already.
    leaving: bool,
}

/// Checks who it is and what it says first.
async fn admit(
    socket: &Arc<Socket>,
    role: Role,
    id: ConnectionId,
    outbox: &Outbox,
    reports: &mpsc::Sender<Report>,
) -> Result<Admitted, End> {
    let peer = socket.peer().map_err(SocketError::Io)?;
    if !role.admits(peer) {
        return Err(End::Refused(format!("user {} may not connect here", peer.uid)));
    }
    let hello = tokio::time::timeout(GREETING_TIMEOUT, socket.recv_message::<Hello>());
    let Some((hello, _)) = hello.await.map_err(|_| End::Silent)?? else { return Err(End::Closed) };
    let version = hello.agree().map_err(End::Refused)?;
    if role == Role::Agent {
        let (reply, verdict) = oneshot::channel();
        let report = Report::AgentHello { id, outbox: outbox.clone(), socket: socket.clone(), reply };
        reports.send(report).await.map_err(|_| End::Stopping)?;
        verdict.await.map_err(|_| End::Stopping)?.map_err(End::Refused)?;
    }
    Ok(Admitted { version, leaving: hello.leaving })
}

/// Moves packets both ways at once: a peer that sends and does not read cannot stop the keeper from reading.
async fn exchange(
    socket: &Socket,
    role: Role,
    id: ConnectionId,
    outbox: &Outbox,
    mut outgoing: mpsc::Receiver<Outgoing>,
    reports: &mpsc::Sender<Report>,
) -> End {
    let write = async {
        while let Some(packet) = outgoing.recv().await {
            if let Err(error) = socket.send(&packet.bytes, &packet.fds.borrow()).await {
                return End::from(error);
            }
        }
        End::Stopping
    };
    let end = tokio::select! {
        end = read(socket, role, id, reports) => end,
        end = write => end,
        () = outbox.overflow.notified() => End::Stuck,
    };
    match end {
        // How the kernel says that the peer closed, when it is found out by sending.
        End::Socket(SocketError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => End::Closed,
        end => end,
    }
}

async fn read(socket: &Socket, role: Role, id: ConnectionId, reports: &mpsc::Sender<Report>) -> End {
    loop {
        let packet = match socket.recv().await {
            Ok(Some(packet)) => packet,
            Ok(None) => return End::Closed,
            Err(error) => return error.into(),
        };
        let report = match role {
            Role::Agent => packet.message().map(|(message, fds)| Report::FromAgent { id, message, fds }),
            Role::Ztunnel { .. } => packet.message().map(|(message, fds)| Report::FromProxy { id, message, fds }),
        };
        let report = match report {
            Ok(report) => report,
            Err(error) => return error.into(),
        };
        if reports.send(report).await.is_err() {
            return End::Stopping;
        }
    }
}
