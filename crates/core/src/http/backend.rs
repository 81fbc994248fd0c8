//! Backends: where a rule sends requests, and how they share them.

use std::fmt;
use std::sync::Arc;

use super::filter::Filter;
use crate::ids::ServiceKey;

/// A backend of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its share beside the others' weights; 0 is none.
    pub weight: u32,
    /// Where it is.
    pub upstream: Upstream,
    /// What is done to requests that go there, after the filters of the rule.
    pub filters: Vec<Filter>,
}

/// What a backend reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// The endpoints of a service; its own routes are not looked at again.
    Service(BackendService),
    /// Nothing: its share of requests is answered 500 (gRPC: `UNAVAILABLE`), and never given to others.
    Invalid {
        /// The reference as it was written.
        reference: Arc<str>,
        /// What is wrong with it.
        why: InvalidRef,
    },
}

/// A service as a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendService {
    /// The service.
    pub service: ServiceKey,
    /// Its port, as callers know it.
    pub port: u16,
    /// Only the endpoints of this subset of it (Istio's `DestinationRule`).
    pub subset: Option<Arc<str>>,
}

/// The one of `weights` whose turn it is. Of any `n` turns in a row each gets `n` times its share, give or take few, and
/// exactly that where shares come out even. `None` if all are 0.
pub fn whose_turn(weights: impl Iterator<Item = u32> + Clone, turn: u64) -> Option<usize> {
    let mut total: u128 = weights.clone().map(u128::from).sum();
    let mut turn = u128::from(turn).checked_rem(total)?;
    for (i, weight) in weights.enumerate() {
        let weight = u128::from(weight);
        // A line of slope `weight / total` (Bresenham): it is this one's turn where the line rises. The other turns are
        // shared by those behind in the same manner.
        let risen = |turn: u128| (turn * weight + total / 2) / total;
        let before = risen(turn);
        if risen(turn + 1) > before {
            return Some(i);
        }
        turn -= before;
        total -= weight;
    }
    None
}

/// Why a backend reference leads nowhere: the reasons of the condition `ResolvedRefs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InvalidRef {
    /// It is of a kind that cannot be a backend.
    InvalidKind,
    /// There is no such service, or no such port of it.
    BackendNotFound,
    /// Another namespace has not granted it.
    RefNotPermitted,
    /// The port speaks a protocol that the route cannot carry.
    UnsupportedProtocol,
    /// A policy for how it is reached cannot be kept, such as a certificate authority that is not there.
    UnmetPolicy,
}

impl InvalidRef {
    /// The reason of the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            InvalidRef::InvalidKind => "InvalidKind",
            InvalidRef::BackendNotFound => "BackendNotFound",
            InvalidRef::RefNotPermitted => "RefNotPermitted",
            InvalidRef::UnsupportedProtocol => "UnsupportedProtocol",
            InvalidRef::UnmetPolicy => "UnmetPolicy",
        }
    }
}

impl fmt::Display for BackendService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        match &self.subset {
            Some(subset) => write!(f, " subset {subset}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::Service(service) => service.fmt(f),
            Upstream::Invalid { reference, why } => write!(f, "{reference} ({})", why.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_dealt_out_by_weight_in_every_window() {
        for weights in [&[70, 30][..], &[1, 1], &[9, 1], &[1, 999_999], &[3, 3, 3], &[50, 30, 0, 20], &[5, 1, 1, 1, 7]]
        {
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let dealt: Vec<usize> = (0..3000).map(|turn| whose_turn(weights.iter().copied(), turn).unwrap()).collect();
            for (i, weight) in weights.iter().enumerate() {
                for window in [1, 10, 100, 500, 3000] {
                    for turns in dealt.windows(window) {
                        let got = turns.iter().filter(|dealt| **dealt == i).count() as f64;
                        let wanted = window as f64 * f64::from(*weight) / total as f64;
                        assert!((got - wanted).abs() <= 2.5, "{weights:?}: {i} got {got} of {window}");
                        let even = (window as u64).is_multiple_of(total);
                        assert!(!even || got == wanted, "{weights:?}: {i} got {got} of {window}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_weight_of_nothing_gets_nothing() {
        assert_eq!(whose_turn([].into_iter(), 1), None);
        assert_eq!(whose_turn([0].into_iter(), 1), None);
        assert_eq!(whose_turn([0, 0].into_iter(), 1), None);
        assert!((0..100).all(|turn| whose_turn([0, 1, 0].into_iter(), turn) == Some(1)));
        assert!((0..100).all(|turn| whose_turn([u32::MAX, u32::MAX].into_iter(), u64::MAX - turn).is_some()));
    }
}
