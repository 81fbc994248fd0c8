//! Which connections share a tunnel, and what happens to tunnels.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use loam_core::reason::Reason;
use loam_hbone::{End, Limits, OpenError, OpenRequest, Pool, PoolStats};
use loam_tls::HandshakeError;
use loam_tls::testing::Spec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::mesh::{Answer, Mesh, Pair, Server, echo, expect_reset, read_all};

async fn round_trip(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut [0; 4]).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
}

#[tokio::test]
async fn connections_share_a_tunnel() {
    let pair = Pair::new().await;
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(pair.connect().await);
    }
    for (client, server, _) in &mut connections {
        round_trip(client, server).await;
    }
    assert_eq!(pair.dials(), 1);
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 1, streams: 10 });
}

#[tokio::test]
async fn a_hundred_and_fifty_streams_take_two_tunnels_which_serve_again_when_they_end() {
    let mut pair = Pair::new().await;
    for _ in 0..2 {
        let mut connections = Vec::new();
        for _ in 0..150 {
            connections.push(pair.connect().await);
        }
        assert_eq!(pair.dials(), 2);
        assert_eq!(pair.pool.stats(), PoolStats { tunnels: 2, streams: 150 });
        for (client, server, outcome) in connections {
            drop(client);
            drop(server);
            assert_eq!(outcome.await.unwrap().end, End::Finished);
            pair.server.outcomes.recv().await.unwrap();
        }
        assert_eq!(pair.pool.stats(), PoolStats { tunnels: 2, streams: 0 });
    }
}

#[tokio::test]
async fn a_hundred_and_fifty_callers_at_once_dial_one_tunnel_at_a_time() {
    let pair = Pair::new().await;
    let accept = async {
        let mut accepted = Vec::new();
        while accepted.len() < 150 {
            accepted.push(pair.app.accept().await.unwrap());
        }
        accepted
    };
    let (opened, _accepted) = tokio::join!(join_all((0..150).map(|_| pair.open())), accept);
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(pair.dials(), 2);
}

#[tokio::test]
async fn the_limit_of_the_peer_is_kept() {
    let mesh = Mesh::new();
    let limits = Limits { max_streams: 3, ..Limits::default() };
    let server = Server::start(mesh.ca.credentials(&mesh.db), Answer::Forward, limits).await;
    let pair = Pair::with(mesh, server).await;
    let mut connections = Vec::new();
    for _ in 0..7 {
        connections.push(pair.connect().await);
    }
    for (client, server, _) in &mut connections {
        round_trip(client, server).await;
    }
    assert_eq!(pair.dials(), 3);
}

#[tokio::test]
async fn everyone_who_waits_for_a_dial_shares_its_failure_and_may_try_again() {
    let mut pair = Pair::new().await;
    let (gate, dials) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let good = pair.request.dialer.clone();
    let (opening, counter) = (gate.clone(), dials.clone());
    pair.request.dialer = Arc::new(move |_| {
        let (gate, counter) = (opening.clone(), counter.clone());
        async move {
            counter.fetch_add(1, Ordering::SeqCst);
            gate.notified().await;
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        }
    });
    let opens = join_all((0..20).map(|_| pair.open()));
    let open_gate = async {
        while dials.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        gate.notify_one();
    };
    let (results, ()) = tokio::join!(opens, open_gate);
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, OpenError::Dial { .. }), "{error}");
        assert_eq!(error.reason(), Reason::ConnectRefused);
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 0, streams: 0 });

    pair.request.dialer = good;
    let (mut client, mut server, _outcome) = pair.connect().await;
    round_trip(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_caller_who_gives_up_does_not_take_the_dial_from_the_others() {
    let pair = Arc::new(Pair::new().await);
    let first = tokio::spawn({
        let pair = pair.clone();
        async move { pair.open().await }
    });
    while pair.dials() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let (mut client, mut server, _outcome) = pair.connect().await;
    round_trip(&mut client, &mut server).await;
    assert_eq!(pair.dials(), 1);
}

#[tokio::test]
async fn a_peer_with_another_identity_never_sees_a_connect() {
    let mesh = Mesh::new();
    let other = mesh.ca.credentials(&mesh.ca.identity("shop", "impostor"));
    let server = Server::start(other, Answer::Forward, Limits::default()).await;
    let mut pair = Pair::with(mesh, server).await;
    let error = pair.open().await.unwrap_err();
    assert!(matches!(&error, OpenError::Tls { error, .. } if matches!(**error, HandshakeError::Peer(_))), "{error}");
    assert_eq!(error.reason(), Reason::TlsFailure);
    pair.server.tunnels.recv().await.unwrap().unwrap_err();
    assert!(pair.server.handler.requests.lock().unwrap().is_empty());
    assert_eq!(pair.dials(), 1, "no use in trying again");
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_is_a_tls_failure() {
    let pair = Pair::new().await;
    let foreign = loam_tls::testing::TestCa::new("cluster.local");
    // The server trusts another root than the one that signed ours; we would trust the server.
    let identity = pair.mesh.web.clone();
    let request = OpenRequest { credentials: foreign.credentials(&identity), ..pair.request.clone() };
    let error = pair.pool.open(&pair.key, &request).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TlsFailure, "{error}");
}

#[tokio::test]
async fn a_refusal_carries_its_status() {
    for (reason, status) in [(Reason::Denied, 401), (Reason::AuthorityMismatch, 400), (Reason::ConnectRefused, 503)] {
        let mesh = Mesh::new();
        let server = Server::start(mesh.ca.credentials(&mesh.db), Answer::Refuse(reason), Limits::default()).await;
        let pair = Pair::with(mesh, server).await;
        let error = pair.open().await.unwrap_err();
        assert!(matches!(error, OpenError::Refused { status: got, .. } if got.as_u16() == status), "{error}");
        assert_eq!(pair.pool.stats(), PoolStats { tunnels: 1, streams: 0 });
    }
}

#[tokio::test]
async fn after_goaway_living_streams_go_on_and_fresh_ones_take_another_tunnel() {
    let mut pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    pair.server.drain();
    round_trip(&mut client, &mut server).await;
    // The drained server takes no more tunnels in earnest either, so go to another one.
    let replacement = Server::forwarding(&pair.mesh).await;
    let dials = Arc::new(AtomicUsize::new(0));
    let next = replacement.addr;
    let counter = dials.clone();
    let request = OpenRequest {
        dialer: Arc::new(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            TcpStream::connect(next)
        }),
        ..pair.request.clone()
    };
    // The GOAWAY may still be on its way: then the stream is refused and opened elsewhere, which is the point.
    let (opened, accepted) = tokio::join!(pair.pool.open(&pair.key, &request), pair.app.accept());
    let _other = (opened.unwrap(), accepted.unwrap());
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    round_trip(&mut client, &mut server).await;
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    read_all(&mut client).await.unwrap();
    assert_eq!(outcome.await.unwrap().end, End::Finished);
    pair.server.tunnels.recv().await.unwrap().unwrap();
}

/// Accepts tunnels and treats the n-th one with `first` while n is below `until`, then forwards to a real server.
async fn unreliable(mesh: &Mesh, until: usize) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let real = Server::forwarding(mesh).await;
    let credentials = mesh.ca.credentials(&mesh.db);
    let died = Arc::new(AtomicUsize::new(0));
    let counter = died.clone();
    tokio::spawn(async move {
        let real = real;
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            if counter.load(Ordering::SeqCst) < until {
                let (tls, _) = loam_tls::accept(socket, &credentials).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                // The CONNECT has arrived when the tunnel dies.
                let _request = connection.accept().await.unwrap().unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
            } else {
                let upstream = TcpStream::connect(real.addr).await.unwrap();
                tokio::spawn(loam_hbone::relay_plain(socket, upstream, loam_hbone::Hooks::none()));
            }
        }
    });
    (addr, died)
}

#[tokio::test]
async fn a_tunnel_that_dies_before_it_answers_is_replaced() {
    let mut pair = Pair::new().await;
    let (addr, died) = unreliable(&pair.mesh, 2).await;
    pair.key = pair.mesh.key(addr);
    let (mut client, mut server, _outcome) = pair.connect().await;
    round_trip(&mut client, &mut server).await;
    assert_eq!(died.load(Ordering::SeqCst), 2);
    assert_eq!(pair.dials(), 3);
}

#[tokio::test]
async fn tunnels_that_keep_dying_are_not_replaced_for_ever() {
    let mut pair = Pair::new().await;
    let (addr, died) = unreliable(&pair.mesh, usize::MAX).await;
    pair.key = pair.mesh.key(addr);
    let error = pair.open().await.unwrap_err();
    assert!(matches!(error, OpenError::Retryable { .. }), "{error}");
    assert_eq!(died.load(Ordering::SeqCst), Pool::MAX_ATTEMPTS);
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 0, streams: 0 });
}

#[tokio::test]
async fn a_frozen_peer_is_found_by_ping() {
    let mut pair = Pair::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    pair.key = pair.mesh.key(listener.local_addr().unwrap());
    let credentials = pair.mesh.ca.credentials(&pair.mesh.db);
    let frozen = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (tls, _) = loam_tls::accept(socket, &credentials).await.unwrap();
        let mut connection = h2::server::handshake(tls).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(http::Response::new(()), false).unwrap();
        // Lets the answer out, and then does nothing more.
        assert!(crate::mesh::poll_once(std::pin::pin!(connection.accept())).await.is_pending());
        (connection, send)
    };
    let (opened, _frozen) = tokio::join!(pair.open(), frozen);
    let (mut client, ours) = crate::mesh::sockets().await;
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let outcome = opened.unwrap().carry(ours, loam_hbone::Hooks::none()).await;
    assert_eq!(outcome.end, End::TunnelLost);
    let silent = begin.elapsed();
    assert!(silent >= Duration::from_secs(29) && silent <= Duration::from_secs(31), "{silent:?}");
    expect_reset(&mut client).await;
}

#[tokio::test]
async fn a_silent_tunnel_whose_peer_answers_lives_on_and_an_idle_one_closes() {
    let mut pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(20 * 60)).await;
    round_trip(&mut client, &mut server).await;
    drop(client);
    drop(server);
    outcome.await.unwrap();
    tokio::time::sleep(Duration::from_secs(4 * 60)).await;
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 1, streams: 0 });
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 0, streams: 0 });
    pair.server.tunnels.recv().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_brings_a_new_tunnel_and_the_old_one_ends_with_its_streams() {
    let mut pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    let renewed =
        Spec { not_after: SystemTime::now() + Duration::from_secs(7200), ..Spec::of(&pair.mesh.web.to_string()) };
    let old = pair.request.clone();
    pair.request.credentials = pair.mesh.ca.credentials_of(&pair.mesh.web, &renewed);
    let second = pair.connect().await;
    assert_eq!(pair.dials(), 2);
    round_trip(&mut client, &mut server).await;
    drop((client, server));
    outcome.await.unwrap();
    pair.server.tunnels.recv().await.unwrap().unwrap();
    assert_eq!(pair.pool.stats(), PoolStats { tunnels: 1, streams: 1 });
    pair.request = old;
    let third = pair.connect().await;
    assert_eq!(pair.dials(), 2, "who still holds the old certificate uses the newer tunnel");
    drop((second, third));
}

#[tokio::test]
async fn a_peer_or_a_pod_that_is_gone_gives_up_its_idle_tunnels_and_keeps_its_streams() {
    let mut pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    pair.pool.retire_peers(&[pair.server.addr.ip()].into());
    round_trip(&mut client, &mut server).await;
    drop((client, server));
    outcome.await.unwrap();
    pair.server.tunnels.recv().await.unwrap().unwrap();

    let (client, server, outcome) = pair.connect().await;
    drop((client, server));
    outcome.await.unwrap();
    assert_eq!(pair.pool.stats().tunnels, 1);
    pair.pool.forget_pod("pod");
    assert_eq!(pair.pool.stats().tunnels, 0);
    pair.server.tunnels.recv().await.unwrap().unwrap();
    assert_eq!(pair.dials(), 2);
}

#[tokio::test]
async fn a_draining_pool_opens_nothing_and_ends_with_its_last_stream() {
    let pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    let pool = pair.pool.clone();
    let drained = tokio::spawn(async move { pool.drain().await });
    while pair.open().await.is_ok() {
        tokio::task::yield_now().await;
    }
    round_trip(&mut client, &mut server).await;
    assert!(!drained.is_finished());
    drop((client, server));
    assert_eq!(outcome.await.unwrap().end, End::Finished);
    drained.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_thousand_connections() {
    let mut pair = Pair::new().await;
    let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    pair.request.authority = app.local_addr().unwrap().into();
    tokio::spawn(async move {
        loop {
            tokio::spawn(echo(app.accept().await.unwrap().0));
        }
    });
    let pair = Arc::new(pair);
    for round in 0..10 {
        join_all((0..100).map(|i| {
            let pair = pair.clone();
            async move {
                let opened = pair.open().await.unwrap();
                let (mut client, ours) = crate::mesh::sockets().await;
                let carried = tokio::spawn(opened.carry(ours, loam_hbone::Hooks::none()));
                client.write_all(b"hello").await.unwrap();
                client.read_exact(&mut [0; 5]).await.unwrap();
                if (i + round) % 3 == 0 {
                    crate::mesh::reset(client);
                } else {
                    client.shutdown().await.unwrap();
                    assert_eq!(read_all(&mut client).await.unwrap(), b"");
                }
                carried.await.unwrap();
            }
        }))
        .await;
    }
    assert_eq!(pair.pool.stats().streams, 0);
    let Ok(mut pair) = Arc::try_unwrap(pair) else { panic!("a connection still holds the pair") };
    for _ in 0..1000 {
        pair.server.outcomes.recv().await.unwrap();
    }
    pair.pool.drain().await;
    let tunnels = pair.dials();
    for _ in 0..tunnels {
        pair.server.tunnels.recv().await.unwrap().unwrap();
    }
    pair.server.task.abort();
    let _ = pair.server.task.await;
    // Their tasks end right after they have told their outcomes.
    let gone = async {
        while Arc::strong_count(&pair.server.handler) > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("a stream's task still holds its handler");
    assert_eq!(Arc::strong_count(&pair.pool), 1);
}
