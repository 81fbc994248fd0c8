//! The network namespace of a pod: what is prepared in it, looked at, and taken back.
//!
//! The agent keeps no descriptor of a pod's namespace between two visits, because a descriptor would keep the namespace
//! alive. It opens the path each time and compares.

pub mod routing;
pub mod sockets;
pub mod sysctl;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::fstat;
use tokio::sync::oneshot;

use crate::sys::netns::{self as sys, NetnsId};

/// Why a namespace cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at the path.
    #[error("network namespace {0} does not exist")]
    Gone(PathBuf),
    /// There is something else at the path.
    #[error("{0} is not a network namespace")]
    NotOne(PathBuf),
    /// A pod never shares it with the node.
    #[error("{0} is the node's own network namespace")]
    Own(PathBuf),
    /// The path leads to another namespace than it did.
    #[error("network namespace {0} was replaced by another one")]
    Replaced(PathBuf),
    /// See `source`.
    #[error("open network namespace {0}")]
    Open(PathBuf, #[source] io::Error),
    /// See `source`.
    #[error("enter network namespace {0}")]
    Enter(PathBuf, #[source] io::Error),
    /// Connections could not come from it.
    #[error("the pod's address {0} is not on any interface of its network namespace")]
    NoSuchAddress(IpAddr),
    /// Routes and rules.
    #[error("{0}")]
    Netlink(&'static str, #[source] rtnetlink::Error),
    /// See `source`.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// See `source`.
    #[error("set net.{0}")]
    Sysctl(&'static str, #[source] io::Error),
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    id: NetnsId,
    inode: u64,
}

impl Netns {
    /// Opens the namespace at a path.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetnsError::Gone(path.into()),
            _ => NetnsError::Open(path.into(), error),
        })?;
        let id = sys::id(file.as_fd()).map_err(|_| NetnsError::NotOne(path.into()))?;
        let own = sys::own().and_then(|own| sys::id(own.as_fd()));
        if own.is_ok_and(|own| own == id) {
            return Err(NetnsError::Own(path.into()));
        }
        let inode = fstat(&file).map_err(|error| NetnsError::Open(path.into(), error.into()))?.st_ino;
        Ok(Self { path: path.into(), file, id, inode })
    }

    /// Which namespace it is, while it lives.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Its inode number, by which links name it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs something inside, on a thread that ends with it.
    pub async fn run<T, F>(&self, work: F) -> Result<T, NetnsError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, NetnsError> + Send + 'static,
    {
        let failed = |error| NetnsError::Enter(self.path.clone(), error);
        let file = self.file.try_clone().map_err(failed)?;
        let path = self.path.clone();
        let (sender, result) = oneshot::channel();
        let run = move || {
            let entered = sys::enter(file.as_fd()).map_err(|error| match error.raw_os_error() {
                // A namespace of another kind.
                Some(libc::EINVAL) => NetnsError::NotOne(path),
                _ => NetnsError::Enter(path, error),
            });
            // The one who asked may have stopped waiting.
            let _ = sender.send(entered.and_then(|()| work()));
        };
        std::thread::Builder::new().name("netns".into()).spawn(run).map_err(failed)?;
        result.await.map_err(|_| failed(io::Error::other("the thread inside it ended")))?
    }

    /// The number by which programs know it.
    pub async fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(cookie).await
    }
}

/// The cookie of the namespace that the calling thread is in.
pub fn cookie() -> Result<u64, NetnsError> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .map_err(|error| NetnsError::Io("make a socket", error))?;
    sys::cookie(&socket).map_err(|error| NetnsError::Io("read SO_NETNS_COOKIE", error))
}

/// Prepares the namespace of the calling thread for a pod with these addresses; says what had to be changed. Nothing
/// uses it until the pod's sockets are marked.
pub fn prepare(addresses: &[IpAddr]) -> Result<Vec<String>, NetnsError> {
    let mut changed = sysctl::set()?;
    changed.extend(routing::with(async |net| net.prepare(addresses).await)?);
    Ok(changed)
}

/// What differs from what [`prepare`] makes.
pub fn check(addresses: &[IpAddr]) -> Result<Vec<String>, NetnsError> {
    let mut problems = sysctl::check();
    problems.extend(routing::with(async |net| net.check(addresses).await)?);
    Ok(problems)
}

/// Takes back what [`prepare`] made. Only after the last marked socket is gone: without the rules its segments would
/// leave in plaintext.
pub fn undo(before: &sysctl::Before) -> Result<(), NetnsError> {
    routing::with(async |net| net.undo().await)?;
    before.restore()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        let error = |path: &str| Netns::open(Path::new(path)).unwrap_err().to_string();
        assert_eq!(error("/run/netns/there-is-none"), "network namespace /run/netns/there-is-none does not exist");
        assert_eq!(error("/dev/null"), "/dev/null is not a network namespace");
        assert_eq!(error("/proc/self/ns/net"), "/proc/self/ns/net is the node's own network namespace");
    }
}
