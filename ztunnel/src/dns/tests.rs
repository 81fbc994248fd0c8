use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use loam_core::ids::ServiceKey;
use loam_core::service::{Service, ServiceAddr};
use loam_core::snapshot::Change;
use loam_dns::Client;
use loam_rt::drain::{self, Drain, Trigger};
use loam_rt::metrics::{Exposition, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::metrics::DnsMetrics;
use super::testing::{Here, NO_ERROR, REFUSED, SERVER_FAILURE, SOON, Server, failure, nobody, reply};
use super::upstream::{MAX_QUESTIONS, PATIENCE, Upstream};
use super::*;

/// A pod with its resolver's sockets, and what serves it.
struct Pod {
    socket: UdpSocket,
    tcp: SocketAddr,
    trigger: Trigger,
    drain: Drain,
    registry: Registry,
}

impl Pod {
    async fn with_servers(servers: &[SocketAddr]) -> Self {
        let mesh = Arc::new(Mesh::default());
        let key: ServiceKey = "shop/web.shop.svc.cluster.local".parse().unwrap();
        let addresses = vec![ServiceAddr { network: "".into(), range: "10.1.0.1/32".parse().unwrap() }];
        mesh.apply(vec![Change::Service(Service { addresses, ..Service::new(key, "web") })]);
        let registry = Registry::default();
        let metrics = DnsMetrics::new(&registry);
        let client = Client::new("shop", "", false, &["shop.svc.cluster.local"], 5);
        let (_, caller) = watch::channel(None);
        let upstream = Arc::new(Upstream::new(Here, servers.to_vec(), metrics.clone()));
        let dns = Arc::new(Dns::new(client, upstream, mesh, caller, metrics));
        let (trigger, drain) = drain::channel();
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(udp.local_addr().unwrap()).await.unwrap();
        let tcp = listener.local_addr().unwrap();
        tokio::spawn(dns.clone().serve_udp(udp, drain.clone()));
        tokio::spawn(dns.serve_tcp(listener, drain.clone()));
        Self { socket, tcp, trigger, drain, registry }
    }

    async fn send(&self, id: u16, name: &str) {
        self.socket.send(&question(id, name)).await.unwrap();
    }

    async fn receive(&self) -> Answer {
        let mut bytes = [0; 4096];
        let length = timeout(SOON, self.socket.recv(&mut bytes)).await.expect("an answer").unwrap();
        Answer::read(&bytes[..length])
    }

    async fn ask(&self, name: &str) -> Answer {
        self.send(7, name).await;
        self.receive().await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.tcp).await.unwrap()
    }

    fn metrics(&self) -> String {
        self.registry.encode(Exposition::Text, std::time::Instant::now())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    id: u16,
    code: u8,
    truncated: bool,
    address: Option<Ipv4Addr>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let address: Option<[u8; 4]> = (bytes[7] > 0).then(|| *bytes.last_chunk().unwrap());
        Self {
            id: u16::from_be_bytes([bytes[0], bytes[1]]),
            code: bytes[3] & 15,
            truncated: bytes[2] & 2 != 0,
            address: address.map(Ipv4Addr::from),
        }
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

const WEB: &str = "web.shop.svc.cluster.local";
const OTHER: &str = "www.example.com";

async fn converse(stream: &mut TcpStream, id: u16, name: &str) -> Answer {
    frames::write(stream, &question(id, name)).await.unwrap();
    read(stream).await
}

async fn read(stream: &mut TcpStream) -> Answer {
    let length = usize::from(timeout(SOON, stream.read_u16()).await.expect("an answer").unwrap());
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    Answer::read(&bytes)
}

#[tokio::test]
async fn names_of_the_mesh_resolve_while_every_server_is_down() {
    let pod = Pod::with_servers(&[nobody().await]).await;
    let expected = Answer { id: 7, code: NO_ERROR, truncated: false, address: Some([10, 1, 0, 1].into()) };
    assert_eq!(pod.ask(WEB).await, expected);
    assert_eq!(pod.ask("web").await, expected);
    assert_eq!(converse(&mut pod.connect().await, 7, WEB).await, expected);
    assert_eq!(pod.ask(OTHER).await.code, SERVER_FAILURE);
}

#[tokio::test]
async fn a_pod_whose_only_server_is_itself_is_told_so_and_asks_nobody() {
    let own: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let configured = ["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "fd00::1"];
    assert!(servers(configured.map(|ip| ip.parse().unwrap()), &own).is_empty());
    assert_eq!(servers(["10.96.0.10".parse().unwrap()], &own), ["10.96.0.10:53".parse().unwrap()]);
    let pod = Pod::with_servers(&[]).await;
    assert_eq!(pod.ask(OTHER).await.code, SERVER_FAILURE);
}

#[tokio::test]
async fn every_question_goes_out_with_its_own_identifier_and_port() {
    let mut server = Server::start(|_, question| vec![reply(question, [192, 0, 2, 1])]).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    let (mut ids, mut ports) = (HashSet::new(), HashSet::new());
    for _ in 0..60 {
        let answer = pod.ask(OTHER).await;
        assert_eq!((answer.id, answer.address), (7, Some([192, 0, 2, 1].into())));
        let (question, port) = server.asked().await;
        ids.insert(question[..2].to_vec());
        ports.insert(port);
    }
    assert!(ids.len() > 50 && ports.len() > 50, "{} identifiers, {} ports", ids.len(), ports.len());
}

#[tokio::test]
async fn only_the_reply_to_the_question_reaches_the_pod() {
    let forged = |question: &[u8], at: usize, value: u8| {
        let mut bytes = reply(question, [6, 6, 6, 6]);
        bytes[at] ^= value;
        bytes
    };
    let server = Server::start(move |_, question| {
        let last = question.len() - 1;
        vec![
            forged(question, 0, 1),
            forged(question, 13, 1),
            forged(question, last, 2),
            forged(question, 2, 0x80),
            vec![],
            vec![1, 2, 3],
            reply(question, [192, 0, 2, 1]),
        ]
    })
    .await;
    let pod = Pod::with_servers(&[server.addr]).await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 1].into()));
    assert!(pod.metrics().contains("loam_dns_upstream_ignored_total 6"), "{}", pod.metrics());
}

#[tokio::test]
async fn whoever_guesses_identifiers_has_few_guesses() {
    let guesses = |question: &[u8]| {
        (1..=64)
            .map(|n| {
                let mut bytes = reply(question, [6, 6, 6, 6]);
                bytes[1] ^= n;
                bytes
            })
            .collect()
    };
    let server = Server::start(move |_, question| guesses(question)).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    assert_eq!(pod.ask(OTHER).await.code, SERVER_FAILURE);
}

#[tokio::test]
async fn silence_becomes_a_failure_before_the_resolver_gives_up() {
    let mut server = Server::silent().await;
    let pod = Pod::with_servers(&[server.addr]).await;
    let began = Instant::now();
    pod.send(7, OTHER).await;
    server.asked().await;
    tokio::time::pause();
    assert_eq!(pod.receive().await.code, SERVER_FAILURE);
    assert!(began.elapsed() >= PATIENCE && began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
    server.asked().await;
    server.asked().await;
    assert!(server.asked.try_recv().is_err(), "it was asked more than three times");
    assert!(pod.metrics().contains(
        "istio_dns_upstream_failures_total{request_query_type=\"a\",request_protocol=\"udp\",\
         source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\"} 1"
    ));
}

#[tokio::test]
async fn a_lost_datagram_costs_a_moment_and_not_the_answer() {
    let server = Server::start(|number, question| match number {
        0 => vec![],
        _ => vec![reply(question, [192, 0, 2, 1])],
    })
    .await;
    let pod = Pod::with_servers(&[server.addr]).await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 1].into()));
}

#[tokio::test]
async fn a_silent_server_is_passed_over_and_then_asked_last() {
    let mut dead = Server::silent().await;
    let alive = Server::start(|_, question| vec![reply(question, [192, 0, 2, 2])]).await;
    let pod = Pod::with_servers(&[dead.addr, alive.addr]).await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 2].into()));
    dead.asked().await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 2].into()));
    assert!(dead.asked.try_recv().is_err(), "the silent server was asked first again");
}

#[tokio::test]
async fn a_server_that_fails_or_refuses_is_passed_over_at_once() {
    let failing = Server::start(|_, question| vec![failure(question, SERVER_FAILURE)]).await;
    let refusing = Server::start(|_, question| vec![failure(question, REFUSED)]).await;
    let alive = Server::start(|_, question| vec![reply(question, [192, 0, 2, 2])]).await;
    let pod = Pod::with_servers(&[failing.addr, refusing.addr, alive.addr]).await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 2].into()));
    let pod = Pod::with_servers(&[nobody().await, alive.addr]).await;
    assert_eq!(pod.ask(OTHER).await.address, Some([192, 0, 2, 2].into()));
    let mut refusing = Server::start(|_, question| vec![failure(question, REFUSED)]).await;
    let pod = Pod::with_servers(&[refusing.addr]).await;
    assert_eq!(pod.ask(OTHER).await.code, REFUSED, "what the last one says is what the pod hears");
    refusing.asked().await;
    assert!(refusing.asked.try_recv().is_err(), "it was asked again, though it had answered");
}

#[tokio::test]
async fn questions_under_way_are_bounded_and_mesh_names_are_not_held_up() {
    let mut server = Server::silent().await;
    let pod = Pod::with_servers(&[server.addr]).await;
    for _ in 0..MAX_QUESTIONS {
        pod.send(1, OTHER).await;
        server.asked().await;
    }
    assert_eq!(pod.ask(OTHER).await, Answer { id: 7, code: SERVER_FAILURE, truncated: false, address: None });
    assert_eq!(pod.ask(WEB).await.address, Some([10, 1, 0, 1].into()));
    tokio::time::pause();
    for _ in 0..MAX_QUESTIONS {
        assert_eq!(pod.receive().await.id, 1);
    }
    tokio::time::resume();
    pod.send(2, OTHER).await;
    while server.asked().await.0.len() != question(2, OTHER).len() {}
}

#[tokio::test]
async fn a_cut_answer_says_so_and_comes_whole_by_tcp() {
    // One server for both: it cuts only what it is asked by UDP.
    let by_udp = Server::start(|_, question| {
        let mut bytes = failure(question, NO_ERROR);
        bytes[2] |= 2;
        vec![bytes]
    })
    .await;
    let pod = Pod::with_servers(&[by_udp.addr]).await;
    let answer = pod.ask(OTHER).await;
    assert!(answer.truncated && answer.address.is_none());
    let by_tcp = Server::start(|_, question| vec![reply(question, [192, 0, 2, 1])]).await;
    let pod = Pod::with_servers(&[by_tcp.addr]).await;
    let mut stream = pod.connect().await;
    assert_eq!(converse(&mut stream, 3, OTHER).await.address, Some([192, 0, 2, 1].into()));
    assert_eq!(converse(&mut stream, 4, OTHER).await.id, 4, "the connection serves on");
}

#[tokio::test]
async fn a_reply_too_long_for_the_resolver_is_cut_and_says_so() {
    let server = Server::start(|_, question| {
        let mut bytes = reply(question, [192, 0, 2, 1]);
        bytes.resize(1500, 0);
        vec![bytes]
    })
    .await;
    let answer = Pod::with_servers(&[server.addr]).await.ask(OTHER).await;
    assert!(answer.truncated && answer.address.is_none(), "{answer:?}");
}

#[tokio::test]
async fn questions_of_one_connection_do_not_wait_for_each_other() {
    let mut server = Server::silent().await;
    let pod = Pod::with_servers(&[server.addr]).await;
    let mut stream = pod.connect().await;
    let mut both = Vec::new();
    frames::write(&mut both, &question(1, OTHER)).await.unwrap();
    frames::write(&mut both, &question(2, WEB)).await.unwrap();
    stream.write_all(&both).await.unwrap();
    assert_eq!(read(&mut stream).await.id, 2);
    server.asked().await;
    tokio::time::pause();
    let late = read(&mut stream).await;
    assert_eq!((late.id, late.code), (1, SERVER_FAILURE));
}

#[tokio::test]
async fn a_connection_that_has_ended_still_gets_its_answers() {
    let server = Server::start(|_, question| vec![reply(question, [192, 0, 2, 1])]).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    let mut stream = pod.connect().await;
    frames::write(&mut stream, &question(1, OTHER)).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read(&mut stream).await.id, 1);
    assert_eq!(timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn idle_slow_and_broken_connections_are_closed() {
    let pod = Pod::with_servers(&[]).await;
    for sent in [&b""[..], b"\0", b"\0\x20abc", b"\0\0", b"\xff\xffabc", b"\0\x04abcd"] {
        let mut stream = pod.connect().await;
        stream.write_all(sent).await.unwrap();
        assert_eq!(converse(&mut pod.connect().await, 5, WEB).await.id, 5, "others are served meanwhile");
        tokio::time::pause();
        let closed = stream.read(&mut [0]).await;
        tokio::time::resume();
        assert!(matches!(closed, Ok(0) | Err(_)), "{sent:?}: {closed:?}");
    }
}

#[tokio::test]
async fn connections_of_a_pod_are_bounded() {
    let pod = Pod::with_servers(&[]).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut stream = pod.connect().await;
        assert_eq!(converse(&mut stream, 5, WEB).await.id, 5);
        open.push(stream);
    }
    let mut more = pod.connect().await;
    assert!(timeout(SOON, more.read(&mut [0])).await.unwrap().is_err(), "it was not reset");
    assert_eq!(pod.ask(WEB).await.id, 7, "datagrams are not held up");
}

#[tokio::test]
async fn garbage_is_survived() {
    let server = Server::start(|_, question| vec![reply(question, [192, 0, 2, 1])]).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    let good = question(1, WEB);
    for cut in 0..good.len() {
        pod.socket.send(&good[..cut]).await.unwrap();
    }
    pod.socket.send(&[0xff; 5000]).await.unwrap();
    pod.socket.send(&failure(&good, 0)).await.unwrap();
    pod.send(9, WEB).await;
    while pod.receive().await.id != 9 {}
}

#[tokio::test]
async fn a_question_under_way_is_answered_while_the_pod_drains() {
    // It answers when asked again.
    let mut server = Server::start(|number, question| match number {
        0 => vec![],
        _ => vec![reply(question, [192, 0, 2, 1])],
    })
    .await;
    let pod = Pod::with_servers(&[server.addr]).await;
    pod.send(1, OTHER).await;
    server.asked().await;
    let ending = tokio::spawn(pod.trigger.drain(SOON));
    pod.drain.started().await;
    let mut bytes = [0; 512];
    let length = timeout(SOON, pod.socket.recv(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(Answer::read(&bytes[..length]).id, 1);
    assert_eq!(timeout(SOON, ending).await.unwrap().unwrap(), drain::Ending::Drained);
}

#[tokio::test]
async fn the_names_of_dashboards_are_there() {
    let server = Server::start(|_, question| vec![reply(question, [192, 0, 2, 1])]).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    pod.ask(WEB).await;
    pod.ask(OTHER).await;
    let text = pod.metrics();
    let labels = "{request_query_type=\"a\",request_protocol=\"udp\",source_canonical_service=\"unknown\",\
                  source_canonical_revision=\"unknown\"}";
    for line in [
        format!("istio_dns_requests_total{labels} 2"),
        format!("istio_dns_upstream_requests_total{labels} 1"),
        format!("istio_dns_upstream_failures_total{labels} 0"),
        "istio_dns_upstream_request_duration_seconds_count{request_protocol=\"udp\"} 1".into(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
    }
}

#[tokio::test]
async fn a_flood_of_names_that_do_not_exist_is_answered_and_holds_up_nobody() {
    const NO_NAME: u8 = 3;
    let mut server = Server::start(|_, question| vec![failure(question, NO_NAME)]).await;
    let pod = Pod::with_servers(&[server.addr]).await;
    for n in 0..10_000u16 {
        pod.send(n, &format!("n{n}.example.com")).await;
        let answer = pod.receive().await;
        assert_eq!((answer.id, answer.code), (n, NO_NAME));
        server.asked().await;
    }
    assert_eq!(pod.ask(WEB).await.address, Some([10, 1, 0, 1].into()));
}

#[tokio::test]
async fn a_question_that_comes_byte_by_byte_has_ten_seconds() {
    let pod = Pod::with_servers(&[]).await;
    let mut stream = pod.connect().await;
    tokio::time::pause();
    let began = Instant::now();
    stream.write_all(&100u16.to_be_bytes()).await.unwrap();
    loop {
        if stream.write_all(b"x").await.is_err() {
            break;
        }
        let closed = timeout(Duration::from_secs(1), stream.read(&mut [0])).await;
        if closed.is_ok() {
            break;
        }
    }
    assert!(began.elapsed() <= Duration::from_secs(12), "{:?}", began.elapsed());
}
