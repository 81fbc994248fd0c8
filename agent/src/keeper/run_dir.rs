//! The run directory: one keeper at a time, and its two sockets.

use loam_node::{AGENT_SOCKET, Listener, ZTUNNEL_SOCKET};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

/// Locked by the keeper of a run directory as long as it lives.
pub(crate) const LOCK_FILE: &str = "keeper.lock";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunDirError {
    #[error("run directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("run directory {} belongs to another keeper, process {pid}", path.display())]
    Taken { path: PathBuf, pid: String },
    #[error("listen at {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// A run directory that is ours. The lock goes with it; the sockets stay as files that nobody answers at.
#[derive(Debug)]
pub(super) struct RunDir {
    _lock: File,
    pub(super) agents: Listener,
    pub(super) ztunnels: Listener,
}

impl RunDir {
    /// Takes the directory and listens in it; ztunnels run as this user.
    pub(super) fn claim(path: &Path, ztunnel_uid: u32) -> Result<Self, RunDirError> {
        let lock = lock(path)?;
        let agents = listen(path.join(AGENT_SOCKET), None)?;
        let ztunnels = listen(path.join(ZTUNNEL_SOCKET), Some(ztunnel_uid))?;
        Ok(Self { _lock: lock, agents, ztunnels })
    }
}

/// Makes the directory where it is not there, and is its keeper for as long as the file lives.
pub(crate) fn lock(path: &Path) -> Result<File, RunDirError> {
    let failed = |source| RunDirError::Directory { path: path.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK_FILE))
        .map_err(failed)?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(failed(error.into()));
        }
        let mut pid = String::new();
        // For the message only; an unreadable number does not change that the directory is taken.
        let _ = file.read_to_string(&mut pid);
        return Err(RunDirError::Taken { path: path.into(), pid: pid.trim().into() });
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Listens at a path where a former keeper may have left its socket. Only its owner may connect: root, or `owner`.
fn listen(path: PathBuf, owner: Option<u32>) -> Result<Listener, RunDirError> {
    let listen = || {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = Listener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        if let Some(owner) = owner {
            chown(&path, Some(owner), None)?;
        }
        Ok(listener)
    };
    listen().map_err(|source| RunDirError::Listen { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_has_one_keeper_and_is_free_again_after_it() {
        let path = std::env::temp_dir().join(format!("loam-run-dir-{}", std::process::id()));
        let uid = rustix::process::getuid().as_raw();
        let first = RunDir::claim(&path, uid).unwrap();
        let error = RunDir::claim(&path, uid).unwrap_err().to_string();
        let expected =
            format!("run directory {} belongs to another keeper, process {}", path.display(), std::process::id());
        assert_eq!(error, expected);
        drop(first);
        let second = RunDir::claim(&path, uid).unwrap();
        let mode = |name| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(AGENT_SOCKET), mode(ZTUNNEL_SOCKET)), (0o600, 0o600));
        drop(second);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
