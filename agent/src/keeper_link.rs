//! The agent's connection to its keeper: made again whenever it ends.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use loam_node::AgentClient;
use tokio::sync::watch;
use tracing::{info, warn};

/// Delay before the next attempt: the keeper is on the same machine, and asking costs little.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// Longest delay between two attempts.
const LAST_DELAY: Duration = Duration::from_secs(1);

/// Where to find the connection that is open at this moment.
#[derive(Debug, Clone)]
pub struct KeeperLink(watch::Receiver<Option<AgentClient>>);

impl KeeperLink {
    /// A link and the end that [`maintain`] fills.
    pub fn new() -> (watch::Sender<Option<AgentClient>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The connection, if one is open.
    pub fn client(&self) -> Option<AgentClient> {
        self.0.borrow().clone()
    }

    /// Waits until a connection begins or ends.
    pub async fn changed(&mut self) -> Option<AgentClient> {
        if self.0.changed().await.is_err() {
            // Nobody fills it any more: the process is about to end.
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}

/// Keeps a connection to the keeper at `path` and gives it the maps each time. Never ends.
pub async fn maintain(path: PathBuf, listeners: OwnedFd, exempt: OwnedFd, link: watch::Sender<Option<AgentClient>>) {
    let mut delay = FIRST_DELAY;
    let mut last_error = String::new();
    loop {
        let client = match AgentClient::connect(&path).await {
            Ok(client) => client.stores(listeners.as_fd(), exempt.as_fd()).await.map(|()| client),
            Err(error) => Err(error),
        };
        match client {
            Ok(client) => {
                info!(keeper = client.keeper(), version = client.version(), "connected to the keeper");
                delay = FIRST_DELAY;
                last_error.clear();
                link.send_replace(Some(client.clone()));
                client.ended().await;
                link.send_replace(None);
                warn!("the connection to the keeper ended");
            }
            Err(error) => {
                let text = error.to_string();
                if text != last_error {
                    warn!(path = %path.display(), error = %text, "cannot reach the keeper, trying again");
                    last_error = text;
                }
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}
