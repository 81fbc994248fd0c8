//! What this process counts, with the names and labels that Istio's dashboards and Kiali read.

mod labels;

use std::sync::Arc;
use std::time::Duration;

use loam_rt::metrics::{Column, Counter, Family, Gauge, IDLE_TTL, Registry, Series, Shape};
use prometheus_client::metrics::family::Family as Fixed;

pub use labels::{ConnectionLabels, Ends, Peer, PeerLabels, RequestLabels, ServiceLabels};

/// Bounds of Istio's histograms: those of Envoy. With what is beyond them they make twenty buckets.
const BOUNDS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

const HISTOGRAM: Shape = Shape::Histogram(BOUNDS);

/// Where the numbers of each quantity of a request begin.
const REQUESTS: usize = 0;
const DURATION: usize = 1;
const REQUEST_BYTES: usize = DURATION + HISTOGRAM.slots();
const RESPONSE_BYTES: usize = REQUEST_BYTES + HISTOGRAM.slots();
const SLOTS: usize = RESPONSE_BYTES + HISTOGRAM.slots();

/// Most numbers about requests: about three thousand label sets.
const MAX_REQUEST_SERIES: usize = 200_000;

const REQUEST_COLUMNS: [(Column, Shape); 4] = [
    (Column { name: "istio_requests", help: "Requests." }, Shape::Counter),
    (Column { name: "istio_request_duration_milliseconds", help: "Duration of requests." }, HISTOGRAM),
    (Column { name: "istio_request_bytes", help: "Sizes of the bodies of requests." }, HISTOGRAM),
    (Column { name: "istio_response_bytes", help: "Sizes of the bodies of responses." }, HISTOGRAM),
];

/// Sent is what goes back to the caller and received what comes from it, as Istio has it.
const CONNECTION_COLUMNS: [Column; 5] = [
    Column { name: "istio_tcp_connections_opened", help: "Connections opened." },
    Column { name: "istio_tcp_connections_closed", help: "Connections closed." },
    Column { name: "istio_tcp_sent_bytes", help: "Bytes sent in response." },
    Column { name: "istio_tcp_received_bytes", help: "Bytes received in request." },
    Column { name: "istio_tcp_connections_failed", help: "Connections refused or ended badly." },
];
const OPENED: usize = 0;
const CLOSED: usize = 1;
const SENT: usize = 2;
const RECEIVED: usize = 3;
const FAILED: usize = 4;

type ByName = Fixed<[(&'static str, &'static str); 1], Counter>;

/// Everything this process counts. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, SLOTS>,
    connections: Family<ConnectionLabels, 5>,
    failures: ByName,
    retries: ByName,
    mirrors: ByName,
    ejections: Counter,
    under_way: Gauge,
    xds_messages: ByName,
    xds_message_bytes: ByName,
    xds_terminations: ByName,
}

impl Metrics {
    /// All metrics, known to `registry`.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            requests: Family::of_shapes(&REQUEST_COLUMNS, IDLE_TTL, MAX_REQUEST_SERIES),
            connections: Family::new(CONNECTION_COLUMNS),
            failures: Fixed::default(),
            retries: Fixed::default(),
            mirrors: Fixed::default(),
            ejections: Counter::default(),
            under_way: Gauge::default(),
            xds_messages: Fixed::default(),
            xds_message_bytes: Fixed::default(),
            xds_terminations: Fixed::default(),
        };
        registry.build("proxy", env!("CARGO_PKG_VERSION"));
        registry.family(&metrics.requests);
        registry.family(&metrics.connections);
        let failures = metrics.failures.clone();
        registry.register("loam_request_failures", "Requests answered by the proxy itself with an error", failures);
        registry.register("loam_request_retries", "Requests tried again, by why", metrics.retries.clone());
        registry.register(
            "loam_request_mirrors",
            "Copies of requests, by what became of them",
            metrics.mirrors.clone(),
        );
        registry.register("loam_endpoint_ejections", "Endpoints ejected as outliers", metrics.ejections.clone());
        registry.register("loam_requests_under_way", "Requests under way", metrics.under_way.clone());
        registry.register("istio_xds_message", "Messages of the control plane", metrics.xds_messages.clone());
        registry.register("istio_xds_message_bytes", "Their sizes together", metrics.xds_message_bytes.clone());
        let terminations = metrics.xds_terminations.clone();
        registry.register("istio_xds_connection_terminations", "Ends of the connection to it", terminations);
        metrics
    }

    /// A request began.
    pub fn request_began(&self) {
        self.under_way.inc();
    }

    /// A request ended.
    pub fn request_ended(&self, labels: &RequestLabels, took: Duration, received: u64, sent: u64) {
        self.under_way.dec();
        let series = self.requests.series(labels);
        series.add(REQUESTS, 1);
        series.observe(DURATION, BOUNDS, took.as_secs_f64() * 1000.0);
        series.observe(REQUEST_BYTES, BOUNDS, received as f64);
        series.observe(RESPONSE_BYTES, BOUNDS, sent as f64);
    }

    /// A request was answered with an error of the proxy's own.
    pub fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&[("reason", reason)]).inc();
    }

    /// A request is tried again.
    pub fn retried(&self, why: &'static str) {
        self.retries.get_or_create(&[("why", why)]).inc();
    }

    /// An endpoint was ejected.
    pub fn ejected(&self) {
        self.ejections.inc();
    }

    /// What became of a copy of a request.
    pub fn mirrored(&self, outcome: &'static str) {
        self.mirrors.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// The counters of connections with these labels.
    pub fn connection(&self, labels: &ConnectionLabels) -> Traffic {
        Traffic(self.connections.series(labels))
    }

    /// A message of the control plane arrived.
    pub fn xds_message(&self, url: &'static str, bytes: usize) {
        self.xds_messages.get_or_create(&[("url", url)]).inc();
        self.xds_message_bytes.get_or_create(&[("url", url)]).inc_by(bytes as u64);
    }

    /// The connection to the control plane ended.
    pub fn xds_terminated(&self, reason: &'static str) {
        self.xds_terminations.get_or_create(&[("reason", reason)]).inc();
    }
}

/// The counters of connections with equal labels.
#[derive(Debug, Clone)]
pub struct Traffic(Arc<Series<5>>);

impl Traffic {
    /// A connection began.
    pub fn opened(&self) {
        self.0.add(OPENED, 1);
    }

    /// It ended, having carried bytes to its upstream and to its downstream.
    pub fn closed(&self, upstream: u64, downstream: u64) {
        self.0.add(CLOSED, 1);
        self.0.add(SENT, downstream);
        self.0.add(RECEIVED, upstream);
    }

    /// It ended badly.
    pub fn failed(&self) {
        self.0.add(CLOSED, 1);
        self.0.add(FAILED, 1);
    }
}
