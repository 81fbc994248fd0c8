//! How often one node may ask: a token bucket each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests of one node in the long run. A node renews each identity twice a day; this is room for a thousand
/// identities with certificates of a few minutes.
pub const REQUESTS_PER_SECOND: f64 = 20.0;
/// Requests of one node at once: its ztunnel starts again and fetches every identity of the node.
pub const BURST: f64 = 500.0;
/// Most nodes remembered. Kubernetes supports five thousand.
pub const MAX_NODES: usize = 16_384;
/// A node that is refused is logged again after this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The buckets of all nodes.
#[derive(Debug, Default)]
pub struct Limits(Mutex<HashMap<String, Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
    logged_at: Option<Instant>,
}

/// Whether a request may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Passed,
    /// It may not.
    Refused {
        /// Whether it was refused lately, and has been logged.
        logged: bool,
    },
}

impl Limits {
    /// Takes a token of `node`.
    pub fn admit(&self, node: &str, now: Instant) -> Admission {
        // A bucket is whole at every moment.
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_NODES && !buckets.contains_key(node) {
            // A full bucket says nothing that a missing one does not.
            buckets.retain(|_, bucket| bucket.level(now) < BURST);
            if buckets.len() >= MAX_NODES {
                return Admission::Refused { logged: false };
            }
        }
        let fresh = || Bucket { tokens: BURST, filled_at: now, logged_at: None };
        let bucket = buckets.entry(node.to_owned()).or_insert_with(fresh);
        bucket.tokens = bucket.level(now);
        bucket.filled_at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Admission::Passed;
        }
        let logged = bucket.logged_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL);
        if !logged {
            bucket.logged_at = Some(now);
        }
        Admission::Refused { logged }
    }
}

impl Bucket {
    fn level(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        (self.tokens + passed * REQUESTS_PER_SECOND).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(limits: &Limits, node: &str, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| limits.admit(node, now) == Admission::Passed).count()
    }

    #[test]
    fn a_node_gets_its_burst_and_then_its_rate() {
        let (limits, now) = (Limits::default(), Instant::now());
        assert_eq!(passed(&limits, "a", now, 10_000), BURST as usize);
        assert_eq!(passed(&limits, "a", now + Duration::from_secs(1), 10_000), REQUESTS_PER_SECOND as usize);
        assert_eq!(passed(&limits, "a", now + Duration::from_secs(3600), 10_000), BURST as usize);
    }

    #[test]
    fn a_node_that_storms_takes_nothing_from_others() {
        let (limits, now) = (Limits::default(), Instant::now());
        passed(&limits, "a", now, 10_000);
        assert_eq!(limits.admit("b", now), Admission::Passed);
    }

    #[test]
    fn a_storm_is_logged_now_and_then_only() {
        let (limits, now) = (Limits::default(), Instant::now());
        passed(&limits, "a", now, BURST as usize);
        assert_eq!(limits.admit("a", now), Admission::Refused { logged: false });
        assert_eq!(limits.admit("a", now), Admission::Refused { logged: true });
    }

    #[test]
    fn nodes_that_are_gone_make_room() {
        let (limits, now) = (Limits::default(), Instant::now());
        for i in 0..MAX_NODES {
            assert_eq!(limits.admit(&format!("node-{i}"), now), Admission::Passed);
        }
        assert_eq!(limits.admit("one-more", now), Admission::Refused { logged: false });
        assert_eq!(limits.admit("one-more", now + Duration::from_secs(1)), Admission::Passed);
        assert_eq!(limits.0.lock().unwrap().len(), 1);
    }
}
