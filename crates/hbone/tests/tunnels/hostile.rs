//! The receiving end among peers that hold a certificate and mean harm. Each of them may spoil its own tunnel only.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use loam_hbone::{Limits, ServeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::mesh::{Answer, Mesh, Server};

async fn tls(mesh: &Mesh, server: &Server) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(server.addr).await.unwrap();
    let web = mesh.ca.credentials(&mesh.web);
    loam_tls::connect(socket, &web, std::slice::from_ref(&mesh.db)).await.unwrap().0
}

async fn http2(mesh: &Mesh, server: &Server) -> SendRequest<Bytes> {
    let (requests, connection) = h2::client::handshake(tls(mesh, server).await).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn waiting(mesh: &Mesh) -> Server {
    Server::start(mesh.ca.credentials(&mesh.db), Answer::Wait, Limits::default()).await
}

/// One HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Preface and SETTINGS.
fn hello() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

/// A header block in literals, without a table.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0x10);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

fn connect_block(authority: &str) -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", authority)])
}

/// Writes `bytes` again and again until the server has had enough; what it allowed.
async fn flood(io: TlsStream<TcpStream>, bytes: &[u8], most: usize) -> usize {
    let (mut read, mut write) = tokio::io::split(io);
    // The server's words must not fill the socket.
    let listen = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    let mut written = 0;
    while written < most {
        if write.write_all(bytes).await.is_err() || write.flush().await.is_err() {
            break;
        }
        written += 1;
    }
    listen.abort();
    written
}

#[tokio::test]
async fn only_connect_makes_a_tunnel() {
    let mesh = Mesh::new();
    let server = waiting(&mesh).await;
    let mut requests = http2(&mesh, &server).await;
    for method in [Method::GET, Method::POST, Method::OPTIONS] {
        let request = Request::builder().method(method).uri("http://10.0.0.7:80/").body(()).unwrap();
        let (answer, _) = requests.send_request(request, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::BAD_REQUEST);
    }
    assert!(server.handler.requests.lock().unwrap().is_empty());
    assert_eq!(server.handler.malformed.load(Ordering::SeqCst), 3);
}

/// Sends one CONNECT with the given header list; the status, or the code of the reset.
async fn ask(mesh: &Mesh, server: &Server, headers: &[(&str, &str)]) -> Result<String, u32> {
    let mut io = tls(mesh, server).await;
    let mut bytes = hello();
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block(headers)));
    io.write_all(&bytes).await.unwrap();
    io.flush().await.unwrap();
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        match head[3] {
            // :status 400 is the indexed field 12, others differ.
            HEADERS => return Ok(if payload.contains(&0x8c) { "400".into() } else { format!("{payload:02x?}") }),
            RST_STREAM => return Err(u32::from_be_bytes(payload.try_into().unwrap())),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_connect_without_a_readable_authority_is_refused() {
    /// Where the HTTP/2 layer itself finds the request malformed, RFC 9113 8.1.1 has it reset the stream.
    const PROTOCOL_ERROR: u32 = 1;

    let mesh = Mesh::new();
    let server = waiting(&mesh).await;
    let long = "a".repeat(120);
    for authority in [
        "",
        "host",
        "1.2.3.4",
        ":80",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:+80",
        "1.2.3.4:",
        "[::1",
        "[::1]",
        "::1:80",
        "[fe80::1%eth0]:80",
        "[::ffff:1.2.3.4]:80",
        "16909060:80",
        "0x7f.1:80",
        "user@1.2.3.4:80",
        "a b:80",
        "a/b:80",
        "a\0b:80",
        &long,
    ] {
        let answer = ask(&mesh, &server, &[(":method", "CONNECT"), (":authority", authority)]).await;
        assert!(answer == Ok("400".into()) || answer == Err(PROTOCOL_ERROR), "{authority:?}: {answer:?}");
    }
    let connect = (":method", "CONNECT");
    let authority = (":authority", "10.0.0.7:80");
    for headers in [
        vec![connect],
        vec![connect, authority, (":path", "/")],
        vec![connect, authority, (":scheme", "https")],
        vec![connect, authority, (":scheme", "https"), (":path", "/")],
        vec![connect, authority, (":scheme", "https"), (":path", "/"), (":protocol", "websocket")],
        vec![connect, authority, authority],
        vec![authority],
    ] {
        let answer = ask(&mesh, &server, &headers).await;
        assert!(answer == Ok("400".into()) || answer == Err(PROTOCOL_ERROR), "{headers:?}: {answer:?}");
    }
    assert!(server.handler.requests.lock().unwrap().is_empty(), "one of them was taken seriously");
}

#[tokio::test]
async fn the_stream_after_the_last_allowed_one_is_refused() {
    let mesh = Mesh::new();
    let limits = Limits { max_streams: 5, ..Limits::default() };
    let server = Server::start(mesh.ca.credentials(&mesh.db), Answer::Wait, limits).await;
    let mut io = tls(&mesh, &server).await;
    let mut bytes = hello();
    for i in 0..6 {
        bytes.extend(frame(HEADERS, END_HEADERS, 2 * i + 1, &connect_block("10.0.0.7:80")));
    }
    io.write_all(&bytes).await.unwrap();
    io.flush().await.unwrap();
    let mut head = [0; 9];
    loop {
        io.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        if head[3] == RST_STREAM {
            const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
            assert_eq!((head[8], payload.as_slice()), (11, REFUSED_STREAM.as_slice()));
            break;
        }
    }
}

/// How the server's side of a tunnel ended: it must have been by complaint.
async fn complaint(server: &mut Server) -> h2::Reason {
    let ended = tokio::time::timeout(Duration::from_secs(10), server.tunnels.recv()).await;
    match ended.expect("the tunnel still lives").unwrap() {
        Err(ServeError::Http2(error)) => error.reason().expect("an HTTP/2 complaint has a code"),
        other => panic!("ended by {other:?}"),
    }
}

#[tokio::test]
async fn rapid_resets_end_the_tunnel() {
    let mesh = Mesh::new();
    let mut server = waiting(&mesh).await;
    let mut io = tls(&mesh, &server).await;
    io.write_all(&hello()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(io);
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    let mut id = 1;
    let mut bytes = Vec::new();
    for _ in 0..100_000 {
        bytes.clear();
        bytes.extend(frame(HEADERS, END_HEADERS, id, &connect_block("10.0.0.7:80")));
        bytes.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
        id += 2;
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(complaint(&mut server).await, h2::Reason::ENHANCE_YOUR_CALM);
    assert!(id < 20_000, "{id} streams were tolerated");
}

#[tokio::test]
async fn resets_that_follow_at_leisure_end_the_tunnel_too() {
    let mesh = Mesh::new();
    let mut server = waiting(&mesh).await;
    let mut requests = http2(&mesh, &server).await;
    let mut seen = 0;
    for _ in 0..5_000 {
        let request = Request::connect("10.0.0.7:80").body(()).unwrap();
        let Ok(mut ready) = requests.clone().ready().await else { break };
        let Ok((answer, send)) = ready.send_request(request, false) else { break };
        // Waits until the handler has it.
        while server.handler.requests.lock().unwrap().len() == seen && server.tunnels.is_empty() {
            tokio::task::yield_now().await;
        }
        seen = server.handler.requests.lock().unwrap().len();
        drop((answer, send));
        requests = ready;
    }
    let ended = server.tunnels.recv().await.unwrap();
    assert!(seen < 2_000, "{seen} resets were tolerated, {ended:?}");
}

#[tokio::test]
async fn endless_continuation_ends_the_tunnel() {
    let mesh = Mesh::new();
    let mut server = waiting(&mesh).await;
    let mut io = tls(&mesh, &server).await;
    let mut bytes = hello();
    bytes.extend(frame(HEADERS, 0, 1, &connect_block("10.0.0.7:80")));
    io.write_all(&bytes).await.unwrap();
    let piece = frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(100))]));
    let written = flood(io, &piece, 100_000).await;
    assert!(written < 100_000, "the flood was let through");
    complaint(&mut server).await;
    assert!(server.handler.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_endless_stream_of_empty_data_ends_the_tunnel() {
    let mesh = Mesh::new();
    let mut server = waiting(&mesh).await;
    let mut io = tls(&mesh, &server).await;
    let mut bytes = hello();
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &connect_block("10.0.0.7:80")));
    io.write_all(&bytes).await.unwrap();
    let thousand = frame(DATA, 0, 1, &[]).repeat(1000);
    let written = flood(io, &thousand, 1000).await;
    assert!(written < 1000, "a million empty frames were let through");
    assert_eq!(complaint(&mut server).await, h2::Reason::ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn headers_that_unfold_beyond_their_bound_are_refused() {
    let mesh = Mesh::new();
    let server = waiting(&mesh).await;
    let mut io = tls(&mesh, &server).await;
    let mut bytes = hello();
    // One field put into the table, then named a thousand times in a byte each.
    let mut fields = connect_block("10.0.0.7:80");
    fields.push(0x40);
    for text in ["cookie", &"c".repeat(120)] {
        fields.push(text.len() as u8);
        fields.extend(text.as_bytes());
    }
    fields.extend([0xbe; 10_000]);
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &fields));
    io.write_all(&bytes).await.unwrap();
    io.flush().await.unwrap();
    let mut head = [0; 9];
    loop {
        if io.read_exact(&mut head).await.is_err() {
            break;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if io.read_exact(&mut payload).await.is_err() {
            break;
        }
        if head[3] == RST_STREAM || head[3] == HEADERS {
            break;
        }
    }
    assert!(server.handler.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn garbage_instead_of_http2_ends_the_tunnel() {
    for garbage in [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(), &[0; 64], &[0xff; 64]] {
        let mesh = Mesh::new();
        let mut server = waiting(&mesh).await;
        let mut io = tls(&mesh, &server).await;
        io.write_all(garbage).await.unwrap();
        io.flush().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), server.tunnels.recv()).await.unwrap();
        assert!(ended.unwrap().is_err());
    }
}
