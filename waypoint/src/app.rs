//! Puts the parts together, and takes them apart in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use loam_api::{ROUTES_TYPE, TRAFFIC_TYPE};
use loam_hbone::{Pool, PoolConfig};
use loam_rt::admin::Server;
use loam_rt::drain::{self, Drain};
use loam_rt::metrics::Registry;
use loam_rt::ready::{Gate, Ready};
use loam_rt::shutdown::Shutdown;
use loam_rt::telemetry::{self, LogFormat, Telemetry};
use loam_tls::ca::{CaClient, CaConfig};
use loam_tls::channel::ControlPlane;
use loam_tls::store::{Settings, Store};
use loam_tls::trust::Trust;
use loam_xds::client::{Client, State};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access_log::AccessLog;
use crate::admin::{self, Sources};
use crate::config::Config;
use crate::connect::Connector;
use crate::control::{Control, node};
use crate::endpoints::Endpoints;
use crate::engine::Engine;
use crate::limits::TUNNEL_STREAM_WINDOW;
use crate::listen::listen;
use crate::mesh::{Feed, Mesh, TYPES};
use crate::metrics::Metrics;
use crate::own::Own;
use crate::upstream::Upstreams;

/// Life of the certificates we ask for.
const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How often idle metric series are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until told to end.
pub fn run(config: Config) -> Result<()> {
    let format = if config.log_json { LogFormat::Json } else { LogFormat::Plain };
    let telemetry = telemetry::init(format, &config.log_level)?;
    let data = Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .thread_name("data")
        .enable_all()
        .build()
        .context("start the data threads")?;
    // Configuration, certificates and administration have a thread of their own, so that a large update or a dump
    // delays no request.
    let control = Builder::new_current_thread().enable_all().build().context("start the control thread")?;
    let handle = data.handle().clone();
    let ended = control.block_on(serve(config, &telemetry, handle));
    // Requests that outlived the drain limit end here.
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
    let (configured, certified) = (ready.gate("configuration"), ready.gate("certificate"));
    let mut background = JoinSet::new();

    let mesh = Arc::new(Mesh::default());
    let client = Client::new(
        node(&config),
        TYPES,
        Control::new(&config),
        Feed::new(mesh.clone(), metrics.clone(), config.root_namespace.clone()),
    );
    // Those of other waypoints are none of its business.
    let own = format!("{}/{}/*", config.namespace(), config.name);
    let client = client.only(ROUTES_TYPE, [own.clone()]).only(TRAFFIC_TYPE, [own]);
    let mut configuration = client.state();
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
        Trust::new(config.identity.trust_domain().clone(), []),
        Settings::default(),
    );
    background.spawn(certificates.run());
    identities.want(&config.identity);
    background.spawn(follow_certificate(identities.clone(), config.clone(), certified));

    let own = Arc::new(Own::new(&config, mesh.clone()));
    let pool = Pool::new(PoolConfig { stream_window: TUNNEL_STREAM_WINDOW, ..PoolConfig::default() });
    let connector = Connector::new(pool, identities.clone(), own.clone());
    let log = AccessLog::new(telemetry, metrics, &registry, drain.clone());
    let upstreams = Upstreams::new(Arc::new(connector));
    let engine = Arc::new(Engine::new(mesh, own, upstreams, Endpoints::new(&registry), log, drain.clone()));

    let sources = Sources {
        engine: engine.clone(),
        identities: identities.clone(),
        config: json!({
            "gateway": &*config.name,
            "pod": &*config.pod,
            "identity": config.identity.to_string(),
            "node": &*config.node,
            "cluster": &*config.cluster,
            "network": &*config.network,
            "xdsAddress": config.xds_address,
            "caAddress": config.ca_address,
            "workerThreads": config.worker_threads,
            "drainLimitSeconds": config.drain_limit.as_secs(),
        }),
        filter: telemetry.filter().clone(),
        asker: shutdown.asker(),
    };
    // Until the end, not until the drain: whoever looks after this pod sees it drain.
    for (address, server) in [
        (config.admin_address, admin::admin(&sources)),
        (config.metrics_address, admin::metrics(&registry)),
        (config.readiness_address, admin::readiness(&ready)),
    ] {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        background.spawn(show(listener, server, drain.clone()));
    }
    background.spawn(expire(registry));
    let swept = engine.clone();
    background.spawn_on(async move { match swept.upstreams.sweep().await {} }, &data);
    // Without the configuration requests would pass beside routes and policies. Who finds nobody listening goes to
    // another waypoint, or waits for one.
    tokio::select! {
        _ = configuration.wait_for(|state| state.synced) => {}
        cause = shutdown.asked() => {
            tracing::info!(?cause, "ended before there was a configuration");
            background.shutdown().await;
            return Ok(());
        }
    }
    // The listener belongs to the threads that serve its connections.
    let address = config.hbone_address;
    let listener = data.spawn(bind(address)).await.context("run the data threads")?;
    let listener = listener.with_context(|| format!("listen for tunnels on {address}"))?;
    let accepting = data.spawn(listen(engine.clone(), identities, listener));
    tracing::info!(gateway = %config.name, identity = %config.identity, version = env!("CARGO_PKG_VERSION"), "started");

    let cause = shutdown.asked().await;
    tracing::info!(?cause, limit = ?config.drain_limit, "draining");
    ready.gate("drain").lose("this process ends");
    let guard = drain.guard();
    let all_ended = async move {
        // A panic there is reported by its own message, and the drain goes on without it.
        let _ = accepting.await;
        drop(guard);
    };
    let (ending, ()) = tokio::join!(shutdown.drain(cause, trigger, config.drain_limit), all_ended);
    tracing::info!(?ending, "ended");
    background.shutdown().await;
    Ok(())
}

async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves `server` until the drain is over.
async fn show(listener: TcpListener, server: Server, end: Drain) {
    server.serve(listener, async move { end.forced().await }).await;
}

async fn follow_configuration(mut state: watch::Receiver<State>, gate: Gate, metrics: Metrics) {
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

/// Opens `gate` while there is a certificate.
async fn follow_certificate(identities: Store, config: Config, gate: Gate) {
    let Some(mut certificate) = identities.subscribe(&config.identity) else { return };
    loop {
        match certificate.borrow_and_update().is_some() {
            true => gate.open(),
            false => gate.lose(format!("no certificate for {} yet", config.identity)),
        }
        if certificate.changed().await.is_err() {
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
