//! Many connections, each with its time and its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use loam_tests::report::{Failure, Percentiles, Rate, now_us};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{Failed, Talk, within};

/// Failures kept in detail; a test that sees more has seen enough.
const MAX_FAILURES: usize = 2000;
/// Attempts under way at once; beyond it the rate is not kept, which the number of attempts then shows.
const MAX_PENDING: usize = 8000;

/// What each attempt does.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Servers, in turn.
    pub(crate) to: Vec<SocketAddr>,
    /// How long it stays open after its answer.
    pub(crate) linger: Duration,
    /// Bound on each stage.
    pub(crate) timeout: Duration,
    /// Tag of its marker.
    pub(crate) tag: String,
}

struct Tally {
    plan: Plan,
    counts: Mutex<(Rate, Vec<u64>)>,
}

impl Tally {
    fn new(plan: Plan) -> Arc<Self> {
        let rate = Rate {
            attempts: 0,
            ok: 0,
            failures: Default::default(),
            failed: Vec::new(),
            started_us: now_us(),
            ended_us: 0,
            latency_us: Percentiles::default(),
        };
        Arc::new(Self { plan, counts: Mutex::new((rate, Vec::new())) })
    }

    async fn attempt(&self, number: u64) {
        let (start, started_us) = (Instant::now(), now_us());
        let to = self.plan.to[(number % self.plan.to.len() as u64) as usize];
        let result = self.once(to).await;
        let (took, ended_us) = (start.elapsed(), now_us());
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let (rate, latencies) = &mut *counts;
            rate.attempts += 1;
            match &result {
                Ok(_) => {
                    rate.ok += 1;
                    latencies.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                }
                Err(failed) => {
                    *rate.failures.entry(failed.to_string()).or_default() += 1;
                    if rate.failed.len() < MAX_FAILURES {
                        let (stage, error) = (failed.stage.to_owned(), failed.error.clone());
                        rate.failed.push(Failure { started_us, ended_us, stage, error });
                    }
                }
            }
        }
        if let Ok(talk) = result {
            tokio::time::sleep(self.plan.linger).await;
            drop(talk);
        }
    }

    async fn once(&self, to: SocketAddr) -> Result<Talk, Failed> {
        let limit = self.plan.timeout;
        let mut talk = within(limit, "connect", Talk::open(to, &self.plan.tag)).await?;
        within(limit, "read", talk.ask()).await?;
        Ok(talk)
    }

    fn finish(&self) -> Rate {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let latencies = std::mem::take(&mut counts.1);
        let mut rate = counts.0.clone();
        rate.ended_us = now_us();
        rate.latency_us = Percentiles::of(latencies);
        rate
    }
}

/// Starts `per_second` attempts per second, whatever becomes of them.
pub(crate) async fn steady(plan: Plan, per_second: u64, time: Duration) -> Result<Rate> {
    let tally = Tally::new(plan);
    let mut stop = signal(SignalKind::terminate())?;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut started = 0;
    println!("started");
    while start.elapsed() < time {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.recv() => break,
        }
        let due = (start.elapsed().as_secs_f64() * per_second as f64) as u64;
        while started < due && tasks.len() < MAX_PENDING {
            let tally = tally.clone();
            tasks.spawn(async move { tally.attempt(started).await });
            started += 1;
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Ok(tally.finish())
}

/// Makes `count` connections, `parallel` at a time.
pub(crate) async fn churn(plan: Plan, count: u64, parallel: usize) -> Result<Rate> {
    let tally = Tally::new(plan);
    let permits = Arc::new(Semaphore::new(parallel));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let permit = permits.clone().acquire_owned().await?;
        let tally = tally.clone();
        tasks.spawn(async move {
            tally.attempt(number).await;
            drop(permit);
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Ok(tally.finish())
}
