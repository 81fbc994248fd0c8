//! Network namespaces: entering one, and telling one from another.
#![expect(unsafe_code, reason = "no crate in use reads SO_NETNS_COOKIE or sets IP_BIND_ADDRESS_NO_PORT")]

use rustix::fs::{fstat, fstatfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `f_type` of the file system of namespaces, linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// `SO_NETNS_COOKIE`, asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Which namespace a descriptor stands for. Two descriptors of one namespace have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// An id with these numbers, for tests that have no namespace.
    #[cfg(test)]
    pub(crate) fn fake(inode: u64) -> Self {
        Self { device: 0, inode }
    }
}

/// The id of a namespace. A descriptor of anything but a namespace is an error; that it is one of the network kind
/// shows on entering it.
pub fn id(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    if fstatfs(netns)?.f_type as u64 != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not of a namespace"));
    }
    let stat = fstat(netns)?;
    Ok(NetnsId { device: stat.st_dev, inode: stat.st_ino })
}

/// The namespace of the calling thread.
pub fn own() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// Moves the calling thread, and nothing else, into a network namespace. Of use only on a thread made for it: there is
/// no way back but by the descriptor of where it was.
pub fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

/// The cookie of the namespace a socket was made in, the number by which the kernel's programs know it.
pub fn cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut bytes = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes at cookie, an integer of that size, and the size it wrote.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`: binding to an address with port 0 leaves the port to connect, which may then share
/// it with connections to other destinations.
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the kernel reads the given size at the address of a live integer of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Another network namespace, whose loopback interface is up. Needs root.
    pub(crate) fn fresh() -> OwnedFd {
        inside(None, || {
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            own().unwrap()
        })
    }

    /// Runs something on a thread in a namespace, or in a new one.
    pub(crate) fn inside<T: Send>(netns: Option<BorrowedFd<'_>>, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            match netns {
                Some(netns) => enter(netns).unwrap(),
                // SAFETY: only this thread, which ends with the work, changes its namespace.
                None => assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0),
            }
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn a_file_is_no_namespace() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(id(file.as_fd()).unwrap_err().to_string(), "the descriptor is not of a namespace");
    }

    #[test]
    fn two_descriptors_of_one_namespace_have_one_id() {
        assert_eq!(id(own().unwrap().as_fd()).unwrap(), id(own().unwrap().as_fd()).unwrap());
    }

    #[test]
    fn sockets_of_one_namespace_share_its_cookie() {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first = cookie(listener()).unwrap();
        assert_ne!(first, 0);
        assert_eq!(first, cookie(listener()).unwrap());
    }
}
