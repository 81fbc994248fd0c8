//! A steady stream of requests, and what became of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use http::StatusCode;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::call::{Backend, CallError};
use crate::serve::SERVED_BY;

/// Requests under way at a time; when the other side is that slow, later ones wait and their wait is counted.
const MAX_UNDER_WAY: usize = 256;
/// Requests of one run, whose latencies are all kept.
const MAX_REQUESTS: u64 = 10_000_000;
/// Different texts counted by name; others are counted together.
const MAX_NAMES: usize = 64;

/// Requests a URL at a steady rate and sums up the answers.
#[derive(Debug, Args)]
pub struct Flags {
    /// What to request: http://host:port/path.
    #[arg(long)]
    url: http::Uri,
    /// Requests per second, each over a connection of its own.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// How long, in milliseconds, one answer may take.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What became of the requests.
#[derive(Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many were sent.
    pub requests: u64,
    /// How many were answered with 200.
    pub ok: u64,
    /// How many were not.
    pub failed: u64,
    /// Answers per second.
    pub rate: f64,
    /// Times to the answers with 200, measured from when each request was due.
    pub latency_ms: Latency,
    /// Requests that failed, by how.
    pub failures: BTreeMap<String, u64>,
    /// Answers by the pod that gave them.
    pub served_by: BTreeMap<String, u64>,
    /// Answers by the pod of reviews that took part.
    pub reviewed_by: BTreeMap<String, u64>,
}

/// A distribution of times in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names of quantiles say it")]
pub struct Latency {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// Runs it and prints the summary; fails when any request did.
pub async fn run(flags: Flags) -> Result<ExitCode> {
    let (backend, path) = target(&flags.url)?;
    let plan = Plan {
        backend,
        path,
        rate: flags.rate,
        requests: u64::from(flags.rate) * u64::from(flags.seconds),
        timeout: Duration::from_millis(flags.timeout_ms),
    };
    if plan.requests > MAX_REQUESTS {
        bail!("{} requests are more than {MAX_REQUESTS}", plan.requests);
    }
    let summary = plan.run().await;
    let mut output = io::stdout().lock();
    if flags.json {
        serde_json::to_writer(&mut output, &summary)?;
        writeln!(output)?;
    } else {
        write!(output, "{summary}")?;
    }
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn target(url: &http::Uri) -> Result<(Backend, String)> {
    if url.scheme_str() != Some("http") {
        bail!("{url} does not begin with http://");
    }
    let authority = url.authority().with_context(|| format!("{url} has no host"))?;
    let port = authority.port_u16().unwrap_or(80);
    let backend = format!("{}:{port}", authority.host()).parse().map_err(anyhow::Error::msg)?;
    Ok((backend, url.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
}

struct Plan {
    backend: Backend,
    path: String,
    rate: u32,
    requests: u64,
    timeout: Duration,
}

/// One request's fate.
struct Fate {
    latency: Duration,
    result: Result<(Option<String>, Option<String>), String>,
}

impl Plan {
    async fn run(self) -> Summary {
        let plan = Arc::new(self);
        let permits = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let began = Instant::now();
        let mut under_way = JoinSet::new();
        let mut tally = Tally::default();
        for i in 0..plan.requests {
            let due = began + Duration::from_secs(1).mul_f64(i as f64 / f64::from(plan.rate));
            tokio::time::sleep_until(due).await;
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            let plan = Arc::clone(&plan);
            under_way.spawn(async move {
                let fate = plan.request(due).await;
                drop(permit);
                fate
            });
            while let Some(done) = under_way.try_join_next() {
                tally.add(done.expect("a request neither panics nor is cancelled"));
            }
        }
        while let Some(done) = under_way.join_next().await {
            tally.add(done.expect("a request neither panics nor is cancelled"));
        }
        tally.summary(began.elapsed())
    }

    async fn request(&self, due: Instant) -> Fate {
        let reply = self.backend.get(&self.path, self.timeout).await;
        let latency = due.elapsed();
        let result = match reply {
            Ok(reply) if reply.status == StatusCode::OK => {
                let header = |name: &str| reply.headers.get(name)?.to_str().ok().map(str::to_owned);
                Ok((header(SERVED_BY.as_str()), header("x-reviewed-by")))
            }
            Ok(reply) => Err(CallError::Status(reply.status).to_string()),
            Err(error) => Err(error.to_string()),
        };
        Fate { latency, result }
    }
}

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    failures: BTreeMap<String, u64>,
    served_by: BTreeMap<String, u64>,
    reviewed_by: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, fate: Fate) {
        match fate.result {
            Ok((served_by, reviewed_by)) => {
                self.latencies.push(fate.latency);
                for (pod, names) in [(served_by, &mut self.served_by), (reviewed_by, &mut self.reviewed_by)] {
                    if let Some(pod) = pod {
                        count(names, pod);
                    }
                }
            }
            Err(error) => count(&mut self.failures, error),
        }
    }

    fn summary(mut self, took: Duration) -> Summary {
        self.latencies.sort_unstable();
        let (ok, failed) = (self.latencies.len() as u64, self.failures.values().sum());
        Summary {
            requests: ok + failed,
            ok,
            failed,
            rate: (ok + failed) as f64 / took.as_secs_f64().max(f64::EPSILON),
            latency_ms: Latency::of(&self.latencies),
            failures: self.failures,
            served_by: self.served_by,
            reviewed_by: self.reviewed_by,
        }
    }
}

fn count(names: &mut BTreeMap<String, u64>, name: String) {
    let name = if names.len() < MAX_NAMES || names.contains_key(&name) { name } else { "others".to_owned() };
    *names.entry(name).or_default() += 1;
}

impl Latency {
    fn of(sorted: &[Duration]) -> Self {
        let Some(last) = sorted.len().checked_sub(1) else { return Self::default() };
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).clamp(1, last + 1) - 1];
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self { min: ms(sorted[0]), p50: ms(at(50)), p90: ms(at(90)), p99: ms(at(99)), max: ms(sorted[last]) }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { requests, ok, failed, rate, latency_ms: latency, .. } = self;
        writeln!(f, "{requests} requests, {ok} ok, {failed} failed, {rate:.1} per second")?;
        let Latency { min, p50, p90, p99, max } = latency;
        writeln!(f, "latency in ms: min {min:.2}, p50 {p50:.2}, p90 {p90:.2}, p99 {p99:.2}, max {max:.2}")?;
        for (title, names) in
            [("failed", &self.failures), ("served by", &self.served_by), ("reviewed by", &self.reviewed_by)]
        {
            for (name, count) in names {
                writeln!(f, "{title}: {count} {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::details::Details;
    use crate::serve;

    #[test]
    fn quantiles_are_those_of_the_times() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(Latency::of(&times), Latency { min: 1.0, p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 });
        assert_eq!(Latency::of(&times[..1]), Latency { min: 1.0, p50: 1.0, p90: 1.0, p99: 1.0, max: 1.0 });
        assert_eq!(Latency::of(&[]), Latency::default());
    }

    #[test]
    fn a_url_names_host_port_and_path() {
        let read = |url: &str| target(&url.parse().unwrap()).map(|(backend, path)| (backend.to_string(), path));
        assert_eq!(read("http://10.0.0.1:9080/a?b=c").unwrap(), ("10.0.0.1:9080".into(), "/a?b=c".into()));
        assert_eq!(read("http://[fd00::1]/").unwrap(), ("[fd00::1]:80".into(), "/".into()));
        assert_eq!(read("http://shop").unwrap(), ("shop:80".into(), "/".into()));
        assert!(read("https://shop/").is_err());
        assert!(read("/productpage").is_err());
    }

    #[test]
    fn names_beyond_the_limit_are_counted_together() {
        let mut names = BTreeMap::new();
        (0..MAX_NAMES + 5).for_each(|i| count(&mut names, format!("pod-{i}")));
        assert_eq!(names["others"], 5);
    }

    #[tokio::test]
    async fn answers_and_failures_are_counted() {
        let listener = serve::bind("[::]:0".parse().unwrap()).await.unwrap();
        let backend: Backend = format!("127.0.0.1:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let server = tokio::spawn(serve::run(listener, Details { pod: "d1".into() }, std::future::pending()));
        let plan = |path: &str| Plan {
            backend: backend.clone(),
            path: path.into(),
            rate: 1000,
            requests: 20,
            timeout: Duration::from_secs(10),
        };
        let summary = plan("/details/0").run().await;
        assert_eq!((summary.requests, summary.ok, summary.failed), (20, 20, 0));
        assert_eq!(summary.served_by["d1"], 20);
        let summary = plan("/nothing").run().await;
        assert_eq!((summary.ok, summary.failures["answered 404 Not Found"]), (0, 20));
        server.abort();
        let _ = server.await;
        assert_eq!(plan("/details/0").run().await.failed, 20);
    }
}
