//! What we hold ourselves to: bounds on figures. Those on traffic are what Istio's ztunnel reached on one machine, and
//! time is worth something else on another; where it is measured in the same run, it takes the place of the bound.

use serde::Serialize;

/// A figure that a goal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Throughput as a share of plain TCP's in the same run.
    OfPlain,
    /// Core-seconds of our processes per gigabyte.
    OwnPerGigabyte,
    /// Microseconds of our processes per request or connection.
    OwnPerRequest,
    /// Median latency in milliseconds.
    MedianMs,
    /// Kilobytes of one ztunnel per idle connection.
    PerConnectionKb,
    /// Megabytes of one ztunnel.
    Megabytes,
    /// Nanoseconds of a decision.
    Nanoseconds,
}

/// A bound on a figure: throughput from below, cost from above.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) metric: Metric,
    pub(crate) bound: f64,
}

/// A goal beside what was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judged {
    /// The measurement it is about.
    pub(crate) name: String,
    /// Who was measured.
    pub(crate) variant: String,
    #[serde(flatten)]
    pub(crate) goal: Goal,
    /// Nothing when the measurement failed.
    pub(crate) measured: Option<f64>,
    /// The same figure of Istio's ztunnel, when that was the judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) istio: Option<f64>,
    pub(crate) reached: bool,
}

impl Metric {
    /// A figure with its unit.
    fn text(self, figure: f64) -> String {
        match self {
            Self::OfPlain => format!("{figure} of plain"),
            Self::OwnPerGigabyte => format!("{figure} core-s/GB"),
            Self::OwnPerRequest => format!("{figure} us CPU"),
            Self::MedianMs => format!("{figure} ms p50"),
            Self::PerConnectionKb => format!("{figure} kB each"),
            Self::Megabytes => format!("{figure} MB"),
            Self::Nanoseconds => format!("{figure} ns"),
        }
    }

    /// Whether more of it is better.
    fn is_yield(self) -> bool {
        matches!(self, Self::OfPlain)
    }
}

impl Goal {
    pub(crate) const fn new(metric: Metric, bound: f64) -> Self {
        Self { metric, bound }
    }

    fn is_reached(self, measured: f64) -> bool {
        if self.metric.is_yield() { measured >= self.bound } else { measured <= self.bound }
    }

    /// Beside what was measured.
    pub(crate) fn judge(self, name: &str, variant: &str, measured: Option<f64>) -> Judged {
        let reached = measured.is_some_and(|m| self.is_reached(m));
        Judged { name: name.to_owned(), variant: variant.to_owned(), goal: self, measured, istio: None, reached }
    }
}

impl Judged {
    /// By Istio's ztunnel in the same run: its figure, and whether ours is at least as good sample by sample.
    pub(crate) fn beside_istio(self, istio: Option<f64>, is_as_good: bool) -> Self {
        Self { istio, reached: is_as_good, ..self }
    }

    /// As a person reads it, without the mark: the bound, with the figure where it was missed; or both figures.
    pub(crate) fn text(&self) -> String {
        let Goal { metric, bound } = self.goal;
        let round = |figure: f64| metric.text((figure * 1e3).round() / 1e3);
        let Some(istio) = self.istio else {
            let bound = format!("{} {}", if metric.is_yield() { ">=" } else { "<=" }, metric.text(bound));
            return match self.measured {
                Some(measured) if !self.reached => format!("{bound} (is {})", (measured * 1e3).round() / 1e3),
                _ => bound,
            };
        };
        let ours = self.measured.map_or_else(|| "failed".to_owned(), round);
        format!("{ours} (istio {})", (istio * 1e3).round() / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_bounded_from_below_and_cost_from_above() {
        let reached = |metric, measured| Goal::new(metric, 1.0).judge("a", "ours", measured).reached;
        assert!(reached(Metric::OfPlain, Some(1.0)) && !reached(Metric::OfPlain, Some(0.9)));
        assert!(reached(Metric::MedianMs, Some(1.0)) && !reached(Metric::MedianMs, Some(1.1)));
        assert!(!reached(Metric::OfPlain, None));
    }
    #[test]
    fn where_istio_ran_it_is_the_judge_whatever_the_bound_says() {
        let slow = Goal::new(Metric::OwnPerGigabyte, 1.0).judge("a", "ours", Some(2.4561));
        assert_eq!((slow.reached, slow.text()), (false, "<= 1 core-s/GB (is 2.456)".to_owned()));
        let ahead = slow.beside_istio(Some(3.4), true);
        assert_eq!((ahead.reached, ahead.text()), (true, "2.456 core-s/GB (istio 3.4)".to_owned()));
        let behind = Goal::new(Metric::OfPlain, 0.2).judge("a", "ours", Some(0.3)).beside_istio(Some(0.4), false);
        assert_eq!((behind.reached, behind.text()), (false, "0.3 of plain (istio 0.4)".to_owned()));
    }
}
