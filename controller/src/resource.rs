//! Objects of Kubernetes, reduced to what decides about resources. Whatever a manifest may get wrong is found here:
//! behind this door names, addresses and ports are valid.

pub mod authorization_policy;
pub mod egress;
pub mod gateway;
pub mod name;
pub mod peer_authentication;
pub mod place;
pub mod pod;
pub mod selector;
pub mod service;
pub mod service_entry;
pub mod slice;
pub mod use_waypoint;
pub mod workload_entry;

use std::net::IpAddr;

pub use name::{Labels, Name};

/// A part of an object that is left out, and why.
pub type Flaw = String;

/// A bounded piece of a text that anybody may have written.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

/// An address that packets can be sent to. Mapped IPv4 addresses become IPv4.
fn usable_ip(text: &str) -> Result<IpAddr, Flaw> {
    let ip = text.parse::<IpAddr>().map_err(|_| format!("{} is not an IP address", quoted(text)))?.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
        return Err(format!("{ip} cannot be the address of a pod or service"));
    }
    Ok(ip)
}

/// A port that can be dialled.
pub(crate) fn usable_port(what: &str, number: impl Into<i64>) -> Result<u16, Flaw> {
    let number = number.into();
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(format!("{what} {number} is not between 1 and 65535")),
    }
}

/// Longest text that is passed on: what Kubernetes allows in names.
const MAX_TEXT_BYTES: usize = 253;

/// Text that proxies may be told. What an API server would not have let in is told here, and becomes nothing.
fn usable_text<'a>(what: &str, text: &'a str, flaws: &mut Vec<Flaw>) -> &'a str {
    if text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control) {
        return text;
    }
    let quoted = quoted(text);
    flaws.push(format!("{what} {quoted} is ignored: it is longer than {MAX_TEXT_BYTES} bytes or not plain text"));
    ""
}

/// Kubernetes means TCP when it names no protocol; nothing else is carried.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|p| p.is_empty() || p == "TCP")
}
