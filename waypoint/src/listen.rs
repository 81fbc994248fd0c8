//! Accepts tunnels.

use std::sync::Arc;
use std::time::Duration;

use loam_hbone::{Limits, ServeError};
use loam_tls::store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arrival::Arrivals;
use crate::config::MAX_TUNNELS;
use crate::engine::Engine;
use crate::limits::TUNNEL_STREAM_WINDOW;

/// After an error of the listener, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How long tunnels are still accepted when a drain has begun: not everybody knows at once that this waypoint leaves.
const LEAVING: Duration = Duration::from_secs(5);

/// Serves the tunnels that `listener` accepts, until the drain is over.
pub async fn listen(engine: Arc<Engine>, identities: Store, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_TUNNELS));
    let drain = engine.drain.clone();
    let left = async {
        drain.started().await;
        sleep(LEAVING).await;
    };
    tokio::pin!(left);
    let mut tunnels = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = &mut left => break,
            accepted = listener.accept() => accepted,
        };
        while tunnels.try_join_next().is_some() {}
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "accept a tunnel");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            tracing::warn!(limit = MAX_TUNNELS, "refused a tunnel: there are too many");
            loam_hbone::reset(socket);
            continue;
        };
        let (engine, identities) = (engine.clone(), identities.clone());
        tunnels.spawn(async move {
            tunnel(engine, &identities, socket).await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = async { while tunnels.join_next().await.is_some() {} } => {}
        () = drain.forced() => {}
    }
}

async fn tunnel(engine: Arc<Engine>, identities: &Store, socket: TcpStream) {
    let peer = socket.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    let credentials = match identities.get(engine.own.identity()).await {
        Ok(credentials) => credentials,
        Err(error) => {
            loam_hbone::reset(socket);
            return tracing::warn!(peer, %error, "refused a tunnel");
        }
    };
    let limits = Limits { stream_window: TUNNEL_STREAM_WINDOW, ..Limits::default() };
    let drain = engine.drain.clone();
    let late = drain.has_started();
    let begins = async move {
        drain.started().await;
        // Who comes during a drain knows of no other waypoint yet, and would come again.
        if late {
            sleep(LEAVING).await;
        }
    };
    let handler = Arc::new(Arrivals::new(engine));
    match loam_hbone::serve(socket, &credentials, &limits, &handler, begins).await {
        Ok(_) => {}
        Err(error @ (ServeError::Tls(_) | ServeError::Slow(_))) => tracing::warn!(peer, %error, "tunnel refused"),
        Err(error) => tracing::debug!(peer, %error, "tunnel ended"),
    }
}
