//! What a tunnel asks for: the `:authority` of a CONNECT.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::ids::Hostname;

/// Longest authority read: a DNS name, a colon and a port.
pub const MAX_AUTHORITY_BYTES: usize = 255 + 6;

/// The target of a CONNECT: an address or a name, always with a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port`, with brackets around IPv6.
    Addr(SocketAddr),
    /// `host:port`.
    Host(Hostname, u16),
}

impl Authority {
    /// Its port, which is never 0.
    pub fn port(&self) -> u16 {
        match self {
            Authority::Addr(addr) => addr.port(),
            Authority::Host(_, port) => *port,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Authority::Addr(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authority::Addr(addr) => addr.fmt(f),
            Authority::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Why an authority was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Longer than [`MAX_AUTHORITY_BYTES`].
    #[error("authority of {0} bytes is longer than {MAX_AUTHORITY_BYTES}")]
    TooLong(usize),
    /// No port, or none from 1 to 65535 in plain digits.
    #[error("authority {0:?} does not end in a port from 1 to 65535")]
    Port(String),
    /// What stands before the port is neither an address nor a name.
    #[error("authority {0:?} does not begin with an address or a hostname")]
    Host(String),
}

impl FromStr for Authority {
    type Err = AuthorityError;

    /// Strict: no user part, no zone, no empty host, no bare IPv6, and no other spelling of an IPv4 address
    /// (`1.2.3`, `0x7f.1`, `16909060`), which two readers could understand differently.
    fn from_str(s: &str) -> Result<Self, AuthorityError> {
        if s.len() > MAX_AUTHORITY_BYTES {
            return Err(AuthorityError::TooLong(s.len()));
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(|| AuthorityError::Port(s.into()))?;
        let port = parse_port(port).ok_or_else(|| AuthorityError::Port(s.into()))?;
        let bad_host = || AuthorityError::Host(s.into());

        if let Some(v6) = host.strip_prefix('[') {
            let v6: Ipv6Addr = v6.strip_suffix(']').and_then(|v6| v6.parse().ok()).ok_or_else(bad_host)?;
            // A mapped address is another spelling of an IPv4 address.
            return match v6.to_ipv4_mapped() {
                Some(_) => Err(bad_host()),
                None => Ok(Authority::Addr(SocketAddr::new(IpAddr::V6(v6), port))),
            };
        }
        if let Ok(v4) = host.parse::<Ipv4Addr>() {
            return Ok(Authority::Addr(SocketAddr::new(IpAddr::V4(v4), port)));
        }
        // The last label of a name is never numeric (RFC 1123 2.1), so what ends in a number is a broken address.
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        if last.starts_with(|c: char| c.is_ascii_digit()) || host.starts_with('*') {
            return Err(bad_host());
        }
        Ok(Authority::Host(host.parse().map_err(|_| bad_host())?, port))
    }
}

pub(crate) fn parse_port(s: &str) -> Option<u16> {
    // `u16::from_str` would take "+80"; leading zeros are another spelling of the same port.
    if s.is_empty() || s.starts_with('0') || !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_with_ports_are_read_and_written_back() {
        for text in ["10.0.0.1:80", "[fd00::1]:8080", "web.shop.svc.cluster.local:65535", "a_b.c:1"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        assert_eq!("WEB.shop.svc.:1".parse::<Authority>().unwrap().to_string(), "web.shop.svc:1");
    }

    #[test]
    fn anything_ambiguous_is_refused() {
        for text in [
            "",
            ":",
            ":80",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:0",
            "1.2.3.4:080",
            "1.2.3.4:+80",
            "1.2.3.4:65536",
            "1.2.3.4:99999999999",
            "1.2.3.4:80 ",
            " 1.2.3.4:80",
            "1.2.3:80",
            "16909060:80",
            "0x7f.1:80",
            "01.2.3.4:80",
            "1.2.3.256:80",
            "[::1:80",
            "::1:80",
            "[]:80",
            "[::1]80",
            "[fe80::1%eth0]:80",
            "[::ffff:1.2.3.4]:80",
            "[1.2.3.4]:80",
            "user@host:80",
            "host/path:80",
            "host?:80",
            "host name:80",
            "host\0:80",
            "*.example.org:80",
            "a..b:80",
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("{}:80", "a.".repeat(150)).parse::<Authority>().is_err());
    }
}
