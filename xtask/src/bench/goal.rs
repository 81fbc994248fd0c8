//! What we hold ourselves to.

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
    pub(crate) reached: bool,
}

impl Goal {
    pub(crate) const fn new(metric: Metric, bound: f64) -> Self {
        Self { metric, bound }
    }

    fn is_reached(self, measured: f64) -> bool {
        match self.metric {
            Metric::OfPlain => measured >= self.bound,
            Metric::OwnPerGigabyte
            | Metric::OwnPerRequest
            | Metric::MedianMs
            | Metric::PerConnectionKb
            | Metric::Megabytes
            | Metric::Nanoseconds => measured <= self.bound,
        }
    }

    /// The goal as a person reads it.
    pub(crate) fn text(self) -> String {
        let bound = self.bound;
        match self.metric {
            Metric::OfPlain => format!(">= {bound} of plain"),
            Metric::OwnPerGigabyte => format!("<= {bound} core-s/GB"),
            Metric::OwnPerRequest => format!("<= {bound} us CPU"),
            Metric::MedianMs => format!("p50 <= {bound} ms"),
            Metric::PerConnectionKb => format!("<= {bound} kB each"),
            Metric::Megabytes => format!("<= {bound} MB"),
            Metric::Nanoseconds => format!("<= {bound} ns"),
        }
    }

    /// Beside what was measured.
    pub(crate) fn judge(self, name: &str, variant: &str, measured: Option<f64>) -> Judged {
        let reached = measured.is_some_and(|m| self.is_reached(m));
        Judged { name: name.to_owned(), variant: variant.to_owned(), goal: self, measured, reached }
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
}
