//! Plain HTTP/1.1 on one port.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections served at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take for a request's head, and a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long living requests may take once the process is asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, which mostly means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which pod answered, for clients that count.
pub const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");

/// What is served.
pub trait Site: Send + Sync + 'static {
    /// Name of the service.
    const NAME: &'static str;

    /// Name of the pod.
    fn pod(&self) -> &str;

    /// Answers `GET path` for a client; `None` when there is nothing.
    fn get(&self, path: &str, client: SocketAddr) -> impl Future<Output = Option<Answer>> + Send;
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its body.
    pub body: Bytes,
    /// Which pod of reviews took part in it.
    pub reviewed_by: Option<String>,
}

impl Answer {
    /// Something as JSON.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => {
                Self { status: StatusCode::OK, content_type: "application/json", body: body.into(), reviewed_by: None }
            }
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// A page.
    pub fn html(page: String) -> Self {
        Self { content_type: "text/html; charset=utf-8", ..Self::text(StatusCode::OK, page) }
    }

    /// Plain text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        let body = Bytes::from(text.into());
        Self { status, content_type: "text/plain; charset=utf-8", body, reviewed_by: None }
    }
}

/// The number in `/<name>/<number>`.
pub fn book_id(path: &str, name: &str) -> Option<u32> {
    path.strip_prefix('/')?.strip_prefix(name)?.strip_prefix('/')?.parse().ok()
}

#[derive(Serialize)]
struct Health {
    status: String,
}

/// Listens on `addr`. Where the machine has no IPv6, `[::]` means all IPv4 addresses.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(_) if addr.is_ipv6() && addr.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        result => result,
    }
}

/// Ready at SIGTERM or SIGINT.
pub fn end() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves `site` until `end`, then lets living requests finish for a moment.
pub async fn run<S: Site>(listener: TcpListener, site: S, end: impl Future<Output = ()>) {
    let site = Arc::new(site);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (leave, leaving) = tokio::sync::watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(end);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        tokio::select! {
            () = &mut end => break,
            Some(_) = connections.join_next() => {}
            (accepted, permit) = accepted => match accepted {
                Ok((stream, client)) => {
                    let (site, mut leaving) = (Arc::clone(&site), leaving.clone());
                    connections.spawn(async move {
                        let leave = async move {
                            // An error is the sender's end, which means the same.
                            let _ = leaving.changed().await;
                        };
                        connection(stream, client, site, leave).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    drop(leave);
    // What is left after the grace is dropped with the set.
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection<S: Site>(stream: TcpStream, client: SocketAddr, site: Arc<S>, leave: impl Future<Output = ()>) {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(exchange(&*site, &request, client).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection, leave);
    // How a client's connection ends is of no interest.
    tokio::select! {
        _ = &mut connection => {}
        () = leave => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn exchange<S: Site, B>(site: &S, request: &http::Request<B>, client: SocketAddr) -> http::Response<Full<Bytes>> {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => {
            Answer::json(&Health { status: format!("{} is healthy", S::NAME) })
        }
        (&Method::GET | &Method::HEAD, path) => site
            .get(path, client)
            .await
            .unwrap_or_else(|| Answer::text(StatusCode::NOT_FOUND, format!("{} has nothing at {path}\n", S::NAME))),
        (method, _) => Answer::text(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes GET, not {method}\n", S::NAME)),
    };
    let mut response = http::Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if let Ok(pod) = HeaderValue::from_str(site.pod()) {
        headers.insert(SERVED_BY, pod);
    }
    if let Some(pod) = answer.reviewed_by.and_then(|pod| HeaderValue::from_str(&pod).ok()) {
        headers.insert("x-reviewed-by", pod);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_book_is_read_from_the_path() {
        assert_eq!(book_id("/details/7", "details"), Some(7));
        for path in ["/details", "/details/", "/details/x", "/details/-1", "/details/7/", "/other/7"] {
            assert_eq!(book_id(path, "details"), None, "{path}");
        }
    }
}
