//! The client against a keeper played by hand; ordinary sockets stand in for those of a pod.

use super::*;
use loam_node::message::{
    AddPod, FromZtunnel, Goodbye, Hello, Need, RemovePod, Retire, SnapshotSent, Sockets, ToZtunnel, VERSION, Welcome,
    from_ztunnel, to_ztunnel,
};
use loam_node::{Listener, MAX_OPEN_NEEDS, Socket, ZTUNNEL_SOCKET};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

/// Where the keeper listens, and our client of it.
struct Rig {
    dir: PathBuf,
    listener: Option<Listener>,
    pods: Pods,
    link: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("loam-pods-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (pods, link) = Pods::new(dir.join(ZTUNNEL_SOCKET));
        let mut rig = Self { dir, listener: None, pods, link: tokio::spawn(link.run()) };
        rig.listen();
        rig
    }

    fn listen(&mut self) {
        self.listener = Some(Listener::bind(&self.dir.join(ZTUNNEL_SOCKET)).unwrap());
    }

    fn stop_listening(&mut self) {
        self.listener = None;
        std::fs::remove_file(self.dir.join(ZTUNNEL_SOCKET)).unwrap();
    }

    /// The keeper with this number accepts the client and greets it.
    async fn keeper(&self, number: u64) -> Keeper {
        let socket = self.listener.as_ref().unwrap().accept().await.unwrap();
        let (hello, _) = socket.recv_message::<Hello>().await.unwrap().unwrap();
        assert_eq!(hello.agree(), Ok(VERSION));
        let welcome = Welcome { version: VERSION, keeper: number, error: String::new() };
        socket.send_message(&welcome, &[]).await.unwrap();
        Keeper { socket, leaving: hello.leaving }
    }

    async fn until(&self, status: impl Fn(&Status) -> bool) -> Status {
        self.pods.status().wait_for(status).await.unwrap().clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.link.abort();
        // A test that fails should report why, not that cleaning failed.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The keeper's end of a connection.
struct Keeper {
    socket: Socket,
    leaving: bool,
}

impl Keeper {
    async fn say(&self, said: to_ztunnel::Said, fds: &[BorrowedFd<'_>]) {
        self.socket.send_message(&ToZtunnel::from(said), fds).await.unwrap();
    }

    async fn add(&self, uid: &str, incarnation: u64, sockets: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
        self.say(to_ztunnel::Said::AddPod(AddPod { incarnation, info: Some(info(uid)) }), &fds).await;
    }

    async fn snapshot_sent(&self) {
        self.say(to_ztunnel::Said::SnapshotSent(SnapshotSent {}), &[]).await;
    }

    async fn remove(&self, uid: &str, incarnation: u64) {
        self.say(to_ztunnel::Said::RemovePod(RemovePod { pod: Some(pod_ref(uid, incarnation)) }), &[]).await;
    }

    async fn hear(&self) -> from_ztunnel::Said {
        self.socket.recv_message::<FromZtunnel>().await.unwrap().unwrap().0.said.unwrap()
    }

    /// Hears a need and answers it with that many sockets, or as many as given.
    async fn supply(&self, count: Option<u32>) -> Need {
        let need = self.need().await;
        let make = || match need.kind() {
            Kind::Ask4 | Kind::Ask6 => datagram(),
            _ => unconnected(),
        };
        let sockets: Vec<OwnedFd> = (0..count.unwrap_or(need.count)).map(|_| make()).collect();
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
        self.answer(&need, "", &fds).await;
        need
    }

    async fn need(&self) -> Need {
        match self.hear().await {
            from_ztunnel::Said::Need(need) => need,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, need: &Need, error: &str, fds: &[BorrowedFd<'_>]) {
        let sockets = Sockets { pod: need.pod.clone(), kind: need.kind, error: error.into() };
        self.say(to_ztunnel::Said::Sockets(sockets), fds).await;
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
        dns: false,
        resolv: None,
        starting: false,
    }
}

fn pod_ref(uid: &str, incarnation: u64) -> PodRef {
    PodRef { uid: uid.into(), incarnation }
}

fn listeners() -> [OwnedFd; 3] {
    [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().into())
}

fn unconnected() -> OwnedFd {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None).unwrap();
    socket.into()
}

fn datagram() -> OwnedFd {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM.nonblocking(), None).unwrap();
    socket.into()
}

/// Listeners, and the sockets for names of one family.
fn listeners_and_dns() -> Vec<OwnedFd> {
    let udp = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    listeners().into_iter().chain([udp(), udp(), tcp]).collect()
}

async fn added(events: &mut Events) -> Arc<Pod> {
    match events.next().await {
        Some(Event::Added(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

async fn removed(events: &mut Events) -> Arc<Pod> {
    match events.next().await {
        Some(Event::Removed(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

/// Nothing is due, once all that was said has been heard.
async fn quiet(rig: &Rig, events: &mut Events) {
    rig.until(|status| *status == Status::Synced).await;
    let next = tokio::time::timeout(Duration::ZERO, events.next()).await;
    assert!(next.is_err(), "{next:?}");
}

fn acked(uid: &str, incarnation: u64, error: &str) -> from_ztunnel::Said {
    let pod = Some(pod_ref(uid, incarnation));
    from_ztunnel::Said::PodAck(loam_node::message::PodAck { pod, error: error.into() })
}

#[tokio::test]
async fn a_pod_comes_with_its_listeners_and_is_acknowledged_by_its_incarnation() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    let fds = listeners();
    keeper.add("a", 7, &fds).await;
    keeper.snapshot_sent().await;
    let pod = added(&mut events).await;
    assert_eq!((pod.uid(), &pod.info().service_account[..]), ("a", "web"));
    let addr = pod.listener(ListenerKind::Hbone).local_addr().unwrap();
    let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
    drop(pod.listener(ListenerKind::Hbone).accept().await.unwrap());
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    rig.pods.ack(&pod, Err("no certificate".into()));
    rig.pods.ack(&pod, Ok(()));
    rig.pods.serving();
    let answers = [keeper.hear().await, keeper.hear().await, keeper.hear().await];
    // Both acks may find the later answer; what counts is the last word.
    assert_eq!(answers[1], acked("a", 7, ""));
    assert!(matches!(answers[2], from_ztunnel::Said::Serving(_)));
    rig.until(|status| *status == Status::Synced).await;
}

#[tokio::test]
async fn a_late_subscriber_sees_the_pods_that_are_there() {
    let rig = Rig::new();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 1, &listeners()).await;
    keeper.snapshot_sent().await;
    rig.until(|status| *status == Status::Synced).await;
    let mut events = rig.pods.subscribe();
    assert_eq!(added(&mut events).await.uid(), "a");
    assert_eq!(rig.pods.all().len(), 1);
}

#[tokio::test]
async fn the_first_socket_brings_a_batch_and_the_next_are_in_stock() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    let pod = added(&mut events).await;
    let (socket, need) = tokio::join!(pod.socket(Kind::Out4), keeper.supply(None));
    assert_eq!(need, Need { pod: Some(pod_ref("a", 7)), kind: Kind::Out4 as i32, count: 16 });
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.unwrap().connect(target.local_addr().unwrap()).await.unwrap();
    for _ in 0..7 {
        pod.socket(Kind::Out4).await.unwrap();
    }
    let (socket, need) = tokio::join!(pod.socket(Kind::In6), keeper.supply(None));
    assert_eq!((need.kind, need.count), (Kind::In6 as i32, 16));
    socket.unwrap();
}

#[tokio::test]
async fn the_sockets_for_a_pods_names_come_with_it_and_are_offered_to_the_next_keeper() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let fds = listeners_and_dns();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &fds).await;
    keeper.snapshot_sent().await;
    let pod = added(&mut events).await;
    let dns = pod.dns().unwrap();
    assert_eq!((dns.udp.len(), dns.tcp.len()), (2, 1));
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in &dns.udp {
        client.send_to(b"?", socket.local_addr().unwrap()).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).await.unwrap(), (1, client.local_addr().unwrap()));
    }
    drop(keeper);
    let next = rig.keeper(2).await;
    let (message, held) = next.socket.recv_message::<FromZtunnel>().await.unwrap().unwrap();
    assert!(matches!(message.said, Some(from_ztunnel::Said::Held(_))), "{message:?}");
    assert_eq!(held.len(), fds.len());
    next.add("a", 1, &held).await;
    next.snapshot_sent().await;
    quiet(&rig, &mut events).await;
    next.add("a", 2, &held[..3]).await;
    removed(&mut events).await;
    assert!(added(&mut events).await.dns().is_none());
}

#[tokio::test]
async fn a_socket_to_ask_a_server_with_is_udp_and_one_to_dial_with_is_not() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    let pod = added(&mut events).await;
    assert!(pod.dns().is_none());
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    let (socket, need) = tokio::join!(pod.asking_socket(addr.ip()), keeper.supply(None));
    assert_eq!(need.kind(), Kind::Ask4);
    let socket = socket.unwrap();
    socket.connect(addr).await.unwrap();
    socket.send(b"?").await.unwrap();
    assert_eq!(server.recv_from(&mut [0; 8]).unwrap(), (1, socket.local_addr().unwrap()));
    assert!(matches!(pod.socket(Kind::Ask4).await, Err(SocketError::Refused(_))));
}

#[tokio::test]
async fn a_refusal_of_the_keeper_is_the_error() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    let pod = added(&mut events).await;
    let (socket, ()) = tokio::join!(pod.socket(Kind::Out4), async {
        let need = keeper.need().await;
        keeper.answer(&need, "too many open files", &[]).await;
    });
    assert_eq!(socket.unwrap_err().to_string(), "no socket from the keeper: too many open files");
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_five_seconds_is_an_error_that_names_the_keeper() {
    let mut rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    let pod = added(&mut events).await;
    rig.stop_listening();
    drop(keeper);
    let begun = Instant::now();
    let error = pod.socket(Kind::Out4).await.unwrap_err();
    assert_eq!(begun.elapsed(), SOCKET_TIMEOUT);
    assert!(matches!(&error, SocketError::Timeout(Status::Disconnected(_))), "{error}");
    assert!(error.to_string().starts_with("no socket from the keeper within 5s (not connected: "), "{error}");
}

#[tokio::test]
async fn who_waits_while_the_keeper_restarts_is_served_by_the_next() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let fds = listeners();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &fds).await;
    keeper.snapshot_sent().await;
    let pod = added(&mut events).await;
    let (socket, ()) = tokio::join!(pod.socket(Kind::Out4), async {
        keeper.need().await;
        drop(keeper);
        let next = rig.keeper(2).await;
        assert!(matches!(next.hear().await, from_ztunnel::Said::Held(_)));
        next.add("a", 1, &fds).await;
        assert_eq!(next.supply(None).await.pod, Some(pod_ref("a", 1)));
    });
    socket.unwrap();
}

#[tokio::test]
async fn one_that_leaves_gets_sockets_from_the_next_keeper_and_takes_no_pod_that_it_did_not_have() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let fds = listeners();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &fds).await;
    keeper.snapshot_sent().await;
    let pod = added(&mut events).await;
    keeper.say(to_ztunnel::Said::Retire(Retire {}), &[]).await;
    assert!(matches!(events.next().await, Some(Event::Retire)));
    let (socket, ()) = tokio::join!(pod.socket(Kind::Out4), async {
        keeper.need().await;
        drop(keeper);
        // As often as it connects, also to the same one.
        for _ in 0..2 {
            let next = rig.keeper(2).await;
            assert!(next.leaving);
            assert!(matches!(next.hear().await, from_ztunnel::Said::Held(_)));
        }
        let next = rig.keeper(2).await;
        assert!(matches!(next.hear().await, from_ztunnel::Said::Held(_)));
        next.add("b", 1, &listeners()).await;
        next.add("a", 2, &fds).await;
        assert_eq!(next.supply(None).await.pod, Some(pod_ref("a", 2)));
        next.remove("b", 1).await;
        let drained = loam_node::message::PodDrained { pod: Some(pod_ref("b", 1)) };
        assert_eq!(next.hear().await, from_ztunnel::Said::PodDrained(drained));
    });
    socket.unwrap();
    let next = tokio::time::timeout(Duration::ZERO, events.next()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test]
async fn a_lost_connection_to_the_same_keeper_changes_nothing_but_what_changed() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let (a, b) = (listeners(), listeners());
    let keeper = rig.keeper(1).await;
    keeper.add("a", 1, &a).await;
    keeper.snapshot_sent().await;
    let pod = added(&mut events).await;
    keeper.add("b", 2, &b).await;
    added(&mut events).await;
    rig.pods.ack(&pod, Ok(()));
    rig.pods.serving();
    assert_eq!(keeper.hear().await, acked("a", 1, ""));
    keeper.hear().await;
    drop(keeper);
    let keeper = rig.keeper(1).await;
    keeper.add("a", 1, &a).await;
    keeper.snapshot_sent().await;
    // What was said is said again, and no listeners are offered to one who has them.
    assert_eq!(keeper.hear().await, acked("a", 1, ""));
    assert!(matches!(keeper.hear().await, from_ztunnel::Said::Serving(_)));
    assert_eq!(removed(&mut events).await.uid(), "b");
    quiet(&rig, &mut events).await;
    assert!(Arc::ptr_eq(&rig.pods.all()[0], &pod));
}

#[tokio::test(start_paused = true)]
async fn pods_that_a_new_keeper_does_not_name_are_served_for_a_minute() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let (a, b) = (listeners(), listeners());
    let keeper = rig.keeper(1).await;
    keeper.add("a", 1, &a).await;
    added(&mut events).await;
    keeper.add("b", 2, &b).await;
    added(&mut events).await;
    keeper.snapshot_sent().await;
    rig.until(|status| *status == Status::Synced).await;
    drop(keeper);
    let keeper = rig.keeper(2).await;
    for _ in 0..2 {
        let (message, fds) = keeper.socket.recv_message::<FromZtunnel>().await.unwrap().unwrap();
        assert!(matches!(message.said, Some(from_ztunnel::Said::Held(_))), "{message:?}");
        assert_eq!(fds.len(), 3);
    }
    keeper.snapshot_sent().await;
    let begun = Instant::now();
    keeper.add("a", 5, &a).await;
    assert_eq!(removed(&mut events).await.uid(), "b");
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(rig.pods.all().len(), 1);
}

#[tokio::test]
async fn other_listeners_under_the_same_uid_are_another_pod() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 1, &listeners()).await;
    let first = added(&mut events).await;
    drop(keeper);
    let keeper = rig.keeper(2).await;
    keeper.hear().await;
    keeper.add("a", 1, &listeners()).await;
    assert!(Arc::ptr_eq(&removed(&mut events).await, &first));
    assert!(!Arc::ptr_eq(&added(&mut events).await, &first));
}

#[tokio::test]
async fn a_removed_pod_is_reported_drained_when_its_last_connection_lets_go() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    let connection = added(&mut events).await;
    keeper.remove("a", 7).await;
    drop(removed(&mut events).await);
    // Sockets are to be had until the end.
    let (socket, _) = tokio::join!(connection.socket(Kind::Out4), keeper.supply(None));
    socket.unwrap();
    drop(connection);
    let drained = loam_node::message::PodDrained { pod: Some(pod_ref("a", 7)) };
    assert_eq!(keeper.hear().await, from_ztunnel::Said::PodDrained(drained));
}

#[tokio::test]
async fn a_pod_that_nobody_saw_is_reported_drained_as_well() {
    let rig = Rig::new();
    let keeper = rig.keeper(1).await;
    keeper.add("a", 7, &listeners()).await;
    keeper.remove("a", 7).await;
    keeper.remove("ghost", 9).await;
    let drained = |uid, incarnation| {
        let pod = Some(pod_ref(uid, incarnation));
        from_ztunnel::Said::PodDrained(loam_node::message::PodDrained { pod })
    };
    let mut heard = [keeper.hear().await, keeper.hear().await];
    heard.sort_by_key(|said| format!("{said:?}"));
    assert_eq!(heard, [drained("a", 7), drained("ghost", 9)]);
}

#[tokio::test]
async fn a_ztunnel_that_retires_greets_as_leaving_afterwards() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    assert!(!keeper.leaving);
    keeper.say(to_ztunnel::Said::Retire(Retire {}), &[]).await;
    assert!(matches!(events.next().await, Some(Event::Retire)));
    drop(keeper);
    assert!(rig.keeper(1).await.leaving);
}

#[tokio::test]
async fn needs_beyond_the_bound_wait_for_an_answer() {
    let rig = Rig::new();
    let mut events = rig.pods.subscribe();
    let keeper = rig.keeper(1).await;
    let mut waiting = Vec::new();
    for n in 0..=MAX_OPEN_NEEDS as u64 {
        keeper.add(&n.to_string(), n + 1, &listeners()).await;
        let pod = added(&mut events).await;
        waiting.push(tokio::spawn(async move { pod.socket(Kind::Out4).await.map(drop) }));
    }
    let mut open = Vec::new();
    for _ in 0..MAX_OPEN_NEEDS {
        open.push(keeper.need().await);
    }
    let nothing = tokio::time::timeout(Duration::from_millis(1), keeper.need()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let first = open.remove(0);
    keeper.answer(&first, "", &[unconnected().as_fd()]).await;
    open.push(keeper.need().await);
    for need in &open {
        keeper.answer(need, "", &[unconnected().as_fd()]).await;
    }
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_goodbye_and_a_refusal_are_the_status() {
    let rig = Rig::new();
    let keeper = rig.keeper(1).await;
    keeper.say(to_ztunnel::Said::Goodbye(Goodbye { reason: "enough".into() }), &[]).await;
    let status = rig.until(|status| matches!(status, Status::Disconnected(why) if why == "enough")).await;
    assert_eq!(status.to_string(), "not connected: enough");
    let socket = rig.listener.as_ref().unwrap().accept().await.unwrap();
    let welcome = Welcome { version: 3, keeper: 1, error: "hello of version 2".into() };
    socket.send_message(&welcome, &[]).await.unwrap();
    rig.until(|status| matches!(status, Status::Disconnected(why) if why.ends_with("hello of version 2"))).await;
}

#[tokio::test]
async fn a_keeper_of_the_version_before_serves_and_what_a_newer_one_says_is_passed_over() {
    let rig = Rig::new();
    for (number, version) in [(1, VERSION - 1), (2, VERSION)] {
        let socket = rig.listener.as_ref().unwrap().accept().await.unwrap();
        socket.recv_message::<Hello>().await.unwrap().unwrap();
        let welcome = Welcome { version, keeper: number, error: String::new() };
        socket.send_message(&welcome, &[]).await.unwrap();
        // Field 200, which nobody has, with a descriptor beside it.
        let sockets = listeners();
        socket.send(&[0xc2, 0x0c, 0x00], &[sockets[0].as_fd()]).await.unwrap();
        let keeper = Keeper { socket, leaving: false };
        keeper.snapshot_sent().await;
        rig.until(|status| *status == Status::Synced).await;
    }
}

#[tokio::test]
async fn a_keeper_of_a_version_that_is_not_known_is_refused_in_words() {
    let rig = Rig::new();
    let socket = rig.listener.as_ref().unwrap().accept().await.unwrap();
    let welcome = Welcome { version: VERSION + 1, keeper: 1, error: String::new() };
    socket.send_message(&welcome, &[]).await.unwrap();
    rig.until(|status| matches!(status, Status::Disconnected(why) if why.contains("it speaks version 5"))).await;
}
