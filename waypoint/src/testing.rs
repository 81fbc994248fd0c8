//! A waypoint without sockets, for tests: a small mesh whose endpoints are functions, and clients that write text.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use loam_core::addr::{DownstreamAddr, OrigDst};
use loam_core::http::backend::{Backend, BackendService, Upstream};
use loam_core::http::route::{Kind, Order, Route, RouteKey, Rule, ServiceRoutes};
use loam_core::http::traffic::{ServiceTraffic, Traffic};
use loam_core::ids::{Identity, ServiceKey, WorkloadUid};
use loam_core::reason::Reason;
use loam_core::service::{AppProtocol, Port, Service};
use loam_core::snapshot::Change;
use loam_core::waypoint::Target;
use loam_core::workload::{ServicePorts, Workload};
use loam_rt::drain::{self, Trigger};
use loam_rt::metrics::{Exposition, Registry};
use loam_rt::telemetry::{self, LogFormat};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use crate::access_log::{AccessLog, Origin};
use crate::arrival::speak;
use crate::config::{Config, Flags};
use crate::connect::{Connect, Place, Unreached};
use crate::endpoints::Endpoints;
use crate::engine::{Engine, Session};
use crate::mesh::Mesh;
use crate::metrics::{Metrics, Peer, PeerLabels};
use crate::own::Own;
use crate::stream::Stream;
use crate::upstream::Upstreams;

/// What goes through one direction of a connection without anybody reading.
const PIPE_BYTES: usize = 16 << 10;

/// The body of an endpoint's answer.
pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;

type Handler = Arc<dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;
type Raw = Arc<dyn Fn(DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A request as an endpoint saw it, with its body.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) endpoint: SocketAddr,
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// How an endpoint behaves.
#[derive(Clone)]
pub(crate) enum Endpoint {
    /// Answers each request.
    Http(Handler),
    /// Does with each connection as it likes.
    Raw(Raw),
    /// Refuses connections.
    Refusing,
}

/// Answers each request by `answer`.
pub(crate) fn http<F: Future<Output = Answer> + Send + 'static>(
    answer: impl Fn(Seen) -> F + Send + Sync + 'static,
) -> Endpoint {
    Endpoint::Http(Arc::new(move |seen| Box::pin(answer(seen))))
}

/// Answers each request with `status` and `body`.
pub(crate) fn says(status: u16, body: &'static str) -> Endpoint {
    http(move |_| async move { answer(status, body) })
}

/// Does with each connection as `serve` does.
pub(crate) fn raw<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(DuplexStream) -> F + Send + Sync + 'static,
) -> Endpoint {
    Endpoint::Raw(Arc::new(move |io| Box::pin(serve(io))))
}

pub(crate) fn answer(status: u16, body: &'static str) -> Answer {
    Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes())).boxed()).unwrap()
}

/// The endpoints by their names, and what came to them.
#[derive(Clone, Default)]
pub(crate) struct Backends {
    endpoints: Arc<Mutex<HashMap<SocketAddr, Endpoint>>>,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Connect for Backends {
    fn connect<'a>(&'a self, place: &'a Place) -> Pin<Box<dyn Future<Output = Result<Stream, Unreached>> + Send + 'a>> {
        let (endpoint, seen) = (place.endpoint, self.seen.clone());
        self.connections.lock().unwrap().push(endpoint);
        let behaviour = self.endpoints.lock().unwrap().get(&endpoint).cloned().unwrap_or(Endpoint::Refusing);
        Box::pin(async move {
            let (near, far) = duplex(PIPE_BYTES);
            match behaviour {
                Endpoint::Refusing => {
                    let (reason, error) = (Reason::ConnectRefused, format!("dial {endpoint}: refused"));
                    return Err(Unreached { reason, error, another: true, endpoint: true });
                }
                Endpoint::Raw(serve) => drop(tokio::spawn(serve(far))),
                Endpoint::Http(handler) => drop(tokio::spawn(serve(far, endpoint, handler, seen))),
            }
            Ok(Box::new(near) as Stream)
        })
    }
}

async fn serve(io: DuplexStream, endpoint: SocketAddr, handler: Handler, seen: Arc<Mutex<Vec<Seen>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, seen) = (handler.clone(), seen.clone());
        async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned();
            let request = Seen {
                endpoint,
                method: head.method,
                uri: head.uri.to_string(),
                headers: head.headers,
                body: collected.to_bytes(),
                trailers,
            };
            seen.lock().unwrap().push(request.clone());
            Ok::<_, hyper::Error>(handler(request).await)
        }
    });
    // A client that goes is no fault of the endpoint.
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// A waypoint in front of `shop/api`, port 80, whose endpoints are given.
pub(crate) struct Bench {
    pub(crate) engine: Arc<Engine>,
    pub(crate) session: Arc<Session>,
    pub(crate) backends: Backends,
    pub(crate) registry: Registry,
    pub(crate) trigger: Option<Trigger>,
}

/// What a test may want otherwise.
pub(crate) struct Wish {
    pub(crate) protocol: AppProtocol,
    /// Further services of the namespace, by name.
    pub(crate) others: Vec<(&'static str, Endpoint)>,
    pub(crate) routes: Vec<Rule>,
    pub(crate) kind: Kind,
    pub(crate) traffic: Option<Traffic>,
}

impl Default for Wish {
    fn default() -> Self {
        Self { protocol: AppProtocol::Http11, others: Vec::new(), routes: Vec::new(), kind: Kind::Http, traffic: None }
    }
}

impl Bench {
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> Self {
        Self::with(endpoints, Wish::default())
    }

    /// One rule for all requests.
    pub(crate) fn with_rule(endpoints: Vec<Endpoint>, rule: Rule) -> Self {
        Self::with(endpoints, Wish { routes: vec![rule], ..Wish::default() })
    }

    pub(crate) fn with(endpoints: Vec<Endpoint>, wish: Wish) -> Self {
        let flags = "loam-waypoint --name wp --namespace shop --pod wp-1 --address 10.0.0.9 --ca-root /r --token /t";
        let config = Config::try_from(Flags::try_parse_from(flags.split(' ')).unwrap()).unwrap();
        let backends = Backends::default();
        let mesh = Arc::new(Mesh::default());
        let mut changes = service("api", 1, endpoints, wish.protocol, &backends);
        for (i, (name, endpoint)) in (2..).zip(wish.others) {
            changes.extend(service(name, i, vec![endpoint], wish.protocol, &backends));
        }
        if !wish.routes.is_empty() {
            changes.push(Change::Routes(routes(wish.kind, wish.routes)));
        }
        if let Some(traffic) = wish.traffic {
            let (ports, subsets) = (Vec::new(), Vec::new());
            changes.push(Change::Traffic(ServiceTraffic { service: key("api"), traffic, ports, subsets }));
        }
        changes.extend([Change::PoliciesArrived, Change::AddressesArrived]);
        mesh.apply(changes);

        let registry = Registry::default();
        let (telemetry, _) = telemetry::detached(LogFormat::Plain, "info", Box::new(std::io::sink())).unwrap();
        let (trigger, drain) = drain::channel();
        let log = AccessLog::new(&telemetry, Metrics::new(&registry), &registry, drain.clone());
        let own = Arc::new(Own::new(&config, mesh.clone()));
        let upstreams = Upstreams::new(Arc::new(backends.clone()));
        let endpoints = Endpoints::new(&registry);
        let engine = Arc::new(Engine::new(mesh.clone(), own, upstreams, endpoints, log, drain));

        let source = Peer { identity: Some(identity("web")), ..Peer::default() };
        let asked = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let api = mesh.load().service(&key("api")).unwrap().clone();
        let target = Target::Service { port: *api.port(80).unwrap(), service: api, asked };
        let origin = Origin {
            labels: Arc::new(PeerLabels::of(&source)),
            source,
            downstream: DownstreamAddr::new("10.0.1.1:4000".parse().unwrap()),
            asked,
        };
        let session = Arc::new(Session { engine: engine.clone(), origin: Arc::new(origin), target });
        Self { engine, session, backends, registry, trigger: Some(trigger) }
    }

    /// A client's connection, and the task that serves it.
    pub(crate) fn connect(&self) -> (DuplexStream, JoinHandle<()>) {
        let (near, far) = duplex(PIPE_BYTES);
        (near, tokio::spawn(speak(self.session.clone(), far)))
    }

    /// What comes back for `text`, until the waypoint closes the connection.
    pub(crate) async fn ask(&self, text: &str) -> String {
        let (mut client, served) = self.connect();
        client.write_all(text.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        served.await.unwrap();
        String::from_utf8(all).unwrap()
    }

    /// What comes back for a GET of `path`.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: api.shop\r\nconnection: close\r\n\r\n")).await
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.backends.seen.lock().unwrap().clone()
    }

    /// Connections that endpoints got.
    pub(crate) fn dials(&self) -> usize {
        self.backends.connections.lock().unwrap().len()
    }

    /// Whether a line of the metrics has all these parts.
    pub(crate) fn counted(&self, parts: &[&str]) -> bool {
        let text = self.registry.encode(Exposition::Text, std::time::Instant::now());
        text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    }
}

/// `shop/NAME` as a service with a waypoint and endpoints `10.0.NUMBER.1` and so on, port 8080.
fn service(
    name: &'static str,
    number: u8,
    endpoints: Vec<Endpoint>,
    app_protocol: AppProtocol,
    backends: &Backends,
) -> Vec<Change> {
    let port = Port { service_port: 80, target_port: 8080, app_protocol };
    let mut changes = vec![Change::Service(Service { ports: vec![port], ..Service::new(key(name), name) })];
    for (i, endpoint) in (1u8..).zip(endpoints) {
        let addr: SocketAddr = format!("10.0.{number}.{i}:8080").parse().unwrap();
        backends.endpoints.lock().unwrap().insert(addr, endpoint);
        let pod = format!("{name}-{i}");
        changes.push(Change::Workload(Workload {
            addresses: vec![addr.ip()],
            owner: name.into(),
            services: vec![ServicePorts { service: key(name), ports: vec![port].into() }].into(),
            ..Workload::new(WorkloadUid::of_pod("Kubernetes", "shop", &pod), pod.clone(), identity(name))
        }));
    }
    changes
}

pub(crate) fn key(name: &str) -> ServiceKey {
    format!("shop/{name}.shop.svc.cluster.local").parse().unwrap()
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn routes(kind: Kind, rules: Vec<Rule>) -> ServiceRoutes {
    let route = Route {
        key: RouteKey { kind, namespace: "shop".into(), name: "r".into() },
        created: 0,
        ports: vec![80],
        hostnames: Vec::new(),
        order: Order::Specific,
        rules: rules.into_iter().map(Arc::new).collect(),
    };
    ServiceRoutes { service: key("api"), routes: vec![Arc::new(route)] }
}

/// A rule that sends everything to `shop/NAME`.
pub(crate) fn to(name: &str) -> Rule {
    let service = BackendService { service: key(name), port: 80, subset: None };
    let backend = Backend { weight: 1, upstream: Upstream::Service(service), filters: Vec::new() };
    Rule { backends: vec![backend], ..Rule::default() }
}

/// Waits until `done`, which is a matter of other tasks alone.
pub(crate) async fn until(done: impl Fn() -> bool) {
    let all = async {
        while !done() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("it comes to that");
}
