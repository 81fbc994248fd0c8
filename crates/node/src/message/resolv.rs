//! How a pod resolves names.

use super::{MAX_NAME_BYTES, MessageError, ip, octets};
use std::net::IpAddr;

/// Most name servers of a pod: Kubernetes and the C library take three.
pub const MAX_NAMESERVERS: usize = 3;

/// Most search domains of a pod: Kubernetes takes 32.
pub const MAX_SEARCH: usize = 32;

/// Largest `ndots`: the C library takes no more.
pub const MAX_NDOTS: u32 = 15;

/// What a pod's resolv.conf says.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Resolv {
    /// Its name servers in network order, 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub nameservers: Vec<Vec<u8>>,
    /// What is appended to short names.
    #[prost(string, repeated, tag = "2")]
    pub search: Vec<String>,
    /// A name with fewer dots is short.
    #[prost(uint32, tag = "3")]
    pub ndots: u32,
}

impl Resolv {
    /// The settings with these servers, no more than [`MAX_NAMESERVERS`].
    pub fn new(servers: impl IntoIterator<Item = IpAddr>, search: Vec<String>, ndots: u32) -> Self {
        Self { nameservers: servers.into_iter().map(octets).collect(), search, ndots }
    }

    /// The name servers.
    pub fn servers(&self) -> impl Iterator<Item = IpAddr> {
        self.nameservers.iter().filter_map(|bytes| ip(bytes))
    }

    /// Whether every field keeps its rule.
    pub fn check(&self) -> Result<(), MessageError> {
        let refused = |field, why| Err(MessageError::Field { message: "Resolv", field, why });
        if self.nameservers.len() > MAX_NAMESERVERS {
            return refused("nameservers", "has more than 3");
        }
        if self.nameservers.iter().any(|bytes| ip(bytes).is_none()) {
            return refused("nameservers", "has one of neither 4 nor 16 bytes");
        }
        if self.search.len() > MAX_SEARCH {
            return refused("search", "has more than 32");
        }
        let is_name = |name: &String| (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        if !self.search.iter().all(is_name) {
            return refused("search", "has one that is no name");
        }
        match self.ndots > MAX_NDOTS {
            true => refused("ndots", "is more than 15"),
            false => Ok(()),
        }
    }
}
