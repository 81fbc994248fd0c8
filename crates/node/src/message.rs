//! The messages, and the rules that one must keep before anybody acts on it.

mod agent;
mod resolv;
mod ztunnel;

pub use agent::*;
pub use resolv::*;
pub use ztunnel::*;

use crate::DNS_SOCKETS_PER_FAMILY;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The newest version of the protocol that this build speaks. The crate's documentation says when it becomes another one.
pub const VERSION: u32 = 4;

/// The oldest version that this build speaks: the one before, so that the processes of a node may be replaced one by one,
/// in any order, and put back.
pub const OLDEST_VERSION: u32 = VERSION - 1;

/// Largest message. A snapshot of pods goes out one pod a message, so everything fits well below it.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Most descriptors in one message: the kernel's `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;

/// Longest uid, name, namespace, account or node: Kubernetes allows 253 characters, `ns/name` uids have two parts.
pub const MAX_NAME_BYTES: usize = 512;

/// Longest error or problem text that is sent; longer ones are cut.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Most addresses of a pod. Two are usual; extra networks add a few.
pub const MAX_ADDRESSES: usize = 16;

/// Bytes of pods in one [`Pods`] part, so that a part stays below [`MAX_MESSAGE_BYTES`] whatever the next pod needs.
pub const MAX_PODS_PART_BYTES: usize = 32 * 1024;

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not the protobuf message that belongs here.
    #[error("{message}: {source}")]
    Malformed {
        /// The message that was expected.
        message: &'static str,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// A field breaks its rule.
    #[error("{message}.{field} {why}")]
    Field {
        /// The message.
        message: &'static str,
        /// The field in it.
        field: &'static str,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The number of descriptors beside it is wrong.
    #[error("{message} came with {got} descriptors, not {expected}")]
    Descriptors {
        /// The message.
        message: &'static str,
        /// How many came.
        got: usize,
        /// How many belong to it.
        expected: &'static str,
    },
    /// It is larger than a packet may be.
    #[error("{message} has {bytes} bytes, more than 65536")]
    TooLarge {
        /// The message.
        message: &'static str,
        /// Its size.
        bytes: usize,
    },
}

/// A message that goes alone in a packet.
pub trait Wire: prost::Message + Default {
    /// Its name in errors.
    const NAME: &'static str;

    /// Checks every rule of the fields, and that `descriptors` of them belong beside it.
    fn check(&self, descriptors: usize) -> Result<(), MessageError>;
}

/// The bytes of a message. Fails only when it is too large.
pub fn encode<M: Wire>(message: &M) -> Result<Vec<u8>, MessageError> {
    let bytes = message.encode_to_vec();
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLarge { message: M::NAME, bytes: bytes.len() });
    }
    Ok(bytes)
}

/// The message in `bytes`, which came with `descriptors` of them; it keeps every rule when this succeeds.
pub fn decode<M: Wire>(bytes: &[u8], descriptors: usize) -> Result<M, MessageError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLarge { message: M::NAME, bytes: bytes.len() });
    }
    let message = M::decode(bytes).map_err(|source| MessageError::Malformed { message: M::NAME, source })?;
    message.check(descriptors)?;
    Ok(message)
}

/// `text` cut to [`MAX_TEXT_BYTES`] at a character's border.
pub fn cut(mut text: String) -> String {
    let mut end = MAX_TEXT_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

// ---- greeting ----

/// First packet of a connection, from the one that connected.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// The oldest version that the sender speaks. Version 3 speaks no other than this one, and takes no other. Version 1
    /// belongs to the protocol that Istio's CNI agent speaks with its ztunnel: its version lies in the same place, so
    /// that one socket can tell both apart.
    #[prost(uint32, tag = "1")]
    pub oldest: u32,
    /// The process, as it knows itself; for logs.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// A ztunnel that accepts no more and only needs sockets until its last connection ends.
    #[prost(bool, tag = "3")]
    pub leaving: bool,
    /// The newest version that the sender speaks; 0 if that is `oldest`.
    #[prost(uint32, tag = "4")]
    pub newest: u32,
}

/// The keeper's answer to [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The version that both speak from here on; the keeper's [`VERSION`] if there is none.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Drawn by each keeper process when it starts: another number means that all is to be told anew.
    #[prost(fixed64, tag = "2")]
    pub keeper: u64,
    /// Why the connection is refused; empty if it is not.
    #[prost(string, tag = "3")]
    pub error: String,
}

impl Hello {
    /// The greeting of this process.
    pub fn new() -> Self {
        Self { oldest: OLDEST_VERSION, pid: std::process::id(), leaving: false, newest: VERSION }
    }

    /// The version to speak with who sent this, or why there is none.
    pub fn agree(&self) -> Result<u32, String> {
        let theirs = self.oldest..=self.newest.max(self.oldest);
        if theirs == (1..=1) {
            return Err("hello of version 1, Istio's ztunnel protocol, which this keeper does not serve".into());
        }
        agreed(&theirs, &(OLDEST_VERSION..=VERSION)).ok_or_else(|| {
            format!("hello of {}, this keeper speaks {}", versions(&theirs), versions(&(OLDEST_VERSION..=VERSION)))
        })
    }
}

impl Welcome {
    /// The version that the keeper chose, or why it cannot be spoken with.
    pub fn agree(&self) -> Result<u32, String> {
        let ours = OLDEST_VERSION..=VERSION;
        match (&self.error[..], ours.contains(&self.version)) {
            ("", true) => Ok(self.version),
            ("", false) => Err(format!("it speaks version {}, we {}", self.version, versions(&ours))),
            (error, _) => Err(error.to_owned()),
        }
    }
}

/// The newest version that is in both ranges.
fn agreed(theirs: &RangeInclusive<u32>, ours: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *theirs.end().min(ours.end());
    (newest >= *theirs.start().max(ours.start())).then_some(newest)
}

fn versions(range: &RangeInclusive<u32>) -> String {
    match range.start() == range.end() {
        true => format!("version {}", range.start()),
        false => format!("versions {} to {}", range.start(), range.end()),
    }
}

impl Wire for Hello {
    const NAME: &'static str = "Hello";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        exactly(Self::NAME, descriptors, 0)
    }
}

impl Wire for Welcome {
    const NAME: &'static str = "Welcome";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        exactly(Self::NAME, descriptors, 0)
    }
}

// ---- shared parts ----

/// What the agent knows about a pod and a ztunnel needs.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PodInfo {
    /// The pod's Kubernetes UID, or `<namespace>/<name>` where there is none.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Its service account.
    #[prost(string, tag = "4")]
    pub service_account: String,
    /// The node it runs on.
    #[prost(string, tag = "5")]
    pub node: String,
    /// Its addresses in network order, 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub addresses: Vec<Vec<u8>>,
    /// Whether what it asks name servers is captured.
    #[prost(bool, tag = "7")]
    pub dns: bool,
    /// How it resolves names; none where that is not known.
    #[prost(message, optional, tag = "8")]
    pub resolv: Option<Resolv>,
    /// It was found before its containers ran: it may be captured, and send, before the mesh configuration has it, since
    /// nobody reaches it yet whom that would cut off.
    #[prost(bool, tag = "9")]
    pub starting: bool,
}

impl PodInfo {
    /// The addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter_map(|bytes| ip(bytes))
    }

    /// The same pod with these addresses.
    pub fn with_ips(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = ips.into_iter().map(octets).collect();
        self
    }

    /// Whether every field keeps its rule.
    pub fn check(&self) -> Result<(), MessageError> {
        let message = "PodInfo";
        name(message, "uid", &self.uid)?;
        name(message, "name", &self.name)?;
        name(message, "namespace", &self.namespace)?;
        name(message, "service_account", &self.service_account)?;
        name(message, "node", &self.node)?;
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(MessageError::Field { message, field: "addresses", why: "has more than 16" });
        }
        if self.addresses.iter().any(|bytes| ip(bytes).is_none()) {
            return Err(MessageError::Field { message, field: "addresses", why: "has one of neither 4 nor 16 bytes" });
        }
        self.resolv.as_ref().map_or(Ok(()), Resolv::check)
    }
}

/// `namespace/name`, as logs show a pod.
impl std::fmt::Display for PodInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Which stay of a pod at the keeper is meant. A pod that is removed and added again, or that changes its network
/// namespace, gets another incarnation, so a late word about the former cannot be taken for one about the latter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct PodRef {
    /// [`PodInfo::uid`].
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Counted by the keeper over all pods, from 1.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// What a socket is for. All are nonblocking, close-on-exec and exempt from the redirect; those of TCP are without delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Never sent.
    Unspecified = 0,
    /// To the network, IPv4.
    Out4 = 1,
    /// To the network, IPv6.
    Out6 = 2,
    /// To the application, from any IPv4 address.
    In4 = 3,
    /// To the application, from any IPv6 address.
    In6 = 4,
    /// UDP to a name server, IPv4. The kernel draws its port when it is connected.
    Ask4 = 5,
    /// UDP to a name server, IPv6.
    Ask6 = 6,
}

impl Kind {
    /// Every kind of socket that can be asked for.
    pub const ALL: [Self; 6] = [Self::Out4, Self::Out6, Self::In4, Self::In6, Self::Ask4, Self::Ask6];

    /// For dialling `ip` on the network.
    pub fn outbound(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::Out6 } else { Self::Out4 }
    }

    /// For dialling the application at `ip`.
    pub fn inbound(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::In6 } else { Self::In4 }
    }

    /// For asking the name server at `ip` over UDP.
    pub fn asking(ip: IpAddr) -> Self {
        if ip.is_ipv6() { Self::Ask6 } else { Self::Ask4 }
    }

    /// Whether it is an IPv6 socket.
    pub fn is_ipv6(self) -> bool {
        matches!(self, Self::Out6 | Self::In6 | Self::Ask6)
    }

    /// Whether it is a UDP socket.
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Ask4 | Self::Ask6)
    }

    /// Whether it is for dialling the application.
    pub fn is_inbound(self) -> bool {
        matches!(self, Self::In4 | Self::In6)
    }
}

/// Last message before the keeper closes a connection by itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Goodbye {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
}

// ---- rules ----

fn exactly(message: &'static str, got: usize, expected: usize) -> Result<(), MessageError> {
    let expected_text = match expected {
        0 => "0",
        1 => "1",
        _ => "2",
    };
    match got == expected {
        true => Ok(()),
        false => Err(MessageError::Descriptors { message, got, expected: expected_text }),
    }
}

/// Three listeners, and beside them the sockets for names of each family that the pod has.
fn listeners(message: &'static str, got: usize) -> Result<(), MessageError> {
    const ONE_FAMILY: usize = 3 + DNS_SOCKETS_PER_FAMILY;
    const BOTH_FAMILIES: usize = ONE_FAMILY + DNS_SOCKETS_PER_FAMILY;
    match got {
        3 | ONE_FAMILY | BOTH_FAMILIES => Ok(()),
        got => Err(MessageError::Descriptors { message, got, expected: "3, 6 or 9" }),
    }
}

fn present<'a, T>(message: &'static str, field: &'static str, value: Option<&'a T>) -> Result<&'a T, MessageError> {
    value.ok_or(MessageError::Field { message, field, why: "is missing" })
}

fn name(message: &'static str, field: &'static str, value: &str) -> Result<(), MessageError> {
    let why = match value {
        "" => "is empty",
        _ if value.len() > MAX_NAME_BYTES => "is longer than 512 bytes",
        _ if value.chars().any(char::is_control) => "has a control character",
        _ => return Ok(()),
    };
    Err(MessageError::Field { message, field, why })
}

fn text(message: &'static str, field: &'static str, value: &str) -> Result<(), MessageError> {
    match value.len() > MAX_TEXT_BYTES {
        true => Err(MessageError::Field { message, field, why: "is longer than 1024 bytes" }),
        false => Ok(()),
    }
}

fn incarnation(message: &'static str, value: u64) -> Result<(), MessageError> {
    match value {
        0 => Err(MessageError::Field { message, field: "incarnation", why: "is 0" }),
        _ => Ok(()),
    }
}

fn pod_ref(message: &'static str, pod: Option<&PodRef>) -> Result<(), MessageError> {
    let pod = present(message, "pod", pod)?;
    name(message, "pod.uid", &pod.uid)?;
    incarnation(message, pod.incarnation)
}

/// A kind that is not known here is one of a newer version, which is for the receiver to answer.
fn socket_kind(message: &'static str, kind: i32) -> Result<(), MessageError> {
    match kind > Kind::Unspecified as i32 {
        true => Ok(()),
        false => Err(MessageError::Field { message, field: "kind", why: "is no kind of socket" }),
    }
}

#[cfg(test)]
mod skew;
#[cfg(test)]
mod tests;
