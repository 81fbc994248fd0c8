//! The sockets on which a pod's questions to name servers arrive.

use loam_node::{DNS_LANES, DNS_SOCKETS_PER_FAMILY};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};

/// On the pod's loopback addresses. Every socket is answered alike, each answer through the socket that the question came
/// by: the kernel shows the application the server that it asked, whichever that was.
#[derive(Debug)]
pub struct DnsSockets {
    /// Questions by message, some sockets for each family.
    pub udp: Vec<Arc<UdpSocket>>,
    /// Questions by connection, one listener for each family.
    pub tcp: Vec<Arc<TcpListener>>,
}

impl DnsSockets {
    /// Takes over what came with a pod, after its listeners; none if there is none.
    pub(super) fn adopt(fds: Vec<OwnedFd>) -> io::Result<Option<Self>> {
        if fds.is_empty() {
            return Ok(None);
        }
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for (at, fd) in fds.into_iter().enumerate() {
            match at % DNS_SOCKETS_PER_FAMILY < usize::from(DNS_LANES) {
                true => {
                    let socket = std::net::UdpSocket::from(fd);
                    socket.set_nonblocking(true)?;
                    sockets.udp.push(Arc::new(UdpSocket::from_std(socket)?));
                }
                false => {
                    let listener = std::net::TcpListener::from(fd);
                    listener.set_nonblocking(true)?;
                    sockets.tcp.push(Arc::new(TcpListener::from_std(listener)?));
                }
            }
        }
        Ok(Some(sockets))
    }

    /// Their descriptors, in the order in which they came.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let families = self.udp.chunks(usize::from(DNS_LANES)).zip(&self.tcp);
        families.flat_map(|(udp, tcp)| udp.iter().map(|socket| socket.as_fd()).chain([tcp.as_fd()]))
    }
}
