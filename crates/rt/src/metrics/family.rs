//! Counters and histograms by label set, which are forgotten when nobody uses them and never grow without end.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelKey, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// How long an unused label set is kept: several scrapes, and the usual range of a `rate()`.
pub const IDLE_TTL: Duration = Duration::from_secs(15 * 60);

/// Most time series of one family, that is label sets times counters. At about a kilobyte each in a scrape, more would
/// hurt whoever reads them; a client that makes up names must not decide how many there are.
pub const MAX_SERIES: usize = 50_000;

/// A set of labels with their values.
pub trait LabelSet: EncodeLabelSet + Eq + Hash + Clone + fmt::Debug + Send + Sync + 'static {
    /// The set that stands for all those which no longer fit.
    fn other() -> Self;

    /// Whether the counter of `column` can be anything but zero for this set; others are not written.
    fn has(&self, _column: usize) -> bool {
        true
    }
}

/// Name and description of one counter or histogram of a family.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name without `_total`.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
}

/// What is kept of one quantity.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// One number that grows.
    Counter,
    /// How many observations were at most as large as each of these bounds, which grow, and their sum. What is beyond
    /// the last bound counts as well.
    Histogram(&'static [f64]),
}

impl Shape {
    /// Numbers it takes: for a histogram one per bound, one for what is beyond, and the sum.
    pub const fn slots(self) -> usize {
        match self {
            Shape::Counter => 1,
            Shape::Histogram(bounds) => bounds.len() + 2,
        }
    }
}

/// Sums of histograms are kept in thousandths.
const SUM_SCALE: f64 = 1000.0;

/// A quantity and the first of its numbers.
#[derive(Debug, Clone, Copy)]
struct Quantity {
    column: Column,
    shape: Shape,
    first: usize,
}

/// `N` numbers per label set. Clones share them.
#[derive(Debug)]
pub struct Family<L, const N: usize> {
    shared: Arc<Shared<L, N>>,
}

impl<L, const N: usize> Clone for Family<L, N> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// The counters of one label set. While someone holds it, it is not forgotten.
#[derive(Debug)]
pub struct Series<const N: usize> {
    counters: [AtomicU64; N],
    used: AtomicBool,
}

#[derive(Debug)]
struct Shared<L, const N: usize> {
    quantities: Box<[Quantity]>,
    ttl: Duration,
    max_sets: usize,
    sets: RwLock<HashMap<L, Arc<Series<N>>>>,
    /// Since when each idle set is idle; only the sweep looks at it.
    idle: Mutex<HashMap<L, Instant>>,
    other: Arc<Series<N>>,
    expired: AtomicU64,
    overflowed: AtomicU64,
}

impl<const N: usize> Default for Series<N> {
    fn default() -> Self {
        Self { counters: std::array::from_fn(|_| AtomicU64::new(0)), used: AtomicBool::new(true) }
    }
}

impl<const N: usize> Series<N> {
    /// Adds to the counter of `column`, in the order given to [`Family::new`].
    pub fn add(&self, column: usize, amount: u64) {
        self.counters[column].fetch_add(amount, Ordering::Relaxed);
        // A load first: most of the time the line stays shared between cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Adds an observation to the histogram with these bounds whose first number is `first`: the place of its column,
    /// where those before it take [`Shape::slots`] numbers each.
    pub fn observe(&self, first: usize, bounds: &[f64], value: f64) {
        let value = value.max(0.0);
        self.add(first + bounds.partition_point(|bound| *bound < value), 1);
        // Observations are times and sizes, which are far below the largest number.
        self.add(first + bounds.len() + 1, (value * SUM_SCALE) as u64);
    }

    /// The counter of `column`.
    pub fn get(&self, column: usize) -> u64 {
        self.counters[column].load(Ordering::Relaxed)
    }
}

impl<L: LabelSet, const N: usize> Family<L, N> {
    /// An empty family with the usual limits.
    pub fn new(columns: [Column; N]) -> Self {
        Self::with_limits(columns, IDLE_TTL, MAX_SERIES)
    }

    /// An empty family that forgets label sets idle for `ttl` and has at most `max_series` series.
    pub fn with_limits(columns: [Column; N], ttl: Duration, max_series: usize) -> Self {
        Self::of_shapes(&columns.map(|column| (column, Shape::Counter)), ttl, max_series)
    }

    /// An empty family of counters and histograms, which together take `N` numbers.
    pub fn of_shapes(columns: &[(Column, Shape)], ttl: Duration, max_series: usize) -> Self {
        let mut first = 0;
        let quantity = |(column, shape): &(Column, Shape)| {
            let quantity = Quantity { column: *column, shape: *shape, first };
            first += shape.slots();
            quantity
        };
        let quantities = columns.iter().map(quantity).collect();
        assert_eq!(first, N, "the numbers of all columns");
        Self {
            shared: Arc::new(Shared {
                quantities,
                ttl,
                max_sets: max_series / N.max(1),
                sets: RwLock::default(),
                idle: Mutex::default(),
                other: Arc::default(),
                expired: AtomicU64::new(0),
                overflowed: AtomicU64::new(0),
            }),
        }
    }

    /// The counters of `labels`; those of [`LabelSet::other`] when the family is full.
    pub fn series(&self, labels: &L) -> Arc<Series<N>> {
        let shared = &self.shared;
        if let Some(series) = shared.sets.read().unwrap_or_else(PoisonError::into_inner).get(labels) {
            return Arc::clone(series);
        }
        let mut sets = shared.sets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = sets.get(labels) {
            return Arc::clone(series);
        }
        if sets.len() >= shared.max_sets {
            shared.overflowed.fetch_add(1, Ordering::Relaxed);
            return Arc::clone(&shared.other);
        }
        let series = Arc::<Series<N>>::default();
        sets.insert(labels.clone(), Arc::clone(&series));
        series
    }

    /// Forgets label sets that nobody holds and nobody used for the family's time before `now`. Idleness is noticed
    /// by being called: twice without a use in between.
    pub fn expire(&self, now: Instant) {
        let shared = &self.shared;
        let mut idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the write lock nobody can take a series while it is looked at.
        let mut sets = shared.sets.write().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|labels, series| {
            if series.used.swap(false, Ordering::Relaxed) || Arc::strong_count(series) > 1 {
                idle.remove(labels);
                return true;
            }
            let since = *idle.entry(labels.clone()).or_insert(now);
            if now.saturating_duration_since(since) < shared.ttl {
                return true;
            }
            idle.remove(labels);
            shared.expired.fetch_add(1, Ordering::Relaxed);
            false
        });
    }

    /// How many label sets there are.
    pub fn len(&self) -> usize {
        self.shared.sets.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is no label set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<L: LabelSet, const N: usize> super::Expire for Family<L, N> {
    fn expire(&self, now: Instant) {
        Family::expire(self, now);
    }

    fn name(&self) -> &'static str {
        self.shared.quantities.first().map_or("", |quantity| quantity.column.name)
    }

    fn expired(&self) -> u64 {
        self.shared.expired.load(Ordering::Relaxed)
    }

    fn overflowed(&self) -> u64 {
        self.shared.overflowed.load(Ordering::Relaxed)
    }
}

impl<L: LabelSet, const N: usize> Collector for Family<L, N> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Copied, so that connections are not held up while the text is made.
        let mut sets: Vec<(L, Arc<Series<N>>)> = {
            let sets = self.shared.sets.read().unwrap_or_else(PoisonError::into_inner);
            sets.iter().map(|(labels, series)| (labels.clone(), Arc::clone(series))).collect()
        };
        if self.shared.overflowed.load(Ordering::Relaxed) > 0 {
            sets.push((L::other(), Arc::clone(&self.shared.other)));
        }
        for (i, Quantity { column, shape, first }) in self.shared.quantities.iter().enumerate() {
            let kind = match shape {
                Shape::Counter => MetricType::Counter,
                Shape::Histogram(_) => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(column.name, column.help, None, kind)?;
            for (labels, series) in sets.iter().filter(|(labels, _)| labels.has(i)) {
                let mut metric = metric.encode_family(labels)?;
                match shape {
                    Shape::Counter => ConstCounter::new(series.get(*first)).encode(metric)?,
                    Shape::Histogram(bounds) => {
                        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
                        let buckets: Vec<_> =
                            bounds.enumerate().map(|(at, bound)| (bound, series.get(first + at))).collect();
                        let count = buckets.iter().map(|(_, count)| count).sum();
                        let sum = series.get(first + buckets.len()) as f64 / SUM_SCALE;
                        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Writes one label of a set. An empty value becomes `unknown`: an empty label is no label to those who read it.
pub fn value(encoder: &mut LabelSetEncoder<'_>, name: &str, text: &str) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    EncodeLabelKey::encode(&name, &mut key)?;
    let mut value = key.encode_label_value()?;
    EncodeLabelValue::encode(&if text.is_empty() { "unknown" } else { text }, &mut value)?;
    value.finish()
}

#[cfg(test)]
mod tests {
    use super::super::{Exposition, Registry};
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Name(String);

    impl EncodeLabelSet for Name {
        fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
            value(encoder, "name", &self.0)
        }
    }

    impl LabelSet for Name {
        fn other() -> Self {
            Self("other".into())
        }
    }

    const COLUMNS: [Column; 2] =
        [Column { name: "opened", help: "Opened." }, Column { name: "closed", help: "Closed." }];
    const TTL: Duration = Duration::from_secs(60);

    fn name(text: &str) -> Name {
        Name(text.into())
    }

    fn family() -> Family<Name, 2> {
        Family::with_limits(COLUMNS, TTL, 20)
    }

    #[test]
    fn counters_of_one_label_set_are_shared() {
        let family = family();
        family.series(&name("a")).add(0, 1);
        family.series(&name("a")).add(0, 2);
        assert_eq!(family.series(&name("a")).get(0), 3);
        assert_eq!(family.len(), 1);
    }

    #[test]
    fn an_idle_label_set_is_forgotten_after_its_time_and_not_before() {
        let family = family();
        let start = Instant::now();
        drop(family.series(&name("a")));
        family.expire(start);
        family.expire(start + Duration::from_secs(1));
        family.expire(start + TTL);
        assert_eq!(family.len(), 1, "idle only since the second sweep");
        family.expire(start + Duration::from_secs(1) + TTL);
        assert_eq!(family.len(), 0);
        assert_eq!(super::super::Expire::expired(&family), 1);
    }

    #[test]
    fn use_starts_the_time_again() {
        let family = family();
        let start = Instant::now();
        family.series(&name("a")).add(1, 1);
        family.expire(start);
        family.expire(start);
        family.series(&name("a")).add(1, 1);
        family.expire(start + TTL);
        family.expire(start + TTL);
        assert_eq!(family.series(&name("a")).get(1), 2);
    }

    #[test]
    fn a_label_set_that_someone_holds_is_never_forgotten() {
        let family = family();
        let start = Instant::now();
        let held = family.series(&name("a"));
        for i in 0..10 {
            family.expire(start + TTL * i);
        }
        held.add(0, 1);
        assert_eq!(family.series(&name("a")).get(0), 1);
    }

    #[test]
    fn a_full_family_counts_new_label_sets_together() {
        let family = family();
        for i in 0..15 {
            family.series(&name(&i.to_string())).add(0, 1);
        }
        assert_eq!(family.len(), 10);
        let registry = Registry::default();
        registry.family(&family);
        let text = registry.encode(Exposition::Text, Instant::now());
        assert!(text.contains("opened_total{name=\"other\"} 5\n"), "{text}");
        assert!(text.contains("loam_metric_series_overflowed_total{family=\"opened\"} 5\n"), "{text}");
        assert_eq!(text.matches("\nopened_total{").count(), 11);
    }

    #[test]
    fn forgetting_makes_room_again() {
        let family = family();
        let start = Instant::now();
        for i in 0..10 {
            family.series(&name(&i.to_string())).add(0, 1);
        }
        for at in [start, start, start + TTL] {
            family.expire(at);
        }
        family.series(&name("late")).add(0, 1);
        assert_eq!(family.series(&name("late")).get(0), 1);
        assert_eq!(family.len(), 1);
    }

    #[test]
    fn a_histogram_counts_what_is_at_most_each_bound() {
        const BOUNDS: &[f64] = &[0.5, 1.0, 5.0];
        let columns = [
            (COLUMNS[0], Shape::Counter),
            (Column { name: "took", help: "Took." }, Shape::Histogram(BOUNDS)),
            (COLUMNS[1], Shape::Counter),
        ];
        let family = Family::<Name, 7>::of_shapes(&columns, TTL, 70);
        let series = family.series(&name("a"));
        for value in [0.25, 0.5, 0.75, 5.0, 7.5] {
            series.observe(1, BOUNDS, value);
        }
        series.add(6, 9);
        let registry = Registry::default();
        registry.family(&family);
        let text = registry.encode(Exposition::Text, Instant::now());
        for line in [
            "# TYPE took histogram",
            "took_sum{name=\"a\"} 14.0",
            "took_count{name=\"a\"} 5",
            "took_bucket{le=\"0.5\",name=\"a\"} 2",
            "took_bucket{le=\"1.0\",name=\"a\"} 3",
            "took_bucket{le=\"5.0\",name=\"a\"} 4",
            "took_bucket{le=\"+Inf\",name=\"a\"} 5",
            "closed_total{name=\"a\"} 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn a_label_is_never_empty_and_cannot_break_its_line() {
        let family = family();
        family.series(&name("")).add(0, 1);
        family.series(&name("a\"} 5\nb\\")).add(0, 1);
        let registry = Registry::default();
        registry.family(&family);
        let text = registry.encode(Exposition::Text, Instant::now());
        assert!(text.contains("opened_total{name=\"unknown\"} 1\n"), "{text}");
        assert!(text.contains(r#"opened_total{name="a\"} 5\nb\\"} 1"#), "{text}");
    }
}
