//! Takes back everything that agents changed on this node.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Cleanup;
use crate::enrol::{EnrolError, same, tidy};
use crate::netns::{NetnsError, sockets};
use crate::pods::record::{Record, Records};
use crate::{redirect, status};

/// Held by a running agent inside its run directory.
pub const LOCK: &str = "agent.lock";

/// How often a namespace is looked at while its last connections end.
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
    // Without the directory there never was an agent in it.
    let lock = if config.run_dir.is_dir() { Some(lock(&config.run_dir)?) } else { None };
    redirect::remove_all(&config.bpffs).context("detach the programs")?;
    if let Some(records) = Records::find(&config.run_dir) {
        take_back(&records, Duration::from_secs(config.wait)).await?;
        records.remove_all().context("remove the records")?;
    }
    for name in [status::FILE, LOCK] {
        match std::fs::remove_file(config.run_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {name} in {}", config.run_dir.display()));
            }
            _ => {}
        }
    }
    drop(lock);
    info!("nothing of the agent is left on this node");
    Ok(())
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
