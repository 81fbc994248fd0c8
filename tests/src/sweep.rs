//! Removes what labs left whose processes were killed without a chance to clean up.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::cgroup;

/// Start of the name of a lab's directory and of its cgroup.
pub const PREFIX: &str = "loam-lab.";
/// Locked by a living lab, in its directory.
pub const LOCK: &str = "lock";
/// Holds the paths of the lab's cgroups, in its directory.
pub const CGROUP: &str = "cgroup";

/// A directory without a lock yet may belong to a lab that is being made.
const BIRTH: Duration = Duration::from_secs(60);

/// The lock of the lab in `work`, held until the file is dropped. Several processes of one lab hold it together.
pub fn hold(work: &Path) -> Result<File> {
    let path = work.join(LOCK);
    let file = File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    file.lock_shared().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// Removes the leftovers of dead labs and names the directories it removed.
pub fn sweep() -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let work = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_dead(&work) && remove(&work).is_ok() {
            removed.push(work);
        }
    }
    removed
}

fn is_dead(work: &Path) -> bool {
    match File::open(work.join(LOCK)) {
        Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => fs::metadata(work)
            .and_then(|m| m.modified())
            .is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > BIRTH)),
    }
}

/// Removes the cgroups and the directory of a lab.
pub fn remove(work: &Path) -> io::Result<()> {
    let cgroups = fs::read_to_string(work.join(CGROUP)).unwrap_or_default();
    for path in cgroups.lines().map(Path::new) {
        // The file is ours, but only a lab's own cgroup may ever be killed.
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX)) {
            cgroup::remove(path)?;
        }
    }
    fs::remove_dir_all(work)
}
