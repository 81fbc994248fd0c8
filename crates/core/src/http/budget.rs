//! How many retries a service gets: so many for each hundred of its requests, and always a few (GEP-3388). Without
//! it, retries of many clients keep a service down that only stumbled.

use std::time::Duration;

use super::traffic::Budget;

/// Parts of the interval that are counted apart. What falls out of the window falls out by parts.
const PARTS: usize = 10;

/// Requests and retries to one service, as far as a budget has to know. Time is what has passed since any one moment.
#[derive(Debug, Clone)]
pub struct Spending {
    budget: Budget,
    /// By the number of the part of time, modulo their count.
    parts: [Part; PARTS],
    /// Retries in the current short interval.
    recent: u32,
    /// Its number.
    recent_number: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    number: u64,
    requests: u64,
    retries: u64,
}

impl Spending {
    /// Nothing has been spent.
    pub fn new(budget: Budget) -> Self {
        Self { budget, parts: [Part::default(); PARTS], recent: 0, recent_number: 0 }
    }

    /// Counts a request at `now`, without its retries.
    pub fn request(&mut self, now: Duration) {
        self.part(now).requests += 1;
    }

    /// Whether a retry may be made at `now`, which then counts.
    pub fn retry(&mut self, now: Duration) -> bool {
        let number = number(now, self.budget.min_interval);
        if number != self.recent_number {
            (self.recent, self.recent_number) = (0, number);
        }
        let (requests, retries) = self.window(now);
        let within_share = (retries + 1) * 100 <= requests * u64::from(self.budget.percent);
        if !within_share && self.recent >= self.budget.min_retries {
            return false;
        }
        self.recent += 1;
        self.part(now).retries += 1;
        true
    }

    fn part(&mut self, now: Duration) -> &mut Part {
        let number = number(now, self.budget.interval / PARTS as u32);
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part
    }

    fn window(&self, now: Duration) -> (u64, u64) {
        let latest = number(now, self.budget.interval / PARTS as u32);
        let counts = self.parts.iter().filter(|part| part.number + PARTS as u64 > latest);
        counts.fold((0, 0), |(requests, retries), part| (requests + part.requests, retries + part.retries))
    }
}

/// The number of the interval that `now` falls into.
fn number(now: Duration, interval: Duration) -> u64 {
    let number = now.as_nanos() / interval.as_nanos().max(1);
    u64::try_from(number).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(percent: u32, min_retries: u32) -> Budget {
        let (interval, min_interval) = (Duration::from_secs(10), Duration::from_secs(1));
        Budget { percent, interval, min_retries, min_interval }
    }

    /// How many of `wanted` retries are allowed at `ms`.
    fn allowed(spending: &mut Spending, wanted: u32, ms: u64) -> usize {
        (0..wanted).filter(|_| spending.retry(Duration::from_millis(ms))).count()
    }

    #[test]
    fn retries_are_a_share_of_requests() {
        let mut spending = Spending::new(budget(20, 0));
        assert_eq!(allowed(&mut spending, 10, 0), 0);
        (0..1000).for_each(|ms| spending.request(Duration::from_millis(ms)));
        assert_eq!(allowed(&mut spending, 1000, 1000), 200);
        assert_eq!(allowed(&mut spending, 1000, 9000), 0);
        // The requests of the first second are forgotten, and their retries later.
        (0..100).for_each(|_| spending.request(Duration::from_millis(9500)));
        assert_eq!(allowed(&mut spending, 1000, 10_500), 0);
        assert_eq!(allowed(&mut spending, 1000, 11_000), 20);
    }

    #[test]
    fn a_few_are_always_allowed_and_count_for_the_share() {
        let mut spending = Spending::new(budget(20, 3));
        assert_eq!(allowed(&mut spending, 10, 0), 3);
        assert_eq!(allowed(&mut spending, 10, 999), 0);
        assert_eq!(allowed(&mut spending, 10, 1000), 3);
        (0..100).for_each(|_| spending.request(Duration::from_millis(1500)));
        assert_eq!(allowed(&mut spending, 100, 1600), 14);
        assert_eq!(allowed(&mut spending, 10, 2000), 3);
    }

    #[test]
    fn a_service_that_fails_all_the_time_is_asked_a_fifth_more_often_at_most() {
        let mut spending = Spending::new(budget(20, 0));
        let (mut requests, mut retries) = (0, 0);
        for ms in 0..60_000 {
            let now = Duration::from_millis(ms);
            spending.request(now);
            requests += 1;
            retries += u32::from(spending.retry(now)) + u32::from(spending.retry(now));
        }
        assert!(retries <= requests / 5 && retries > requests / 6, "{retries} of {requests}");
    }

    #[test]
    fn an_interval_of_nothing_forgets_at_once() {
        let mut spending = Spending::new(Budget { interval: Duration::ZERO, ..budget(100, 0) });
        spending.request(Duration::from_millis(1));
        assert!(!spending.retry(Duration::from_millis(2)));
    }
}
