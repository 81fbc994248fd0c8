//! What is counted of names, with the names and labels of Istio's ztunnel.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loam_core::workload::Workload;
use loam_dns::Transport;
use loam_rt::metrics::{Column, Counter, EncodeLabelSet, Family, LabelSet, Registry, value};
use prometheus_client::encoding::LabelSetEncoder;
use prometheus_client::metrics::family::Family as Fixed;
use prometheus_client::metrics::histogram::Histogram;

const COLUMNS: [Column; 3] = [
    Column { name: "istio_dns_requests", help: "DNS requests." },
    Column { name: "istio_dns_upstream_requests", help: "DNS requests passed on to a pod's own servers." },
    Column { name: "istio_dns_upstream_failures", help: "DNS requests that a pod's own servers left unanswered." },
];
const REQUESTS: usize = 0;
const FORWARDED: usize = 1;
const FAILED: usize = 2;

const ON_DEMAND: [Column; 1] =
    [Column { name: "istio_on_demand_dns", help: "Requests that needed the addresses of an endpoint's name." }];

/// Upper bounds in seconds: a server on the node, in the cluster, across the world, one that was asked again.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0];

type ByProtocol = [(&'static str, &'static str); 1];
type Durations = Fixed<ByProtocol, Histogram, fn() -> Histogram>;

/// Counts of names. Clones share them.
#[derive(Debug, Clone)]
pub struct DnsMetrics {
    requests: Family<Labels, 3>,
    on_demand: Family<Source, 1>,
    ignored: Counter,
    duration: Durations,
}

/// Whose connection it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    service: Arc<str>,
    revision: Arc<str>,
    namespace: Arc<str>,
}

impl EncodeLabelSet for Source {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "source_canonical_service", &self.service)?;
        value(encoder, "source_canonical_revision", &self.revision)?;
        value(encoder, "source_workload_namespace", &self.namespace)
    }
}

impl LabelSet for Source {
    fn other() -> Self {
        Self { service: "other".into(), revision: Arc::default(), namespace: Arc::default() }
    }
}

/// What a request is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    kind: &'static str,
    protocol: &'static str,
    service: Arc<str>,
    revision: Arc<str>,
}

impl Labels {
    /// A request for records of `kind` by `source`, if that is known.
    pub fn new(kind: &'static str, transport: Transport, source: Option<&Workload>) -> Self {
        Self {
            kind,
            protocol: transport.as_str(),
            service: source.map(|w| w.canonical_name.clone()).unwrap_or_default(),
            revision: source.map(|w| w.canonical_revision.clone()).unwrap_or_default(),
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "request_query_type", self.kind)?;
        value(encoder, "request_protocol", self.protocol)?;
        value(encoder, "source_canonical_service", &self.service)?;
        value(encoder, "source_canonical_revision", &self.revision)
    }
}

impl LabelSet for Labels {
    fn other() -> Self {
        Self { kind: "other", protocol: "other", service: "other".into(), revision: Arc::default() }
    }
}

impl DnsMetrics {
    /// Metrics that are written with `registry`.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            requests: Family::new(COLUMNS),
            on_demand: Family::new(ON_DEMAND),
            ignored: Counter::default(),
            duration: Fixed::new_with_constructor(|| Histogram::new(BUCKETS)),
        };
        registry.family(&metrics.requests);
        registry.family(&metrics.on_demand);
        registry.register(
            "loam_dns_upstream_ignored",
            "Messages at a port of a question to a pod's own servers that do not answer it",
            metrics.ignored.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "Time until a pod's own servers answered",
            metrics.duration.clone(),
        );
        metrics
    }

    pub(super) fn asked(&self, labels: &Labels) {
        self.requests.series(labels).add(REQUESTS, 1);
    }

    pub(super) fn forwarded(&self, labels: &Labels) {
        self.requests.series(labels).add(FORWARDED, 1);
    }

    pub(super) fn failed(&self, labels: &Labels) {
        self.requests.series(labels).add(FAILED, 1);
    }

    /// A connection of `source` needed a name.
    pub(crate) fn on_demand(&self, source: &Workload) {
        let labels = Source {
            service: source.canonical_name.clone(),
            revision: source.canonical_revision.clone(),
            namespace: source.namespace().into(),
        };
        self.on_demand.series(&labels).add(0, 1);
    }

    pub(super) fn ignored(&self) {
        self.ignored.inc();
    }

    pub(super) fn took(&self, transport: Transport, time: Duration) {
        self.duration.get_or_create(&[("request_protocol", transport.as_str())]).observe(time.as_secs_f64());
    }
}
