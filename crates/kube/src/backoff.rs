//! How long to wait before something is tried again.

use std::time::Duration;

/// Wait after the first failure, at most.
const FLOOR: Duration = Duration::from_millis(500);

/// Longest wait: an API server that is back is noticed within it.
const CEILING: Duration = Duration::from_secs(15);

/// Waits that grow with every failure in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure. `spread` is between 0 and 1 and keeps clients apart that failed together.
    pub(crate) fn fail(&mut self, spread: f64) -> Duration {
        let longest = FLOOR.saturating_mul(1 << self.failures.min(10)).min(CEILING);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + spread.clamp(0.0, 1.0) / 2.0)
    }

    /// Something went well.
    pub(crate) fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_ceiling_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.fail(1.0)).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[19]), (FLOOR, CEILING));
        backoff.succeed();
        assert_eq!(backoff.fail(0.0), FLOOR / 2);
    }
}
