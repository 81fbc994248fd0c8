//! Which endpoints are left alone for a while because they fail (outlier ejection). Never all of them: an endpoint that
//! is in doubt is better than none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::http::traffic::Outliers;

/// Most endpoints that are remembered. Only such as failed of late are, so that more than these are hardly of one
/// service.
pub const MAX_RECORDS: usize = 4096;

/// How a request to an endpoint ended, as far as it tells of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer below 500.
    Good,
    /// With an answer from 500 on, save those of gateways.
    ServerError,
    /// With 502, 503 or 504, or without an answer: no connection, a reset, too late.
    GatewayError,
}

impl Outcome {
    /// What a status tells.
    pub fn of(status: http::StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Outcome::GatewayError,
            500.. => Outcome::ServerError,
            _ => Outcome::Good,
        }
    }
}

/// The endpoints of a service that fail. Time is what has passed since any one moment.
#[derive(Debug, Clone)]
pub struct Ejections {
    outliers: Outliers,
    records: BTreeMap<SocketAddr, Record>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// Answers 5xx and worse in a row.
    errors: u32,
    /// Errors of gateways in a row.
    gateway_errors: u32,
    /// Ejections that were not lived down yet.
    times: u32,
    /// When the last ejection ends or ended.
    until: Duration,
}

impl Ejections {
    /// Nothing has failed.
    pub fn new(outliers: Outliers) -> Self {
        Self { outliers, records: BTreeMap::new() }
    }

    /// Takes note of how a request to `endpoint`, one of `total`, ended at `now`. Tells whether it is ejected for that.
    pub fn note(&mut self, endpoint: SocketAddr, outcome: Outcome, now: Duration, total: usize) -> bool {
        if outcome == Outcome::Good {
            self.forgive(endpoint, now);
            return false;
        }
        if !self.records.contains_key(&endpoint) && self.records.len() >= MAX_RECORDS {
            self.records.retain(|_, record| now < record.until);
            if self.records.len() >= MAX_RECORDS {
                return false;
            }
        }
        let may = self.may_eject(now, total);
        let Outliers { consecutive_5xx, consecutive_gateway, interval, base_ejection, max_ejection, .. } =
            self.outliers;
        let record = self.records.entry(endpoint).or_default();
        if now < record.until {
            return false;
        }
        record.errors = record.errors.saturating_add(1);
        record.gateway_errors = match outcome {
            Outcome::GatewayError => record.gateway_errors.saturating_add(1),
            Outcome::ServerError | Outcome::Good => 0,
        };
        let reached = |errors: u32, limit: u32| limit > 0 && errors >= limit;
        let is_outlier = reached(record.errors, consecutive_5xx) || reached(record.gateway_errors, consecutive_gateway);
        if !is_outlier || !may {
            return false;
        }
        let good_for = (now - record.until).as_nanos() / interval.as_nanos().max(1);
        let lived_down = u32::try_from(good_for).unwrap_or(u32::MAX);
        let times = record.times.saturating_sub(lived_down).saturating_add(1);
        let lasts = base_ejection.saturating_mul(times).min(max_ejection.max(base_ejection));
        *record = Record { errors: 0, gateway_errors: 0, times, until: now + lasts };
        true
    }

    /// Whether `endpoint`, one of `total`, is left alone at `now`. When too few are well, nobody is.
    pub fn is_ejected(&self, endpoint: SocketAddr, now: Duration, total: usize) -> bool {
        let ejected = self.records.get(&endpoint).is_some_and(|record| now < record.until);
        ejected && {
            let well = total.saturating_sub(self.ejected(now));
            // Endpoints may have gone since, and with them those that were well.
            well > 0 && well * 100 >= total * usize::from(self.outliers.min_health_percent)
        }
    }

    /// How many are ejected at `now`.
    pub fn ejected(&self, now: Duration) -> usize {
        self.records.values().filter(|record| now < record.until).count()
    }

    /// Forgets endpoints that are gone.
    pub fn retain(&mut self, is_here: impl Fn(&SocketAddr) -> bool) {
        self.records.retain(|endpoint, _| is_here(endpoint));
    }

    /// An endpoint that answers well has nothing in a row, and in time nothing at all.
    fn forgive(&mut self, endpoint: SocketAddr, now: Duration) {
        let Some(record) = self.records.get_mut(&endpoint) else { return };
        (record.errors, record.gateway_errors) = (0, 0);
        let good_for = now.saturating_sub(record.until);
        if good_for >= self.outliers.interval.saturating_mul(record.times) {
            self.records.remove(&endpoint);
        }
    }

    /// Whether one more of `total` may be ejected: not the last, and not beyond the percentage, save that one may.
    fn may_eject(&self, now: Duration, total: usize) -> bool {
        let most = (total * usize::from(self.outliers.max_percent) / 100).max(1).min(total.saturating_sub(1));
        self.ejected(now) < most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ejections(change: impl Fn(&mut Outliers)) -> Ejections {
        let mut outliers = Outliers { consecutive_5xx: 3, max_percent: 50, ..Outliers::default() };
        change(&mut outliers);
        Ejections::new(outliers)
    }

    /// Whether the last of `times` such outcomes ejects it.
    fn fail(ejections: &mut Ejections, n: u8, times: u32, now: u64, total: usize) -> bool {
        (0..times).fold(false, |_, _| ejections.note(endpoint(n), Outcome::GatewayError, at(now), total))
    }

    #[test]
    fn failures_in_a_row_eject_an_endpoint_for_a_while() {
        let mut ejections = ejections(|_| ());
        assert!(!fail(&mut ejections, 1, 2, 0, 4));
        ejections.note(endpoint(1), Outcome::Good, at(0), 4);
        assert!(!fail(&mut ejections, 1, 2, 0, 4));
        assert!(fail(&mut ejections, 1, 1, 0, 4));
        assert!(ejections.is_ejected(endpoint(1), at(29), 4) && !ejections.is_ejected(endpoint(2), at(29), 4));
        assert!(!ejections.is_ejected(endpoint(1), at(30), 4));
        // It failed at once after its return: each time it is left alone for longer.
        assert!(fail(&mut ejections, 1, 3, 30, 4));
        assert!(ejections.is_ejected(endpoint(1), at(89), 4) && !ejections.is_ejected(endpoint(1), at(90), 4));
    }

    #[test]
    fn an_endpoint_lives_its_ejections_down() {
        let mut ejections = ejections(|_| ());
        fail(&mut ejections, 1, 3, 0, 4);
        fail(&mut ejections, 1, 3, 30, 4);
        assert!(fail(&mut ejections, 1, 3, 110, 4));
        // Two intervals of ten seconds passed since the second ended at 90 s.
        assert!(ejections.is_ejected(endpoint(1), at(139), 4) && !ejections.is_ejected(endpoint(1), at(140), 4));
        ejections.note(endpoint(1), Outcome::Good, at(200), 4);
        assert!(ejections.records.is_empty());
    }

    #[test]
    fn no_ejection_lasts_longer_than_the_longest() {
        let mut ejections = ejections(|_| ());
        let mut now = 0;
        for _ in 0..20 {
            assert!(fail(&mut ejections, 1, 3, now, 4));
            now += 300;
            assert!(!ejections.is_ejected(endpoint(1), at(now), 4));
            now -= 300;
            while ejections.is_ejected(endpoint(1), at(now), 4) {
                now += 1;
            }
        }
    }

    #[test]
    fn never_all_endpoints_are_ejected() {
        for (percent, total, ejected) in [(100, 1, 0), (100, 2, 1), (100, 5, 4), (50, 4, 2), (10, 5, 1), (0, 5, 1)] {
            let mut ejections = ejections(|outliers| outliers.max_percent = percent);
            (1..=total).for_each(|n| {
                fail(&mut ejections, n, 5, 0, usize::from(total));
            });
            assert_eq!(ejections.ejected(at(1)), ejected, "{percent} % of {total}");
        }
        // The others went away.
        let mut ejections = ejections(|_| ());
        fail(&mut ejections, 1, 3, 0, 4);
        assert!(ejections.is_ejected(endpoint(1), at(1), 2) && !ejections.is_ejected(endpoint(1), at(1), 1));
    }

    #[test]
    fn below_the_least_health_nobody_counts_as_ejected() {
        let mut ejections = ejections(|outliers| (outliers.max_percent, outliers.min_health_percent) = (100, 50));
        (1..=2).for_each(|n| assert!(fail(&mut ejections, n, 3, 0, 4)));
        assert!(ejections.is_ejected(endpoint(1), at(1), 4));
        assert!(fail(&mut ejections, 3, 3, 0, 4));
        assert!(!ejections.is_ejected(endpoint(1), at(1), 4));
    }

    #[test]
    fn errors_of_gateways_may_have_a_limit_of_their_own() {
        let mut ejections = ejections(|outliers| (outliers.consecutive_5xx, outliers.consecutive_gateway) = (0, 2));
        let mut note = |status: u16| {
            let status = http::StatusCode::from_u16(status).unwrap();
            ejections.note(endpoint(1), Outcome::of(status), at(0), 4)
        };
        assert!(![500, 503, 500, 501, 503].map(&mut note).contains(&true));
        assert!(note(504));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_with_its_endpoint() {
        let mut ejections = ejections(|_| ());
        for n in 0..=MAX_RECORDS as u32 {
            let endpoint = SocketAddr::from((std::net::Ipv4Addr::from_bits(n), 80));
            ejections.note(endpoint, Outcome::ServerError, at(0), 1_000_000);
        }
        assert!(ejections.records.len() <= MAX_RECORDS);
        ejections.retain(|_| false);
        assert!(ejections.records.is_empty());
    }
}
