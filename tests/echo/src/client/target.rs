//! The URL that is asked, kept as it was written: what a proxy does with a strange path is what tests look at.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery};

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    Grpc,
    Tcp,
    Ws,
}

/// A URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    text: String,
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    pub(super) path: PathAndQuery,
    pub(super) port: u16,
}

impl Target {
    /// The host as a resolver takes it.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (scheme, usual) = match scheme {
            "http" => (Scheme::Http, Some(80)),
            "https" => (Scheme::Https, Some(443)),
            "grpc" => (Scheme::Grpc, None),
            "tcp" => (Scheme::Tcp, None),
            "ws" => (Scheme::Ws, Some(80)),
            other => return Err(format!("{other:?} is none of http, https, grpc, tcp, ws")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority: Authority = authority.parse().map_err(|_| format!("{authority:?} is no host"))?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let path = path.parse().map_err(|_| format!("{path:?} is no path"))?;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => usual.ok_or("the URL must have a port")?,
            None => return Err(format!("{authority:?} is not HOST:PORT")),
        };
        Ok(Self { text: text.to_owned(), scheme, authority, path, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_left_as_it_is() {
        let parts = |text: &str| {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
            (target.scheme, target.host().to_owned(), target.port, target.path.as_str().to_owned())
        };
        let expected = |scheme, host: &str, port, path: &str| (scheme, host.to_owned(), port, path.to_owned());
        for (text, wanted) in [
            ("http://echo", expected(Scheme::Http, "echo", 80, "/")),
            ("echo-v1:8080/v1", expected(Scheme::Http, "echo-v1", 8080, "/v1")),
            ("http://echo/a//../%2F?x=1&y", expected(Scheme::Http, "echo", 80, "/a//../%2F?x=1&y")),
            ("http://echo?x=1", expected(Scheme::Http, "echo", 80, "/?x=1")),
            ("https://[fd00::7]", expected(Scheme::Https, "fd00::7", 443, "/")),
            ("grpc://echo:7070", expected(Scheme::Grpc, "echo", 7070, "/")),
            ("ws://[fd00::7]:8080/ws", expected(Scheme::Ws, "fd00::7", 8080, "/ws")),
        ] {
            assert_eq!(parts(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in ["", "http://", "ftp://echo", "grpc://echo", "tcp://echo", "http://echo:http", "http://echo/a b"] {
            assert!(text.parse::<Target>().is_err(), "{text:?} was taken");
        }
    }
}
