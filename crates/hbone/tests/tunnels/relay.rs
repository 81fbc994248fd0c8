//! What one application does is what the other one sees, with and without a tunnel between them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loam_core::reason::Reason;
use loam_hbone::{End, Hooks, Meter, Outcome, Side, relay_plain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::mesh::{Pair, echo, expect_reset, noise, read_all, reset, sockets};

#[derive(Debug, Clone, Copy)]
enum Path {
    Plain,
    Tunnel,
}

const PATHS: [Path; 2] = [Path::Plain, Path::Tunnel];

/// A relayed connection: the client's end, the server's end, the outcome, and what must live meanwhile.
struct Relayed {
    client: TcpStream,
    server: TcpStream,
    outcome: JoinHandle<Outcome>,
    pair: Option<Pair>,
}

impl Relayed {
    async fn new(path: Path) -> Self {
        Self::with(path, Hooks::none()).await
    }

    async fn with(path: Path, hooks: Hooks) -> Self {
        match path {
            Path::Plain => {
                let ((client, downstream), (upstream, server)) = (sockets().await, sockets().await);
                let outcome = tokio::spawn(relay_plain(downstream, upstream, hooks));
                Self { client, server, outcome, pair: None }
            }
            Path::Tunnel => {
                let pair = Pair::new().await;
                let (client, server, outcome) = pair.connect_with(hooks).await;
                Self { client, server, outcome, pair: Some(pair) }
            }
        }
    }

    /// The outcome as the receiving ztunnel saw it; a plain relay has only one.
    async fn far_outcome(&mut self, near: Outcome) -> Outcome {
        match &mut self.pair {
            Some(pair) => pair.server.outcomes.recv().await.unwrap(),
            None => near,
        }
    }
}

fn ended(sent: usize, received: usize, end: End) -> Outcome {
    Outcome { bytes_sent: sent as u64, bytes_received: received as u64, end }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_exactly_whatever_their_number() {
    for path in PATHS {
        for len in [0, 1, 2047, 2048, 2049, 65_536, 1_048_576 + 3, 9_000_000] {
            let mut relayed = Relayed::new(path).await;
            let echo = tokio::spawn(echo(relayed.server));
            let bytes = noise(len);
            let (mut read, mut write) = relayed.client.split();
            let write = async {
                write.write_all(&bytes).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut back = Vec::new();
            let (_, n) = tokio::join!(write, read.read_to_end(&mut back));
            assert_eq!(n.unwrap(), len);
            assert!(back == bytes, "{path:?} changed {len} bytes");
            assert_eq!(echo.await.unwrap().unwrap(), len as u64);
            assert_eq!(relayed.outcome.await.unwrap(), ended(len, len, End::Finished));
            if let Some(pair) = &mut relayed.pair {
                assert_eq!(pair.server.outcomes.recv().await.unwrap(), ended(len, len, End::Finished));
            }
        }
    }
}

#[tokio::test]
async fn small_messages_go_to_and_fro() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        let mut buf = [0; 100];
        for round in 0..500_usize {
            let message = noise(1 + round % 100);
            relayed.client.write_all(&message).await.unwrap();
            relayed.server.read_exact(&mut buf[..message.len()]).await.unwrap();
            assert_eq!(buf[..message.len()], message);
            relayed.server.write_all(&message).await.unwrap();
            relayed.client.read_exact(&mut buf[..message.len()]).await.unwrap();
            assert_eq!(buf[..message.len()], message);
        }
    }
}

#[tokio::test]
async fn the_client_may_finish_first_and_still_receive() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.client.write_all(b"question").await.unwrap();
        relayed.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relayed.server).await.unwrap(), b"question");
        relayed.server.write_all(b"answer").await.unwrap();
        relayed.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relayed.client).await.unwrap(), b"answer");
        assert_eq!(relayed.outcome.await.unwrap(), ended(8, 6, End::Finished));
    }
}

#[tokio::test]
async fn the_server_may_finish_first_and_still_receive() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.server.write_all(b"welcome").await.unwrap();
        relayed.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relayed.client).await.unwrap(), b"welcome");
        relayed.client.write_all(b"upload").await.unwrap();
        relayed.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relayed.server).await.unwrap(), b"upload");
        assert_eq!(relayed.outcome.await.unwrap(), ended(6, 7, End::Finished));
    }
}

#[tokio::test]
async fn a_reset_by_the_client_resets_the_server() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.client.write_all(b"half a").await.unwrap();
        relayed.server.read_exact(&mut [0; 6]).await.unwrap();
        let (client, other) = sockets().await;
        reset(std::mem::replace(&mut relayed.client, client));
        expect_reset(&mut relayed.server).await;
        drop(other);
        let near = (&mut relayed.outcome).await.unwrap();
        assert_eq!(near, ended(6, 0, End::Reset(Side::Downstream)), "{path:?}");
        assert_eq!(relayed.far_outcome(near).await, near, "{path:?}");
    }
}

#[tokio::test]
async fn a_reset_by_the_server_resets_the_client() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.server.write_all(b"half an").await.unwrap();
        relayed.client.read_exact(&mut [0; 7]).await.unwrap();
        let (server, other) = sockets().await;
        reset(std::mem::replace(&mut relayed.server, server));
        expect_reset(&mut relayed.client).await;
        drop(other);
        let near = (&mut relayed.outcome).await.unwrap();
        assert_eq!(near, ended(0, 7, End::Reset(Side::Upstream)), "{path:?}");
        assert_eq!(relayed.far_outcome(near).await, near, "{path:?}");
    }
}

#[tokio::test]
async fn a_reset_is_seen_after_one_direction_has_finished() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut relayed.server).await.unwrap(), b"");
        reset(relayed.server);
        expect_reset(&mut relayed.client).await;
        assert_eq!(relayed.outcome.await.unwrap().end, End::Reset(Side::Upstream), "{path:?}");
    }
}

#[tokio::test]
async fn a_reset_is_seen_while_the_other_side_does_not_read() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        // Fills every buffer on the way; the server reads nothing.
        let piece = noise(1 << 20);
        let full = std::time::Duration::from_millis(300);
        while tokio::time::timeout(full, relayed.client.write_all(&piece)).await.is_ok() {}
        reset(relayed.client);
        let end = relayed.outcome.await.unwrap().end;
        assert_eq!(end, End::Reset(Side::Downstream), "{path:?}");
        // What the kernel had already taken for it may come first.
        expect_reset(&mut relayed.server).await;
    }
}

#[tokio::test]
async fn an_abort_resets_both_sides_for_its_reason() {
    for path in PATHS {
        let (abort, aborted) = oneshot::channel();
        let hooks = Hooks::abort_on(async { aborted.await.unwrap() });
        let mut relayed = Relayed::with(path, hooks).await;
        relayed.client.write_all(b"so far").await.unwrap();
        relayed.server.read_exact(&mut [0; 6]).await.unwrap();
        abort.send(Reason::Denied).unwrap();
        expect_reset(&mut relayed.client).await;
        expect_reset(&mut relayed.server).await;
        let near = (&mut relayed.outcome).await.unwrap();
        assert_eq!(near, ended(6, 0, End::Aborted(Reason::Denied)));
        assert_eq!(near.end.reason(), Some(Reason::Denied));
    }
}

#[tokio::test]
async fn a_dropped_relay_resets_both_sides() {
    for path in PATHS {
        let mut relayed = Relayed::new(path).await;
        relayed.outcome.abort();
        expect_reset(&mut relayed.client).await;
        expect_reset(&mut relayed.server).await;
    }
}

#[tokio::test]
async fn the_loss_of_the_tunnel_resets_both_applications() {
    let mut relayed = Relayed::new(Path::Tunnel).await;
    let pair = relayed.pair.take().unwrap();
    pair.server.task.abort();
    expect_reset(&mut relayed.client).await;
    expect_reset(&mut relayed.server).await;
    assert_eq!(relayed.outcome.await.unwrap().end, End::TunnelLost);
}

#[tokio::test]
async fn a_meter_counts_while_the_connection_lives() {
    for path in PATHS {
        let meter = Arc::new(Meter::default());
        let mut relayed = Relayed::with(path, Hooks::none().meter(meter.clone())).await;
        relayed.client.write_all(b"12345").await.unwrap();
        relayed.server.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!((meter.sent(), meter.received()), (5, 0));
        relayed.server.write_all(b"123").await.unwrap();
        relayed.client.read_exact(&mut [0; 3]).await.unwrap();
        // The byte count of a write may come an instant after its reader.
        drop(relayed.client);
        drop(relayed.server);
        let outcome = relayed.outcome.await.unwrap();
        assert_eq!((outcome.bytes_sent, outcome.bytes_received), (5, 3));
        assert_eq!((meter.sent(), meter.received()), (5, 3));
    }
}

#[tokio::test]
async fn labels_and_identities_travel_with_the_connection() {
    let pair = Pair::new().await;
    let (opened, accepted) = tokio::join!(pair.open(), pair.app.accept());
    assert_eq!(opened.unwrap().baggage(), Some("k8s.pod.name=db-1"));
    drop(accepted);
    let requests = pair.server.handler.requests.lock().unwrap();
    let request = &requests[0];
    assert_eq!(request.peer, pair.mesh.web);
    assert_eq!(request.headers, pair.request.headers);
    assert_eq!(request.authority, pair.request.authority);
    assert_eq!(request.peer_addr.ip(), std::net::IpAddr::from([127, 0, 0, 1]));
    assert_eq!(pair.server.handler.malformed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_idle_connection_costs_little() {
    let pair = Pair::new().await;
    let (opened, accepted) = tokio::join!(pair.open(), pair.app.accept());
    let (_client, ours) = sockets().await;
    let carried = opened.unwrap().carry(ours, Hooks::none());
    let size = size_of_val(&carried);
    assert!(size <= 2048, "the future that carries a connection has grown to {size} bytes");
    drop((carried, accepted));
}
