//! A whole keeper, an agent's client and a ztunnel played by hand. What needs network namespaces and maps runs as root
//! with `LOAM_ROOT_TESTS=1`.

use super::place::{Place, identify};
use super::*;
use crate::sys::bpf::tests::{is_filled, sk_storage, sock_map};
use crate::sys::bpf::{Map, MapType, Update};
use crate::sys::netns;
use crate::sys::netns::tests::{fresh, inside};
use loam_ebpf_common::layout::{Kind as Slot, slot};
use loam_ebpf_common::mark;
use loam_node::message::{
    Added, FromZtunnel, Held, Hello, MAX_MESSAGE_BYTES, Need, PodAck, PodDrained, PodInfo, PodRef, Serving, ToZtunnel,
    VERSION, Welcome, from_ztunnel, to_ztunnel,
};
use loam_node::{AGENT_SOCKET, AgentClient, Kind, ListenerKind, Socket, ZTUNNEL_SOCKET};
use socket2::SockRef;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Long enough for anything that works, short enough for a person.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running keeper; it stops and its directory goes when this is dropped.
struct Rig {
    run_dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    keeper: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Rig {
    fn start(grace: Duration) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let run_dir = std::env::temp_dir().join(format!("loam-keeper-{}-{number}", std::process::id()));
        let mut rig = Self { run_dir, stop: None, keeper: None };
        rig.run(grace);
        rig
    }

    fn run(&mut self, grace: Duration) {
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            // Dropping the rig stops the keeper as well.
            let _ = stopped.await;
        };
        self.stop = Some(stop);
        self.keeper = Some(tokio::spawn(serve(self.config(grace), stopped)));
    }

    fn config(&self, grace: Duration) -> KeeperConfig {
        KeeperConfig {
            run_dir: self.run_dir.clone(),
            ztunnel_uid: rustix::process::getuid().as_raw(),
            grace_ms: grace.as_millis() as u64,
            agent_args: vec![],
        }
    }

    async fn stop(&mut self) {
        self.stop = None;
        self.keeper.take().unwrap().await.unwrap().unwrap();
    }

    async fn connect(&self, name: &str) -> Socket {
        eventually(|| Socket::connect(&self.run_dir.join(name)).ok()).await
    }

    async fn agent(&self) -> AgentClient {
        AgentClient::hello(self.connect(AGENT_SOCKET).await).await.unwrap()
    }

    /// A ztunnel that has greeted.
    async fn ztunnel(&self) -> Ztunnel {
        let socket = self.connect(ZTUNNEL_SOCKET).await;
        socket.send_message(&Hello::new(), &[]).await.unwrap();
        let (welcome, _) = socket.recv_message::<Welcome>().await.unwrap().unwrap();
        assert_eq!((welcome.version, &welcome.error[..]), (VERSION, ""));
        Ztunnel { socket }
    }

    /// An agent that has given the maps, and a ztunnel that has been told of all pods.
    async fn ready(&self, maps: &Maps) -> (AgentClient, Ztunnel) {
        let (agent, ztunnel) = (self.agent().await, self.ztunnel().await);
        maps.give(&agent).await;
        ztunnel.snapshot_sent().await;
        (agent, ztunnel)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
        // A test that fails should report why, not that cleaning failed.
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// A ztunnel played by hand.
struct Ztunnel {
    socket: Socket,
}

impl Ztunnel {
    async fn say(&self, said: from_ztunnel::Said, fds: &[BorrowedFd<'_>]) {
        self.socket.send_message(&FromZtunnel::from(said), fds).await.unwrap();
    }

    async fn hear(&self) -> (to_ztunnel::Said, Vec<OwnedFd>) {
        let heard = tokio::time::timeout(PATIENCE, self.socket.recv_message::<ToZtunnel>()).await;
        let (message, fds) = heard.expect("the keeper is silent").unwrap().expect("the keeper closed");
        (message.said.unwrap(), fds)
    }

    /// Hears a pod and acknowledges it.
    async fn take(&self) -> (PodRef, Vec<OwnedFd>) {
        let (said, fds) = self.hear().await;
        let to_ztunnel::Said::AddPod(add) = said else { panic!("{said:?}") };
        let pod = PodRef { uid: add.info.unwrap().uid, incarnation: add.incarnation };
        self.say(from_ztunnel::Said::PodAck(PodAck { pod: Some(pod.clone()), error: String::new() }), &[]).await;
        (pod, fds)
    }

    async fn snapshot_sent(&self) {
        let (said, _) = self.hear().await;
        assert!(matches!(said, to_ztunnel::Said::SnapshotSent(_)), "{said:?}");
    }

    async fn need(&self, pod: &PodRef, kind: Kind, count: u32) -> Result<Vec<OwnedFd>, String> {
        let need = Need { pod: Some(pod.clone()), kind: kind as i32, count };
        self.say(from_ztunnel::Said::Need(need), &[]).await;
        let (said, fds) = self.hear().await;
        let to_ztunnel::Said::Sockets(sockets) = said else { panic!("{said:?}") };
        assert_eq!((sockets.pod.as_ref(), sockets.kind), (Some(pod), kind as i32));
        if sockets.error.is_empty() { Ok(fds) } else { Err(sockets.error) }
    }
}

/// Waits for something that becomes true by itself.
async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it did not come true");
        tokio::task::yield_now().await;
    }
}

fn info(uid: &str) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        node: "n1".into(),
        addresses: vec![],
        dns: true,
        resolv: None,
        starting: false,
    }
}

// ---- without root ----

#[tokio::test]
async fn a_ztunnel_is_greeted_and_told_the_pods_there_are() {
    let rig = Rig::start(Duration::ZERO);
    rig.ztunnel().await.snapshot_sent().await;
}

#[tokio::test]
async fn a_hello_of_another_version_is_refused_in_words() {
    let rig = Rig::start(Duration::ZERO);
    for (version, expected) in [
        (1, "hello of version 1, Istio's"),
        (2, "hello of version 2, this keeper"),
        (VERSION + 1, "hello of version 5, this keeper"),
    ] {
        let socket = rig.connect(ZTUNNEL_SOCKET).await;
        let hello = Hello { oldest: version, newest: version, ..Hello::new() };
        socket.send_message(&hello, &[]).await.unwrap();
        let (welcome, _) = socket.recv_message::<Welcome>().await.unwrap().unwrap();
        assert!(welcome.error.starts_with(expected), "{}", welcome.error);
        assert!(socket.recv().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_ztunnel_of_the_version_before_is_spoken_with_in_its_own() {
    let rig = Rig::start(Duration::ZERO);
    let socket = rig.connect(ZTUNNEL_SOCKET).await;
    // Version 3: its number, and its process 7.
    socket.send(&[0x08, 3, 0x10, 7], &[]).await.unwrap();
    let (welcome, _) = socket.recv_message::<Welcome>().await.unwrap().unwrap();
    assert_eq!((welcome.version, &welcome.error[..]), (3, ""));
    let ztunnel = Ztunnel { socket };
    ztunnel.snapshot_sent().await;
    let ghost = PodRef { uid: "ghost".into(), incarnation: 1 };
    assert_eq!(ztunnel.need(&ghost, Kind::Out4, 1).await.unwrap_err(), "the pod is not there");
}

#[tokio::test]
async fn what_a_newer_ztunnel_or_agent_says_beyond_us_ends_no_connection() {
    use loam_node::message::{ToAgent, Unknown, to_agent};
    // Field 200, which nobody has.
    const UNKNOWN: [u8; 3] = [0xc2, 0x0c, 0x00];
    let rig = Rig::start(Duration::ZERO);
    let null = std::fs::File::open("/dev/null").unwrap();
    let ztunnel = rig.ztunnel().await;
    ztunnel.snapshot_sent().await;
    ztunnel.socket.send(&UNKNOWN, &[null.as_fd()]).await.unwrap();
    let ghost = PodRef { uid: "ghost".into(), incarnation: 1 };
    assert_eq!(ztunnel.need(&ghost, Kind::Out4, 1).await.unwrap_err(), "the pod is not there");
    // Only root is an agent.
    if rustix::process::getuid().is_root() {
        let socket = rig.connect(AGENT_SOCKET).await;
        let newer = Hello { newest: VERSION + 1, ..Hello::new() };
        socket.send_message(&newer, &[]).await.unwrap();
        let (welcome, _) = socket.recv_message::<Welcome>().await.unwrap().unwrap();
        assert_eq!((welcome.version, &welcome.error[..]), (VERSION, ""));
        socket.send(&[vec![0x08, 9], UNKNOWN.to_vec()].concat(), &[]).await.unwrap();
        let (answer, _) = socket.recv_message::<ToAgent>().await.unwrap().unwrap();
        assert_eq!(answer, ToAgent { id: 9, answer: Some(to_agent::Answer::Unknown(Unknown {})) });
    }
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_told_and_cut_off_and_others_are_not() {
    let rig = Rig::start(Duration::ZERO);
    let bystander = rig.ztunnel().await;
    bystander.snapshot_sent().await;
    let null = std::fs::File::open("/dev/null").unwrap();
    let held = || FromZtunnel::from(from_ztunnel::Said::Held(Held { uid: "a".into() }));
    let packets: [(Vec<u8>, usize, &str); 4] = [
        (vec![0xff; 20], 0, "FromZtunnel: "),
        (loam_node::message::encode(&held()).unwrap(), 0, "Held came with 0 descriptors, not 3, 6 or 9"),
        (loam_node::message::encode(&held()).unwrap(), 4, "Held came with 4 descriptors, not 3, 6 or 9"),
        (vec![7; MAX_MESSAGE_BYTES], 0, "FromZtunnel: "),
    ];
    for (bytes, fds, expected) in packets {
        let ztunnel = rig.ztunnel().await;
        ztunnel.snapshot_sent().await;
        ztunnel.socket.send(&bytes, &vec![null.as_fd(); fds]).await.unwrap();
        let (said, _) = ztunnel.hear().await;
        let to_ztunnel::Said::Goodbye(goodbye) = said else { panic!("{said:?}") };
        assert!(goodbye.reason.starts_with(expected), "{}", goodbye.reason);
        assert!(ztunnel.socket.recv().await.unwrap().is_none());
    }
    let ghost = PodRef { uid: "ghost".into(), incarnation: 1 };
    assert_eq!(bystander.need(&ghost, Kind::Out4, 1).await.unwrap_err(), "the pod is not there");
}

#[tokio::test]
async fn a_second_keeper_of_a_directory_waits_and_serves_when_the_first_has_ended() {
    let mut rig = Rig::start(Duration::ZERO);
    rig.ztunnel().await;
    let (stop, first) = (rig.stop.take(), rig.keeper.take().unwrap());
    rig.run(Duration::ZERO);
    // It finds the directory taken, and that it is told to end meanwhile is no failure.
    tokio::task::yield_now().await;
    rig.stop().await;
    rig.run(Duration::ZERO);
    tokio::task::yield_now().await;
    drop(stop);
    first.await.unwrap().unwrap();
    rig.ztunnel().await;
    rig.stop().await;
}

#[test]
fn only_root_is_an_agent_and_only_root_and_its_user_a_ztunnel() {
    let peer = |uid| loam_node::socket::Peer { uid, pid: None };
    let ztunnel = Role::Ztunnel { uid: 1337 };
    assert_eq!([0, 1337, 1000].map(|uid| Role::Agent.admits(peer(uid))), [true, false, false]);
    assert_eq!([0, 1337, 1000].map(|uid| ztunnel.admits(peer(uid))), [true, true, false]);
}

#[test]
fn what_is_no_namespace_of_a_pod_is_refused_by_what_it_is() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(identify(&file.into()).unwrap_err().to_string(), "the descriptor is not of a namespace");
    let error = identify(&netns::own().unwrap()).unwrap_err().to_string();
    assert_eq!(error, "the network namespace is the node's own");
}

// ---- as root ----

/// Whether to run what needs root; where it must run, not running is a failure.
pub(super) fn as_root() -> bool {
    if std::env::var_os("LOAM_ROOT_TESTS").is_some() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI runs these tests as root with LOAM_ROOT_TESTS=1");
    println!("SKIPPED: needs root and LOAM_ROOT_TESTS=1");
    false
}

/// The maps, as the agent has them.
struct Maps {
    listeners: OwnedFd,
    exempt: OwnedFd,
}

impl Maps {
    fn new() -> Self {
        Self { listeners: sock_map(64), exempt: sk_storage() }
    }

    async fn give(&self, agent: &AgentClient) {
        agent.stores(self.listeners.as_fd(), self.exempt.as_fd()).await.unwrap();
    }

    fn filled(&self, index: u32) -> [bool; 4] {
        let map = Map::from_fd(self.listeners.try_clone().unwrap(), MapType::SockMap, 4, 4).unwrap();
        let spare = TcpListener::bind("127.0.0.1:0").unwrap();
        Slot::ALL.map(|kind| is_filled(&map, slot(index, kind), spare.as_fd()))
    }

    fn is_exempt(&self, socket: &OwnedFd) -> bool {
        let map = Map::from_fd(self.exempt.try_clone().unwrap(), MapType::SkStorage, 4, 4).unwrap();
        let key = socket.as_raw_fd().to_ne_bytes();
        map.update(&key, &1_u32.to_ne_bytes(), Update::NoExist).is_err_and(|e| e.raw_os_error() == Some(libc::EEXIST))
    }
}

fn dial(netns: &OwnedFd, port: u16) -> std::io::Result<TcpStream> {
    inside(Some(netns.as_fd()), || TcpStream::connect((Ipv4Addr::LOCALHOST, port)))
}

/// Adds a pod that `ztunnel` serves.
async fn add(
    agent: &AgentClient,
    ztunnel: &Ztunnel,
    uid: &str,
    index: u32,
    netns: &OwnedFd,
) -> (Added, PodRef, Vec<OwnedFd>) {
    let (added, (pod, fds)) = tokio::join!(agent.add_pod(index, info(uid), netns.as_fd()), ztunnel.take());
    (added.unwrap(), pod, fds)
}

#[tokio::test]
async fn a_pod_gets_listeners_slots_and_exempt_sockets_of_its_own_namespace() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    let (added, pod, listeners) = add(&agent, &ztunnel, "a", 3, &netns).await;
    assert!(added.serving, "{added:?}");
    assert_eq!(maps.filled(3), [true; 4]);
    for (fd, kind) in listeners.iter().zip(ListenerKind::ALL) {
        assert_eq!(netns::cookie(fd).unwrap(), added.netns_cookie);
        let bound = SockRef::from(fd).local_addr().unwrap().as_socket().unwrap();
        assert_eq!(bound, SocketAddr::from((Ipv6Addr::UNSPECIFIED, kind.port())));
        dial(&netns, kind.port()).unwrap();
    }
    let (dns, names) = (&listeners[3..], ["127.0.0.1", "::1"]);
    for (family, ip) in dns.chunks(3).zip(names) {
        let bound: Vec<String> =
            family.iter().map(|fd| SockRef::from(fd).local_addr().unwrap().as_socket().unwrap().to_string()).collect();
        let ip: std::net::IpAddr = ip.parse().unwrap();
        assert_eq!(bound, [15053, 15054, 15053].map(|port| SocketAddr::new(ip, port).to_string()));
        assert!(maps.is_exempt(&family[0]) && maps.is_exempt(&family[1]));
    }
    assert_eq!(dns.len(), 6);
    for kind in Kind::ALL {
        let sockets = ztunnel.need(&pod, kind, 253).await.unwrap();
        assert_eq!(sockets.len(), 253);
        let expected = if kind.is_inbound() { mark::DELIVER } else { mark::PROXY };
        for socket in &sockets {
            assert!(maps.is_exempt(socket), "{kind:?} would be redirected");
            assert_eq!(netns::cookie(socket).unwrap(), added.netns_cookie);
            assert_eq!(SockRef::from(socket).mark().unwrap(), expected);
        }
    }
    let checked = agent.check("a").await.unwrap();
    assert_eq!((checked.listening, checked.serving, &checked.problem[..]), (true, true, ""));
    let listed = agent.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].index, listed[0].netns_cookie), (1, 3, added.netns_cookie));
}

#[tokio::test]
async fn a_slot_that_was_lost_is_filled_again_by_a_check() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    add(&agent, &ztunnel, "a", 0, &netns).await;
    let map = Map::from_fd(maps.listeners.try_clone().unwrap(), MapType::SockMap, 4, 4).unwrap();
    map.delete(&slot(0, Slot::Hbone).to_ne_bytes()).unwrap();
    assert_eq!(maps.filled(0), [true, true, false, true]);
    agent.check("a").await.unwrap();
    assert_eq!(maps.filled(0), [true; 4]);
}

#[tokio::test]
async fn a_connection_waits_within_the_grace_for_the_next_ztunnel() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(PATIENCE), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    add(&agent, &ztunnel, "a", 0, &netns).await;
    drop(ztunnel);
    let waiting = dial(&netns, 15001).unwrap();
    let next = rig.ztunnel().await;
    let (_, mut listeners) = next.take().await;
    assert_eq!(maps.filled(0), [true; 4]);
    let outbound = TcpListener::from(listeners.remove(0));
    outbound.set_nonblocking(false).unwrap();
    let (served, _) = outbound.accept().unwrap();
    assert_eq!(served.peer_addr().unwrap().port(), waiting.local_addr().unwrap().port());
}

#[tokio::test]
async fn after_the_grace_waiting_and_coming_connections_are_reset_and_slots_empty() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::from_millis(20)), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    add(&agent, &ztunnel, "a", 0, &netns).await;
    let waiting = dial(&netns, 15006).unwrap();
    drop(ztunnel);
    eventually(|| (maps.filled(0) == [false; 4]).then_some(())).await;
    for mut stream in [waiting, dial(&netns, 15006).unwrap()] {
        stream.set_nonblocking(true).unwrap();
        let end = eventually(|| match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            end => Some(end),
        });
        assert_eq!(end.await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(agent.check("a").await.unwrap().problem, "no ztunnel is connected");
    let next = rig.ztunnel().await;
    next.take().await;
    eventually(|| (maps.filled(0) == [true; 4]).then_some(())).await;
}

#[tokio::test]
async fn a_drained_pod_leaves_nothing_in_its_namespace() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    let (_, pod, listeners) = add(&agent, &ztunnel, "a", 0, &netns).await;
    drop(listeners);
    assert!(agent.remove_pod("a").await.unwrap());
    assert!(!agent.remove_pod("a").await.unwrap());
    let (said, _) = ztunnel.hear().await;
    assert!(matches!(said, to_ztunnel::Said::RemovePod(_)), "{said:?}");
    assert_eq!(maps.filled(0), [false; 4]);
    // Connections that are open may still need sockets.
    assert_eq!(ztunnel.need(&pod, Kind::Out4, 1).await.unwrap().len(), 1);
    ztunnel.say(from_ztunnel::Said::PodDrained(PodDrained { pod: Some(pod.clone()) }), &[]).await;
    assert_eq!(ztunnel.need(&pod, Kind::Out4, 1).await.unwrap_err(), "the pod is not there");
    eventually(|| dial(&netns, 15001).err()).await;
    // And the place is free for another.
    add(&agent, &ztunnel, "b", 0, &netns).await;
}

#[tokio::test]
async fn what_cannot_be_a_pods_namespace_is_refused_and_the_connection_lives_on() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = (rig.agent().await, rig.ztunnel().await);
    ztunnel.snapshot_sent().await;
    let refused =
        async |uid: &str, index, fd: BorrowedFd<'_>| agent.add_pod(index, info(uid), fd).await.unwrap_err().to_string();
    assert_eq!(refused("a", 0, netns.as_fd()).await, "keeper: no maps have been given yet");
    let stores = agent.stores(netns.as_fd(), maps.exempt.as_fd()).await.unwrap_err().to_string();
    assert!(stores.starts_with("keeper: LISTENERS: "), "{stores}");
    let stores = agent.stores(maps.exempt.as_fd(), maps.listeners.as_fd()).await.unwrap_err().to_string();
    assert!(stores.contains("is a map of type 24"), "{stores}");
    maps.give(&agent).await;

    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(refused("a", 0, file.as_fd()).await, "keeper: the descriptor is not of a namespace");
    let mount = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    let expected = "keeper: pod shop/a: the descriptor is of a namespace of another kind than network";
    assert_eq!(refused("a", 0, mount.as_fd()).await, expected);
    let own = netns::own().unwrap();
    assert_eq!(refused("a", 0, own.as_fd()).await, "keeper: the network namespace is the node's own");
    assert_eq!(refused("a", 16, netns.as_fd()).await, "keeper: index 16 is beyond the map of listeners");
    assert_eq!(
        refused("a", u32::MAX, netns.as_fd()).await,
        format!("keeper: index {} is beyond the map of listeners", u32::MAX)
    );

    add(&agent, &ztunnel, "a", 0, &netns).await;
    assert_eq!(refused("b", 1, netns.as_fd()).await, "keeper: its network namespace is that of pod shop/a (a)");
    let other = fresh();
    let taken = inside(Some(other.as_fd()), || TcpListener::bind((Ipv4Addr::LOCALHOST, 15006)).unwrap());
    assert_eq!(refused("b", 1, other.as_fd()).await, "keeper: pod shop/b: port 15006 is taken by a process in the pod");
    drop(taken);
    let taken = inside(Some(other.as_fd()), || std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 15054)).unwrap());
    let busy = refused("b", 1, other.as_fd()).await;
    assert!(busy.starts_with("keeper: pod shop/b: port 15054, on which questions"), "{busy}");
    let off = PodInfo { dns: false, ..info("b") };
    let (added, (_, sockets)) = tokio::join!(agent.add_pod(1, off, other.as_fd()), ztunnel.take());
    assert!(added.unwrap().serving);
    assert_eq!(sockets.len(), 3);
    assert_eq!(maps.filled(1), [true, true, true, false]);
    drop(taken);
}

#[tokio::test]
async fn names_are_switched_off_and_on_with_the_listeners_that_are_there() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    let mut held = Vec::new();
    for (dns, expected) in [(false, 3), (true, 9), (false, 3), (true, 9)] {
        let info = PodInfo { dns, ..info("a") };
        let former = held.last().map(|(pod, _): &(PodRef, Vec<OwnedFd>)| pod.clone());
        let told = async {
            if former.is_some() {
                let (said, _) = ztunnel.hear().await;
                assert!(matches!(said, to_ztunnel::Said::RemovePod(_)), "{said:?}");
            }
            ztunnel.take().await
        };
        let (added, (pod, sockets)) = tokio::join!(agent.add_pod(0, info, netns.as_fd()), told);
        assert!(added.unwrap().serving);
        assert_eq!(sockets.len(), expected);
        held.push((pod, sockets));
    }
    assert_eq!(maps.filled(0), [true; 4]);
}

#[tokio::test]
async fn a_second_agent_is_refused_while_the_first_lives() {
    if !as_root() {
        return;
    }
    let rig = Rig::start(Duration::ZERO);
    let first = rig.agent().await;
    let second = AgentClient::hello(rig.connect(AGENT_SOCKET).await).await.unwrap_err().to_string();
    assert_eq!(second, "keeper: another agent is connected");
    first.list().await.unwrap();
    drop(first);
    eventually_ok(|| async { AgentClient::hello(rig.connect(AGENT_SOCKET).await).await.ok() }).await;
}

async fn eventually_ok<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it did not come true");
    }
}

#[tokio::test]
async fn an_agent_that_sends_two_namespaces_is_cut_off() {
    if !as_root() {
        return;
    }
    use loam_node::message::{EnrolPod, FromAgent, ToAgent, from_agent, to_agent};
    let rig = Rig::start(Duration::ZERO);
    for fds in [0, 2] {
        let socket = rig.connect(AGENT_SOCKET).await;
        socket.send_message(&Hello::new(), &[]).await.unwrap();
        let (welcome, _) = socket.recv_message::<Welcome>().await.unwrap().unwrap();
        assert_eq!(welcome.error, "");
        let asked = from_agent::Asked::AddPod(EnrolPod { index: 0, info: Some(info("a")) });
        let netns = netns::own().unwrap();
        socket.send_message(&FromAgent { id: 1, asked: Some(asked) }, &vec![netns.as_fd(); fds]).await.unwrap();
        let (answer, _) = socket.recv_message::<ToAgent>().await.unwrap().unwrap();
        let Some(to_agent::Answer::Goodbye(goodbye)) = answer.answer else { panic!("{answer:?}") };
        assert_eq!(goodbye.reason, format!("AddPod came with {fds} descriptors, not 1"));
        assert!(socket.recv().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn the_older_ztunnel_is_told_to_retire_and_still_gets_sockets() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, older) = (rig.agent().await, rig.ztunnel().await);
    maps.give(&agent).await;
    older.snapshot_sent().await;
    let (_, pod, _) = add(&agent, &older, "a", 0, &netns).await;
    let newer = rig.ztunnel().await;
    newer.take().await;
    newer.snapshot_sent().await;
    newer.say(from_ztunnel::Said::Serving(Serving {}), &[]).await;
    let (said, _) = older.hear().await;
    assert!(matches!(said, to_ztunnel::Said::Retire(_)), "{said:?}");
    assert_eq!(older.need(&pod, Kind::In4, 16).await.unwrap().len(), 16);
}

#[tokio::test]
async fn a_new_keeper_takes_the_listeners_that_a_ztunnel_kept_alive() {
    if !as_root() {
        return;
    }
    let (mut rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    let (_, _, kept) = add(&agent, &ztunnel, "a", 0, &netns).await;
    rig.stop().await;
    drop((agent, ztunnel));
    let _waiting = dial(&netns, 15008).unwrap();

    rig.run(Duration::ZERO);
    let agent = rig.agent().await;
    maps.give(&agent).await;
    let busy = agent.add_pod(0, info("a"), netns.as_fd()).await.unwrap_err().to_string();
    assert!(busy.contains("port 15001 is taken"), "{busy}");
    let ztunnel = rig.ztunnel().await;
    ztunnel.snapshot_sent().await;
    let fds: Vec<BorrowedFd<'_>> = kept.iter().map(|fd| fd.as_fd()).collect();
    ztunnel.say(from_ztunnel::Said::Held(Held { uid: "a".into() }), &fds).await;
    // The need goes behind the offer: when it is answered, the offer has arrived.
    let _ = ztunnel.need(&PodRef { uid: "a".into(), incarnation: 1 }, Kind::Out4, 1).await;
    let (added, _, listeners) = add(&agent, &ztunnel, "a", 0, &netns).await;
    assert!(added.serving);
    for (ours, theirs) in kept.iter().zip(&listeners) {
        assert_eq!(SockRef::from(ours).cookie().unwrap(), SockRef::from(theirs).cookie().unwrap());
    }
    let hbone = TcpListener::from(listeners[2].try_clone().unwrap());
    hbone.set_nonblocking(false).unwrap();
    hbone.accept().unwrap();
}

#[tokio::test]
async fn listeners_of_another_namespace_are_not_taken() {
    if !as_root() {
        return;
    }
    let (rig, maps, netns) = (Rig::start(Duration::ZERO), Maps::new(), fresh());
    let (agent, ztunnel) = rig.ready(&maps).await;
    let foreign = fresh();
    let fakes = ListenerKind::ALL
        .map(|kind| inside(Some(foreign.as_fd()), || TcpListener::bind((Ipv6Addr::UNSPECIFIED, kind.port())).unwrap()));
    let fds: Vec<BorrowedFd<'_>> = fakes.iter().map(|fd| fd.as_fd()).collect();
    ztunnel.say(from_ztunnel::Said::Held(Held { uid: "a".into() }), &fds).await;
    let _ = ztunnel.need(&PodRef { uid: "a".into(), incarnation: 1 }, Kind::Out4, 1).await;
    let (added, _, listeners) = add(&agent, &ztunnel, "a", 0, &netns).await;
    assert_eq!(netns::cookie(&listeners[0]).unwrap(), added.netns_cookie);
}

#[tokio::test]
async fn a_namespace_with_loopback_alone_is_deserted() {
    if !as_root() {
        return;
    }
    let look = async |netns: OwnedFd| {
        let id = identify(&netns).unwrap();
        let (sender, deserted) = oneshot::channel();
        let place = Place::start(netns, id).unwrap();
        place.is_deserted(move |deserted| sender.send(deserted).unwrap()).unwrap();
        deserted.await.unwrap()
    };
    let netns = fresh();
    assert!(look(netns.try_clone().unwrap()).await);
    inside(Some(netns.as_fd()), || {
        let link = std::process::Command::new("ip").args(["link", "add", "eth0", "type", "veth", "peer", "x"]).status();
        assert!(link.unwrap().success());
    });
    assert!(!look(netns).await);
}
