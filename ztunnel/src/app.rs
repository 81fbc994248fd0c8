//! Puts the parts together, and takes them apart in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use loam_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use loam_core::snapshot::Snapshot;
use loam_hbone::{Pool, PoolConfig};
use loam_node::ZTUNNEL_SOCKET;
use loam_rt::admin::Server;
use loam_rt::drain::{self, Drain};
use loam_rt::metrics::Registry;
use loam_rt::ready::{Gate, Ready};
use loam_rt::shutdown::{Asker, Cause, Shutdown};
use loam_rt::telemetry::{self, LogFormat, Telemetry};
use loam_tls::ca::{CaClient, CaConfig};
use loam_tls::channel::ControlPlane;
use loam_tls::store::{Settings, Store};
use loam_tls::trust::Trust;
use loam_xds::client::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access_log::AccessLog;
use crate::admin::{self, Sources};
use crate::config::Config;
use crate::control::{Control, node};
use crate::dns::metrics::DnsMetrics;
use crate::endpoints::{Endpoints, follow_moves};
use crate::enrolled::{Enrolled, Proxy, Service};
use crate::mesh::{Feed, Mesh};
use crate::metrics::{Metrics, PodMetrics};
use crate::pods::{Event, Pods, Status};
use crate::privilege;

/// Life of the certificates we ask for.
const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two attempts to listen on an address that is in use.
const LISTEN_INTERVAL: Duration = Duration::from_millis(100);

/// How long pods that are not ready yet delay the announcement that this process serves.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often idle metric series are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until told to end.
pub fn run(config: Config) -> Result<()> {
    // Before any thread exists and any byte is read.
    privilege::shed(config.uid, config.uid).context("give up privileges")?;
    let format = if config.log_json { LogFormat::Json } else { LogFormat::Plain };
    let telemetry = telemetry::init(format, &config.log_level)?;
    let data = Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .thread_name("data")
        .enable_all()
        .build()
        .context("start the data threads")?;
    // Configuration, certificates and administration have a thread of their own, so that a large update or a dump
    // delays no connection.
    let control = Builder::new_current_thread().enable_all().build().context("start the control thread")?;
    let handle = data.handle().clone();
    let ended = control.block_on(serve(config, &telemetry, handle));
    // Connections that outlived the drain limit end here.
    data.shutdown_timeout(Duration::from_secs(1));
    telemetry.sink().flush(Duration::from_secs(1));
    ended
}

async fn serve(config: Config, telemetry: &Telemetry, data: Handle) -> Result<()> {
    let (trigger, drain) = drain::channel();
    let mut shutdown = Shutdown::on_signals().context("listen for signals")?;
    let registry = Registry::with_process();
    let tasks = data.metrics();
    let alive = move || i64::try_from(tasks.num_alive_tasks()).unwrap_or(i64::MAX);
    registry.gauge("loam_tasks", "Tasks on the threads that carry traffic", alive);
    let metrics = Metrics::new(&registry);
    let ready = Ready::default();
    let (configured, connected) = (ready.gate("configuration"), ready.gate("pods"));
    let mut background = JoinSet::new();

    let mesh = Arc::new(Mesh::default());
    let client = Client::new(
        node(&config),
        [ADDRESS_TYPE, AUTHORIZATION_TYPE],
        Control::new(&config),
        Feed::new(mesh.clone(), metrics.clone(), config.root_namespace.clone()),
    );
    background.spawn(follow_configuration(client.state(), configured, metrics.clone()));
    background.spawn(async { match client.run().await {} });

    let (identities, certificates) = Store::new(
        CaClient::new(CaConfig {
            control_plane: ControlPlane {
                address: config.ca_address.clone(),
                server_name: None,
                root_file: config.ca_root.clone(),
            },
            token_file: config.token.clone(),
            cluster: config.cluster.to_string(),
            ttl: CERTIFICATE_TTL,
        }),
        Trust::new(config.trust_domain.clone(), []),
        Settings::default(),
    );
    background.spawn(certificates.run());

    let (pods, link) = Pods::new(config.run_dir.join(ZTUNNEL_SOCKET));
    background.spawn(follow_keeper(pods.status(), connected));

    let log = AccessLog::new(telemetry, metrics.clone(), &registry, drain.clone());
    let proxy = Arc::new(Proxy {
        mesh,
        identities,
        tunnels: Pool::new(PoolConfig::default()),
        log,
        reached: Arc::default(),
        endpoints: Endpoints::new(&registry),
        dns: DnsMetrics::new(&registry),
        config,
    });
    // Descriptors from the keeper become sockets of the data threads, so the link lives there.
    background.spawn_on(link.run(), &data);
    background.spawn(follow_moves(proxy.clone()));

    let served = Arc::new(Served { metrics: metrics.pods.clone(), ..Served::default() });
    let sources = sources(&proxy, telemetry, &served, shutdown.asker());
    let end = drain.clone();
    background.spawn(listen(proxy.config.admin_address, admin::admin(&sources), end.clone()));
    background.spawn(listen(proxy.config.metrics_address, admin::metrics(&registry), end.clone()));
    background.spawn(listen(proxy.config.readiness_address, admin::readiness(&ready), end.clone()));
    background.spawn(expire(registry));
    background.spawn(announce(served.clone(), pods.clone()));
    tracing::info!(node = %proxy.config.node, uid = proxy.config.uid, version = env!("CARGO_PKG_VERSION"), "started");

    let pods_task = data.spawn(served.clone().run(proxy.clone(), pods.clone(), shutdown.asker(), drain.clone()));
    let cause = shutdown.asked().await;
    tracing::info!(?cause, limit = ?proxy.config.drain_limit, "draining");
    pods.leaving();
    let guard = drain.guard();
    let all_ended = async move {
        // A panic there is reported by its own message, and the drain goes on without it.
        let _ = pods_task.await;
        drop(guard);
    };
    let (ending, ()) = tokio::join!(shutdown.drain(cause, trigger, proxy.config.drain_limit), all_ended);
    if cause == Cause::Replaced {
        tracing::info!(?ending, "replaced, and nothing is left to carry; waiting to be told to end");
        stay(&mut shutdown, pods.status()).await;
    }
    tracing::info!(?ending, "ended");
    background.shutdown().await;
    Ok(())
}

/// Waits until the end of the process is asked for. Whoever supervises it would start it again, and it would take the
/// place back from its successor, which would do the same. Without the keeper that replaced it, nobody knows whether
/// there is a successor.
async fn stay(shutdown: &mut Shutdown, mut keeper: watch::Receiver<Status>) {
    tokio::select! {
        () = shutdown.told() => {}
        _ = keeper.wait_for(|status| matches!(status, Status::Disconnected(_))) => {}
    }
}

/// The pods that are served, by uid.
#[derive(Default)]
struct Served {
    pods: Mutex<HashMap<String, Service>>,
    /// Pods that do not have their workload and certificate yet.
    pending: AtomicUsize,
    /// Wakes when the pods or their number changed.
    progress: watch::Sender<u64>,
    metrics: PodMetrics,
}

impl Served {
    /// Serves the keeper's pods until the drain starts, then until their last connection ended.
    async fn run(self: Arc<Self>, proxy: Arc<Proxy>, pods: Pods, asker: Asker, drain: Drain) {
        let mut events = pods.subscribe();
        let mut ending = JoinSet::new();
        loop {
            let event = tokio::select! {
                biased;
                () = drain.started() => break,
                event = events.next() => event,
            };
            match event {
                None => break,
                Some(Event::Retire) => asker.replaced(),
                Some(Event::Added(pod)) => {
                    let uid = pod.uid().to_owned();
                    tracing::info!(pod = uid, "pod added");
                    let (pending, acks, acked) = (Pending::new(&self), pods.clone(), Arc::downgrade(&pod));
                    let mut pending = Some(pending);
                    let service = Enrolled::serve(proxy.clone(), pod, move |told| {
                        if told.is_ok() {
                            drop(pending.take());
                        }
                        if let Some(pod) = acked.upgrade() {
                            acks.ack(&pod, told);
                        }
                    });
                    self.metrics.started();
                    let replaced = self.lock().insert(uid, service);
                    ending.extend_spawn(replaced);
                }
                Some(Event::Removed(pod)) => {
                    tracing::info!(pod = pod.uid(), "pod removed");
                    let removed = {
                        let mut all = self.lock();
                        // A newer pod of the same uid may be there already.
                        match all.get(pod.uid()) {
                            Some(service) if Arc::ptr_eq(service.pod(), &pod) => all.remove(pod.uid()),
                            Some(_) | None => None,
                        }
                    };
                    self.metrics.stopped();
                    ending.extend_spawn(removed);
                }
            }
            self.count();
            while ending.try_join_next().is_some() {}
        }
        let all: Vec<Service> = self.lock().drain().map(|(_, service)| service).collect();
        all.into_iter().for_each(|service| ending.extend_spawn(Some(service)));
        while ending.join_next().await.is_some() {}
        proxy.tunnels.drain().await;
    }

    /// Ready when every pod of the keeper is served and none waits for its workload or certificate.
    async fn serves_all(&self, pods: &Pods) {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            let known = pods.all().iter().all(|pod| self.lock().contains_key(pod.uid()));
            if known && self.pending.load(Ordering::Relaxed) == 0 {
                return;
            }
            // The sender is in `self`, so the channel cannot close while this waits.
            let _ = progress.changed().await;
        }
    }

    fn count(&self) {
        let (all, pending) = (self.lock().len(), self.pending.load(Ordering::Relaxed));
        self.metrics.count(all.saturating_sub(pending), pending);
        self.progress.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Service>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> Value {
        let pods = self.lock();
        let mut all: Vec<_> = pods.values().map(Service::describe).collect();
        all.sort_by_key(|pod| pod["uid"].to_string());
        Value::Array(all)
    }
}

/// A pod that is not ready yet; it stops being one when this is dropped.
struct Pending(Arc<Served>);

impl Pending {
    fn new(served: &Arc<Served>) -> Self {
        served.pending.fetch_add(1, Ordering::Relaxed);
        Self(served.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
        self.0.count();
    }
}

/// Ends services in the background.
trait EndAll {
    fn extend_spawn(&mut self, service: Option<Service>);
}

impl EndAll for JoinSet<()> {
    fn extend_spawn(&mut self, service: Option<Service>) {
        if let Some(service) = service {
            self.spawn(service.end());
        }
    }
}

fn sources(proxy: &Arc<Proxy>, telemetry: &Telemetry, served: &Arc<Served>, asker: Asker) -> Sources {
    let (mesh, identities, tunnels, served) = (proxy.clone(), proxy.clone(), proxy.clone(), served.clone());
    let (config, endpoints) = (&proxy.config, proxy.endpoints.clone());
    Sources {
        snapshot: Arc::new(move || Snapshot::clone(&mesh.mesh.load())),
        certificates: Arc::new(move || identities.identities.state()),
        pods: Arc::new(move || served.describe()),
        tunnels: Arc::new(move || {
            let stats = tunnels.tunnels.stats();
            json!({ "tunnels": stats.tunnels, "streams": stats.streams })
        }),
        endpoints: Arc::new(move || json!(endpoints.describe())),
        config: json!({
            "node": &*config.node,
            "cluster": &*config.cluster,
            "network": &*config.network,
            "trustDomain": config.trust_domain.as_str(),
            "xdsAddress": config.xds_address,
            "caAddress": config.ca_address,
            "workerThreads": config.worker_threads,
            "drainLimitSeconds": config.drain_limit.as_secs(),
        }),
        connections: proxy.log.clone(),
        filter: telemetry.filter().clone(),
        asker,
    }
}

/// Serves `server` at `address` until the drain starts. A predecessor that still has the address is waited for: it
/// leaves when it starts to drain, which it does once this process serves.
async fn listen(address: SocketAddr, server: Server, end: Drain) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%address, %error, "listen; trying until the address is free");
                }
                tokio::time::sleep(LISTEN_INTERVAL).await;
            }
        }
    };
    if told {
        tracing::info!(%address, "listening");
    }
    server.serve(listener, async move { end.started().await }).await;
}

/// Tells the keeper that this process serves what the keeper had when it connected, so that older ones may retire.
async fn announce(served: Arc<Served>, pods: Pods) {
    let mut status = pods.status();
    if status.wait_for(|status| *status == Status::Synced).await.is_err() {
        return;
    }
    // A pod whose certificate cannot be had must not keep the predecessor for ever.
    let _ = tokio::time::timeout(ANNOUNCE_TIMEOUT, served.serves_all(&pods)).await;
    pods.serving();
}

async fn follow_configuration(mut state: watch::Receiver<loam_xds::client::State>, gate: Gate, metrics: Metrics) {
    let mut disconnects = 0;
    loop {
        let now = state.borrow_and_update().clone();
        if now.synced {
            gate.open();
        } else if let Some(error) = &now.last_error {
            gate.lose(format!("no configuration yet: {error}"));
        }
        for _ in disconnects..now.disconnects {
            metrics.xds_terminated("ConnectionError");
        }
        disconnects = now.disconnects;
        if state.changed().await.is_err() {
            return;
        }
    }
}

async fn follow_keeper(mut status: watch::Receiver<Status>, gate: Gate) {
    loop {
        match &*status.borrow_and_update() {
            Status::Synced => gate.open(),
            other => gate.lose(other.to_string()),
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

async fn expire(registry: Registry) {
    let mut tick = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        registry.expire(tick.tick().await.into_std());
    }
}
