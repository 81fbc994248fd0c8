//! Questions for one name, as many as a name server answers: so many at once, each over a socket of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use loam_tests::report::{Lookups, Percentiles};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Failed, within};
use crate::question;

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer without extensions.
const MAX_ANSWER_BYTES: usize = 512;

/// What one asker saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<u64>,
    failures: BTreeMap<String, u64>,
}

impl Seen {
    fn failed(&mut self, failed: &Failed) {
        *self.failures.entry(failed.to_string()).or_default() += 1;
    }
}

/// Asks `server` for the address of `name` for `time`, `parallel` questions at once.
pub(crate) async fn run(server: SocketAddr, name: String, parallel: usize, time: Duration) -> Result<Lookups> {
    let start = Instant::now();
    let mut askers = JoinSet::new();
    for number in 0..parallel {
        let name = name.clone();
        askers.spawn(async move { ask(server, &name, number as u16, start + time).await });
    }
    let (mut latencies, mut report) = (Vec::new(), Lookups::default());
    while let Some(seen) = askers.join_next().await {
        let seen = seen?;
        latencies.extend(seen.latencies);
        for (failure, count) in seen.failures {
            *report.failures.entry(failure).or_default() += count;
        }
    }
    report.answered = latencies.len() as u64;
    report.per_second = report.answered as f64 / start.elapsed().as_secs_f64();
    report.latency_us = Percentiles::of(latencies);
    Ok(report)
}

async fn ask(server: SocketAddr, name: &str, mut id: u16, end: Instant) -> Seen {
    let mut seen = Seen::default();
    let socket = match socket(server).await {
        Ok(socket) => socket,
        Err(failed) => {
            seen.failed(&failed);
            return seen;
        }
    };
    while Instant::now() < end {
        id = id.wrapping_add(1);
        let asked = Instant::now();
        match within(LIMIT, "read", exchange(&socket, id, name)).await {
            Ok(()) => seen.latencies.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX)),
            Err(failed) => seen.failed(&failed),
        }
    }
    seen
}

async fn socket(server: SocketAddr) -> Result<UdpSocket, Failed> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map_err(Failed::at("bind"))?;
    socket.connect(server).await.map_err(Failed::at("connect"))?;
    Ok(socket)
}

async fn exchange(socket: &UdpSocket, id: u16, name: &str) -> Result<(), Failed> {
    socket.send(&question::question(id, name)).await.map_err(Failed::at("write"))?;
    let mut buffer = [0; MAX_ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(Failed::at("read"))?;
        let message = &buffer[..length];
        // The answer to a question that was given up is nobody's.
        if question::id(message) != Some(id) {
            continue;
        }
        let error = match question::read(message) {
            Ok((0, addresses)) if !addresses.is_empty() => return Ok(()),
            Ok((code, addresses)) => format!("code {code}, {} addresses", addresses.len()),
            Err(e) => format!("{e:#}"),
        };
        return Err(Failed { stage: "answer", error });
    }
}
