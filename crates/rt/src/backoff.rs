//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubling delays between a floor and a ceiling, spread so that the clients of a restarted server do not come back
/// together.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `floor` and never waits longer than `ceiling`.
    pub fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, next: floor }
    }

    /// The delay after one more failure; `spread` in 0..1 takes up to half of it away.
    pub fn fail(&mut self, spread: f64) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.ceiling);
        delay.mul_f64(1.0 - spread.clamp(0.0, 1.0) / 2.0)
    }

    /// After a success the next failure waits briefly again.
    pub fn succeed(&mut self) {
        self.next = self.floor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_start_again_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(35));
        assert_eq!([0; 4].map(|_| backoff.fail(0.0)), [ms(10), ms(20), ms(35), ms(35)]);
        assert_eq!(backoff.fail(1.0), ms(35) / 2);
        backoff.succeed();
        assert_eq!(backoff.fail(0.0), ms(10));
    }
}
