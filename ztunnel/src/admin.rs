//! What this process shows of itself: 15000 for people on the node, 15020 metrics, 15021 readiness.

mod policy;

use std::sync::Arc;

use http::StatusCode;
use loam_core::dump::{Dump, waypoints};
use loam_core::snapshot::Snapshot;
use loam_rt::admin::{Callers, Request, Response, Routes, Server};
use loam_rt::metrics::Registry;
use loam_rt::ready::Ready;
use loam_rt::shutdown::Asker;
use loam_rt::telemetry::Filter;
use loam_tls::store::IdentityState;
use serde::Serialize;
use serde_json::Value;

use crate::access_log::{AccessLog, MAX_LISTED};

/// Something that is asked for each time it is shown.
pub type Source<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// Where the administration interface finds what it shows. None of it may hold a secret.
#[derive(Clone)]
pub struct Sources {
    /// The mesh as it is known.
    pub snapshot: Source<Snapshot>,
    /// How each identity's certificate fares.
    pub certificates: Source<Vec<IdentityState>>,
    /// The pods that are served.
    pub pods: Source<Value>,
    /// The tunnels that are open.
    pub tunnels: Source<Value>,
    /// The endpoints that fail.
    pub endpoints: Source<Value>,
    /// The configuration of this process.
    pub config: Value,
    /// The connections that are carried.
    pub connections: AccessLog,
    /// Log levels.
    pub filter: Filter,
    /// Ends this process.
    pub asker: Asker,
}

/// The administration interface; it has no authentication and belongs on loopback.
pub fn admin(sources: &Sources) -> Server {
    Server::new(routes(sources))
}

/// Metrics, for scrapers that know this node by any name.
pub fn metrics(registry: &Registry) -> Server {
    Server::new(Routes::default().metrics(registry).index("loam-ztunnel: metrics")).callers(Callers::Any)
}

/// Readiness, for probes.
pub fn readiness(ready: &Ready) -> Server {
    Server::new(Routes::default().ready(ready)).callers(Callers::Any)
}

fn routes(sources: &Sources) -> Routes {
    let (all, connections) = (sources.clone(), sources.connections.clone());
    let (pods, tunnels) = (Arc::clone(&sources.pods), Arc::clone(&sources.tunnels));
    let endpoints = Arc::clone(&sources.endpoints);
    let asker = sources.asker.clone();
    let (denials, judged) = (sources.connections.clone(), sources.clone());
    let snapshot = Arc::clone(&sources.snapshot);
    Routes::default()
        .dump("/config_dump", "the mesh as known here, certificates and settings", move |_| config_dump(&all))
        .dump("/debug/connections", "connections that live; ?limit=100", move |request| listing(&connections, &request))
        .dump("/debug/denials", "denials by policy, newest first; ?limit=20", move |request| {
            policy::denials(&denials, &request)
        })
        .dump("/debug/authz", policy::USAGE, move |request| policy::what_if(&judged, &request))
        .dump("/debug/waypoints", "waypoints that are named, and whether they are there", move |_| {
            Response::json(&waypoints(&snapshot()))
        })
        .dump("/debug/pods", "pods served here", move |_| Response::json(&pods()))
        .dump("/debug/tunnels", "tunnels to other nodes", move |_| Response::json(&tunnels()))
        .dump("/debug/endpoints", "endpoints that fail", move |_| Response::json(&endpoints()))
        .logging(&sources.filter)
        .post("/quitquitquit", "POST: drain, then end", move |_| {
            asker.ask();
            std::future::ready(Response::text(StatusCode::OK, "draining\n"))
        })
        .index("loam-ztunnel")
}

/// How many connections are listed unless the caller says.
const USUAL_LIMIT: usize = 100;

fn listing(connections: &AccessLog, request: &Request) -> Response {
    match limit(request, USUAL_LIMIT) {
        Ok(limit) => Response::json(&connections.connections(limit.min(MAX_LISTED))),
        Err(refusal) => refusal,
    }
}

fn limit(request: &Request, usual: usize) -> Result<usize, Response> {
    match request.query("limit").map(|limit| limit.parse::<usize>()) {
        None => Ok(usual),
        Some(Ok(limit)) => Ok(limit),
        Some(Err(_)) => Err(Response::text(StatusCode::BAD_REQUEST, "limit is not a number\n")),
    }
}

/// The keys of Istio's ztunnel, which Kiali decodes, and ours beside them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDump<'a> {
    #[serde(flatten)]
    mesh: Dump<'a>,
    certificates: Vec<Certificate>,
    config: &'a Value,
    version: Version,
    pods: Value,
    connections: usize,
    revision: u64,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// An identity with its certificate in the form of a chain.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    cert_chain: Vec<ChainLink>,
    #[serde(flatten)]
    state: IdentityState,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChainLink {
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl Certificate {
    fn of(state: IdentityState) -> Self {
        let times = state.serial_number.clone().zip(state.valid_from.clone()).zip(state.expiration_time.clone());
        let link =
            |((serial_number, valid_from), expiration_time)| ChainLink { serial_number, valid_from, expiration_time };
        Self { cert_chain: times.map(link).into_iter().collect(), state }
    }
}

fn config_dump(sources: &Sources) -> Response {
    let snapshot = (sources.snapshot)();
    Response::json(&ConfigDump {
        mesh: Dump::of(&snapshot),
        certificates: (sources.certificates)().into_iter().map(Certificate::of).collect(),
        config: &sources.config,
        version: Version { version: env!("CARGO_PKG_VERSION") },
        pods: (sources.pods)(),
        connections: sources.connections.connections(0).total,
        revision: snapshot.revision(),
    })
}

#[cfg(test)]
mod tests {
    use loam_core::addr::{DownstreamAddr, OrigDst};
    use loam_core::ids::{Identity, WorkloadUid};
    use loam_core::snapshot::Change;
    use loam_core::workload::{TunnelProtocol, Workload};
    use loam_rt::drain;
    use loam_rt::shutdown::Shutdown;
    use loam_rt::telemetry::{LogFormat, detached};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metrics::{Direction, Metrics};

    pub(super) fn sources(asker: Asker) -> Sources {
        let (telemetry, _subscriber) = detached(LogFormat::Plain, "", Box::new(std::io::sink())).unwrap();
        let registry = Registry::default();
        let (_trigger, drain) = drain::channel();
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let mut workload = Workload::new(WorkloadUid::of_pod("Kubernetes", "shop", "web-1"), "web-1", identity);
        workload.protocol = TunnelProtocol::Hbone;
        workload.addresses = vec!["10.0.1.5".parse().unwrap()];
        let snapshot = Snapshot::default().apply(vec![Change::Workload(workload)]);
        Sources {
            snapshot: Arc::new(move || snapshot.clone()),
            certificates: Arc::new(|| vec![available(), waiting()]),
            pods: Arc::new(|| json!([{ "name": "web-1" }])),
            tunnels: Arc::new(|| json!([])),
            endpoints: Arc::new(|| json!([])),
            config: json!({ "node": "n1" }),
            connections: AccessLog::new(&telemetry, Metrics::new(&registry), &registry, drain),
            filter: telemetry.filter().clone(),
            asker,
        }
    }

    fn waiting() -> IdentityState {
        IdentityState {
            identity: "spiffe://cluster.local/ns/shop/sa/api".into(),
            state: "Initializing",
            phase: "requested",
            users: 1,
            serial_number: None,
            valid_from: None,
            expiration_time: None,
            renewal_time: None,
            retry_in_ms: None,
            failures: 0,
            last_error: None,
        }
    }

    fn available() -> IdentityState {
        IdentityState {
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            state: "Available",
            phase: "holding",
            serial_number: Some("7".into()),
            valid_from: Some("2026-01-01T00:00:00Z".into()),
            expiration_time: Some("2026-01-02T00:00:00Z".into()),
            ..waiting()
        }
    }

    pub(super) async fn ask(server: Server, request: &str) -> (u16, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let exchange = async {
            let request = format!("{request} HTTP/1.1\r\nhost: localhost:15000\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::select! {
            answer = exchange => answer,
            () = server.serve(listener, std::future::pending()) => unreachable!("it serves for ever"),
        };
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn the_dump_has_the_keys_that_kiali_reads() {
        let sources = sources(Shutdown::default().asker());
        let (status, body) = ask(admin(&sources), "GET /config_dump").await;
        assert_eq!(status, 200);
        let dump: Value = serde_json::from_str(&body).unwrap();
        let certificate = &dump["certificates"][0];
        assert_eq!(certificate["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(certificate["state"], "Available");
        let link = &certificate["certChain"][0];
        assert_eq!(link["serialNumber"], "7");
        assert_eq!(link["validFrom"], "2026-01-01T00:00:00Z");
        assert_eq!(link["expirationTime"], "2026-01-02T00:00:00Z");
        assert_eq!(dump["certificates"][1]["certChain"], json!([]));
        let workload = &dump["workloads"][0];
        assert_eq!(workload["uid"], "Kubernetes//Pod/shop/web-1");
        assert_eq!(workload["workloadIps"], json!(["10.0.1.5"]));
        assert_eq!(workload["protocol"], "HBONE");
        assert_eq!(workload["trustDomain"], "cluster.local");
        assert!(dump["services"].is_array() && dump["policies"].is_array());
        assert_eq!(dump["config"]["node"], "n1");
        assert_eq!(dump["version"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[tokio::test]
    async fn connections_are_listed_within_a_limit() {
        let sources = sources(Shutdown::default().asker());
        let begin = || {
            let (from, to) = ("10.0.1.5:40000".parse().unwrap(), "10.0.2.6:80".parse().unwrap());
            sources.connections.begin(Direction::Outbound, DownstreamAddr::new(from), OrigDst::new(to)).open()
        };
        let records = [begin(), begin()];
        let (status, body) = ask(admin(&sources), "GET /debug/connections?limit=1").await;
        assert_eq!(status, 200);
        let listing: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(listing["total"], 2);
        assert_eq!(listing["connections"].as_array().unwrap().len(), 1);
        assert_eq!(listing["connections"][0]["dst"]["addr"], "10.0.2.6:80");
        assert_eq!(ask(admin(&sources), "GET /debug/connections?limit=x").await.0, 400);
        drop(records);
    }

    #[tokio::test]
    async fn only_a_post_ends_the_process() {
        let mut shutdown = Shutdown::default();
        let sources = sources(shutdown.asker());
        assert_eq!(ask(admin(&sources), "GET /quitquitquit").await.0, 405);
        assert_eq!(ask(admin(&sources), "POST /quitquitquit").await, (200, "draining\n".into()));
        assert_eq!(shutdown.asked().await, loam_rt::shutdown::Cause::Request);
    }

    #[tokio::test]
    async fn the_index_names_every_path() {
        let (status, body) = ask(admin(&sources(Shutdown::default().asker())), "GET /").await;
        assert_eq!(status, 200);
        for path in [
            "/config_dump",
            "/logging",
            "/quitquitquit",
            "/debug/connections",
            "/debug/denials",
            "/debug/authz",
            "/debug/pods",
            "/debug/tunnels",
            "/debug/waypoints",
        ] {
            assert!(body.contains(path), "{path} is missing in {body}");
        }
    }

    #[tokio::test]
    async fn metrics_and_readiness_have_istios_paths() {
        let registry = Registry::with_process();
        assert_eq!(ask(metrics(&registry), "GET /stats/prometheus").await.0, 200);
        assert_eq!(ask(metrics(&registry), "GET /metrics").await.0, 200);
        let ready = Ready::default();
        let gate = ready.gate("pods");
        assert_eq!(ask(readiness(&ready), "GET /healthz/ready").await.0, 500);
        gate.open();
        assert_eq!(ask(readiness(&ready), "GET /healthz/ready").await.0, 200);
    }
}
