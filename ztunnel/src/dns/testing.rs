//! Name servers on this machine's loopback, for tests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Inside, frames};

/// Longest wait for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Makes sockets on this machine's loopback.
pub(crate) struct Here;

impl Inside for Here {
    async fn udp(&self, _: IpAddr) -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(server).await
    }
}

/// A port that is free for both, which the next one may not be while other tests run.
pub(crate) async fn both() -> (UdpSocket, TcpListener) {
    for _ in 0..1000 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
            return (socket, listener);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

/// A name server, and each question that reached it with the port it came from.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) asked: mpsc::UnboundedReceiver<(Vec<u8>, u16)>,
}

impl Server {
    /// One that sends what `replies` makes of the number and the bytes of a question.
    pub(crate) async fn start(replies: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (socket, listener) = both().await;
        let addr = socket.local_addr().unwrap();
        let (told, asked) = mpsc::unbounded_channel();
        let replies = Arc::new(replies);
        let (told_tcp, replies_tcp) = (told.clone(), replies.clone());
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            for number in 0.. {
                let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                let _ = told.send((bytes[..length].to_vec(), from.port()));
                for reply in replies(number, &bytes[..length]) {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            for number in 0.. {
                let (mut stream, from) = listener.accept().await.unwrap();
                let Ok(Some(message)) = frames::Frames::new(4096).next(&mut stream).await else { continue };
                let _ = told_tcp.send((message.clone(), from.port()));
                for reply in replies_tcp(number, &message) {
                    frames::write(&mut stream, &reply).await.unwrap();
                }
            }
        });
        Self { addr, asked }
    }

    pub(crate) async fn silent() -> Self {
        Self::start(|_, _| vec![]).await
    }

    pub(crate) async fn asked(&mut self) -> (Vec<u8>, u16) {
        timeout(SOON, self.asked.recv()).await.expect("a question").unwrap()
    }
}

/// Where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const SERVER_FAILURE: u8 = 2;
pub(crate) const REFUSED: u8 = 5;

/// The reply to a question that its name has `address`.
pub(crate) fn reply(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut bytes = failure(question, NO_ERROR);
    bytes[7] = 1;
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
    bytes.extend(address);
    bytes
}

pub(crate) fn failure(question: &[u8], code: u8) -> Vec<u8> {
    let mut bytes = question.to_vec();
    bytes[2] |= 0x80;
    bytes[3] = code;
    bytes
}
