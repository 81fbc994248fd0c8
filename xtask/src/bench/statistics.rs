//! Medians and spreads.

use serde::Serialize;

/// The middle of several values, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of `values`, when there are any.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }

    /// Of the ratios of neighbours in time: what disturbs the machine for a while disturbs both.
    pub(crate) fn of_pairs(values: &[Option<f64>], beside: &[Option<f64>]) -> Option<Self> {
        let pairs = values.iter().zip(beside).filter_map(|(value, beside)| Some((*value)? / (*beside)?));
        Self::of(pairs.filter(|ratio| ratio.is_finite()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_made_within_a_run_and_runs_that_failed_are_left_out() {
        let (ours, plain) = ([Some(1.0), None, Some(3.0), Some(1.0)], [Some(2.0), Some(9.0), Some(4.0), None]);
        assert_eq!(Spread::of_pairs(&ours, &plain), Some(Spread { median: 0.625, min: 0.5, max: 0.75 }));
        assert_eq!(Spread::of_pairs(&[Some(1.0)], &[Some(0.0)]), None);
    }
}
