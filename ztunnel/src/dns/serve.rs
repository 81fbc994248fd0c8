//! Takes a pod's questions from its sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use loam_dns::{MAX_QUERY_BYTES, Transport};
use loam_rt::drain::Drain;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::frames::{self, Frames};
use super::sockets::Inside;
use super::{Decided, Dns};
use crate::accept::accept;

/// Datagrams taken off a socket before others get their turn.
const BATCH: usize = 64;

/// Pause after an error of a socket that the next read would meet again.
const PAUSE: Duration = Duration::from_millis(50);

/// Most connections of one pod. Resolvers have one, and only for answers that do not fit a datagram.
const MAX_CONNECTIONS: usize = 64;

/// Most questions of one connection under way (RFC 7766 6.2.1.1 lets a server choose).
const MAX_PIPELINED: usize = 32;

/// How long a connection may bring no whole question, and how long it may not take an answer (RFC 7766 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

impl<I: Inside> Dns<I> {
    /// Answers datagrams until `end` begins. Others who hold the socket too take what is left.
    pub async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, end: Drain) {
        loop {
            let readable = tokio::select! {
                biased;
                () = end.started() => return,
                readable = socket.readable() => readable,
            };
            match readable.and_then(|()| self.take_batch(&socket, &end)) {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::warn!(%error, "dns socket");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn take_batch(self: &Arc<Self>, socket: &Arc<UdpSocket>, end: &Drain) -> io::Result<()> {
        // One byte more than a question may have shows that it is too long. Here and not in the task, which is idle
        // most of its life.
        let mut buffer = [0; MAX_QUERY_BYTES + 1];
        for _ in 0..BATCH {
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            match self.decide(&buffer[..length], Transport::Udp) {
                Decided::Nothing => {}
                Decided::Answer(answer) => send(socket, &answer, from),
                Decided::Ask(forward, labels) => {
                    let (dns, socket, guard) = (self.clone(), socket.clone(), end.guard());
                    tokio::spawn(async move {
                        let answer = dns.ask(forward, labels).await;
                        send(&socket, &answer, from);
                        drop(guard);
                    });
                }
            }
        }
        Ok(())
    }

    /// Answers on connections until `end` begins.
    pub async fn serve_tcp(self: Arc<Self>, listener: Arc<TcpListener>, end: Drain) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        accept(listener, permits, end.clone(), move |stream, _, permit| {
            let (dns, end) = (self.clone(), end.clone());
            tokio::spawn(async move {
                let guard = end.guard();
                if let Err(error) = dns.connection(stream, &end).await {
                    tracing::debug!(%error, "dns connection");
                }
                drop((permit, guard));
            });
        })
        .await;
    }

    async fn connection(&self, mut stream: TcpStream, end: &Drain) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = stream.split();
        let mut frames = Frames::new(MAX_QUERY_BYTES);
        let mut asked = FuturesUnordered::new();
        let mut open = true;
        let mut idle_from = Instant::now();
        while open || !asked.is_empty() {
            let answer = tokio::select! {
                message = frames.next(&mut reader), if open && asked.len() < MAX_PIPELINED => match message? {
                    Some(message) => match self.decide(&message, Transport::Tcp) {
                        Decided::Nothing => return Ok(()),
                        Decided::Answer(answer) => answer,
                        Decided::Ask(forward, labels) => {
                            idle_from = Instant::now();
                            asked.push(self.ask(forward, labels));
                            continue;
                        }
                    },
                    None => {
                        open = false;
                        continue;
                    }
                },
                Some(answer) = asked.next() => answer,
                () = sleep_until(idle_from + IDLE), if asked.is_empty() => return Ok(()),
                () = end.started(), if asked.is_empty() => return Ok(()),
            };
            timeout(IDLE, frames::write(&mut writer, &answer)).await??;
            idle_from = Instant::now();
        }
        Ok(())
    }
}

/// Sends an answer. A full socket loses it, as datagrams get lost; the resolver asks again.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, to) {
        tracing::debug!(%error, "dns answer");
    }
}
