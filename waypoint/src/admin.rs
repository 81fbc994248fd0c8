//! What this process shows of itself: 15000 for people, 15020 metrics, 15021 readiness.

use std::sync::Arc;

use http::StatusCode;
use loam_core::dump::Dump;
use loam_rt::admin::{Callers, Response, Routes, Server};
use loam_rt::metrics::Registry;
use loam_rt::ready::Ready;
use loam_rt::shutdown::Asker;
use loam_rt::telemetry::Filter;
use loam_tls::store::Store;
use serde_json::{Value, json};

use crate::engine::Engine;

/// Where the administration interface finds what it shows. None of it may hold a secret.
#[derive(Clone)]
pub struct Sources {
    /// What is under way.
    pub engine: Arc<Engine>,
    /// How the certificate fares.
    pub identities: Store,
    /// The configuration of this process.
    pub config: Value,
    /// Log levels.
    pub filter: Filter,
    /// Ends this process.
    pub asker: Asker,
}

/// The administration interface; it has no authentication and belongs on loopback.
pub fn admin(sources: &Sources) -> Server {
    let (all, engine, asker) = (sources.clone(), sources.engine.clone(), sources.asker.clone());
    let routes = Routes::default()
        .dump("/config_dump", "the mesh as known here, certificates and settings", move |_| config_dump(&all))
        .dump("/debug/upstreams", "connections to endpoints", move |_| {
            Response::json(&json!({
                "connections": engine.upstreams.count(),
                "mirrors": engine.mirrors.len(),
                "upgraded": engine.upgrades.len(),
            }))
        })
        .logging(&sources.filter)
        .post("/quitquitquit", "POST: drain, then end", move |_| {
            asker.ask();
            std::future::ready(Response::text(StatusCode::OK, "draining\n"))
        })
        .index("loam-waypoint: administration");
    Server::new(routes)
}

/// Metrics, for scrapers that know this pod by any name.
pub fn metrics(registry: &Registry) -> Server {
    Server::new(Routes::default().metrics(registry).index("loam-waypoint: metrics")).callers(Callers::Any)
}

/// Readiness, for probes.
pub fn readiness(ready: &Ready) -> Server {
    Server::new(Routes::default().ready(ready)).callers(Callers::Any)
}

fn config_dump(sources: &Sources) -> Response {
    let snapshot = sources.engine.mesh.load();
    let mut dump = match serde_json::to_value(Dump::of(&snapshot)) {
        Ok(Value::Object(dump)) => dump,
        Ok(_) | Err(_) => serde_json::Map::new(),
    };
    dump.insert("certificates".to_owned(), json!(sources.identities.state()));
    dump.insert("config".to_owned(), sources.config.clone());
    Response::json(&dump)
}
