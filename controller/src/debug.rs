//! What people and scrapers may ask: metrics, readiness, problems, the mesh as it is served.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use loam_api::discovery::DeltaDiscoveryResponse;
use loam_api::rpc;
use loam_core::dump::Dump;
use loam_rt::admin::{Callers, Response, Routes, Server};
use loam_rt::metrics::Registry;
use loam_rt::ready::Ready;
use loam_rt::telemetry::Filter;
use loam_xds::server::Observer;
use serde::Serialize;

use crate::owner::{Counts, View};
use crate::publish::Published;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Who is connected, and how it goes with them.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By node: there are as many as there are nodes, and streams are bounded by connections.
    nodes: Mutex<BTreeMap<String, Client>>,
    responses: AtomicU64,
    nacks: AtomicU64,
}

/// What is known of the streams of one node.
#[derive(Debug, Clone, Default, Serialize)]
struct Client {
    streams: usize,
    responses: u64,
    nacks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_nack: Option<String>,
}

/// Longest text of a nack that is kept: a client writes it.
const MAX_NACK_CHARS: usize = 2_000;

impl Clients {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Client>) -> T) -> T {
        work(&mut self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.with(|nodes| nodes.values().map(|c| c.streams).sum())
    }
}

impl Observer for Clients {
    fn connected(&self, client: &str) {
        self.with(|nodes| nodes.entry(client.to_owned()).or_default().streams += 1);
        tracing::info!(node = client, "proxy connected");
    }

    fn disconnected(&self, client: &str) {
        self.with(|nodes| {
            if let Some(known) = nodes.get_mut(client) {
                known.streams = known.streams.saturating_sub(1);
                if known.streams == 0 {
                    nodes.remove(client);
                }
            }
        });
        tracing::info!(node = client, "proxy disconnected");
    }

    fn sent(&self, client: &str, _: &DeltaDiscoveryResponse) {
        self.0.responses.fetch_add(1, Ordering::Relaxed);
        self.with(|nodes| {
            if let Some(known) = nodes.get_mut(client) {
                known.responses += 1;
            }
        });
    }

    fn nacked(&self, client: &str, type_url: &str, status: &rpc::Status) {
        let text: String = status.message.chars().filter(|c| !c.is_control()).take(MAX_NACK_CHARS).collect();
        self.0.nacks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(node = client, type_url, nack = %text, "proxy refused resources");
        self.with(|nodes| {
            if let Some(known) = nodes.get_mut(client) {
                known.nacks += 1;
                known.last_nack = Some(text);
            }
        });
    }
}

/// What the controller counts, by the names that dashboards of control planes know.
pub fn metrics(view: &View, clients: &Clients) -> Registry {
    let registry = Registry::with_process();
    registry.build("controller", VERSION);
    let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let streams = clients.clone();
    registry.gauge("pilot_xds", "Proxies connected", move || gauge(streams.streams()));
    let responses = Arc::clone(&clients.0);
    registry.counter("pilot_xds_pushes", "Responses sent", move || responses.responses.load(Ordering::Relaxed));
    let nacks = Arc::clone(&clients.0);
    let help = "Responses that a proxy refused in part or whole";
    registry.counter("pilot_total_xds_rejects", help, move || nacks.nacks.load(Ordering::Relaxed));
    let counted = |pick: fn(&Counts) -> &AtomicUsize| {
        let counts = Arc::clone(&view.counts);
        move || gauge(pick(&counts).load(Ordering::Relaxed))
    };
    registry.gauge("pilot_services", "Services known", counted(|c| &c.services));
    registry.gauge("loam_controller_pods", "Pods known", counted(|c| &c.pods));
    registry.gauge("loam_controller_endpoint_slices", "Slices of endpoints known", counted(|c| &c.slices));
    let policies = view.policies.clone();
    registry.gauge("loam_controller_policies", "Policies known", move || gauge(policies.borrow().len()));
    let problems = view.problems.clone();
    registry.gauge("loam_controller_problems", "Problems of the manifests", move || gauge(problems.borrow().len()));
    registry
}

/// The admin server: metrics, readiness and version for everybody, the rest for whoever is on the machine.
pub fn admin(view: &View, published: &Published, clients: &Clients, ready: &Ready, filter: Option<&Filter>) -> Server {
    let (problems, policies, published) = (view.problems.clone(), view.policies.clone(), published.clone());
    let nodes = clients.clone();
    let routes = probe(Routes::default().metrics(&metrics(view, clients)).ready(ready), ready)
        .get("/version", "the version", |_| std::future::ready(Response::text(StatusCode::OK, format!("{VERSION}\n"))))
        .open()
        .dump("/debug/problems", "what is wrong with the manifests", move |_| {
            let all = problems.borrow().clone();
            Response::json(&&*all)
        })
        .dump("/debug/policies", "what became of each policy, and why", move |_| {
            let all = policies.borrow().clone();
            Response::json(&&*all)
        })
        .dump("/debug/workloads", "workloads and services as proxies see them", move |_| {
            Response::json(&Dump::of(&published.snapshot()))
        })
        .dump("/debug/nodes", "proxies that are connected", move |_| Response::json(&nodes.with(|n| n.clone())));
    let routes = match filter {
        Some(filter) => routes.logging(filter),
        None => routes,
    };
    Server::new(routes.index("loam-controller")).callers(Callers::Machine)
}

/// Readiness alone, for probes.
pub fn readiness(ready: &Ready) -> Server {
    Server::new(probe(Routes::default(), ready)).callers(Callers::Any)
}

fn probe(routes: Routes, ready: &Ready) -> Routes {
    let ready = ready.clone();
    routes.get("/ready", "whether it serves", move |_| {
        let pending = ready.pending();
        let status = if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        std::future::ready(Response::text(status, pending))
    })
}
