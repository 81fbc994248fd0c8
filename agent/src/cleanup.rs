//! Takes back everything that agents changed on this node.

pub mod everywhere;

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use loam_node::{AGENT_SOCKET, ZTUNNEL_SOCKET};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::cni::install::Place;
use crate::config::Cleanup;
use crate::enrol::{EnrolError, same, tidy};
use crate::keeper::{self, LOCK_FILE};
use crate::netns::{NetnsError, sockets, sysctl};
use crate::pods::record::{Record, Records};
use crate::{redirect, status};

/// Held by a running agent inside its run directory.
pub const LOCK: &str = "agent.lock";

/// How often a namespace is looked at while its last connections end, and an agent that is about to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes the lock of a run directory for as long as the file lives.
pub fn lock(run_dir: &Path) -> Result<File> {
    let path = run_dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => bail!("another agent already works in {}", run_dir.display()),
    }
}

/// Whether an agent works in a run directory.
pub fn is_running(run_dir: &Path) -> bool {
    File::open(run_dir.join(LOCK)).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Detaches all programs, then takes back routes, rules and switches of each pod, then the files.
pub async fn run(config: &Cleanup) -> Result<()> {
    sysctl::unlock()?;
    // Without the directory there never was an agent in it.
    let locks = if config.run_dir.is_dir() { Some(ended(config).await?) } else { None };
    // First of all: nobody answers the plugin any more, and pods could not be made.
    if let (Some(bin_dir), Some(conf_dir)) = (&config.cni_bin_dir, &config.cni_conf_dir) {
        let place = Place { bin_dir: bin_dir.clone(), conf_dir: conf_dir.clone() };
        place.leave().context("take the CNI plugin away")?;
    }
    redirect::remove_all(&config.bpffs).context("detach the programs")?;
    if let Some(records) = Records::find(&config.run_dir) {
        take_back(&records, Duration::from_secs(config.wait)).await?;
        records.remove_all().context("remove the records")?;
    }
    for name in [status::FILE, LOCK, LOCK_FILE, AGENT_SOCKET, ZTUNNEL_SOCKET, loam_cni::SOCKET] {
        match std::fs::remove_file(config.run_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {name} in {}", config.run_dir.display()));
            }
            _ => {}
        }
    }
    // Whatever else somebody keeps there is not ours, nor is a directory that something is mounted on.
    let _ = std::fs::remove_dir(&config.run_dir);
    drop(locks);
    info!("nothing of the agent is left on this node");
    Ok(())
}

/// Waits for an agent and a keeper that are about to end; gives what keeps others away.
async fn ended(config: &Cleanup) -> Result<(File, File)> {
    let deadline = Instant::now() + Duration::from_secs(config.patience);
    loop {
        let keeper = keeper::lock(&config.run_dir).map_err(anyhow::Error::from);
        let locks = keeper.and_then(|keeper| Ok((keeper, lock(&config.run_dir)?)));
        if locks.is_ok() || Instant::now() >= deadline {
            return locks.context("stop agent and keeper first");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn take_back(records: &Records, wait: Duration) -> Result<()> {
    let (all, broken) = records.all().context("list the records")?;
    for path in broken {
        warn!(path = %path.display(), "cannot read the record of a pod: its routes and rules stay");
    }
    let deadline = Instant::now() + wait;
    let mut failed = 0;
    for record in all {
        if let Err(error) = take_back_one(records, &record, deadline).await {
            warn!(pod = %record.spec, error = %error.text(), "cannot take back routes and rules");
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("the network namespaces of {failed} pods could not be restored; their records are kept");
    }
    Ok(())
}

async fn take_back_one(records: &Records, record: &Record, deadline: Instant) -> Result<(), EnrolError> {
    loop {
        if tidy(records, record).await? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // Without the rules their segments would leave in plaintext, so they end first.
    let netns = match same(record).await {
        Ok(netns) => netns,
        Err(NetnsError::Gone(_) | NetnsError::Replaced(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let ended = netns.run(sockets::destroy).await?;
    warn!(pod = %record.spec, sockets = ended, "reset connections that did not end in time");
    let before = record.before.clone();
    netns.run(move || crate::netns::undo(&before)).await?;
    records.remove(record.cookie).map_err(EnrolError::Record)
}
