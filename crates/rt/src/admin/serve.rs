//! Connections and requests of the admin server, within their limits.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Missing, Request, Response, Server};

/// Connections served at a time: some scrapers, probes and people. More are closed at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Costly answers in the making at a time.
pub const MAX_DUMPS: usize = 2;
/// Largest body of a request. Nothing here needs more than a line.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Largest head of a request; the least hyper takes is 8 KiB.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
/// Most header lines of a request.
const MAX_HEADERS: usize = 64;
/// How long a client may take for the head of a request, and a connection may be idle.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body may take to arrive, and how long an answer may take to be made.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may live, so that a client that reads nothing does not keep an answer in memory for ever.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after an accept that failed, which mostly means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub(super) struct Limits {
    connections: Arc<Semaphore>,
    pub(super) dumps: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { connections: semaphore(MAX_CONNECTIONS), dumps: semaphore(MAX_DUMPS) }
    }
}

impl Server {
    /// Serves until `end` is ready, then drops the living connections.
    pub async fn serve(self, listener: TcpListener, end: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Ok(permit) = Arc::clone(&self.limits.connections).try_acquire_owned() {
                            let server = self.clone();
                            connections.spawn(async move {
                                server.connection(stream, peer.ip()).await;
                                drop(permit);
                            });
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept on the admin server");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    async fn connection(self, stream: TcpStream, peer: IpAddr) {
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.exchange(request, peer).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        // How a stranger's connection ends is of no interest.
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
    }

    async fn exchange(&self, request: http::Request<Incoming>, peer: IpAddr) -> http::Response<Full<Bytes>> {
        match self.answer(request, peer).await {
            Ok(response) => written(response, None),
            Err(Refusal::Method(allowed)) => {
                let text = format!("this path takes {allowed}\n");
                written(Response::text(StatusCode::METHOD_NOT_ALLOWED, text), Some(allowed))
            }
            Err(Refusal::Other(status, text)) => written(Response::text(status, format!("{text}\n")), None),
        }
    }

    async fn answer(&self, request: http::Request<Incoming>, peer: IpAddr) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        self.callers
            .check(peer, self.routes.is_open(head.uri.path()), head.version, &head.headers)
            .map_err(|refused| Refusal::Other(StatusCode::FORBIDDEN, refused.to_string()))?;
        let route = self.routes.find(&head.method, head.uri.path()).map_err(|missing| match missing {
            Missing::Path => Refusal::Other(StatusCode::NOT_FOUND, "there is nothing here; see /".into()),
            Missing::Method(allowed) => Refusal::Method(allowed),
        })?;
        let _permit = if route.dump {
            let busy = |_| Refusal::Other(StatusCode::TOO_MANY_REQUESTS, "others are being answered; try again".into());
            Some(self.limits.dumps.try_acquire().map_err(busy)?)
        } else {
            None
        };
        let late = |_| Refusal::Other(StatusCode::REQUEST_TIMEOUT, "the request took too long".into());
        let body = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
        let body = body.map_err(late)?.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
            true => Refusal::Other(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds {MAX_BODY_BYTES} bytes")),
            false => Refusal::Other(StatusCode::BAD_REQUEST, "the body cannot be read".into()),
        })?;
        let request = Request {
            query: head.uri.query().unwrap_or_default().to_owned(),
            accept: head.headers.get("accept").and_then(|v| v.to_str().ok()).map(str::to_owned),
            body: body.to_bytes(),
        };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, (route.handler)(request)).await;
        answer.map_err(|_| Refusal::Other(StatusCode::GATEWAY_TIMEOUT, "the answer took too long".into()))
    }
}

enum Refusal {
    /// The path takes other methods.
    Method(&'static str),
    Other(StatusCode, String),
}

fn written(response: Response, allow: Option<&'static str>) -> http::Response<Full<Bytes>> {
    let mut written = http::Response::new(Full::new(response.body));
    *written.status_mut() = response.status;
    let headers = written.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(allow) = allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    written
}
