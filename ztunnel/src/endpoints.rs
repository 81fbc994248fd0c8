//! Endpoints as this process sees them: how many connections each has, and which keep failing.
//!
//! An endpoint to which [`MAX_FAILURES`] tries in a row failed is *set aside*: new connections take others, as long as
//! there are any. When its time is over one connection finds out whether it is back; each further spell is longer.

mod moves;
mod news;
mod tries;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loam_core::balance::{Standing, Standings};
use loam_rt::metrics::Registry;
use serde::Serialize;
use tokio::time::Instant;

pub use moves::follow_moves;
pub(crate) use news::reach;
pub(crate) use tries::{Connection, Failure, Fault, Tries, Unreached};

/// Tries in a row that may fail before an endpoint is set aside.
pub const MAX_FAILURES: u32 = 3;

/// How long it is set aside the first time; each time after that twice as long.
pub const FIRST_SPELL: Duration = Duration::from_secs(1);

/// The longest it is set aside. A dead one costs one try per minute then, and one that is back waits no longer.
pub const LONGEST_SPELL: Duration = Duration::from_secs(60);

/// How long failures are remembered after the last one.
const MEMORY: Duration = Duration::from_secs(5 * 60);

/// How long the first connection after a spell has the endpoint for itself.
const PROBE_TIMEOUT: Duration = tries::TRY_TIMEOUT;

/// Parts of the table with a lock each, so that threads seldom meet.
const SHARDS: usize = 16;

/// Endpoints without connections whose failures are remembered, per shard. Beyond it they are forgotten early.
const MAX_REMEMBERED: usize = 512;

/// Most endpoints in one listing.
const MAX_LISTED: usize = 1000;

/// What is known of endpoints here. An endpoint is the address and port that serve.
#[derive(Debug, Default)]
pub struct Endpoints {
    shards: [Mutex<HashMap<SocketAddr, Endpoint>>; SHARDS],
    hasher: RandomState,
    spells: AtomicU64,
    retries: AtomicU64,
}

/// An endpoint with connections or with trouble; any other one is not in the table.
#[derive(Debug, Default)]
struct Endpoint {
    connections: u32,
    trouble: Option<Trouble>,
}

/// What went wrong since the last try that worked.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    /// Tries that failed before it was set aside.
    failures: u32,
    /// How often it was set aside.
    spells: u32,
    phase: Phase,
    last_failure: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Not set aside yet.
    Counting,
    /// Set aside. Afterwards the first connection probes it.
    Aside { until: Instant },
    /// One connection probes it, and the others wait for what it finds.
    Probed { until: Instant },
}

impl Trouble {
    fn is_aside(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Counting => false,
            Phase::Aside { until } | Phase::Probed { until } => now < until,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        !self.is_aside(now) && now.saturating_duration_since(self.last_failure) > MEMORY
    }

    /// How long it is set aside for the next time.
    fn next_spell(&self) -> Duration {
        FIRST_SPELL.saturating_mul(1 << self.spells.min(16)).min(LONGEST_SPELL)
    }
}

impl Endpoints {
    /// Nothing known yet; counted in `registry`.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let endpoints = Arc::new(Self::default());
        let [aside, spells, retries] = [(); 3].map(|()| endpoints.clone());
        registry.gauge("loam_endpoints_aside", "Endpoints that are set aside because they keep failing", move || {
            let now = Instant::now();
            let all = aside.shards.iter().map(lock);
            let count = all.map(|shard| shard.values().filter(|e| e.trouble.is_some_and(|t| t.is_aside(now))).count());
            i64::try_from(count.sum::<usize>()).unwrap_or(i64::MAX)
        });
        registry.counter("loam_endpoint_spells", "Times that an endpoint was set aside", move || {
            spells.spells.load(Ordering::Relaxed)
        });
        registry.counter("loam_connection_retries", "Tries of connections on another endpoint", move || {
            retries.retries.load(Ordering::Relaxed)
        });
        endpoints
    }

    /// Counts a connection to `endpoint` from its first step until what is returned is dropped.
    pub(crate) fn join(self: &Arc<Self>, endpoint: SocketAddr) -> Place {
        let mut shard = self.shard(endpoint);
        let entry = shard.entry(endpoint).or_default();
        entry.connections = entry.connections.saturating_add(1);
        let probes = entry.trouble.as_mut().is_some_and(|trouble| {
            let now = Instant::now();
            let probes = !matches!(trouble.phase, Phase::Counting) && !trouble.is_aside(now);
            if probes {
                trouble.phase = Phase::Probed { until: now + PROBE_TIMEOUT };
            }
            probes
        });
        drop(shard);
        Place { endpoints: self.clone(), endpoint, probes }
    }

    /// Forgets the troubles at these addresses: they belong to other workloads than before, or to none.
    pub(crate) fn forget(&self, addresses: &HashSet<IpAddr>) {
        for shard in &self.shards {
            lock(shard).retain(|endpoint, entry| {
                if addresses.contains(&endpoint.ip()) {
                    entry.trouble = None;
                }
                entry.connections > 0 || entry.trouble.is_some()
            });
        }
    }

    /// Endpoints with trouble, for people.
    pub fn describe(&self) -> Vec<EndpointView> {
        let now = Instant::now();
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let troubled = shard.iter().filter_map(|(addr, entry)| Some((addr, entry.connections, entry.trouble?)));
            let current = troubled.filter(|(_, _, trouble)| !trouble.is_over(now));
            all.extend(current.map(|(endpoint, connections, trouble)| EndpointView {
                endpoint: *endpoint,
                connections,
                failures: trouble.failures,
                spells: trouble.spells,
                aside_for_ms: match trouble.phase {
                    Phase::Counting => 0,
                    Phase::Aside { until } | Phase::Probed { until } => {
                        u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
                    }
                },
            }));
        }
        all.sort_unstable_by_key(|view| view.endpoint);
        all.truncate(MAX_LISTED);
        all
    }

    fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, endpoint: SocketAddr, probes: bool, failures: u32) {
        let mut shard = self.shard(endpoint);
        let entry = shard.entry(endpoint).or_default();
        let now = Instant::now();
        let fresh = Trouble { failures: 0, spells: 0, phase: Phase::Counting, last_failure: now };
        let mut trouble = entry.trouble.filter(|trouble| !trouble.is_over(now)).unwrap_or(fresh);
        trouble.last_failure = now;
        let set_aside = match trouble.phase {
            Phase::Counting => {
                trouble.failures = trouble.failures.saturating_add(failures);
                trouble.failures >= MAX_FAILURES
            }
            // Connections that began before, or for want of a better endpoint, say nothing new.
            Phase::Aside { .. } | Phase::Probed { .. } => probes,
        };
        if set_aside {
            trouble.phase = Phase::Aside { until: now + trouble.next_spell() };
            trouble.spells = trouble.spells.saturating_add(1);
            self.spells.fetch_add(1, Ordering::Relaxed);
        }
        entry.trouble = Some(trouble);
    }

    fn worked(&self, endpoint: SocketAddr) {
        if let Some(entry) = self.shard(endpoint).get_mut(&endpoint) {
            entry.trouble = None;
        }
    }

    fn leave(&self, endpoint: SocketAddr) {
        let mut shard = self.shard(endpoint);
        let Some(entry) = shard.get_mut(&endpoint) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections > 0 {
            return;
        }
        if entry.trouble.is_none() {
            shard.remove(&endpoint);
        } else if shard.len() > MAX_REMEMBERED {
            let now = Instant::now();
            shard.retain(|_, entry| entry.connections > 0 || entry.trouble.is_some_and(|t| !t.is_over(now)));
            if shard.values().filter(|entry| entry.connections == 0).count() > MAX_REMEMBERED {
                shard.remove(&endpoint);
            }
        }
    }

    fn shard(&self, endpoint: SocketAddr) -> MutexGuard<'_, HashMap<SocketAddr, Endpoint>> {
        // The remainder is far below the size of any integer.
        lock(&self.shards[(self.hasher.hash_one(endpoint) % SHARDS as u64) as usize])
    }
}

impl Standings for Endpoints {
    fn of(&self, endpoint: SocketAddr) -> Standing {
        match self.shard(endpoint).get(&endpoint) {
            None => Standing::default(),
            Some(Endpoint { connections, trouble }) => Standing {
                connections: *connections,
                aside: trouble.is_some_and(|trouble| {
                    !matches!(trouble.phase, Phase::Counting) && trouble.is_aside(Instant::now())
                }),
                ..Standing::default()
            },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection's place at an endpoint, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    endpoints: Arc<Endpoints>,
    endpoint: SocketAddr,
    probes: bool,
}

impl Place {
    /// The endpoint was reached.
    fn worked(&self) {
        self.endpoints.worked(self.endpoint);
    }

    /// It was not.
    fn failed(&self, fault: Fault) {
        match fault {
            Fault::Endpoint => self.endpoints.failed(self.endpoint, self.probes, 1),
            // Each further caller who meets a silent endpoint would lose seconds.
            Fault::Silence => self.endpoints.failed(self.endpoint, self.probes, MAX_FAILURES),
            Fault::Way | Fault::Final => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoints.leave(self.endpoint);
    }
}

/// One endpoint with trouble.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub struct EndpointView {
    pub endpoint: SocketAddr,
    pub connections: u32,
    pub failures: u32,
    /// How often it was set aside.
    pub spells: u32,
    /// 0 when it is not.
    pub aside_for_ms: u64,
}

#[cfg(test)]
mod tests;
