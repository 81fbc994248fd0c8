//! A small HTTP/1.1 server for people and machines that look after the process.
//!
//! It survives strangers: connections, headers, bodies and times are bounded, only POST changes anything, and on
//! loopback it refuses requests that a web page made a browser send.

mod guard;
mod serve;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, StatusCode};

pub use guard::Callers;
pub use serve::{
    CONNECTION_TIMEOUT, HEADER_TIMEOUT, MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_DUMPS, MAX_HEADER_BYTES, REQUEST_TIMEOUT,
};

use crate::metrics::{Exposition, Registry};
use crate::ready::Ready;
use crate::telemetry::Filter;

/// What a route is given.
#[derive(Debug, Default)]
pub struct Request {
    query: String,
    accept: Option<String>,
    body: Bytes,
}

impl Request {
    /// The first value of `key` in the query, with `%` escapes and `+` read; a key without `=` has the empty value.
    pub fn query(&self, key: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.map(|(k, v)| (unescape(k), v)).find(|(k, _)| k == key).map(|(_, v)| unescape(v))
    }

    /// The body, at most [`MAX_BODY_BYTES`].
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// What a route answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// Plain text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: Bytes::from(text.into()) }
    }

    /// Something as JSON, indented for people.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self { status: StatusCode::OK, content_type: "application/json", body: body.into() }
            }
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// The routes of a server.
#[derive(Default)]
pub struct Routes {
    paths: BTreeMap<&'static str, Methods>,
}

#[derive(Default)]
struct Methods {
    about: &'static str,
    /// For everybody.
    open: bool,
    get: Option<Route>,
    post: Option<Route>,
}

#[derive(Clone)]
struct Route {
    handler: Handler,
    /// Costly: only [`MAX_DUMPS`] at a time.
    dump: bool,
}

/// Why there is no route.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    Path,
    /// The path exists for these methods.
    Method(&'static str),
}

impl Routes {
    /// `GET path`, which only looks. `about` is its line in the index.
    pub fn get<F, A>(mut self, path: &'static str, about: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.entry(path, about).get = Some(Route { handler: boxed(handler), dump: false });
        self
    }

    /// `GET path` that is costly to answer: only [`MAX_DUMPS`] run at a time and others are told to come back (429).
    /// `work` runs on a thread where it may take its time.
    pub fn dump<F>(mut self, path: &'static str, about: &'static str, work: F) -> Self
    where
        F: Fn(Request) -> Response + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        let handler = boxed(move |request| {
            let work = Arc::clone(&work);
            async move {
                let done = tokio::task::spawn_blocking(move || work(request)).await;
                done.unwrap_or_else(|_| Response::text(StatusCode::INTERNAL_SERVER_ERROR, "the dump failed\n"))
            }
        });
        self.entry(path, about).get = Some(Route { handler, dump: true });
        self
    }

    /// `POST path`, which changes something.
    pub fn post<F, A>(mut self, path: &'static str, about: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.entry(path, about).post = Some(Route { handler: boxed(handler), dump: false });
        self
    }

    /// The routes known so far change nothing and hide nothing: with [`Callers::Machine`] they are for everybody.
    pub fn open(mut self) -> Self {
        self.paths.values_mut().for_each(|methods| methods.open = true);
        self
    }

    /// `GET /` that lists the routes known so far.
    pub fn index(self, title: &'static str) -> Self {
        let mut text = format!("{title}\n\n");
        for (path, methods) in &self.paths {
            let names = match (&methods.get, &methods.post) {
                (Some(_), Some(_)) => "GET, POST",
                (None, Some(_)) => "POST",
                (Some(_), None) | (None, None) => "GET",
            };
            text.push_str(&format!("{names:<9}  {path:<20}  {}\n", methods.about));
        }
        self.get("/", "this list", move |_| std::future::ready(Response::text(StatusCode::OK, text.clone())))
    }

    /// `/metrics` and `/stats/prometheus`.
    pub fn metrics(self, registry: &Registry) -> Self {
        ["/metrics", "/stats/prometheus"].into_iter().fold(self, |routes, path| {
            let registry = registry.clone();
            routes.dump(path, "metrics for Prometheus", move |request| {
                let exposition = Exposition::accepted(request.accept.as_deref());
                let text = registry.encode(exposition, Instant::now());
                Response { status: StatusCode::OK, content_type: exposition.content_type(), body: text.into() }
            })
        })
    }

    /// `/healthz/ready`: 200 when ready, else 500 and what is waited for.
    pub fn ready(self, ready: &Ready) -> Self {
        let ready = ready.clone();
        self.get("/healthz/ready", "whether it may receive traffic", move |_| {
            let pending = ready.pending();
            std::future::ready(if pending.is_empty() {
                Response::text(StatusCode::OK, "ready\n")
            } else {
                Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, waiting for\n{pending}"))
            })
        })
    }

    /// `/logging`: GET shows the filter; POST `?level=target=level,...` changes parts of it, `?reset` all of it.
    pub fn logging(self, filter: &Filter) -> Self {
        let (shown, changed) = (filter.clone(), filter.clone());
        let answer = |filter: &Filter| Response::text(StatusCode::OK, format!("{filter}\n"));
        self.get("/logging", "log levels", move |_| std::future::ready(answer(&shown))).post(
            "/logging",
            "log levels; POST ?level=debug or ?level=<target>=debug,... or ?reset",
            move |request| {
                let done = match (request.query("level"), request.query("reset")) {
                    (level, Some(_)) => {
                        changed.reset().and_then(|()| level.map_or(Ok(()), |level| changed.change(&level)))
                    }
                    (Some(level), None) => changed.change(&level),
                    (None, None) => Ok(()),
                };
                std::future::ready(match done {
                    Ok(()) => answer(&changed),
                    Err(error) => Response::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
                })
            },
        )
    }

    fn entry(&mut self, path: &'static str, about: &'static str) -> &mut Methods {
        let methods = self.paths.entry(path).or_default();
        methods.about = about;
        methods
    }

    fn is_open(&self, path: &str) -> bool {
        self.paths.get(path).is_some_and(|methods| methods.open)
    }

    fn find(&self, method: &Method, path: &str) -> Result<Route, Missing> {
        let methods = self.paths.get(path).ok_or(Missing::Path)?;
        let allowed = match (&methods.get, &methods.post) {
            (Some(_), Some(_)) => "GET, HEAD, POST",
            (None, Some(_)) => "POST",
            (Some(_), None) | (None, None) => "GET, HEAD",
        };
        let route = match *method {
            // hyper leaves the body of an answer to HEAD out.
            Method::GET | Method::HEAD => &methods.get,
            Method::POST => &methods.post,
            _ => &None,
        };
        route.clone().ok_or(Missing::Method(allowed))
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.paths.keys()).finish()
    }
}

/// The routes of one address.
#[derive(Debug, Clone)]
pub struct Server {
    routes: Arc<Routes>,
    callers: Callers,
    limits: serve::Limits,
}

impl Server {
    /// A server of `routes`, which are kept from web pages.
    pub fn new(routes: Routes) -> Self {
        Self { routes: Arc::new(routes), callers: Callers::Local, limits: serve::Limits::default() }
    }

    /// Which requests are served.
    pub fn callers(mut self, callers: Callers) -> Self {
        self.callers = callers;
        self
    }
}

fn boxed<F, A>(handler: F) -> Handler
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    Arc::new(move |request| Box::pin(handler(request)))
}

/// Reads `%` escapes and `+` of a query. What is no escape stays as it is, and what is no UTF-8 becomes U+FFFD.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        match (byte, hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                i += 3;
            }
            (b'+', ..) => {
                plain.push(b' ');
                i += 1;
            }
            _ => {
                plain.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests;
