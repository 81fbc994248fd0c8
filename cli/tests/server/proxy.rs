//! What a node's proxy and the controller tell: the proxy's own administration interface over a small mesh, and the
//! controller's list of the same.

use std::net::SocketAddr;
use std::sync::Arc;

use loam_core::addr::{DownstreamAddr, OrigDst};
use loam_core::authority::Authority;
use loam_core::dump::Dump;
use loam_core::ids::{Identity, WorkloadUid};
use loam_core::policy::{Action, Policy, Rule, Scope};
use loam_core::service::{Port, Service, ServiceAddr};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::{Health, ServicePorts, TunnelProtocol, Workload};
use loam_rt::admin::{Response, Routes, Server as Admin};
use loam_rt::drain;
use loam_rt::metrics::Registry;
use loam_rt::shutdown::Shutdown;
use loam_rt::telemetry::{LogFormat, detached};
use loam_tls::store::IdentityState;
use loam_ztunnel::access_log::{AccessLog, OpenRecord};
use loam_ztunnel::admin::{Sources, admin};
use loam_ztunnel::metrics::{Direction, Metrics};
use serde_json::json;
use tokio::net::TcpListener;

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn workload(name: &str, account: &str, node: &str, ip: &str) -> Workload {
    let uid = WorkloadUid::of_pod("Kubernetes", "shop", name);
    Workload {
        protocol: TunnelProtocol::Hbone,
        addresses: vec![ip.parse().unwrap()],
        node: node.into(),
        ..Workload::new(uid, name, identity(account))
    }
}

/// The shop as a proxy sees it.
pub(crate) fn shop() -> Snapshot {
    let key = "shop/web.shop.svc.cluster.local".parse().unwrap();
    let ports = vec![Port { service_port: 80, target_port: 8080, app_protocol: Default::default() }];
    let service = Service {
        addresses: vec![ServiceAddr { network: "".into(), range: "10.96.0.7/32".parse().unwrap() }],
        ports: ports.clone(),
        ..Service::new(key, "web")
    };
    let serves: Arc<[ServicePorts]> = [ServicePorts { service: service.key.clone(), ports: ports.into() }].into();
    let web = |name: &str, ip: &str, health| Workload {
        services: serves.clone(),
        health,
        ..workload(name, "web", "node-b", ip)
    };
    let policy = Policy {
        key: "shop/allow-web".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule { clauses: vec![] }],
        unreadable: None,
    };
    Snapshot::default().apply(vec![
        Change::PoliciesArrived,
        Change::Policy(policy),
        Change::Service(service),
        Change::Workload(workload("api-1", "api", "node-a", "10.0.1.5")),
        Change::Workload(web("web-1", "10.0.2.6", Health::Healthy)),
        Change::Workload(web("web-2", "10.0.2.7", Health::Unhealthy)),
    ])
}

/// The shop as it was before.
pub(crate) fn earlier() -> Snapshot {
    let uid = WorkloadUid::of_pod("Kubernetes", "shop", "web-2");
    let moved = workload("api-1", "api", "node-b", "10.0.1.5");
    shop().apply(vec![
        Change::RemoveWorkload(uid),
        Change::Workload(moved),
        Change::Workload(workload("old-1", "old", "node-a", "10.0.1.9")),
    ])
}

fn certificate(account: &str, held: bool) -> IdentityState {
    let time = |text: &str| held.then(|| text.to_owned());
    IdentityState {
        identity: identity(account).to_string(),
        state: if held { "Available" } else { "Unavailable" },
        phase: if held { "holding" } else { "back_off" },
        users: 1,
        serial_number: time("4711"),
        valid_from: time("2026-01-01T00:00:00Z"),
        expiration_time: time("2026-01-02T00:00:00Z"),
        renewal_time: time("2026-01-01T12:00:00Z"),
        retry_in_ms: (!held).then_some(500),
        failures: u32::from(!held),
        last_error: (!held).then(|| "the certificate authority says: not on this node".to_owned()),
    }
}

/// A proxy that is asked; it ends with its connections.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    _connections: Vec<OpenRecord>,
}

/// Serves the administration interface of a proxy that knows `snapshot`.
pub(crate) async fn proxy(snapshot: Snapshot) -> Proxy {
    let (telemetry, _subscriber) = detached(LogFormat::Plain, "", Box::new(std::io::sink())).unwrap();
    let registry = Registry::default();
    let (_trigger, drain) = drain::channel();
    let connections = AccessLog::new(&telemetry, Metrics::new(&registry), &registry, drain);
    let open = |secured: bool| {
        let (from, to) = ("10.0.1.5:40000".parse().unwrap(), "10.0.2.6:8080".parse().unwrap());
        let mut record = connections.begin(Direction::Outbound, DownstreamAddr::new(from), OrigDst::new(to));
        let facts = record.facts();
        let known = |uid: &str| shop().workloads().find(|w| *w.name == *uid).cloned();
        facts.source.workload = known("api-1");
        if secured {
            facts.secured = true;
            facts.authority = Some("10.0.2.6:8080".parse::<Authority>().unwrap());
            facts.destination.workload = known("web-1");
            facts.source.identity = Some(identity("api"));
            facts.destination.identity = Some(identity("web"));
        }
        record.open()
    };
    let records = vec![open(true), open(false)];
    let sources = Sources {
        snapshot: Arc::new(move || snapshot.clone()),
        certificates: Arc::new(|| vec![certificate("api", true), certificate("web", false)]),
        pods: Arc::new(|| json!([])),
        tunnels: Arc::new(|| json!([])),
        endpoints: Arc::new(|| json!([])),
        config: json!({}),
        connections,
        filter: telemetry.filter().clone(),
        asker: Shutdown::default().asker(),
    };
    Proxy { address: serve(admin(&sources)).await, _connections: records }
}

/// Serves what the controller lists.
pub(crate) async fn controller(snapshot: Snapshot) -> SocketAddr {
    let list = move |_| Response::json(&Dump::of(&snapshot));
    serve(Admin::new(Routes::default().dump("/debug/workloads", "workloads", list))).await
}

async fn serve(server: Admin) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server.serve(listener, std::future::pending()));
    address
}
