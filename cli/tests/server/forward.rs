//! Port-forward, as API servers speak it over WebSocket: one channel for the bytes of a port, one for its troubles.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Answer, Server, status};

const DATA: u8 = 0;
const TROUBLE: u8 = 1;

/// Switches protocols, and carries what comes to where the port of the pod really is.
pub(super) fn upgrade(server: &Server, pod: &str, mut request: Request<Incoming>) -> Answer {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return status(400, "BadRequest", "it is no WebSocket");
    };
    let query = request.uri().query().unwrap_or_default();
    let port: u16 = query.split('&').find_map(|pair| pair.strip_prefix("ports=")?.parse().ok()).unwrap();
    let to = server.state().ports.get(&(pod.to_owned(), port)).copied();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await.unwrap());
        carry(WebSocketStream::from_raw_socket(io, Role::Server, None).await, port, to).await;
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, "websocket".parse().unwrap());
    headers.insert(CONNECTION, "Upgrade".parse().unwrap());
    headers.insert(SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io".parse().unwrap());
    headers.insert(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).parse().unwrap());
    answer
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[channel], bytes].concat()))
}

/// Carries bytes until one side ends. What fails here fails for the client, who tells.
async fn carry(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, port: u16, to: Option<SocketAddr>) {
    for channel in [DATA, TROUBLE] {
        let _ = socket.send(frame(channel, &port.to_le_bytes())).await;
    }
    let stream = match to {
        Some(to) => TcpStream::connect(to).await.ok(),
        None => None,
    };
    let Some(mut stream) = stream else {
        let why = format!("dial tcp4 127.0.0.1:{port}: connect: connection refused");
        let _ = socket.send(frame(TROUBLE, why.as_bytes())).await;
        // The client ends it once it has read why.
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() {
                break;
            }
        }
        return;
    };
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&DATA) => {
                    if stream.write_all(&bytes[1..]).await.is_err() {
                        break;
                    }
                }
                Some(Ok(message)) if !message.is_close() => {}
                _ => break,
            },
            read = stream.read(&mut buffer) => match read {
                Ok(count @ 1..) => {
                    if socket.send(frame(DATA, &buffer[..count])).await.is_err() {
                        break;
                    }
                }
                Ok(_) | Err(_) => break,
            },
        }
    }
    let _ = socket.close(None).await;
}
