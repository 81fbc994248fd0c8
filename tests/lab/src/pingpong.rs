//! One connection that lives long and notices every trouble.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use loam_tests::report::{PingPong, now_us};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Talk, within};

/// Sends a message every `every` until the connection fails or we are asked to stop.
pub(crate) async fn run(to: SocketAddr, every: Duration, timeout: Duration, tag: &str) -> Result<PingPong> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut report = PingPong { messages: 0, error: None, slowest_ms: 0.0, ended_us: 0 };
    match within(timeout, "connect", Talk::open(to, tag)).await {
        Err(failed) => report.error = Some(failed.to_string()),
        Ok(mut talk) => loop {
            let start = Instant::now();
            if let Err(failed) = within(timeout, "read", talk.ask()).await {
                report.error = Some(failed.to_string());
                break;
            }
            report.slowest_ms = report.slowest_ms.max(start.elapsed().as_secs_f64() * 1e3);
            report.messages += 1;
            if report.messages == 1 {
                println!("connected");
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                _ = stop.recv() => break,
            }
        },
    }
    report.ended_us = now_us();
    Ok(report)
}
