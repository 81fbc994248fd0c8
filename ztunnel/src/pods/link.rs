//! The connection to the keeper, made again whenever it is lost.

use super::pool::Pool;
use super::{DnsSockets, Pod, Pods, Status, Stay};
use loam_node::message::{
    AddPod, FromZtunnel, Held, Hello, Leaving, Need, PodAck, PodDrained, PodRef, Serving, Sockets, ToZtunnel, Welcome,
    cut, from_ztunnel, to_ztunnel,
};
use loam_node::{Kind, ListenerKind, MAX_OPEN_NEEDS, Packet, PodInfo, Socket, SocketError};
use rustix::net::sockopt::socket_cookie;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// Waits between attempts to connect double from the first to the last of these. The socket is on this node, so trying
/// is cheap, and every attempt that is not made is a pod without sockets.
const MIN_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How long the keeper may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long pods of a former keeper are served without a word from the next one. The agent finds its pods again within
/// seconds; what is not confirmed by then went away while nobody watched.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(60);

/// How often pools of idle pods are trimmed.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// What the handles want told.
#[derive(Debug)]
pub(super) enum Command {
    /// The pod with this uid has an answer.
    Ack { pod: String },
    /// All pods are acknowledged.
    Serving,
    /// No more accepting.
    Leaving,
    /// Sockets are wanted.
    Need { keeper: u64, pod: PodRef, pool: Arc<Pool>, count: usize },
    /// The last connection of a removed pod has ended.
    Drained { keeper: u64, pod: PodRef },
}

/// The task behind [`Pods`].
#[derive(Debug)]
pub struct Link {
    socket: PathBuf,
    pods: Pods,
    commands: mpsc::UnboundedReceiver<Command>,
    /// The keeper that we last were connected to.
    keeper: Option<u64>,
    serving: bool,
    leaving: bool,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("connect to {path}: {source}")]
    Connect { path: String, source: io::Error },
    #[error("the keeper did not greet within {GREETING_TIMEOUT:?}")]
    Silent,
    #[error("the keeper refuses: {0}")]
    Refused(String),
    #[error("the keeper closed the connection")]
    Closed,
    #[error("{0}")]
    Goodbye(String),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("a listener from the keeper cannot be used: {0}")]
    Listener(#[source] io::Error),
}

impl Link {
    pub(super) fn new(socket: PathBuf, pods: Pods, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        Self { socket, pods, commands, keeper: None, serving: false, leaving: false }
    }

    /// Keeps the connection, for as long as it is polled.
    pub async fn run(mut self) {
        let mut wait = MIN_WAIT;
        loop {
            let end = match self.connect().await {
                Ok((socket, keeper)) => {
                    wait = MIN_WAIT;
                    self.attend(socket, keeper).await
                }
                Err(end) => end,
            };
            self.lost(&end);
            self.pause(wait).await;
            wait = (wait * 2).min(MAX_WAIT);
        }
    }

    /// Serves one connection to its end.
    async fn attend(&mut self, socket: Socket, keeper: u64) -> End {
        let mut session = Session {
            socket,
            keeper,
            queue: VecDeque::new(),
            open: HashMap::new(),
            needs: VecDeque::new(),
            named: HashSet::new(),
            confirm_by: None,
        };
        // A keeper offers one that leaves only what it says that it has.
        if self.keeper != Some(keeper) || self.leaving {
            session.offer_held(&self.pods);
        }
        let former = self.keeper.replace(keeper);
        tracing::info!(keeper, known = former == Some(keeper), "connected to the keeper");
        self.pods.status.send_replace(Status::Connected);
        let end = session.run(self).await;
        session.abandon();
        end
    }

    async fn connect(&self) -> Result<(Socket, u64), End> {
        let failed = |source| End::Connect { path: self.socket.display().to_string(), source };
        let socket = Socket::connect(&self.socket).map_err(failed)?;
        let greet = async {
            let hello = Hello { leaving: self.leaving, ..Hello::new() };
            socket.send_message(&hello, &[]).await?;
            socket.recv_message::<Welcome>().await
        };
        let Some((welcome, _)) = timeout(GREETING_TIMEOUT, greet).await.map_err(|_| End::Silent)?? else {
            return Err(End::Closed);
        };
        let version = welcome.agree().map_err(End::Refused)?;
        tracing::debug!(version, keeper = welcome.keeper, "the keeper greets");
        Ok((socket, welcome.keeper))
    }

    /// Says so, once per change.
    fn lost(&self, end: &End) {
        let why = end.to_string();
        let was_connected = self.pods.status.send_if_modified(|status| {
            let change = !matches!(status, Status::Disconnected(former) if *former == why);
            *status = Status::Disconnected(why.clone());
            change
        });
        if was_connected {
            tracing::warn!(reason = %end, "no connection to the keeper");
        }
    }

    /// Waits before the next attempt and takes in what is said meanwhile.
    async fn pause(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                Some(command) = self.commands.recv() => self.note(&command),
            }
        }
    }

    /// What must not be forgotten of a command that cannot be passed on.
    fn note(&mut self, command: &Command) {
        self.remember(command);
        match command {
            Command::Need { pool, .. } => pool.lost(),
            // The pod knows its answer, and what has drained here is not in the next snapshot.
            Command::Serving | Command::Leaving | Command::Ack { .. } | Command::Drained { .. } => {}
        }
    }

    /// Remembers what a later connection has to repeat.
    fn remember(&mut self, command: &Command) {
        self.serving |= matches!(command, Command::Serving);
        self.leaving |= matches!(command, Command::Leaving);
    }
}

/// A request for sockets that cannot go out yet.
#[derive(Debug)]
struct Want {
    pod: PodRef,
    pool: Arc<Pool>,
    count: usize,
}

/// One connection.
struct Session {
    socket: Socket,
    keeper: u64,
    /// What is to be sent: bounded by what is said once per pod and connection, and by the open needs.
    queue: VecDeque<(FromZtunnel, Vec<OwnedFd>)>,
    /// Needs that the keeper has not answered, at most [`MAX_OPEN_NEEDS`].
    open: HashMap<(u64, Kind), Arc<Pool>>,
    /// Needs that wait for one of those, at most one per pool.
    needs: VecDeque<Want>,
    /// The pods that the keeper has named on this connection, until its snapshot is complete.
    named: HashSet<String>,
    /// When pods of a former keeper are given up.
    confirm_by: Option<Instant>,
}

impl Session {
    async fn run(&mut self, link: &mut Link) -> End {
        let mut trim = tokio::time::interval(TRIM_INTERVAL);
        loop {
            let deadline = self.confirm_by;
            let result = tokio::select! {
                packet = self.socket.recv() => match packet {
                    Ok(Some(packet)) => self.on_packet(packet, link),
                    Ok(None) => Err(End::Closed),
                    Err(error) => Err(error.into()),
                },
                Some(command) = link.commands.recv() => {
                    self.on_command(command, link);
                    Ok(())
                }
                sent = send_first(&self.socket, &self.queue), if !self.queue.is_empty() => {
                    self.queue.pop_front();
                    sent.map_err(End::from)
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.confirm_by = None;
                    self.give_up_unconfirmed(link);
                    Ok(())
                }
                _ = trim.tick() => {
                    let now = Instant::now();
                    link.pods.all().iter().flat_map(|pod| &pod.pools).for_each(|pool| pool.trim(now));
                    Ok(())
                }
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// Offers the listeners we hold to a keeper that may not have them.
    fn offer_held(&mut self, pods: &Pods) {
        for pod in pods.all() {
            let clones: io::Result<Vec<OwnedFd>> = sockets(&pod).map(|socket| socket.try_clone_to_owned()).collect();
            match clones {
                Ok(fds) => self.say(from_ztunnel::Said::Held(Held { uid: pod.uid().into() }), fds),
                Err(error) => tracing::warn!(%error, pod = %pod.info, "listeners cannot be offered to the keeper"),
            }
        }
    }

    /// The pools whose requests went down with the connection.
    fn abandon(&mut self) {
        self.open.values().chain(self.needs.iter().map(|want| &want.pool)).for_each(|pool| pool.lost());
    }

    fn say(&mut self, said: from_ztunnel::Said, fds: Vec<OwnedFd>) {
        self.queue.push_back((FromZtunnel::from(said), fds));
    }

    // ---- what the handles want ----

    fn on_command(&mut self, command: Command, link: &mut Link) {
        link.remember(&command);
        match command {
            Command::Ack { pod } => {
                let pod = link.pods.view.borrow().pods.get(&pod).cloned();
                if let Some(pod) = pod {
                    self.ack(&pod);
                }
            }
            Command::Serving => self.say(from_ztunnel::Said::Serving(Serving {}), Vec::new()),
            Command::Leaving => self.say(from_ztunnel::Said::Leaving(Leaving {}), Vec::new()),
            Command::Need { keeper, pod, pool, count } => match keeper == self.keeper {
                true => self.need(Want { pod, pool, count }),
                // Asked again when this keeper names the pod.
                false => pool.lost(),
            },
            Command::Drained { keeper, pod } => {
                if keeper == self.keeper {
                    self.say(from_ztunnel::Said::PodDrained(PodDrained { pod: Some(pod) }), Vec::new());
                }
            }
        }
    }

    fn ack(&mut self, pod: &Pod) {
        let stay = pod.stay();
        if stay.keeper != self.keeper {
            return;
        }
        let Some(result) = stay.ack.clone() else { return };
        let error = match result {
            Ok(()) => String::new(),
            // An empty text would mean success.
            Err(error) if error.is_empty() => "unknown".into(),
            Err(error) => cut(error),
        };
        let pod = Some(stay.pod.clone());
        drop(stay);
        self.say(from_ztunnel::Said::PodAck(PodAck { pod, error }), Vec::new());
    }

    fn need(&mut self, want: Want) {
        if self.open.len() >= MAX_OPEN_NEEDS {
            self.needs.push_back(want);
            return;
        }
        let Want { pod, pool, count } = want;
        let need = Need { pod: Some(pod.clone()), kind: pool.kind() as i32, count: count as u32 };
        self.open.insert((pod.incarnation, pool.kind()), pool);
        self.say(from_ztunnel::Said::Need(need), Vec::new());
    }

    // ---- what the keeper says ----

    fn on_packet(&mut self, packet: Packet, link: &mut Link) -> Result<(), End> {
        use to_ztunnel::Said;
        let (message, fds) = packet.message::<ToZtunnel>().map_err(SocketError::from)?;
        // Every part is present: the message has been checked.
        let Some(said) = message.said else {
            tracing::debug!("the keeper says what this ztunnel does not know");
            return Ok(());
        };
        match said {
            Said::AddPod(AddPod { incarnation, info: Some(info) }) => self.add(incarnation, info, fds, link)?,
            Said::RemovePod(remove) => {
                if let Some(pod) = remove.pod {
                    self.remove(pod, link);
                }
            }
            Said::SnapshotSent(_) => self.snapshot_sent(link),
            Said::Sockets(sockets) => self.sockets(sockets, fds),
            Said::Retire(_) => {
                tracing::info!("the keeper says that another ztunnel serves");
                link.leaving = true;
                link.pods.view.send_modify(|view| view.retired = true);
            }
            Said::Goodbye(goodbye) => return Err(End::Goodbye(goodbye.reason)),
            Said::AddPod(AddPod { info: None, .. }) => {}
        }
        Ok(())
    }

    fn add(&mut self, incarnation: u64, info: PodInfo, mut fds: Vec<OwnedFd>, link: &mut Link) -> Result<(), End> {
        self.named.insert(info.uid.clone());
        let pod_ref = PodRef { uid: info.uid.clone(), incarnation };
        let former = link.pods.view.borrow().pods.get(&info.uid).cloned();
        if let Some(former) = former {
            if former.info == info && same_sockets(&former, &fds) {
                {
                    let mut stay = former.stay();
                    stay.keeper = self.keeper;
                    stay.pod = pod_ref;
                }
                self.ack(&former);
                self.resume(&former);
                return Ok(());
            }
            // Superseded under the same name: the keeper does not wait for its end, or has been told already.
            let mut stay = former.stay();
            stay.removed = stay.keeper == self.keeper && stay.pod.incarnation != incarnation;
        }
        if link.leaving {
            // Nothing is accepted for it.
            return Ok(());
        }
        let dns = fds.split_off(fds.len().min(ListenerKind::ALL.len()));
        let listeners = adopt(fds).map_err(End::Listener)?;
        let dns = DnsSockets::adopt(dns).map_err(End::Listener)?;
        let pod = Arc::new(Pod {
            info,
            listeners,
            dns,
            pools: Kind::ALL.map(|kind| Arc::new(Pool::new(kind))),
            stay: Mutex::new(Stay { keeper: self.keeper, pod: pod_ref, ack: None, removed: false }),
            commands: link.pods.commands.clone(),
            status: link.pods.status.subscribe(),
        });
        link.pods.view.send_modify(|view| {
            view.pods.insert(pod.uid().into(), pod);
        });
        Ok(())
    }

    /// Asks for what was asked in vain before.
    fn resume(&mut self, pod: &Pod) {
        let now = Instant::now();
        let pod_ref = pod.stay().pod.clone();
        for pool in &pod.pools {
            if let Some(count) = pool.resume(now) {
                self.need(Want { pod: pod_ref.clone(), pool: pool.clone(), count });
            }
        }
    }

    fn remove(&mut self, pod: PodRef, link: &mut Link) {
        let is_meant = |current: &Arc<Pod>| {
            let stay = current.stay();
            stay.keeper == self.keeper && stay.pod == pod
        };
        let known = link.pods.view.borrow().pods.get(&pod.uid).filter(|current| is_meant(current)).cloned();
        match known {
            Some(current) => {
                current.stay().removed = true;
                drop_from_view(&link.pods, &current);
            }
            None => self.say(from_ztunnel::Said::PodDrained(PodDrained { pod: Some(pod) }), Vec::new()),
        }
    }

    fn snapshot_sent(&mut self, link: &mut Link) {
        link.pods.status.send_replace(Status::Synced);
        let named = std::mem::take(&mut self.named);
        let mut unconfirmed = false;
        for pod in link.pods.all().iter().filter(|pod| !named.contains(pod.uid())) {
            // Known to this keeper on an earlier connection, it was removed meanwhile. Of a former keeper, it may not
            // have been added to this one yet.
            match pod.stay().keeper == self.keeper {
                true => drop_from_view(&link.pods, pod),
                false => unconfirmed = true,
            }
        }
        self.confirm_by = unconfirmed.then(|| Instant::now() + UNCONFIRMED_FOR);
        if link.serving {
            self.say(from_ztunnel::Said::Serving(Serving {}), Vec::new());
        }
    }

    fn give_up_unconfirmed(&mut self, link: &mut Link) {
        for pod in link.pods.all() {
            if pod.stay().keeper != self.keeper {
                tracing::info!(pod = %pod.info, "the keeper does not know this pod any more");
                drop_from_view(&link.pods, &pod);
            }
        }
    }

    fn sockets(&mut self, sockets: Sockets, fds: Vec<OwnedFd>) {
        let (Some(pod), Ok(kind)) = (sockets.pod, Kind::try_from(sockets.kind)) else { return };
        let Some(pool) = self.open.remove(&(pod.incarnation, kind)) else { return };
        if sockets.error.is_empty() {
            if let Some(count) = pool.supply(Instant::now(), fds) {
                self.needs.push_back(Want { pod, pool, count });
            }
        } else {
            tracing::warn!(uid = pod.uid, ?kind, error = sockets.error, "no sockets from the keeper");
            pool.refuse(&sockets.error);
        }
        if let Some(want) = self.needs.pop_front() {
            self.need(want);
        }
    }
}

/// Takes a pod away from subscribers, unless another has its place.
fn drop_from_view(pods: &Pods, pod: &Arc<Pod>) {
    pods.view.send_if_modified(|view| {
        let current = view.pods.get(pod.uid()).is_some_and(|current| Arc::ptr_eq(current, pod));
        if current {
            view.pods.remove(pod.uid());
        }
        current
    });
}

/// Sends the first message of a queue that has one; it stays there until it is sent.
async fn send_first(socket: &Socket, queue: &VecDeque<(FromZtunnel, Vec<OwnedFd>)>) -> Result<(), SocketError> {
    let Some((message, fds)) = queue.front() else { return Ok(()) };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    socket.send_message(message, &fds).await
}

/// The sockets that came with a pod, in their order.
fn sockets(pod: &Pod) -> impl Iterator<Item = BorrowedFd<'_>> {
    let listeners = pod.listeners.iter().map(|listener| listener.as_fd());
    listeners.chain(pod.dns.iter().flat_map(DnsSockets::fds))
}

/// Whether these are the sockets that a pod has already.
fn same_sockets(pod: &Pod, fds: &[OwnedFd]) -> bool {
    let same = |(ours, theirs): (BorrowedFd<'_>, &OwnedFd)| matches!((socket_cookie(ours), socket_cookie(theirs)), (Ok(ours), Ok(theirs)) if ours == theirs);
    sockets(pod).count() == fds.len() && sockets(pod).zip(fds).all(same)
}

fn adopt(fds: Vec<OwnedFd>) -> io::Result<[Arc<TcpListener>; 3]> {
    let listen = |fd: OwnedFd| {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Arc::new)
    };
    let listeners: Vec<Arc<TcpListener>> = fds.into_iter().map(listen).collect::<io::Result<_>>()?;
    let count = ListenerKind::ALL.len();
    listeners.try_into().map_err(|_| io::Error::other(format!("there are not {count} of them")))
}
