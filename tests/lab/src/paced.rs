//! Requests at a steady pace. Each is timed from when it was due: one slow answer delays those behind it, and their
//! wait counts as it would for whoever waits for them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use loam_tests::report::{Paced, Percentiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Failed, connect, within};
use crate::web::ANSWER;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends `per_second` requests per second for `time`.
pub(crate) async fn run(to: SocketAddr, per_second: u32, time: Duration) -> Result<Paced> {
    let mut latencies = Vec::new();
    let error = requests(to, per_second, time, &mut latencies).await.err().map(|failed| failed.to_string());
    Ok(Paced { answered: latencies.len() as u64, error, latency_us: Percentiles::of(latencies) })
}

async fn requests(to: SocketAddr, per_second: u32, time: Duration, latencies: &mut Vec<u64>) -> Result<(), Failed> {
    let mut stream = within(LIMIT, "connect", async { connect(to, None).await.map_err(Failed::at("connect")) }).await?;
    // The first one opens whatever the way needs, and is not counted.
    within(LIMIT, "read", exchange(&mut stream)).await?;
    let start = Instant::now();
    for number in 0.. {
        let due = start + Duration::from_secs(1) * number / per_second.max(1);
        if due >= start + time {
            break;
        }
        tokio::time::sleep_until(due).await;
        within(LIMIT, "read", exchange(&mut stream)).await?;
        // The timer wakes up to a millisecond late, which is no fault of the way.
        latencies.push(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(())
}

async fn exchange(stream: &mut TcpStream) -> Result<(), Failed> {
    stream.write_all(REQUEST).await.map_err(Failed::at("write"))?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer).await.map(drop).map_err(Failed::at("read"))
}
