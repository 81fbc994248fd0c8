//! `forwarded`: the client's address and the name it dialled (RFC 7239).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{HeaderError, bounded};
use crate::ids::Hostname;

const NAME: &str = "forwarded";

/// One hop of forwarding. Parts that are absent or obfuscated are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarded {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The client's port.
    pub client_port: Option<u16>,
    /// The service that the client dialled.
    pub host: Option<Hostname>,
}

impl Forwarded {
    /// For a connection of `client` to the service `host`.
    pub fn new(client: SocketAddr, host: Option<Hostname>) -> Self {
        Self { client: Some(client.ip().to_canonical()), client_port: Some(client.port()), host }
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(ip) = self.client {
            // RFC 7239 6: quotes are needed for the colon of a port and for IPv6.
            match (ip, self.client_port) {
                (ip, Some(port)) => write!(f, "for=\"{}\"", SocketAddr::new(ip, port))?,
                (IpAddr::V4(ip), None) => write!(f, "for={ip}")?,
                (IpAddr::V6(ip), None) => write!(f, "for=\"[{ip}]\"")?,
            }
            separator = ";";
        }
        match &self.host {
            Some(host) => write!(f, "{separator}host={host}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Forwarded {
    type Err = HeaderError;

    /// Reads the first element, which the hop nearest to the client wrote.
    fn from_str(value: &str) -> Result<Self, HeaderError> {
        let malformed = |why| HeaderError::Malformed { name: NAME, why };
        let mut rest = bounded(NAME, value)?;
        let mut forwarded = Forwarded::default();
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            let Some((key, after)) = rest.split_once('=') else {
                return match rest {
                    "" => Ok(forwarded),
                    _ => Err(malformed("has a part without '='")),
                };
            };
            let (text, after) = take_value(after).ok_or_else(|| malformed("has a quote that does not end"))?;
            match key.to_ascii_lowercase().as_str() {
                "for" if forwarded.client.is_none() => {
                    (forwarded.client, forwarded.client_port) =
                        parse_node(&text).ok_or_else(|| malformed("has a 'for' that is not an address"))?;
                }
                "host" if forwarded.host.is_none() => {
                    let name = text.rsplit_once(':').map_or(&*text, |(name, _)| name);
                    forwarded.host = Some(name.parse().map_err(|_| malformed("has a 'host' that is not a name"))?);
                }
                _ => {}
            }
            match after.trim_start_matches([' ', '\t']) {
                after if after.is_empty() || after.starts_with(',') => return Ok(forwarded),
                after => rest = after.strip_prefix(';').ok_or_else(|| malformed("has no ';' between parts"))?,
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn take_value(s: &str) -> Option<(String, &str)> {
    let Some(quoted) = s.strip_prefix('"') else {
        let end = s.find([';', ',', ' ', '\t']).unwrap_or(s.len());
        return Some((s[..end].into(), &s[end..]));
    };
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((text, &quoted[i + 1..])),
            '\\' => text.push(chars.next()?.1),
            c => text.push(c),
        }
    }
    None
}

/// RFC 7239 6: an address with or without a port, `unknown`, or an obfuscated name.
fn parse_node(s: &str) -> Option<(Option<IpAddr>, Option<u16>)> {
    if s.contains('%') {
        // A zone means something on the sender's machine only.
        return None;
    }
    if let Ok(addr) = s.parse::<SocketAddr>() {
        return Some((Some(addr.ip().to_canonical()), Some(addr.port())));
    }
    let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Some((Some(ip.to_canonical()), None)),
        Err(_) if s.starts_with('_') || s.eq_ignore_ascii_case("unknown") => Some((None, None)),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_a_host_are_read_back_as_they_were_written() {
        for text in [
            "for=\"10.0.0.1:4711\"",
            "for=\"[fd00::1]:4711\";host=web.shop.svc.cluster.local",
            "for=10.0.0.1",
            "for=\"[fd00::1]\"",
            "host=web",
            "",
        ] {
            assert_eq!(text.parse::<Forwarded>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_first_element_counts_and_unknown_parts_are_passed_over() {
        let read: Forwarded =
            "by=_x; FOR=\"10.0.0.1:1\" ;proto=\"a;b,\\\"\";Host=\"web:80\", for=9.9.9.9".parse().unwrap();
        assert_eq!(read.to_string(), "for=\"10.0.0.1:1\";host=web");
        assert_eq!("for=unknown".parse::<Forwarded>().unwrap(), Forwarded::default());
        assert_eq!("for=_hidden".parse::<Forwarded>().unwrap(), Forwarded::default());
    }

    #[test]
    fn hostile_values_are_refused() {
        for text in [
            "for",
            "for=",
            "for=\"10.0.0.1",
            "for=\"10.0.0.1\\",
            "for=10.0.0.1 x",
            "for=10.0.0.300",
            "for=\"[::1%1]:1\"",
            "host=a b",
            "host=..",
            &format!("host={}", "a".repeat(5000)),
        ] {
            assert!(text.parse::<Forwarded>().is_err(), "{text:.40?} was accepted");
        }
    }
}
