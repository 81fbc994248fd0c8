//! Metrics: what a process counts, how long it remembers, and how it is read.

mod family;
mod process;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

pub use family::{Column, Family, IDLE_TTL, LabelSet, MAX_SERIES, Series, Shape, value};
pub use prometheus_client::encoding::EncodeLabelSet;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;

/// Everything a process counts. Clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    metrics: prometheus_client::registry::Registry,
    expiring: Vec<Arc<dyn Expire>>,
    before: Vec<Box<dyn Fn() + Send>>,
}

/// Something whose series leave when nobody used them for long.
trait Expire: Send + Sync {
    fn expire(&self, now: Instant);
    fn name(&self) -> &'static str;
    fn expired(&self) -> u64;
    fn overflowed(&self) -> u64;
}

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The text format 0.0.4 of Prometheus.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Picks by an `Accept` header: OpenMetrics for who names it, text for everyone else.
    pub fn accepted(accept: Option<&str>) -> Self {
        let wanted = |part: &str| {
            let mut parameters = part.split(';').map(str::trim);
            parameters.next() == Some("application/openmetrics-text") && !parameters.any(|p| p == "q=0")
        };
        match accept {
            Some(accept) if accept.split(',').any(wanted) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Registry {
    /// A registry that also describes the process itself.
    pub fn with_process() -> Self {
        let registry = Self::default();
        registry.collect(process::Process);
        registry
    }

    /// Adds a metric. The suffix of counters is added when they are written: `opened` becomes `opened_total`.
    pub fn register<M>(&self, name: &str, help: &str, metric: M)
    where
        M: prometheus_client::registry::Metric,
    {
        self.with(|inner| inner.metrics.register(name, help, metric));
    }

    /// Adds a gauge whose value is read when metrics are.
    pub fn gauge(&self, name: &'static str, help: &'static str, read: impl Fn() -> i64 + Send + Sync + 'static) {
        self.collect(Read { name, help, read: Box::new(move || Reading::Gauge(read())) });
    }

    /// Adds a counter whose value is read when metrics are.
    pub fn counter(&self, name: &'static str, help: &'static str, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.collect(Read { name, help, read: Box::new(move || Reading::Counter(read())) });
    }

    /// Adds `istio_build`, which shows the version of each component of the mesh.
    pub fn build(&self, component: &'static str, version: &'static str) {
        let build = prometheus_client::metrics::family::Family::<[(&str, &str); 2], Gauge>::default();
        build.get_or_create(&[("component", component), ("tag", version)]).set(1);
        self.register("istio_build", "Version of this component", build);
    }

    /// Adds an expiring family.
    pub fn family<L: LabelSet, const N: usize>(&self, family: &Family<L, N>) {
        self.with(|inner| {
            inner.metrics.register_collector(Box::new(family.clone()));
            inner.expiring.push(Arc::new(family.clone()));
        });
    }

    /// Calls `work` each time before metrics are written, for counts that are kept elsewhere until then. It must not
    /// use this registry.
    pub fn before(&self, work: impl Fn() + Send + 'static) {
        self.with(|inner| inner.before.push(Box::new(work)));
    }

    /// Removes series that nobody used for [`IDLE_TTL`] before `now`. Reading does it too; a process that nobody reads
    /// calls this from time to time.
    pub fn expire(&self, now: Instant) {
        self.with(|inner| inner.expire(now));
    }

    /// Removes series that nobody used for [`IDLE_TTL`] before `now`, and writes the others.
    pub fn encode(&self, exposition: Exposition, now: Instant) -> String {
        let mut written = String::new();
        self.with(|inner| {
            inner.expire(now);
            // A string takes everything, and so do our own collectors.
            let _ = text::encode_registry(&mut written, &inner.metrics);
            let _ = inner.encode_own(&mut written);
        });
        match exposition {
            Exposition::OpenMetrics => {
                written.push_str("# EOF\n");
                written
            }
            Exposition::Text => suffixed(&written),
        }
    }

    fn collect(&self, collector: impl Collector) {
        self.with(|inner| inner.metrics.register_collector(Box::new(collector)));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic while encoding leaves the registry as it was.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

impl Inner {
    fn expire(&self, now: Instant) {
        // What is counted elsewhere first: it shows which series are in use.
        self.before.iter().for_each(|work| work());
        self.expiring.iter().for_each(|family| family.expire(now));
    }

    /// What the families say about themselves: one counter each, with the family's name.
    fn encode_own(&self, written: &mut String) -> fmt::Result {
        use fmt::Write as _;
        type Value = fn(&dyn Expire) -> u64;
        let counters: [(&str, &str, Value); 2] = [
            ("loam_metric_series_expired", "Label sets removed because they were idle", |f| f.expired()),
            ("loam_metric_series_overflowed", "Uses of a label set that found the family full", |f| f.overflowed()),
        ];
        for (name, help, value) in counters {
            if self.expiring.is_empty() {
                continue;
            }
            writeln!(written, "# HELP {name} {help}.\n# TYPE {name} counter")?;
            for family in &self.expiring {
                writeln!(written, "{name}_total{{family=\"{}\"}} {}", family.name(), value(family.as_ref()))?;
            }
        }
        Ok(())
    }
}

/// A single metric that is read when metrics are.
struct Read {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> Reading + Send + Sync>,
}

enum Reading {
    Gauge(i64),
    Counter(u64),
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match (self.read)() {
            Reading::Gauge(value) => {
                let metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(metric)
            }
            Reading::Counter(value) => {
                let metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
                ConstCounter::new(value).encode(metric)
            }
        }
    }
}

/// In the text format a counter's description carries the suffix of its samples.
fn suffixed(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        let mut push = |parts: &[&str]| {
            text.extend(parts.iter().copied());
            text.push('\n');
        };
        match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            Some((name, kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some((_, help)) = help.take() {
                    push(&["# HELP ", name, suffix, " ", help]);
                }
                push(&["# TYPE ", name, suffix, " ", kind]);
            }
            None => push(&[line]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_counters_in_full_and_open_metrics_ends_with_eof() {
        let registry = Registry::default();
        let opened = Counter::<u64>::default();
        registry.register("opened", "Opened things", opened.clone());
        registry.gauge("living", "Living things", || 3);
        opened.inc();
        let now = Instant::now();
        assert_eq!(
            registry.encode(Exposition::Text, now),
            "# HELP opened_total Opened things.\n# TYPE opened_total counter\nopened_total 1\n\
             # HELP living Living things\n# TYPE living gauge\nliving 3\n"
        );
        assert_eq!(
            registry.encode(Exposition::OpenMetrics, now),
            "# HELP opened Opened things.\n# TYPE opened counter\nopened_total 1\n\
             # HELP living Living things\n# TYPE living gauge\nliving 3\n# EOF\n"
        );
    }

    #[test]
    fn open_metrics_is_for_those_who_name_it() {
        let pick = Exposition::accepted;
        assert_eq!(pick(None), Exposition::Text);
        assert_eq!(pick(Some("*/*")), Exposition::Text);
        assert_eq!(pick(Some("application/openmetrics-text;q=0,text/plain")), Exposition::Text);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        assert_eq!(pick(Some(prometheus)), Exposition::OpenMetrics);
    }

    #[test]
    fn the_build_is_a_gauge_of_one() {
        let registry = Registry::default();
        registry.build("ztunnel", "1.2.3");
        let text = registry.encode(Exposition::Text, Instant::now());
        assert!(text.contains("istio_build{component=\"ztunnel\",tag=\"1.2.3\"} 1\n"), "{text}");
    }

    #[test]
    fn work_before_reading_is_seen_by_the_same_reading() {
        let registry = Registry::default();
        let folded = Counter::<u64>::default();
        registry.register("folded", "x", folded.clone());
        registry.before(move || {
            folded.inc_by(5);
        });
        assert!(registry.encode(Exposition::Text, Instant::now()).contains("folded_total 5\n"));
    }
}
