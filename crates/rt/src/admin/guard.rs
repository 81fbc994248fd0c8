//! Refuses what a web page made a browser send.
//!
//! A page may point its own host name at 127.0.0.1 (rebinding) or post a form across sites. A request that names this
//! server by address or as localhost, and comes from no other origin, is neither.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Version};

/// Which requests a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Those that name the server by IP address or as localhost and come from no web page of another origin.
    Local,
    /// As [`Callers::Local`], and only from the machine itself; all for [open](super::Routes::open) routes.
    Machine,
    /// All: for what changes nothing and hides nothing, such as metrics behind a service name.
    Any,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("this path is only for callers on the machine itself")]
    Elsewhere,
    #[error("the Host header is missing or there are several")]
    NoHost,
    #[error("the Host header is neither an IP address nor localhost")]
    ForeignHost,
    #[error("the request comes from a web page")]
    ForeignOrigin,
}

impl Callers {
    /// Whether a request from `peer` for a route is served.
    pub(super) fn check(self, peer: IpAddr, open: bool, version: Version, headers: &HeaderMap) -> Result<(), Refused> {
        match self {
            Self::Any => Ok(()),
            Self::Local => local(version, headers),
            Self::Machine if open => Ok(()),
            Self::Machine if peer.to_canonical().is_loopback() => local(version, headers),
            Self::Machine => Err(Refused::Elsewhere),
        }
    }
}

fn local(version: Version, headers: &HeaderMap) -> Result<(), Refused> {
    let host = match single(headers, HOST.as_str())? {
        Some(host) => host,
        // HTTP/1.0 has none, and no browser speaks it.
        None if version == Version::HTTP_10 => return Ok(()),
        None => return Err(Refused::NoHost),
    };
    if !is_local_name(host) {
        return Err(Refused::ForeignHost);
    }
    let origin = single(headers, ORIGIN.as_str()).map_err(|_| Refused::ForeignOrigin)?;
    let same = origin.is_none_or(|origin| origin.strip_prefix("http://").is_some_and(|o| o.eq_ignore_ascii_case(host)));
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site" || site == "same-site");
    if same && !cross_site { Ok(()) } else { Err(Refused::ForeignOrigin) }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refused> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        (Some(_), _) => Err(Refused::NoHost),
    }
}

fn is_local_name(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if host.parse::<SocketAddr>().is_ok() || bare.unwrap_or(host).parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some(_) => return false,
        None => host,
    };
    // Browsers resolve localhost themselves (RFC 6761 6.3); nobody can rebind it.
    name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&'static str, &str)]) -> Result<(), Refused> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        Callers::Local.check([10, 0, 0, 9].into(), false, Version::HTTP_11, &headers)
    }

    #[test]
    fn what_is_not_open_is_for_the_machine_itself() {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("10.0.0.1:15014"))]);
        let check = |peer: &str, open| Callers::Machine.check(peer.parse().unwrap(), open, Version::HTTP_11, &headers);
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check(peer, false), Ok(()), "{peer}");
        }
        for peer in ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert_eq!((check(peer, false), check(peer, true)), (Err(Refused::Elsewhere), Ok(())), "{peer}");
        }
    }

    #[test]
    fn addresses_and_localhost_are_served() {
        for host in [
            "127.0.0.1:15000",
            "127.0.0.1",
            "[::1]:15000",
            "[::1]",
            "::1",
            "localhost:15000",
            "LOCALHOST",
            "10.1.2.3:15000",
        ] {
            assert_eq!(check(&[("host", host)]), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_name_that_can_be_rebound_is_refused() {
        for host in [
            "evil.example",
            "evil.example:15000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:x",
            "",
            "a@127.0.0.1",
        ] {
            assert_eq!(check(&[("host", host)]), Err(Refused::ForeignHost), "{host}");
        }
        assert_eq!(check(&[]), Err(Refused::NoHost));
        assert_eq!(check(&[("host", "localhost"), ("host", "localhost")]), Err(Refused::NoHost));
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let host = ("host", "127.0.0.1:15000");
        for origin in
            ["http://evil.example", "null", "http://192.168.1.5", "https://127.0.0.1:15000", "http://127.0.0.1:8080"]
        {
            assert_eq!(check(&[host, ("origin", origin)]), Err(Refused::ForeignOrigin), "{origin}");
        }
        assert_eq!(check(&[host, ("sec-fetch-site", "cross-site")]), Err(Refused::ForeignOrigin));
        assert_eq!(check(&[host, ("origin", "http://127.0.0.1:15000"), ("sec-fetch-site", "same-origin")]), Ok(()));
        assert_eq!(check(&[host, ("sec-fetch-site", "none")]), Ok(()));
    }
}
