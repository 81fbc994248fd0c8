//! How the processes of one node talk: the keeper with ztunnels, the agent with the keeper.
//!
//! Both speak over `SOCK_SEQPACKET` unix sockets, one protobuf message per packet, with file descriptors beside it.
//! A connection begins with [`message::Hello`] and [`message::Welcome`]; then each direction has one envelope
//! ([`message::FromZtunnel`], [`message::ToZtunnel`], [`message::FromAgent`], [`message::ToAgent`]).
//!
//! # Versions
//!
//! During an upgrade each of the processes may be the older one, and a keeper is replaced last. Both ends of a connection
//! therefore speak the newest version that both know ([`message::Hello::agree`]), and each build knows the one before its
//! own as well. What may change, and how:
//!
//! - A field may be added at any time: whoever does not know it skips it, and where it is absent its default means what was
//!   so before. Fields are never renumbered, reused or given another meaning.
//! - A kind of message, of socket or of answer may be added, too. Since version 4 whoever does not know it passes it over
//!   and closes the descriptors beside it; a request that needs an answer gets one ([`message::Unknown`], an error in
//!   [`message::Sockets`]). To a peer of version 3, which ends the connection instead, none is sent.
//! - How many descriptors belong to a kind never changes, and bounds of fields never get narrower.
//! - Anything else takes another [`VERSION`]; the one before is spoken for as long as it is [`message::OLDEST_VERSION`].

pub mod agent;
pub mod message;
pub mod socket;

pub use agent::{AgentClient, ClientError};
pub use message::{Kind, PodInfo, PodRef, Resolv, VERSION};
pub use socket::{Listener, Packet, Socket, SocketError};

/// Name of the socket for the agent inside the run directory.
pub const AGENT_SOCKET: &str = "agent.sock";

/// Name of the socket for ztunnels inside the run directory.
pub const ZTUNNEL_SOCKET: &str = "ztunnel.sock";

/// Most pods of one node. Kubernetes advises 110 and large nodes run 500; it bounds every list of pods kept or sent.
pub const MAX_PODS: usize = 1024;

/// The listeners of a pod, in the order in which their descriptors travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerKind {
    /// Connections that the pod opens.
    Outbound,
    /// Plaintext connections to the pod.
    Inbound,
    /// HBONE tunnels to the pod.
    Hbone,
}

impl ListenerKind {
    /// Every kind in order.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Hbone];

    /// The port it is bound to. The redirect chooses listeners by slot; the ports only have to stand in nobody's way,
    /// except HBONE's, which is the contract with other nodes.
    pub const fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Inbound => 15006,
            Self::Hbone => 15008,
        }
    }
}

/// Port of the sockets on which a pod's questions to name servers arrive, on 127.0.0.1 and ::1.
pub const DNS_PORT: u16 = 15053;

/// UDP sockets of a family: on [`DNS_PORT`] and on the ports after it. The redirect spreads a socket that asks several
/// servers over them, so that it can tell their answers apart; whoever answers treats them alike.
pub const DNS_LANES: u16 = 2;

/// Descriptors of a family: its UDP sockets, then its TCP listener.
pub const DNS_SOCKETS_PER_FAMILY: usize = DNS_LANES as usize + 1;

/// Most needs that a ztunnel may have open. Each brings at most 253 descriptors, so this bounds what is under way.
pub const MAX_OPEN_NEEDS: usize = 32;
