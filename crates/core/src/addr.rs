//! Addresses that cannot be swapped: each has the type of its meaning.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

macro_rules! socket_addr {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes an address as the kernel gave it; a mapped IPv4 address becomes IPv4.
            pub fn new(addr: SocketAddr) -> Self {
                Self(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            }

            /// The plain socket address.
            pub fn get(self) -> SocketAddr {
                self.0
            }

            /// Its IP address.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// Its port.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

socket_addr! {
    /// Who connected to us.
    DownstreamAddr
}
socket_addr! {
    /// What the application dialled, before the redirect.
    OrigDst
}
socket_addr! {
    /// What we dial.
    NextHop
}

/// An IP address within one network; the same address may stand for another workload elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddr {
    /// Name of the network; empty is the only one of a single-network mesh.
    pub network: Arc<str>,
    /// The address.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// Port of HBONE tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Port of the listener for what a pod dials.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the listener for what reaches a pod in the clear.
pub const INBOUND_PORT: u16 = 15006;

/// Ports of our own listeners inside a pod. Dialling one would bring a connection back to us for ever.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, HBONE_PORT | OUTBOUND_PORT | INBOUND_PORT)
}
