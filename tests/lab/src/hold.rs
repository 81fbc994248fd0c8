//! Many connections held open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use loam_tests::report::Held;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{Talk, within};

/// Connections being opened at once.
const PARALLEL: usize = 64;
/// Bound on each step of one connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Opens `count` connections, says so, waits for SIGTERM, and asks each once more.
pub(crate) async fn run(to: SocketAddr, count: u64, tag: &str) -> Result<Held> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut report = Held { ok: 0, failures: Default::default(), lost: 0 };
    let permits = Arc::new(Semaphore::new(PARALLEL));
    let mut opening = JoinSet::new();
    for _ in 0..count {
        let (permit, tag) = (permits.clone().acquire_owned().await?, tag.to_owned());
        opening.spawn(async move {
            let mut talk = within(LIMIT, "connect", Talk::open(to, &tag)).await?;
            within(LIMIT, "read", talk.ask()).await?;
            drop(permit);
            Ok::<_, crate::client::Failed>(talk)
        });
    }
    let mut held = Vec::new();
    while let Some(opened) = opening.join_next().await {
        match opened? {
            Ok(talk) => held.push(talk),
            Err(failed) => *report.failures.entry(failed.to_string()).or_default() += 1,
        }
    }
    report.ok = held.len() as u64;
    println!("held {}", report.ok);
    stop.recv().await;
    for talk in &mut held {
        if within(LIMIT, "read", talk.ask()).await.is_err() {
            report.lost += 1;
        }
    }
    Ok(report)
}
