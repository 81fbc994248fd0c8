//! The pod's own name servers.
//!
//! Each question goes out with a random identifier from a random port, so that nobody who cannot see it can answer it.
//! A server that is silent is asked once more or passed over; the whole ends before the pod's resolver gives up, so
//! that the resolver hears of the failure rather than of nothing.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use loam_dns::{Forward, MAX_MESSAGE_BYTES, Reply, Transport, Verdict};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::frames::{self, Frames};
use super::metrics::DnsMetrics;
use super::sockets::Inside;

/// How long a question may take altogether. Resolvers wait five seconds and ask again; they shall have been answered
/// twice by then.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long a server may be silent before another is asked as well, or the same once more: datagrams get lost.
pub const PATIENCE_WITH_ONE: Duration = Duration::from_millis(600);

/// Most times that one question is sent out, and so the most servers of a pod; resolvers know no more either.
pub const MAX_ATTEMPTS: usize = 3;

/// How long a server that was silent or could not be reached is asked after the others.
const DOUBT: Duration = Duration::from_secs(10);

/// Most questions of one pod under way. Each has a socket for each attempt, so this bounds descriptors too.
pub const MAX_QUESTIONS: usize = 256;

/// Most messages from a server's address that are not its reply. They are guesses of somebody else, who shall not have
/// many.
const MAX_STRANGERS: usize = 64;

/// Most sockets kept for the next questions.
const MAX_IDLE_SOCKETS: usize = 32;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// There is nobody to ask.
    #[error("the pod has no name server that is known and is not itself")]
    NoServer,
    /// Too many questions of the pod are under way.
    #[error("{MAX_QUESTIONS} questions are under way")]
    Busy,
    /// No server answered in time.
    #[error("no answer within {PATIENCE:?}; {last}")]
    Silent {
        /// What happened last.
        last: String,
    },
}

/// The servers of one pod.
pub struct Upstream<I> {
    inside: I,
    servers: Vec<SocketAddr>,
    /// Until when each server is doubted.
    doubts: Mutex<Vec<Option<Instant>>>,
    permits: Semaphore,
    idle: Mutex<Vec<UdpSocket>>,
    metrics: DnsMetrics,
}

impl<I: Inside> Upstream<I> {
    /// The first [`MAX_ATTEMPTS`] of these servers, best first.
    pub fn new(inside: I, mut servers: Vec<SocketAddr>, metrics: DnsMetrics) -> Self {
        servers.truncate(MAX_ATTEMPTS);
        Self {
            inside,
            doubts: Mutex::new(vec![None; servers.len()]),
            servers,
            permits: Semaphore::new(MAX_QUESTIONS),
            idle: Mutex::default(),
            metrics,
        }
    }

    /// Whether there is nobody to ask.
    pub fn has_no_server(&self) -> bool {
        self.servers.is_empty()
    }

    /// The answer of the first server that has one.
    pub async fn ask(&self, question: &Forward) -> Result<Vec<u8>, Unreachable> {
        if self.servers.is_empty() {
            return Err(Unreachable::NoServer);
        }
        let Ok(_permit) = self.permits.try_acquire() else { return Err(Unreachable::Busy) };
        let began = Instant::now();
        let mut due = self.order(began);
        let mut attempts = FuturesUnordered::new();
        let mut refusal = None;
        let mut last = String::from("every server was silent");
        let mut latest = None;
        loop {
            if let Some(server) = due.pop_front() {
                latest = Some(server);
                attempts.push(self.attempt(server, question, began + PATIENCE));
            } else if attempts.is_empty() {
                break;
            }
            // Until it is time for the next attempt.
            let next_at = Instant::now() + PATIENCE_WITH_ONE;
            let more = !due.is_empty();
            tokio::select! {
                biased;
                Some((server, outcome)) = attempts.next() => match outcome {
                    Ok(Reply { bytes, verdict: Verdict::Answered }) => {
                        self.doubts()[server] = None;
                        return Ok(bytes);
                    }
                    Ok(Reply { bytes, verdict: Verdict::Failed }) => {
                        refusal.get_or_insert(bytes);
                        // Asked again it would say the same.
                        due.retain(|other| *other != server);
                    }
                    Err(error) => {
                        self.doubts()[server] = Some(Instant::now() + DOUBT);
                        last = format!("{}: {error}", self.servers[server]);
                        due.retain(|other| *other != server);
                    }
                },
                () = sleep_until(next_at), if more => {
                    if let Some(silent) = latest {
                        self.doubts()[silent] = Some(Instant::now() + DOUBT);
                    }
                }
                else => {}
            }
        }
        refusal.ok_or(Unreachable::Silent { last })
    }

    /// Servers in the order in which they are asked, the first ones once more.
    fn order(&self, now: Instant) -> VecDeque<usize> {
        let doubts = self.doubts();
        let doubted = |server: &usize| doubts[*server].is_some_and(|until| until > now);
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        // Stable: otherwise as the pod has them.
        order.sort_by_key(doubted);
        order.iter().cycle().take(MAX_ATTEMPTS).copied().collect()
    }

    async fn attempt(&self, server: usize, question: &Forward, until: Instant) -> (usize, io::Result<Reply>) {
        let addr = self.servers[server];
        let exchange = async {
            match question.transport() {
                Transport::Udp => self.by_udp(addr, question).await,
                Transport::Tcp => self.by_tcp(addr, question).await,
            }
        };
        let silent = || Err(io::Error::new(io::ErrorKind::TimedOut, "silent"));
        (server, timeout_at(until, exchange).await.unwrap_or_else(|_| silent()))
    }

    async fn by_udp(&self, server: SocketAddr, question: &Forward) -> io::Result<Reply> {
        let socket = self.socket(server).await?;
        socket.connect(server).await?;
        let id = rand::random();
        socket.send(&question.question(id)).await?;
        let mut strangers = 0;
        loop {
            socket.readable().await?;
            // Room for one byte too many, which shows that it is too many.
            let mut bytes = Vec::with_capacity(question.max_reply_bytes() + 1);
            match socket.try_recv_buf(&mut bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            match question.accept(id, bytes) {
                Ok(reply) => {
                    self.keep(socket);
                    return Ok(reply);
                }
                Err(not_ours) => {
                    strangers += 1;
                    tracing::debug!(%server, %not_ours, "dns reply ignored");
                    self.metrics.ignored();
                    if strangers == MAX_STRANGERS {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many replies to other questions"));
                    }
                }
            }
        }
    }

    async fn by_tcp(&self, server: SocketAddr, question: &Forward) -> io::Result<Reply> {
        let mut stream = self.inside.tcp(server).await?;
        let id = rand::random();
        frames::write(&mut stream, &question.question(id)).await?;
        let message = Frames::new(MAX_MESSAGE_BYTES).next(&mut stream).await?;
        let message = message.ok_or(io::ErrorKind::UnexpectedEof)?;
        question.accept(id, message).map_err(|not_ours| io::Error::new(io::ErrorKind::InvalidData, not_ours))
    }

    /// A socket for one question to `server`, used before or not.
    async fn socket(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let fits = |socket: &UdpSocket| socket.local_addr().is_ok_and(|addr| addr.is_ipv6() == server.is_ipv6());
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().rposition(fits).map(|at| idle.swap_remove(at))
        };
        match kept {
            Some(socket) => Ok(socket),
            None => self.inside.udp(server.ip()).await,
        }
    }

    /// Keeps a socket for another question. Disconnected it loses its port, and the next connect draws another.
    fn keep(&self, socket: UdpSocket) {
        if rustix::net::connect_unspec(&socket).is_err() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_SOCKETS {
            idle.push(socket);
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<Option<Instant>>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
