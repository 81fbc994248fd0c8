//! Asking another service, within a time and a size.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// Longest answer read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The address of a service, as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend(String);

impl FromStr for Backend {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.rsplit_once(':') {
            // A bare IPv6 address has colons too, but needs brackets to stand before a port.
            Some((host, port))
                if !host.is_empty()
                    && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'))
                    && port.parse::<u16>().is_ok_and(|port| port != 0)
                    && s.parse::<http::uri::Authority>().is_ok() =>
            {
                Ok(Self(s.to_owned()))
            }
            _ => Err(format!("{s:?} is not host:port")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum CallError {
    /// No connection.
    Connect(String),
    /// A connection that did not bring an answer.
    Exchange(String),
    /// Not in time.
    Timeout(Duration),
    /// An answer of another status than 200.
    Status(StatusCode),
    /// An answer that cannot be read.
    Body(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Connect(cause) => write!(f, "no connection: {cause}"),
            CallError::Exchange(cause) => write!(f, "the connection broke: {cause}"),
            CallError::Timeout(limit) => write!(f, "no answer within {} s", limit.as_secs_f32()),
            CallError::Status(status) => write!(f, "answered {status}"),
            CallError::Body(cause) => write!(f, "the answer cannot be read: {cause}"),
        }
    }
}

/// An answer of another service.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Backend {
    /// `GET path` over a connection of its own.
    pub async fn get(&self, path: &str, limit: Duration) -> Result<Reply, CallError> {
        tokio::time::timeout(limit, self.exchange(path)).await.unwrap_or(Err(CallError::Timeout(limit)))
    }

    /// `GET path` whose answer is JSON.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, CallError> {
        let reply = self.get(path, limit).await?;
        if reply.status != StatusCode::OK {
            return Err(CallError::Status(reply.status));
        }
        serde_json::from_slice(&reply.body).map_err(|error| CallError::Body(error.to_string()))
    }

    async fn exchange(&self, path: &str) -> Result<Reply, CallError> {
        let stream = TcpStream::connect(&self.0).await.map_err(|e| CallError::Connect(e.to_string()))?;
        let broken = |error: hyper::Error| CallError::Exchange(causes(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = http::Request::get(path).header(HOST, &self.0).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| CallError::Exchange(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| CallError::Body(error.to_string()))?.to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            reply = &mut exchange => reply,
            // Its end may come with the last bytes of the answer.
            _ = &mut connection => exchange.await,
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for text in ["details:9080", "10.96.0.1:9080", "[fd00::1]:9080"] {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), text);
        }
        for text in
            ["", "details", ":9080", "details:0", "details:http", "fd00::1:9080", "a b:80", "http://details:9080"]
        {
            assert!(text.parse::<Backend>().is_err(), "{text:?} was accepted");
        }
    }

    #[tokio::test]
    async fn who_refuses_or_hangs_up_is_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend: Backend = listener.local_addr().unwrap().to_string().parse().unwrap();
        let limit = Duration::from_secs(10);
        let (reply, _) = tokio::join!(backend.get("/", limit), async { drop(listener.accept().await.unwrap()) });
        assert!(matches!(reply, Err(CallError::Exchange(_))), "{reply:?}");
        drop(listener);
        let reply = backend.get("/", limit).await;
        assert!(matches!(reply, Err(CallError::Connect(_))), "{reply:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend: Backend = listener.local_addr().unwrap().to_string().parse().unwrap();
        let limit = Duration::from_secs(2);
        assert_eq!(backend.get("/", limit).await.unwrap_err(), CallError::Timeout(limit));
    }
}
