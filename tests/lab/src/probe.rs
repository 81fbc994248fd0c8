//! One connection, described from both ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use loam_tests::report::Probe;

use crate::client::{Failed, Talk, connect, within};

/// Connects, asks, and tells.
pub(crate) async fn run(to: SocketAddr, bind: Option<SocketAddr>, timeout: Duration, tag: &str) -> Probe {
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1e3;
    let mut probe = Probe { error: None, connect_ms: 0.0, total_ms: 0.0, peer: None, local: None, server: None };
    let connected = within(timeout, "connect", async { connect(to, bind).await.map_err(Failed::at("connect")) }).await;
    probe.connect_ms = ms();
    match connected {
        Ok(stream) => {
            (probe.peer, probe.local) = (stream.peer_addr().ok(), stream.local_addr().ok());
            let mut talk = Talk::over(stream, tag);
            match within(timeout, "read", talk.ask()).await {
                Ok(seen) => probe.server = Some(seen),
                Err(failed) => probe.error = Some(failed.to_string()),
            }
        }
        Err(failed) => probe.error = Some(failed.to_string()),
    }
    probe.total_ms = ms();
    probe
}
