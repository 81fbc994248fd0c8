//! The receiving end among honest peers.

use std::time::Duration;

use loam_hbone::{End, Limits, OpenError, ServeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mesh::{Answer, Mesh, Pair, Server, echo, expect_reset, noise, read_all};

#[tokio::test]
async fn a_drained_server_lets_its_streams_finish() {
    let mut pair = Pair::new().await;
    let (mut client, mut server, outcome) = pair.connect().await;
    pair.server.drain();
    let bytes = noise(3_000_000);
    let write = async {
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let (_, all) = tokio::join!(write, read_all(&mut server));
    assert!(all.unwrap() == bytes);
    server.shutdown().await.unwrap();
    assert_eq!(outcome.await.unwrap().end, End::Finished);
    let served = pair.server.tunnels.recv().await.unwrap().unwrap();
    assert_eq!(served.requests, 1);
}

#[tokio::test]
async fn a_server_ends_tunnels_of_peers_that_its_new_roots_do_not_explain() {
    let mesh = Mesh::new();
    let (there, other) = (mesh.ca.elsewhere(), Mesh::new().ca);
    let server = Server::start(there.credentials(&mesh.db), Answer::Forward, Limits::default()).await;
    let mut pair = Pair::with(mesh, server).await;
    let (mut client, mut server, _) = pair.connect().await;
    there.trust_only(&[&other, &pair.mesh.ca]);
    client.write_all(b"still").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    there.trust_only(&[&other]);
    tokio::join!(expect_reset(&mut client), expect_reset(&mut server));
    let error = pair.server.tunnels.recv().await.unwrap().unwrap_err();
    assert!(matches!(&error, ServeError::Tls(error) if error.label() == "unknown_issuer"), "{error}");
}

#[tokio::test]
async fn a_client_ends_tunnels_to_peers_that_its_new_roots_do_not_explain() {
    let mesh = Mesh::new();
    let (there, other) = (mesh.ca.elsewhere(), Mesh::new().ca);
    let server = Server::start(there.credentials(&mesh.db), Answer::Forward, Limits::default()).await;
    let mut pair = Pair::with(mesh, server).await;
    let (mut client, mut server, outcome) = pair.connect().await;
    pair.mesh.ca.trust_only(&[&other, &there]);
    client.write_all(b"still").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    pair.mesh.ca.trust_only(&[&other]);
    tokio::join!(expect_reset(&mut client), expect_reset(&mut server));
    assert_eq!(outcome.await.unwrap().end, End::TunnelLost);
    let Err(error) = pair.open().await else { panic!("a peer is accepted that nothing explains") };
    assert!(matches!(&error, OpenError::Tls { error, .. } if error.label() == "unknown_issuer"), "{error}");
    assert_eq!(pair.dials(), 2);
    let ended = pair.server.tunnels.recv().await.unwrap();
    assert!(!matches!(ended, Err(ServeError::Tls(_))), "the server trusts the client as before: {ended:?}");
}

#[tokio::test]
async fn a_client_that_leaves_while_its_answer_is_prepared_is_noticed() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.ca.credentials(&mesh.db), Answer::Wait, Limits::default()).await;
    let mut pair = Pair::with(mesh, server).await;
    {
        let open = pair.open();
        tokio::pin!(open);
        while pair.server.handler.requests.lock().unwrap().is_empty() {
            assert!(crate::mesh::poll_once(open.as_mut()).await.is_pending());
            tokio::task::yield_now().await;
        }
        // Dropped here, with the handler at work.
    }
    assert_eq!(pair.pool.stats().streams, 0);
    pair.pool.drain().await;
    // The tunnel ends only after its handlers did.
    pair.server.tunnels.recv().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_do_not_freeze_the_others() {
    let pair = Pair::new().await;
    let mut stalled = Vec::new();
    let piece = noise(1 << 20);
    // Their windows are more than the tunnel's: it would be full if they were not made smaller.
    for _ in 0..90 {
        let (mut client, server, outcome) = pair.connect().await;
        // Writes until everything between here and the reader is full.
        let full = Duration::from_millis(20);
        let mut written = 0;
        while let Ok(n) = tokio::time::timeout(full, client.write(&piece)).await {
            written += n.unwrap();
        }
        assert!(written > 0);
        stalled.push((client, server, outcome));
    }
    let (mut client, server, outcome) = pair.connect().await;
    assert_eq!(pair.dials(), 1, "all are in one tunnel");
    tokio::spawn(echo(server));
    let bytes = noise(5_000_000);
    let (mut read, mut write) = client.split();
    let write = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let both = async { tokio::join!(write, read.read_to_end(&mut back)) };
    let both = tokio::time::timeout(Duration::from_secs(20), both).await;
    both.expect("the tunnel is frozen").1.unwrap();
    assert!(back == bytes);
    assert_eq!(outcome.await.unwrap().end, End::Finished);

    // And who reads again gets everything.
    let (mut client, mut server, outcome) = stalled.swap_remove(0);
    client.shutdown().await.unwrap();
    let rest = read_all(&mut server).await.unwrap();
    server.shutdown().await.unwrap();
    let outcome = outcome.await.unwrap();
    assert_eq!((outcome.bytes_sent, outcome.end), (rest.len() as u64, End::Finished));
    drop(stalled);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let mesh = Mesh::new();
    let mut server = Server::forwarding(&mesh).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::pause();
    assert!(matches!(server.tunnels.recv().await.unwrap(), Err(ServeError::Tls(_))));
    // TLS may say goodbye before it closes.
    let _ = silent.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_tunnel_that_never_asks_for_anything_is_closed() {
    let mesh = Mesh::new();
    let mut server = Server::forwarding(&mesh).await;
    let socket = TcpStream::connect(server.addr).await.unwrap();
    let web = mesh.ca.credentials(&mesh.web);
    let (tls, _) = loam_tls::connect(socket, &web, std::slice::from_ref(&mesh.db)).await.unwrap();
    let (_requests, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    tokio::task::yield_now().await;
    tokio::time::pause();
    assert!(matches!(server.tunnels.recv().await.unwrap(), Err(ServeError::Slow(_))));
}
