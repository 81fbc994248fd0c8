//! The keeper: the first process of the agent's container. It owns the listening sockets inside each pod, hands them
//! and ready-made sockets to ztunnels, and supervises the agent. It is small and does not restart, so that everything
//! else may.

mod child;
mod custody;
mod dns;
mod machine;
mod peers;
mod place;
mod reset;
mod run_dir;
mod slots;
mod sockets;

pub(crate) use run_dir::{LOCK_FILE, lock};

use anyhow::Context as _;
use custody::Custody;
use peers::{ConnectionId, Report, Role};
use run_dir::{RunDir, RunDirError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// Most connections at a time: an agent and its successor, the ztunnels of a hand-over, and some that are not let in.
const MAX_CONNECTIONS: usize = 16;

/// Reports that wait for the keeper; connections wait beyond it.
const MAX_REPORTS: usize = 256;

/// How long to leave a listener alone after accepting failed, which is when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the pods that drain are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Between two attempts to take a run directory that another keeper has: connections wait meanwhile.
const CLAIM_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of the keeper.
#[derive(Debug, Clone, clap::Args)]
pub struct KeeperConfig {
    /// Directory of the sockets `agent.sock` and `ztunnel.sock`.
    #[arg(long, value_name = "DIR", env = "LOAM_RUN_DIR", default_value = "/run/loam")]
    pub run_dir: PathBuf,
    /// User that ztunnels run as.
    #[arg(long, value_name = "UID", default_value_t = 1337)]
    pub ztunnel_uid: u32,
    /// How long connections wait for the next ztunnel when the last one went away, in milliseconds.
    // A ztunnel is started again within a second or two; longer would look like a hang to an application.
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub grace_ms: u64,
    /// Start and supervise `loam-agent run` with these arguments.
    #[arg(last = true, value_name = "AGENT ARGS")]
    pub agent_args: Vec<OsString>,
}

/// Runs the keeper until SIGTERM or SIGINT.
pub fn run(config: KeeperConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    // One thread: there is little to do, and the agent must be spawned from one that lives as long as the process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve(config, stop).await
    })
}

/// Each pod needs a handful of descriptors and each socket under way one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the keeper until `stop`.
async fn serve(config: KeeperConfig, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut stop = pin!(stop);
    let run_dir = tokio::select! {
        claimed = claim(&config) => claimed?,
        () = &mut stop => return Ok(()),
    };
    let (stopping, stopped) = watch::channel(false);
    let agent = (!config.agent_args.is_empty()).then(|| agent_program(config.agent_args)).transpose()?;
    let agent = agent.map(|program| tokio::spawn(child::supervise(program, stopped)));

    let number = draw_number();
    let (reports, inbox) = mpsc::channel(MAX_REPORTS);
    let ztunnel = Role::Ztunnel { uid: config.ztunnel_uid };
    let grace = Duration::from_millis(config.grace_ms);
    tracing::info!(run_dir = %config.run_dir.display(), ?grace, "keeper ready");
    tokio::select! {
        () = accept(&run_dir, ztunnel, number, reports) => {}
        () = Custody::new(grace).run(inbox) => {}
        () = stop => tracing::info!("keeper stops"),
    }
    stopping.send_replace(true);
    if let Some(agent) = agent {
        agent.await.context("supervise the agent")?;
    }
    Ok(())
}

/// Takes the run directory. When a pod replaces another one on its node, the former keeper has it until that pod ends.
async fn claim(config: &KeeperConfig) -> Result<RunDir, RunDirError> {
    let mut told = false;
    loop {
        match RunDir::claim(&config.run_dir, config.ztunnel_uid) {
            Err(error @ RunDirError::Taken { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(%error, "waiting for the other keeper to end");
                }
                tokio::time::sleep(CLAIM_INTERVAL).await;
            }
            claimed => return claimed,
        }
    }
}

fn agent_program(args: Vec<OsString>) -> anyhow::Result<child::Program> {
    let path = std::env::current_exe().context("find this program")?;
    let args = std::iter::once(OsString::from("run")).chain(args).collect();
    Ok(child::Program { path, args })
}

/// A number that no other keeper process has, in all likelihood: the seed of the standard library's hasher.
fn draw_number() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Takes connections and serves each in a task of its own.
async fn accept(run_dir: &RunDir, ztunnel: Role, number: u64, reports: mpsc::Sender<Report>) {
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut last_id = 0;
    loop {
        let (accepted, role) = tokio::select! {
            agent = run_dir.agents.accept() => (agent, Role::Agent),
            proxy = run_dir.ztunnels.accept() => (proxy, ztunnel),
            Some(_) = connections.join_next() => continue,
        };
        let socket = match accepted {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, ?role, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(?role, "a connection is not taken, {MAX_CONNECTIONS} are open");
            continue;
        };
        last_id += 1;
        let serve = peers::serve(socket, role, ConnectionId(last_id), number, reports.clone());
        connections.spawn(async move {
            serve.await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests;
