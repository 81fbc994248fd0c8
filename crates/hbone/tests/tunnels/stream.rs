//! Streams that are taken as bytes.

use std::io::ErrorKind;
use std::time::Duration;

use loam_hbone::{Limits, OpenRequest, TunnelStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::mesh::{Answer, ECHO_PORT, Mesh, Pair, Server, expect_reset, noise};

/// The window with which readers that stop leave room for the others.
const WINDOW: u32 = 256 << 10;

async fn pair(limits: Limits) -> Pair {
    let mesh = Mesh::new();
    let server = Server::start(mesh.ca.credentials(&mesh.db), Answer::Stream, limits).await;
    Pair::with(mesh, server).await
}

async fn open(pair: &Pair, port: u16) -> TunnelStream {
    let authority = format!("10.0.0.1:{port}").parse().unwrap();
    let request = OpenRequest { authority, ..pair.request.clone() };
    pair.pool.open(&pair.key, &request).await.unwrap().into_stream()
}

#[tokio::test]
async fn bytes_and_their_end_pass_both_ways() {
    let pair = pair(Limits::default()).await;
    let mut stream = open(&pair, ECHO_PORT).await;
    let bytes = noise(3_000_000);
    let mut all = Vec::new();
    {
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let write = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(write, async { read.read_to_end(&mut all).await.unwrap() });
    }
    assert!(all == bytes);
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    drop(stream);
    assert_eq!(pair.pool.stats().streams, 0, "its place in the tunnel is free again");
}

#[tokio::test]
async fn a_stream_that_is_dropped_before_its_end_is_reset_at_the_other_end() {
    let pair = Pair::new().await;
    let (opened, accepted) = tokio::join!(pair.open(), pair.app.accept());
    let mut stream = opened.unwrap().into_stream();
    let mut app = accepted.unwrap().0;
    stream.write_all(b"part").await.unwrap();
    app.read_exact(&mut [0; 4]).await.unwrap();
    drop(stream);
    expect_reset(&mut app).await;
}

#[tokio::test]
async fn a_reset_by_the_other_end_is_an_error_and_no_end() {
    let pair = Pair::new().await;
    let (opened, accepted) = tokio::join!(pair.open(), pair.app.accept());
    let mut stream = opened.unwrap().into_stream();
    crate::mesh::reset(accepted.unwrap().0);
    assert_eq!(stream.read(&mut [0; 4]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn readers_that_stop_leave_room_for_the_others() {
    let pair = pair(Limits { stream_window: WINDOW, ..Limits::default() }).await;
    let mut stopped = Vec::new();
    // As many as share one tunnel, but for one.
    for _ in 0..99 {
        let mut stream = open(&pair, 80).await;
        let full = async {
            loop {
                stream.write_all(&[0; 64 << 10]).await.unwrap();
            }
        };
        timeout(Duration::from_millis(20), full).await.unwrap_err();
        stopped.push(stream);
    }
    let mut stream = open(&pair, ECHO_PORT).await;
    assert_eq!(pair.dials(), 1, "all are in one tunnel");
    stream.write_all(b"here").await.unwrap();
    let mut answer = [0; 4];
    timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"here");
}
