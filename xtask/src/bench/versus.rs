//! Ours beside another ztunnel in the same run: on every kind of traffic ours shall be ahead.

use serde::Serialize;

use super::goal::Metric;
use super::stage::{OURS, PLAIN};
use super::statistics::Spread;
use super::workload::{Sample, Samples, Series};

/// Ours beside one other, for one kind of traffic.
#[derive(Debug, Serialize)]
pub(crate) struct Versus {
    workload: &'static str,
    other: &'static str,
    /// How many times as good: its throughput, or, where requests are about latency, how much sooner their median is.
    times: Option<Spread>,
    /// Processor time of what carries the traffic as a share of the other's.
    own: Option<Spread>,
    pub(crate) is_ahead: bool,
    pub(crate) is_cheaper: bool,
}

impl Versus {
    /// Of a kind of traffic, when another ztunnel carried it too.
    pub(crate) fn of(series: &Series) -> Option<Self> {
        let find = |wanted: fn(&str) -> bool| series.variants.iter().find(|samples| wanted(samples.variant));
        let (ours, other) = (find(|v| v == OURS)?, find(|v| v != OURS && v != PLAIN)?);
        let pairs = |(over, under): (&Samples, &Samples), value: fn(&Sample) -> Option<f64>| {
            Spread::of_pairs(&over.each(value), &under.each(value))
        };
        let times = match series.workload.is_about_latency() {
            true => pairs((other, ours), |s| s.p50_ms),
            false => pairs((ours, other), |s| Some(s.figure)),
        };
        let own = pairs((ours, other), |s| Some(s.own_cost));
        Some(Self {
            workload: series.workload.name,
            other: other.variant,
            is_ahead: times.is_some_and(|t| t.median >= 1.0),
            is_cheaper: own.is_some_and(|o| o.median <= 1.0),
            times,
            own,
        })
    }

    /// Whether ours is at least as good by a figure.
    pub(crate) fn is_as_good(&self, metric: Metric) -> bool {
        match metric {
            Metric::OwnPerGigabyte | Metric::OwnPerRequest => self.is_cheaper,
            _ => self.is_ahead,
        }
    }

    /// For the table.
    pub(crate) fn text(&self) -> String {
        let times = self.times.map_or_else(
            || "failed".to_owned(),
            |t| {
                let word = if self.is_ahead { "ahead" } else { "behind" };
                format!("{:.2} ({:.2}..{:.2}) {word}", t.median, t.min, t.max)
            },
        );
        let own = self.own.map_or_else(String::new, |o| format!(", own {:.2}", o.median));
        times + &own
    }
}

/// All of them in one line; nothing when there was no other.
pub(crate) fn summary(all: &[Versus]) -> Option<(bool, String)> {
    let other = all.first()?.other;
    let count = |is: fn(&Versus) -> bool| all.iter().filter(|v| is(v)).count();
    let (ahead, cheaper) = (count(|v| v.is_ahead), count(|v| v.is_cheaper));
    let text =
        format!("ahead of {other} in {ahead} of {} kinds of traffic, with less processor time in {cheaper}", all.len());
    Some((ahead == all.len(), text))
}

#[cfg(test)]
mod tests {
    use super::super::workload::ALL;
    use super::*;

    fn series(name: &str, ours: Sample, other: Option<Sample>) -> Series {
        let samples = |variant, sample: Option<Sample>| Samples { variant, samples: vec![sample], errors: Vec::new() };
        let variants = vec![samples(PLAIN, None), samples(OURS, Some(ours)), samples("istio", other)];
        Series { workload: ALL.iter().find(|w| w.name == name).unwrap(), variants }
    }

    fn sample(figure: f64, p50_ms: f64, own_cost: f64) -> Sample {
        let p50_ms = Some(p50_ms);
        Sample { figure, p50_ms, p99_ms: None, machine_cost: 0.0, own_cost, steal: 0.0, failures: 0 }
    }

    #[test]
    fn more_throughput_is_ahead() {
        let versus = Versus::of(&series("requests-1", sample(300.0, 9.0, 10.0), Some(sample(200.0, 1.0, 20.0))));
        assert_eq!(versus.unwrap().text(), "1.50 (1.50..1.50) ahead, own 0.50");
    }

    #[test]
    fn beside_bulk_the_sooner_answer_is_ahead_whatever_the_bulk_does() {
        let versus = Versus::of(&series("beside", sample(1.0, 1.0, 3.0), Some(sample(2.0, 4.0, 2.0)))).unwrap();
        assert!(versus.is_as_good(Metric::MedianMs) && !versus.is_as_good(Metric::OwnPerGigabyte));
        assert_eq!(versus.text(), "4.00 (4.00..4.00) ahead, own 1.50");
    }

    #[test]
    fn a_comparison_that_failed_is_not_won() {
        let versus = Versus::of(&series("bulk-1", sample(1.0, 1.0, 1.0), None)).unwrap();
        assert!(!versus.is_ahead && !versus.is_cheaper);
        let text = "ahead of istio in 0 of 1 kinds of traffic, with less processor time in 0";
        assert_eq!(summary(&[versus]), Some((false, text.to_owned())));
        assert_eq!(summary(&[]), None);
    }
}
