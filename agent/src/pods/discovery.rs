//! One search for pods among the node's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::registry::MAX_BUSY;
use super::sandbox::{ResolvConf, Sandbox};
use super::spec::Uid;
use crate::processes::{Found, HiddenError, Processes};

/// How long a pod's resolv.conf may take to be read: it is a small file, and usually in memory.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// What a search found.
#[derive(Debug)]
pub struct Searched {
    /// The pods, and why those cannot be had that cannot. A pod that has no process yet is not among them.
    pub found: BTreeMap<Uid, Result<Sandbox, String>>,
    /// How long it kept a processor busy.
    pub took: Duration,
}

/// Searches for these pods.
pub async fn search(processes: Processes, pods: BTreeSet<Uid>) -> Searched {
    let begun = Instant::now();
    let found = aside(move || processes.find(&pods)).await.unwrap_or_default();
    let took = begun.elapsed();
    Searched { found: stream::iter(found).map(sandbox).buffer_unordered(MAX_BUSY).collect().await, took }
}

async fn sandbox((uid, found): (Uid, Result<Found, HiddenError>)) -> (Uid, Result<Sandbox, String>) {
    match found {
        Ok(found) => {
            let netns = found.netns.clone();
            let resolv_conf = resolv_conf(&uid, found).await;
            (uid, Ok(Sandbox { netns, resolv_conf, ..Sandbox::default() }))
        }
        Err(error) => (uid, Err(error.to_string())),
    }
}

async fn resolv_conf(uid: &Uid, found: Found) -> ResolvConf {
    let read = timeout(READ_TIMEOUT, aside(move || found.resolv_conf())).await;
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it takes longer than {} s", READ_TIMEOUT.as_secs()));
    match read.unwrap_or_else(|_| Err(late())).and_then(|read| read) {
        Ok(Some(text)) => ResolvConf::Text(text),
        Ok(None) => ResolvConf::Unknown,
        Err(error) => {
            warn!(uid, %error, "cannot read the pod's /etc/resolv.conf: its questions to name servers are not captured");
            ResolvConf::Unreadable
        }
    }
}

/// Does something on a thread that nobody waits for when the process ends: a pod may keep it for ever.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, result) = oneshot::channel();
    let run = move || {
        // The one who asked may have stopped waiting.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name("search".into()).spawn(run)?;
    result.await.map_err(|_| io::Error::other("the thread ended"))
}
