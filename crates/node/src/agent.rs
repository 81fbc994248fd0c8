//! The agent's side of its connection to the keeper.

use crate::MAX_PODS;
use crate::message::from_agent::Asked;
use crate::message::to_agent::Answer;
use crate::message::{
    Added, Check, Checked, EnrolPod, FromAgent, Hello, KeptPod, List, PodInfo, ReleasePod, Stores, ToAgent, Unknown,
    Welcome,
};
use crate::socket::{Socket, SocketError};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long the keeper may take for what it does by itself. It is never busy for long.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the keeper may take to add a pod: it waits 5 s for a ztunnel to serve it, and answers then.
pub const ADD_TIMEOUT: Duration = Duration::from_secs(10);

/// Most requests open at a time: one per pod, and some to look around.
pub const MAX_OPEN_REQUESTS: usize = 2 * MAX_PODS;

/// Why the keeper was asked in vain.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No keeper listens, or it does not let us in.
    #[error("connect to the keeper: {0}")]
    Connect(std::io::Error),
    /// The packet could not be sent or received.
    #[error("keeper: {0}")]
    Socket(#[from] SocketError),
    /// The keeper said no.
    #[error("keeper: {0}")]
    Refused(String),
    /// The connection ended; the text is the keeper's reason, if it gave one.
    #[error("the connection to the keeper ended{0}")]
    Lost(String),
    /// No answer in time.
    #[error("keeper: no answer to {request} within {timeout:?}")]
    Timeout {
        /// What was asked.
        request: &'static str,
        /// How long we waited.
        timeout: Duration,
    },
    /// The keeper is older than the question.
    #[error("keeper: it is too old to know the request to {request}: restart the node's pod, which replaces it")]
    Unknown {
        /// What was asked.
        request: &'static str,
    },
    /// An answer of another kind than the question's.
    #[error("keeper: answered {request} with something else")]
    Mismatch {
        /// What was asked.
        request: &'static str,
    },
    /// [`MAX_OPEN_REQUESTS`] are open.
    #[error("keeper: too many requests are open")]
    TooMany,
}

/// A connection to the keeper. Cloning is cheap; all clones share it, and requests may be open side by side.
#[derive(Debug, Clone)]
pub struct AgentClient {
    shared: Arc<Shared>,
    /// The number of the keeper process.
    keeper: u64,
    version: u32,
    /// Reads answers until the last clone is gone.
    _reader: Arc<Reader>,
}

#[derive(Debug)]
struct Shared {
    socket: Socket,
    open: Mutex<Open>,
    ended: watch::Sender<bool>,
}

/// The requests without an answer.
#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    waiting: HashMap<u64, Waiting>,
    /// Set when the connection has ended: the reason in the form `: reason`, or empty.
    lost: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answer>,
    /// Parts of a list that have come.
    pods: Vec<KeptPod>,
}

#[derive(Debug)]
struct Reader(JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AgentClient {
    /// Connects to the keeper's socket at `path` and greets it.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::hello(Socket::connect(path).map_err(ClientError::Connect)?).await
    }

    /// Greets the keeper on a connection.
    pub async fn hello(socket: Socket) -> Result<Self, ClientError> {
        let greet = async {
            socket.send_message(&Hello::new(), &[]).await?;
            socket.recv_message::<Welcome>().await
        };
        let timeout = ANSWER_TIMEOUT;
        let welcome = tokio::time::timeout(timeout, greet)
            .await
            .map_err(|_| ClientError::Timeout { request: "hello", timeout })??;
        let Some((welcome, _)) = welcome else { return Err(ClientError::Lost(String::new())) };
        let version = welcome.agree().map_err(ClientError::Refused)?;
        let shared = Arc::new(Shared { socket, open: Mutex::new(Open::default()), ended: watch::Sender::new(false) });
        let reader = Arc::new(Reader(tokio::spawn(read(shared.clone()))));
        Ok(Self { shared, keeper: welcome.keeper, version, _reader: reader })
    }

    /// The version of the protocol that is spoken with the keeper.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// A number that each keeper process draws when it starts: another number means it knows nothing yet.
    pub fn keeper(&self) -> u64 {
        self.keeper
    }

    /// Waits until the connection has ended.
    pub async fn ended(&self) {
        // The sender lives in `shared`, so this cannot fail.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Gives the keeper the maps LISTENERS and EXEMPT. Comes before any pod.
    pub async fn stores(&self, listeners: BorrowedFd<'_>, exempt: BorrowedFd<'_>) -> Result<(), ClientError> {
        match self.ask("stores", Asked::Stores(Stores {}), &[listeners, exempt], ANSWER_TIMEOUT).await? {
            Answer::Stored(stored) if stored.error.is_empty() => Ok(()),
            Answer::Stored(stored) => Err(ClientError::Refused(stored.error)),
            _ => Err(ClientError::Mismatch { request: "stores" }),
        }
    }

    /// Has the keeper make the pod's listeners, fill its slots and offer it to the ztunnel. Returns when a ztunnel
    /// serves the pod, or after 5 s with `serving` false and the problem named; the pod is kept in both cases.
    /// The same pod again is welcome; with another network namespace it replaces the former.
    pub async fn add_pod(&self, index: u32, info: PodInfo, netns: BorrowedFd<'_>) -> Result<Added, ClientError> {
        let asked = Asked::AddPod(EnrolPod { index, info: Some(info) });
        match self.ask("add pod", asked, &[netns], ADD_TIMEOUT).await? {
            Answer::Added(added) if added.error.is_empty() => Ok(added),
            Answer::Added(added) => Err(ClientError::Refused(added.error)),
            _ => Err(ClientError::Mismatch { request: "add pod" }),
        }
    }

    /// Has the keeper give up a pod; whether it had it. Its open connections live on.
    pub async fn remove_pod(&self, uid: &str) -> Result<bool, ClientError> {
        let asked = Asked::RemovePod(ReleasePod { uid: uid.into() });
        match self.ask("remove pod", asked, &[], ANSWER_TIMEOUT).await? {
            Answer::Removed(removed) => Ok(removed.found),
            _ => Err(ClientError::Mismatch { request: "remove pod" }),
        }
    }

    /// The pods that the keeper has.
    pub async fn list(&self) -> Result<Vec<KeptPod>, ClientError> {
        match self.ask("list", Asked::List(List {}), &[], ANSWER_TIMEOUT).await? {
            Answer::Pods(pods) => Ok(pods.pods),
            _ => Err(ClientError::Mismatch { request: "list" }),
        }
    }

    /// How a pod is. A slot found empty that should be filled is filled again.
    pub async fn check(&self, uid: &str) -> Result<Checked, ClientError> {
        match self.ask("check", Asked::Check(Check { uid: uid.into() }), &[], ANSWER_TIMEOUT).await? {
            Answer::Checked(checked) => Ok(checked),
            _ => Err(ClientError::Mismatch { request: "check" }),
        }
    }

    async fn ask(
        &self,
        request: &'static str,
        asked: Asked,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        let (ticket, answer) = self.shared.ticket()?;
        let exchange = async {
            self.shared.socket.send_message(&FromAgent { id: ticket.id, asked: Some(asked) }, fds).await?;
            answer.await.map_err(|_| ClientError::Lost(self.shared.open().lost.clone().unwrap_or_default()))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok(Answer::Unknown(_))) => Err(ClientError::Unknown { request }),
            Ok(answered) => answered,
            Err(_) => Err(ClientError::Timeout { request, timeout }),
        }
    }
}

/// A request that is open as long as somebody waits for it.
struct Ticket<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.open().waiting.remove(&self.id);
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(&self) -> Result<(Ticket<'_>, oneshot::Receiver<Answer>), ClientError> {
        let mut open = self.open();
        if let Some(reason) = &open.lost {
            return Err(ClientError::Lost(reason.clone()));
        }
        if open.waiting.len() >= MAX_OPEN_REQUESTS {
            return Err(ClientError::TooMany);
        }
        open.next_id += 1;
        let id = open.next_id;
        let (sender, receiver) = oneshot::channel();
        open.waiting.insert(id, Waiting { answer: sender, pods: Vec::new() });
        Ok((Ticket { shared: self, id }, receiver))
    }

    /// Hands an answer to whoever waits for it; nobody does after a timeout.
    fn answered(&self, id: u64, answer: Answer) {
        let mut open = self.open();
        let answer = match answer {
            Answer::Pods(mut part) => {
                let Some(waiting) = open.waiting.get_mut(&id) else { return };
                let room = MAX_PODS.saturating_sub(waiting.pods.len());
                waiting.pods.extend(part.pods.drain(..).take(room));
                if part.more {
                    return;
                }
                part.pods = std::mem::take(&mut waiting.pods);
                Answer::Pods(part)
            }
            other => other,
        };
        if let Some(waiting) = open.waiting.remove(&id) {
            // The one who asked may have given up in this moment.
            let _ = waiting.answer.send(answer);
        }
    }
}

/// Reads answers until the connection ends, then fails every open request.
async fn read(shared: Arc<Shared>) {
    let reason = loop {
        match shared.socket.recv_message::<ToAgent>().await {
            Ok(Some((ToAgent { answer: Some(Answer::Goodbye(goodbye)), .. }, _))) => {
                break format!(": {}", goodbye.reason);
            }
            // An answer that is not known here is as good as none.
            Ok(Some((ToAgent { id, answer }, _))) => shared.answered(id, answer.unwrap_or(Answer::Unknown(Unknown {}))),
            Ok(None) => break String::new(),
            Err(error) => break format!(": {error}"),
        }
    };
    let mut open = shared.open();
    open.lost = Some(reason);
    open.waiting.clear();
    drop(open);
    shared.ended.send_replace(true);
}

#[cfg(test)]
mod tests;
