//! The sockets on which a pod's questions to name servers arrive. The calling thread of [`DnsSockets::make`] must be in
//! the pod's namespace.

use super::sockets::MakeError;
use crate::sys::netns;
use loam_ebpf_common::dns::{LANES, LISTENER_PORT};
use loam_node::{DNS_LANES, DNS_PORT, DNS_SOCKETS_PER_FAMILY};
use rustix::net::connect_unspec;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};

// The hooks of the kernel and the sockets must mean the same ports.
const _: () = assert!(DNS_PORT == LISTENER_PORT && DNS_LANES as u32 == LANES);

/// Connections that wait to be accepted: a pod asks over TCP what did not fit into a message.
const BACKLOG: i32 = 128;

/// The sockets of each family that the pod has: [`DNS_LANES`] for messages, then one that listens.
#[derive(Debug)]
pub(super) struct DnsSockets(Vec<OwnedFd>);

impl DnsSockets {
    /// Makes them, refusing questions.
    pub(super) fn make() -> Result<Self, MakeError> {
        let mut fds = family(Ipv4Addr::LOCALHOST.into())?;
        match family(Ipv6Addr::LOCALHOST.into()) {
            Ok(more) => fds.extend(more),
            Err(error) if error.is_without_ipv6() => {}
            Err(error) => return Err(error),
        }
        let sockets = Self(fds);
        sockets.refuse().map_err(MakeError::Socket)?;
        Ok(sockets)
    }

    /// Accepts those that a former keeper made, as they are, if they are what this namespace needs.
    pub(super) fn adopt(offered: Vec<OwnedFd>, cookie: u64) -> Result<Self, MakeError> {
        let families = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let expected = families.iter().flat_map(|ip: &IpAddr| plan(*ip));
        for (fd, (kind, addr)) in offered.iter().zip(expected) {
            let refused = |why| MakeError::Offered { port: addr.port(), why };
            match netns::cookie(fd) {
                Ok(theirs) if theirs == cookie => {}
                Ok(_) => return Err(refused("is of another network namespace")),
                Err(_) => return Err(refused("is not a socket")),
            }
            let socket = SockRef::from(fd);
            if socket.r#type().ok() != Some(kind) {
                return Err(refused("is of another kind"));
            }
            if socket.local_addr().ok().and_then(|bound| bound.as_socket()) != Some(addr) {
                return Err(refused("is bound elsewhere"));
            }
            if kind == Type::STREAM && !socket.is_listener().unwrap_or(false) {
                return Err(refused("does not listen"));
            }
            socket.set_nonblocking(true).map_err(MakeError::Socket)?;
        }
        Ok(Self(offered))
    }

    /// Their descriptors, in the order in which they travel.
    pub(super) fn fds(&self) -> &[OwnedFd] {
        &self.0
    }

    /// Those that listen, IPv4's first.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.chunks(DNS_SOCKETS_PER_FAMILY).filter_map(|family| family.last())
    }

    /// Those for messages.
    pub(super) fn udp(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.chunks(DNS_SOCKETS_PER_FAMILY).flat_map(|family| family.iter().take(usize::from(DNS_LANES)))
    }

    /// Lets questions by message wait for who answers them.
    pub(super) fn accept(&self) -> io::Result<()> {
        self.udp().try_for_each(|fd| Ok(connect_unspec(fd.as_fd())?))
    }

    /// Has the kernel refuse questions by message, so that nobody waits for an answer that will not come. A socket that
    /// is connected takes messages of its peer alone, here of itself; for the kernel the port is closed to all others.
    pub(super) fn refuse(&self) -> io::Result<()> {
        self.udp().try_for_each(|fd| {
            let socket = SockRef::from(fd);
            let own = socket.local_addr()?;
            socket.connect(&own)
        })
    }
}

/// The sockets of the family of a loopback address: their types and addresses.
fn plan(ip: IpAddr) -> impl Iterator<Item = (Type, SocketAddr)> {
    let udp = (DNS_PORT..DNS_PORT + DNS_LANES).map(move |port| (Type::DGRAM, SocketAddr::new(ip, port)));
    udp.chain([(Type::STREAM, SocketAddr::new(ip, DNS_PORT))])
}

fn family(ip: IpAddr) -> Result<Vec<OwnedFd>, MakeError> {
    let make = |(kind, addr): (Type, SocketAddr)| {
        make(kind, addr).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => MakeError::DnsBusy { port: addr.port() },
            _ => MakeError::Listen { port: addr.port(), source },
        })
    };
    plan(ip).map(make).collect()
}

fn make(kind: Type, addr: SocketAddr) -> io::Result<OwnedFd> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(addr), kind.nonblocking(), Some(protocol))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // A former listener's connections may still be there; a listener may not.
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(&addr.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::keeper::sockets::cookie;
    use crate::keeper::tests::as_root;
    use crate::sys::netns::tests::{fresh, inside};

    /// Asks every socket for messages; whether the question is refused.
    fn refusals(sockets: &DnsSockets) -> Vec<bool> {
        let refused = |fd: &OwnedFd| {
            let addr = SockRef::from(fd).local_addr().unwrap().as_socket().unwrap();
            let client = UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).unwrap();
            client.connect(addr).unwrap();
            client.send(b"?").unwrap();
            // What the kernel refuses on loopback, it has refused when the call that sends is back.
            client.set_nonblocking(true).unwrap();
            client.recv(&mut [0; 8]).unwrap_err().kind() == ErrorKind::ConnectionRefused
        };
        sockets.udp().map(refused).collect()
    }

    #[test]
    fn questions_are_refused_at_once_while_nobody_answers_and_wait_while_somebody_does() {
        if !as_root() {
            return;
        }
        inside(Some(fresh().as_fd()), || {
            let sockets = DnsSockets::make().unwrap();
            assert_eq!(refusals(&sockets), [true; 4]);
            sockets.accept().unwrap();
            assert_eq!(refusals(&sockets), [false; 4]);
            sockets.refuse().unwrap();
            sockets.refuse().unwrap();
            assert_eq!(refusals(&sockets), [true; 4]);
            sockets.accept().unwrap();
            assert_eq!(refusals(&sockets), [false; 4]);
        });
    }

    #[test]
    fn only_sockets_that_fit_the_namespace_are_adopted() {
        if !as_root() {
            return;
        }
        inside(Some(fresh().as_fd()), || {
            let cookie = cookie().unwrap();
            let adopt = |fds: &[OwnedFd], cookie| {
                let fds = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
                DnsSockets::adopt(fds, cookie).map(drop).map_err(|error| error.to_string())
            };
            let made = DnsSockets::make().unwrap();
            assert_eq!(adopt(made.fds(), cookie), Ok(()));
            let text = |why| Err(format!("the listener offered for port 15053 {why}"));
            assert_eq!(adopt(made.fds(), cookie + 1), text("is of another network namespace"));
            let udp: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
            assert_eq!(adopt(&[udp], cookie), text("is bound elsewhere"));
            let tcp: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
            assert_eq!(adopt(&[tcp], cookie), text("is of another kind"));
        });
    }
}
