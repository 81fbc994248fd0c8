//! Redirects: the place that a client is told to go to.

use http::HeaderValue;

use super::Redirect;
use crate::http::table::Prefix;
use crate::http::target::Target;

impl Redirect {
    /// The value of `location` for a request that came to `port`, as callers know it. `None` if it has no legal form.
    pub fn location(&self, target: &Target, port: u16, matched: Option<&Prefix>) -> Option<HeaderValue> {
        let scheme = self.scheme.unwrap_or(target.scheme());
        let host = self.host.as_deref().unwrap_or(target.host());
        // Gateway API, `HTTPRequestRedirectFilter.port`: another scheme comes with its own port.
        let port = self.port.unwrap_or(if self.scheme.is_some() { scheme.default_port() } else { port });
        let path = self.path.as_ref().map(|edit| edit.apply(target.path(), matched).ok_or(())).transpose().ok()?;
        let changed = target.changed(Some(host), path.as_deref())?;
        let (host, path) = (changed.host(), changed.path_and_query());
        let location = match port == scheme.default_port() {
            true => format!("{scheme}://{host}{path}"),
            false => format!("{scheme}://{host}:{port}{path}"),
        };
        HeaderValue::try_from(location).ok()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, StatusCode, Version, header};

    use super::*;
    use crate::http::filter::PathEdit;
    use crate::http::target::{Head, PathRules, Scheme};

    #[test]
    fn a_location_has_no_port_that_goes_without_saying() {
        let redirect = |text: &str| {
            let mut redirect = Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
            for part in text.split_whitespace() {
                match part.split_once('=').unwrap() {
                    ("scheme", "https") => redirect.scheme = Some(Scheme::Https),
                    ("scheme", _) => redirect.scheme = Some(Scheme::Http),
                    ("host", host) => redirect.host = Some(host.into()),
                    ("port", port) => redirect.port = Some(port.parse().unwrap()),
                    ("full", path) => redirect.path = Some(PathEdit::Full(path.into())),
                    (_, path) => redirect.path = Some(PathEdit::Prefix(path.into())),
                }
            }
            redirect
        };
        for (uri, port, filter, location) in [
            ("http://web:8080/a?q=1", 80, "", "http://web/a?q=1"),
            ("http://web/a", 8080, "", "http://web:8080/a"),
            ("http://web/a", 80, "host=example.org", "http://example.org/a"),
            ("http://web/a", 8080, "host=Example.org", "http://example.org:8080/a"),
            ("http://web/a", 8080, "scheme=https", "https://web/a"),
            ("http://web/a", 8080, "scheme=http", "http://web/a"),
            ("http://web/a", 80, "scheme=https port=443", "https://web/a"),
            ("http://web/a", 80, "scheme=https port=8443", "https://web:8443/a"),
            ("http://web/a", 80, "port=8083", "http://web:8083/a"),
            ("http://web/a", 8080, "port=80", "http://web/a"),
            ("http://web/a", 443, "", "http://web:443/a"),
            ("http://web/a", 80, "scheme=http port=443", "http://web:443/a"),
            ("http://web/old/x?q=1", 80, "full=/new", "http://web/new?q=1"),
            ("http://web/old/x?q=1", 80, "prefix=/new", "http://web/new/x?q=1"),
            ("http://web/old", 80, "prefix=/", "http://web/"),
            ("http://[fd00::1]:80/a", 80, "scheme=https", "https://[fd00::1]/a"),
        ] {
            let uri = uri.parse().unwrap();
            let host = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
            let head = Head {
                method: &Method::GET,
                uri: &uri,
                version: Version::HTTP_2,
                headers: &host,
                extended_connect: false,
            };
            let target = Target::of(&head, Scheme::Http, &PathRules::default()).unwrap();
            let found = redirect(filter).location(&target, port, Some(&Prefix::Segments("/old".into())));
            assert_eq!(found, Some(HeaderValue::from_static(location)), "{uri} port {port} {filter}");
        }
    }
}
