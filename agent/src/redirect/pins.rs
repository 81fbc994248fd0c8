//! Where things are pinned, and the lock on that place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use loam_ebpf_common::layout;
use rustix::fs::{FlockOperation, flock, statfs};

use super::{RedirectError, hooks, probes};
use crate::sys::bpf_link;

/// `f_type` of a bpf file system, linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Directory below the mount point.
const DIRECTORY: &str = "loam";

/// Names of the pinned links of pods begin with this; the index follows. Pods' own names may have dots, which a bpf
/// file system refuses.
const STEER: &str = "steer_";

/// The directory of all pins.
#[derive(Debug, Clone)]
pub struct Pins(PathBuf);

impl Pins {
    /// The directory below `bpffs`, made if it is not there.
    pub fn create(bpffs: &Path) -> Result<Self, RedirectError> {
        check(bpffs)?;
        let dir = bpffs.join(DIRECTORY);
        match fs::create_dir(&dir) {
            Ok(()) => Ok(Self(dir)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Self(dir)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(RedirectError::NotPermitted),
            Err(source) => Err(RedirectError::Path { what: "make the directory", path: dir, source }),
        }
    }

    /// The directory below `bpffs`, if it is there.
    pub fn find(bpffs: &Path) -> Result<Option<Self>, RedirectError> {
        check(bpffs)?;
        let dir = bpffs.join(DIRECTORY);
        Ok(dir.is_dir().then_some(Self(dir)))
    }

    /// Keeps every other agent away from these pins for as long as the file lives.
    pub fn lock(&self) -> Result<File, RedirectError> {
        let dir =
            File::open(&self.0).map_err(|source| RedirectError::Path { what: "open", path: self.0.clone(), source })?;
        match flock(dir.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(dir),
            Err(_) => Err(RedirectError::Busy(self.0.clone())),
        }
    }

    /// Path of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Path of the link of a hook.
    pub fn hook(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Path of the link of a pod.
    pub fn steer(&self, index: u32) -> PathBuf {
        self.0.join(format!("{STEER}{index}"))
    }

    /// Indexes of pods with a pinned link.
    pub fn steered(&self) -> Result<Vec<u32>, RedirectError> {
        Ok(self.names()?.iter().filter_map(|name| name.strip_prefix(STEER)?.parse().ok()).collect())
    }

    /// The link that is pinned here, if there is one.
    pub fn open(&self, path: &Path) -> Result<Option<OwnedFd>, RedirectError> {
        match bpf_link::open(path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RedirectError::Path { what: "open the pinned link", path: path.into(), source }),
        }
    }

    /// Pins a link, so that it lives on without us.
    pub fn hold(&self, link: FdLink, path: PathBuf) -> Result<(), RedirectError> {
        match link.pin(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(RedirectError::Path { what: "pin the link", path, source: io::Error::other(error) }),
        }
    }

    /// Detaches the link that is pinned here, if it is there, and takes the pin away. Its program is not called any
    /// more when this returns: what it needs may be taken from it then.
    pub fn detach(&self, path: &Path) -> Result<(), RedirectError> {
        let detached = bpf_link::open(path).and_then(|link| bpf_link::detach(link.as_fd()));
        match detached {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RedirectError::Path { what: "detach", path: path.into(), source })
            }
            _ => self.remove(path),
        }
    }

    /// Takes a pin away, if it is there.
    pub fn remove(&self, path: &Path) -> Result<(), RedirectError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RedirectError::Path { what: "remove", path: path.into(), source })
            }
            _ => Ok(()),
        }
    }

    /// Takes all pins away: the hooks first, so that nothing is marked for a listener that is gone.
    pub fn remove_all(&self) -> Result<(), RedirectError> {
        let mut names = self.names()?;
        let rank = |name: &str| match hooks::rank(name) {
            Some(rank) => (0, rank),
            None if name.starts_with(STEER) || name == probes::PROGRAM => (1, 0),
            None if layout::SHARED.contains(&name) => (2, 0),
            None => (3, 0),
        };
        names.sort_by_key(|name| rank(name));
        for name in names {
            match rank(&name) {
                (0 | 1, _) => self.detach(&self.0.join(name))?,
                _ => self.remove(&self.0.join(name))?,
            }
        }
        fs::remove_dir(&self.0).map_err(|source| RedirectError::Path { what: "remove", path: self.0.clone(), source })
    }

    fn names(&self) -> Result<Vec<String>, RedirectError> {
        let failed = |source| RedirectError::Path { what: "list", path: self.0.clone(), source };
        let entries = fs::read_dir(&self.0).map_err(failed)?;
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }
}

fn check(bpffs: &Path) -> Result<(), RedirectError> {
    match statfs(bpffs) {
        Ok(stat) if stat.f_type as u64 == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(RedirectError::NotBpffs(bpffs.into())),
        Err(error) => {
            Err(RedirectError::Path { what: "open the bpf file system", path: bpffs.into(), source: error.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_bpffs_is_refused_with_what_to_do() {
        let error = Pins::create(Path::new("/tmp")).unwrap_err();
        assert_eq!(error.to_string(), "/tmp is not on a bpf file system: `mount -t bpf bpf /tmp` makes it one");
    }
}
