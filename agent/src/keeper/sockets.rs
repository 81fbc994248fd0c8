//! The sockets that are made inside a pod's namespace. The calling thread must be in it.

use super::dns::DnsSockets;
use crate::pods::spec::DNS_CAPTURE_ANNOTATION;
use crate::sys::netns;
use loam_ebpf_common::mark;
use loam_node::{Kind, ListenerKind};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// Connections that wait to be accepted. The kernel caps it at net.core.somaxconn of the namespace, 4096 by default.
const BACKLOG: i32 = 4096;

/// The listeners of a pod in the order of [`ListenerKind::ALL`].
pub(super) type MeshListeners = [OwnedFd; 3];

/// Everything on which a pod is listened for.
#[derive(Debug)]
pub(super) struct Listeners {
    /// Connections to be carried.
    pub(super) mesh: MeshListeners,
    /// Questions to name servers, where they are captured.
    pub(super) dns: Option<DnsSockets>,
}

impl Listeners {
    /// The descriptors in the order in which they travel, those for names only if `dns` is set.
    pub(super) fn fds(&self, dns: bool) -> impl Iterator<Item = &OwnedFd> {
        self.mesh.iter().chain(self.dns.iter().filter(move |_| dns).flat_map(DnsSockets::fds))
    }

    /// Those that take connections.
    pub(super) fn tcp(&self) -> impl Iterator<Item = &OwnedFd> {
        self.mesh.iter().chain(self.dns.iter().flat_map(DnsSockets::listeners))
    }
}

/// Why a pod has no listeners or sockets.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// Something in the pod listens there.
    #[error("port {port} is taken by a process in the pod")]
    Busy { port: u16 },
    /// As above, on a port for questions to name servers.
    #[error(
        "port {port}, on which questions to name servers arrive, is taken by a process in the pod: free it, or annotate \
         the pod with {DNS_CAPTURE_ANNOTATION}: \"false\""
    )]
    DnsBusy { port: u16 },
    /// A listener could not be made.
    #[error("listen on port {port}: {source}")]
    Listen { port: u16, source: io::Error },
    /// A socket could not be made.
    #[error("make a socket: {0}")]
    Socket(#[source] io::Error),
    /// A listener that was offered is not what the pod needs.
    #[error("the listener offered for port {port} {why}")]
    Offered { port: u16, why: &'static str },
}

impl MakeError {
    /// Whether it is only that IPv6 is switched off.
    pub(super) fn is_without_ipv6(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if is_without_ipv6(source))
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Makes the listeners of connections to be carried.
pub(super) fn listeners() -> Result<MeshListeners, MakeError> {
    let [outbound, inbound, hbone] = ListenerKind::ALL.map(|kind| listener(kind.port()));
    Ok([outbound?, inbound?, hbone?])
}

fn listener(port: u16) -> Result<OwnedFd, MakeError> {
    let listening = match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if is_without_ipv6(&error) => listen((Ipv4Addr::UNSPECIFIED, port).into()),
        other => other,
    };
    listening.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => MakeError::Busy { port },
        _ => MakeError::Listen { port, source },
    })
}

/// Options set here are inherited by accepted connections.
fn listen(addr: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A former listener's connections may still be there; a listener may not.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_ip_transparent_v4(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts listeners that were made by a former keeper, if they are what this namespace needs.
pub(super) fn adopt(offered: MeshListeners, cookie: u64) -> Result<MeshListeners, MakeError> {
    for (fd, kind) in offered.iter().zip(ListenerKind::ALL) {
        let port = kind.port();
        let refused = |why| MakeError::Offered { port, why };
        let socket = socket2::SockRef::from(fd);
        match netns::cookie(fd) {
            Ok(theirs) if theirs == cookie => {}
            Ok(_) => return Err(refused("is of another network namespace")),
            Err(_) => return Err(refused("is not a socket")),
        }
        if !socket.is_listener().unwrap_or(false) {
            return Err(refused("does not listen"));
        }
        let bound = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        if bound.is_none_or(|bound| bound.port() != port || !bound.ip().is_unspecified()) {
            return Err(refused("is bound elsewhere"));
        }
        socket.set_nonblocking(true).map_err(MakeError::Socket)?;
    }
    Ok(offered)
}

/// Makes a socket for dialling or asking. It is redirected unless it is entered in EXEMPT.
pub(super) fn dialler(kind: Kind) -> Result<OwnedFd, MakeError> {
    make_dialler(kind).map_err(MakeError::Socket)
}

fn make_dialler(kind: Kind) -> io::Result<OwnedFd> {
    let domain = if kind.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    if kind.is_udp() {
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_mark(mark::PROXY)?;
        return Ok(socket.into());
    }
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if !kind.is_inbound() {
        socket.set_mark(mark::PROXY)?;
        return Ok(socket.into());
    }
    // Towards the application with the client's address, which is not one of this namespace.
    socket.set_mark(mark::DELIVER)?;
    if kind.is_ipv6() {
        socket.set_ip_transparent_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
        socket.set_freebind_v4(true)?;
    }
    netns::bind_address_no_port(&socket)?;
    Ok(socket.into())
}

/// The cookie of the calling thread's namespace.
pub(super) fn cookie() -> Result<u64, MakeError> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(MakeError::Socket)?;
    netns::cookie(&socket).map_err(MakeError::Socket)
}
