//! Endpoints as this process sees them: how many requests each has, and which keep failing to be connected to.
//!
//! An endpoint to which [`MAX_FAILURES`] tries in a row failed is *set aside*: new requests take others, as long as
//! there are any. When its time is over it is tried again; each further spell is longer.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loam_core::balance::{Standing, Standings};
use loam_rt::metrics::Registry;
use tokio::time::Instant;

/// Tries in a row that may fail before an endpoint is set aside.
pub const MAX_FAILURES: u32 = 3;

/// How long it is set aside the first time; each time after that twice as long.
pub const FIRST_SPELL: Duration = Duration::from_secs(1);

/// The longest it is set aside.
pub const LONGEST_SPELL: Duration = Duration::from_secs(60);

/// How long failures are remembered after the last one.
const MEMORY: Duration = Duration::from_secs(5 * 60);

/// Parts of the table with a lock each, so that threads seldom meet.
const SHARDS: usize = 16;

/// Endpoints without requests whose failures are remembered, per shard. Beyond it they are forgotten early.
const MAX_REMEMBERED: usize = 512;

/// What is known of endpoints here.
#[derive(Debug, Default)]
pub struct Endpoints {
    shards: [Mutex<HashMap<SocketAddr, Endpoint>>; SHARDS],
    hasher: RandomState,
    spells: AtomicU64,
}

/// An endpoint with requests or with trouble; any other one is not in the table.
#[derive(Debug, Default)]
struct Endpoint {
    requests: u32,
    trouble: Option<Trouble>,
}

#[derive(Debug, Clone, Copy)]
struct Trouble {
    failures: u32,
    spells: u32,
    aside_until: Option<Instant>,
    last_failure: Instant,
}

impl Trouble {
    fn is_aside(&self, now: Instant) -> bool {
        self.aside_until.is_some_and(|until| now < until)
    }

    fn is_over(&self, now: Instant) -> bool {
        !self.is_aside(now) && now.saturating_duration_since(self.last_failure) > MEMORY
    }
}

impl Endpoints {
    /// Nothing known yet; counted in `registry`.
    pub fn new(registry: &Registry) -> Arc<Self> {
        let endpoints = Arc::new(Self::default());
        let [aside, spells] = [(); 2].map(|()| endpoints.clone());
        registry.gauge("loam_endpoints_aside", "Endpoints that are set aside because they keep failing", move || {
            let now = Instant::now();
            let all = aside.shards.iter().map(lock);
            let count = all.map(|shard| shard.values().filter(|e| e.trouble.is_some_and(|t| t.is_aside(now))).count());
            i64::try_from(count.sum::<usize>()).unwrap_or(i64::MAX)
        });
        registry.counter("loam_endpoint_spells", "Times that an endpoint was set aside", move || {
            spells.spells.load(Ordering::Relaxed)
        });
        endpoints
    }

    /// Counts a request to `endpoint` until what is returned is dropped.
    pub fn join(self: &Arc<Self>, endpoint: SocketAddr) -> Busy {
        let mut shard = self.shard(endpoint);
        let entry = shard.entry(endpoint).or_default();
        entry.requests = entry.requests.saturating_add(1);
        drop(shard);
        Busy { endpoints: self.clone(), endpoint }
    }

    fn failed(&self, endpoint: SocketAddr) {
        let now = Instant::now();
        let mut shard = self.shard(endpoint);
        let entry = shard.entry(endpoint).or_default();
        let fresh = Trouble { failures: 0, spells: 0, aside_until: None, last_failure: now };
        let mut trouble = entry.trouble.filter(|trouble| !trouble.is_over(now)).unwrap_or(fresh);
        trouble.last_failure = now;
        trouble.failures = trouble.failures.saturating_add(1);
        // After a spell one failure is enough. What began before it says nothing new.
        if !trouble.is_aside(now) && (trouble.failures >= MAX_FAILURES || trouble.spells > 0) {
            let spell = FIRST_SPELL.saturating_mul(1 << trouble.spells.min(16)).min(LONGEST_SPELL);
            trouble.aside_until = Some(now + spell);
            trouble.spells = trouble.spells.saturating_add(1);
            self.spells.fetch_add(1, Ordering::Relaxed);
        }
        entry.trouble = Some(trouble);
    }

    fn leave(&self, endpoint: SocketAddr) {
        let mut shard = self.shard(endpoint);
        let Some(entry) = shard.get_mut(&endpoint) else { return };
        entry.requests = entry.requests.saturating_sub(1);
        if entry.requests > 0 {
            return;
        }
        if entry.trouble.is_none() {
            shard.remove(&endpoint);
        } else if shard.len() > MAX_REMEMBERED {
            let now = Instant::now();
            shard.retain(|_, entry| entry.requests > 0 || entry.trouble.is_some_and(|t| !t.is_over(now)));
            if shard.values().filter(|entry| entry.requests == 0).count() > MAX_REMEMBERED {
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
            Some(Endpoint { requests, trouble }) => Standing {
                connections: *requests,
                aside: trouble.is_some_and(|trouble| trouble.is_aside(Instant::now())),
                ..Standing::default()
            },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's place at an endpoint, given back when dropped.
#[derive(Debug)]
pub struct Busy {
    endpoints: Arc<Endpoints>,
    endpoint: SocketAddr,
}

impl Busy {
    /// The endpoint was reached.
    pub fn worked(&self) {
        if let Some(entry) = self.endpoints.shard(self.endpoint).get_mut(&self.endpoint) {
            entry.trouble = None;
        }
    }

    /// It was not, and that was its fault.
    pub fn failed(&self) {
        self.endpoints.failed(self.endpoint);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.endpoints.leave(self.endpoint);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_keeps_failing_is_set_aside_for_longer_each_time() {
        let endpoints = Arc::new(Endpoints::default());
        let endpoint: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let fail = || endpoints.join(endpoint).failed();
        fail();
        fail();
        assert!(!endpoints.of(endpoint).aside);
        fail();
        assert!(endpoints.of(endpoint).aside);
        advance(FIRST_SPELL).await;
        assert!(!endpoints.of(endpoint).aside);
        fail();
        advance(FIRST_SPELL).await;
        assert!(endpoints.of(endpoint).aside, "the second spell is twice as long");
        advance(FIRST_SPELL).await;
        endpoints.join(endpoint).worked();
        fail();
        assert!(!endpoints.of(endpoint).aside, "what worked is forgiven");
    }

    #[test]
    fn requests_are_counted_while_they_last() {
        let endpoints = Arc::new(Endpoints::default());
        let endpoint: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let (one, two) = (endpoints.join(endpoint), endpoints.join(endpoint));
        assert_eq!(endpoints.of(endpoint).connections, 2);
        drop((one, two));
        assert_eq!(endpoints.of(endpoint).connections, 0);
        assert!(endpoints.shard(endpoint).is_empty(), "nothing is kept of it");
    }
}
