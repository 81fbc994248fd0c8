//! Headers that are a matter between neighbours: they are taken off at every hop, and no filter touches them.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers about one connection (RFC 9110 7.6.1), with those that only proxies of old know.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Headers with which a proxy tells others what it knows or how to behave. From a client they would be lies.
const OWNED: [&str; 4] = ["x-forwarded-client-cert", "x-istio-attributes", "x-envoy-", "x-loam-"];

/// Takes off what is about the connection that a message came over: the known headers and those that `connection`
/// names. `te: trailers` and `trailer` stay, since trailers are passed on. What the message wants to upgrade to is given
/// back; an upgrade that is passed on needs both headers anew.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // Without it the request would be for somebody else.
            .filter(|name| *name != header::HOST)
            .collect();
        if named.contains(&header::UPGRADE) {
            upgrade = headers.get(header::UPGRADE).cloned();
        }
        // Not `te`, of which more is to be known.
        named.iter().filter(|name| **name != header::TE).for_each(|name| {
            headers.remove(name);
        });
    }
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// Takes off what only proxies may say, where a message comes from outside the mesh's proxies.
pub fn strip_owned(headers: &mut HeaderMap) {
    let owned: Vec<HeaderName> = headers.keys().filter(|name| is_owned(name)).cloned().collect();
    for name in owned {
        headers.remove(name);
    }
}

/// Whether only proxies may say it.
pub fn is_owned(name: &HeaderName) -> bool {
    OWNED.iter().any(|owned| match owned.ends_with('-') {
        true => name.as_str().starts_with(owned),
        false => name.as_str() == *owned,
    })
}

/// Whether a filter may edit it. Hosts are rewritten by a rewrite; lengths follow from bodies.
pub fn is_editable(name: &HeaderName) -> bool {
    *name != header::HOST && *name != header::CONTENT_LENGTH && !HOP_BY_HOP.contains(name) && !is_owned(name)
}

/// The elements of a header that is a list.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(|token| token.trim_matches([' ', '\t']))
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let mut message = headers(&[
            ("connection", "content-length, X-Deny ,keep-alive,"),
            ("connection", "close, host"),
            ("x-deny", "1"),
            ("x-deny", "2"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("content-length", "3"),
            ("host", "a"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("x-stay", "1"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut message), None);
        assert_eq!(message, headers(&[("host", "a"), ("x-stay", "1")]));
    }

    #[test]
    fn trailers_are_still_wanted_and_an_upgrade_is_told() {
        let mut message = headers(&[
            ("te", "gzip, Trailers"),
            ("trailer", "x-checksum"),
            ("connection", "TE, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut message), Some(HeaderValue::from_static("websocket")));
        assert_eq!(message, headers(&[("te", "trailers"), ("trailer", "x-checksum")]));
        // RFC 9110 7.8: without `connection` it is not for us.
        assert_eq!(strip_hop_by_hop(&mut headers(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn what_only_proxies_may_say_is_not_believed() {
        let mut message = headers(&[
            ("x-forwarded-client-cert", "By=spiffe://a"),
            ("x-envoy-original-path", "/a"),
            ("X-Envoy-Peer-Metadata", "a"),
            ("x-loam-source", "a"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-envoy", "1"),
        ]);
        strip_owned(&mut message);
        assert_eq!(message, headers(&[("x-forwarded-for", "10.0.0.1"), ("x-envoy", "1")]));
    }
}
