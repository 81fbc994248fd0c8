//! What this process counts, with the names and labels that Istio's dashboards and Kiali read.

use std::fmt;
use std::sync::Arc;

use loam_core::headers::baggage::Baggage;
use loam_core::ids::Identity;
use loam_core::reason::Reason;
use loam_core::service::Service;
use loam_core::workload::{GatewayAddr, Workload};
use loam_rt::metrics::{Column, Counter, EncodeLabelSet, Family, Gauge, IDLE_TTL, LabelSet, Registry, Series, value};
use prometheus_client::encoding::LabelSetEncoder;
use prometheus_client::metrics::family::Family as Fixed;

/// Which end of a connection this process reports about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A local workload connected to another one.
    Outbound,
    /// A local workload was connected to.
    Inbound,
}

impl Direction {
    /// The direction in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }

    /// The value of the label `reporter`.
    pub fn reporter(self) -> &'static str {
        match self {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The workload at the end's address.
    pub workload: Option<Arc<Workload>>,
    /// Who it is, as proven by a certificate; for our own end, the identity we proved. `None` in the clear.
    pub identity: Option<Identity>,
    /// What it says about itself, where no workload is known.
    pub baggage: Option<Box<Baggage>>,
}

/// `response_flags` of a connection that was carried to its end.
const NO_FLAGS: &str = "-";
/// A label without a value would be no label to Prometheus, and the series none to Kiali.
const UNKNOWN: &str = "unknown";

/// The labels of Istio's TCP metrics. All are always present.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    reporter: &'static str,
    source: PeerLabels,
    destination: PeerLabels,
    service: Option<ServiceLabels>,
    response_flags: &'static str,
    secured: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct PeerLabels {
    workload: Arc<str>,
    namespace: Arc<str>,
    principal: Option<Identity>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ServiceLabels {
    hostname: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

impl PeerLabels {
    fn of(peer: &Peer) -> Self {
        let principal = peer.identity.clone();
        match (&peer.workload, &peer.baggage) {
            (Some(workload), _) => Self {
                workload: if workload.owner.is_empty() { workload.name.clone() } else { workload.owner.clone() },
                namespace: workload.namespace().into(),
                principal,
                canonical_service: workload.canonical_name.clone(),
                canonical_revision: workload.canonical_revision.clone(),
                cluster: workload.cluster.clone(),
            },
            (None, Some(baggage)) => Self {
                workload: baggage.workload.clone(),
                // What was proven goes before what is said.
                namespace: principal.as_ref().map_or_else(|| baggage.namespace.clone(), |id| id.namespace().into()),
                principal,
                canonical_service: baggage.service_name.clone(),
                canonical_revision: baggage.service_version.clone(),
                cluster: baggage.cluster.clone(),
            },
            (None, None) => Self {
                namespace: principal.as_ref().map_or_else(Arc::default, |id| id.namespace().into()),
                principal,
                ..Self::default()
            },
        }
    }
}

impl TrafficLabels {
    /// The labels of a connection that `direction` reports.
    pub fn new(
        direction: Direction,
        source: &Peer,
        destination: &Peer,
        service: Option<&Service>,
        secured: bool,
    ) -> Self {
        Self {
            reporter: direction.reporter(),
            source: PeerLabels::of(source),
            destination: PeerLabels::of(destination),
            service: service.map(|service| ServiceLabels {
                hostname: service.key.hostname.as_str().into(),
                name: service.name.clone(),
                namespace: service.key.namespace.clone(),
            }),
            response_flags: NO_FLAGS,
            secured,
        }
    }

    /// The same with the flags of a connection that ended for `reason`.
    pub fn ended(self, reason: Reason) -> Self {
        Self { response_flags: reason.response_flags(), ..self }
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "reporter", self.reporter)?;
        for (peer, names) in [(&self.source, &SOURCE), (&self.destination, &DESTINATION)] {
            let principal = peer.principal.as_ref().map_or_else(String::new, ToString::to_string);
            let values: [&str; 8] = [
                &peer.workload,
                &peer.namespace,
                &principal,
                &peer.canonical_service,
                &peer.canonical_revision,
                &peer.canonical_service,
                &peer.canonical_revision,
                &peer.cluster,
            ];
            for (name, text) in names.iter().zip(values) {
                value(encoder, name, text)?;
            }
        }
        let service = self.service.as_ref();
        value(encoder, "destination_service", service.map_or("", |s| &s.hostname))?;
        value(encoder, "destination_service_name", service.map_or("", |s| &s.name))?;
        value(encoder, "destination_service_namespace", service.map_or("", |s| &s.namespace))?;
        value(encoder, "request_protocol", "tcp")?;
        value(encoder, "response_flags", self.response_flags)?;
        value(encoder, "connection_security_policy", if self.secured { "mutual_tls" } else { UNKNOWN })
    }
}

/// `app` and `version` repeat the canonical service and its revision, as Istio has it.
const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_canonical_service",
    "source_canonical_revision",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// The counters of a [`TrafficLabels`]. Sent is what goes back to the caller and received what comes from it, whoever
/// reports: Istio measures a request's bytes as received, and Kiali swaps them back for sources.
const TRAFFIC: [Column; 5] = [
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

impl LabelSet for TrafficLabels {
    fn other() -> Self {
        let other = PeerLabels { workload: "other".into(), ..PeerLabels::default() };
        Self {
            reporter: UNKNOWN,
            source: other.clone(),
            destination: other,
            service: None,
            response_flags: NO_FLAGS,
            secured: false,
        }
    }

    fn has(&self, column: usize) -> bool {
        // Flags are known at the end only, and stand on what the end counts.
        matches!(column, CLOSED | FAILED) || self.response_flags == NO_FLAGS
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

    /// It ended.
    pub fn closed(&self) {
        self.0.add(CLOSED, 1);
    }

    /// It ended badly.
    pub fn failed(&self) {
        self.0.add(FAILED, 1);
    }

    /// It carried bytes to its upstream and to its downstream.
    pub fn carried(&self, upstream: u64, downstream: u64) {
        self.0.add(SENT, downstream);
        self.0.add(RECEIVED, upstream);
    }
}

/// How a connection ended, among all of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EndLabels {
    direction: &'static str,
    reason: &'static str,
}

impl EncodeLabelSet for EndLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "direction", self.direction)?;
        value(encoder, "reason", self.reason)
    }
}

/// Most series about denials, about policies on trial and about absent waypoints: of the many there are, few deny or are
/// absent.
const MAX_POLICY_SERIES: usize = 1000;

/// Why a connection was denied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DenialLabels {
    reason: &'static str,
    policy: Arc<str>,
}

impl EncodeLabelSet for DenialLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "reason", self.reason)?;
        value(encoder, "policy", if self.policy.is_empty() { "none" } else { &self.policy })
    }
}

impl LabelSet for DenialLabels {
    fn other() -> Self {
        Self { reason: "other", policy: "other".into() }
    }
}

/// What a policy decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct VerdictLabels {
    verdict: &'static str,
    policy: Arc<str>,
}

impl EncodeLabelSet for VerdictLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "verdict", self.verdict)?;
        value(encoder, "policy", if self.policy.is_empty() { "none" } else { &self.policy })
    }
}

impl LabelSet for VerdictLabels {
    fn other() -> Self {
        Self { verdict: "other", policy: "other".into() }
    }
}

/// A waypoint that was not there for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AbsenceLabels {
    waypoint: Arc<str>,
    reason: &'static str,
    outcome: &'static str,
}

impl EncodeLabelSet for AbsenceLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "waypoint", &self.waypoint)?;
        value(encoder, "reason", self.reason)?;
        value(encoder, "outcome", self.outcome)
    }
}

impl LabelSet for AbsenceLabels {
    fn other() -> Self {
        Self { waypoint: "other".into(), reason: "other", outcome: "other" }
    }
}

type ByName = Fixed<[(&'static str, &'static str); 1], Counter>;

/// Everything this process counts. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics {
    traffic: Family<TrafficLabels, 5>,
    verdicts: Family<VerdictLabels, 1>,
    denials: Family<DenialLabels, 1>,
    dry_run: Family<VerdictLabels, 1>,
    absences: Family<AbsenceLabels, 1>,
    ends: Fixed<EndLabels, Counter>,
    sockets_open: Fixed<[(&'static str, &'static str); 1], Gauge>,
    xds_messages: ByName,
    xds_message_bytes: ByName,
    xds_terminations: ByName,
    /// The pods that this process serves.
    pub pods: PodMetrics,
}

/// How many pods come and go.
#[derive(Debug, Clone, Default)]
pub struct PodMetrics {
    active: Gauge,
    pending: Gauge,
    started: Counter,
    stopped: Counter,
}

impl PodMetrics {
    /// How many pods are served, and how many wait for their workload or certificate.
    pub fn count(&self, active: usize, pending: usize) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(gauge(active));
        self.pending.set(gauge(pending));
    }

    /// A pod began to be served.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A pod is no longer served.
    pub fn stopped(&self) {
        self.stopped.inc();
    }
}

impl Metrics {
    /// All metrics, known to `registry`.
    pub fn new(registry: &Registry) -> Self {
        let denials = Column { name: "loam_policy_denials", help: "Connections refused or cut by policy." };
        let dry_run = Column { name: "loam_policy_dry_run", help: "Decisions if policies on trial were in force." };
        let absences = Column {
            name: "loam_waypoint_absent",
            help: "Connections whose waypoint was not there, by what became of them.",
        };
        let metrics = Self {
            absences: Family::with_limits([absences], IDLE_TTL, MAX_POLICY_SERIES),
            denials: Family::with_limits([denials], IDLE_TTL, MAX_POLICY_SERIES),
            dry_run: Family::with_limits([dry_run], IDLE_TTL, MAX_POLICY_SERIES),
            traffic: Family::new(TRAFFIC),
            verdicts: Family::new([Column { name: "loam_policy_verdicts", help: "Decisions about arrivals." }]),
            ends: Fixed::default(),
            sockets_open: Fixed::default(),
            xds_messages: Fixed::default(),
            xds_message_bytes: Fixed::default(),
            xds_terminations: Fixed::default(),
            pods: PodMetrics::default(),
        };
        registry.build("ztunnel", env!("CARGO_PKG_VERSION"));
        registry.family(&metrics.traffic);
        registry.family(&metrics.verdicts);
        registry.family(&metrics.denials);
        registry.family(&metrics.dry_run);
        registry.family(&metrics.absences);
        registry.register("loam_connection_ends", "Connections by how they ended", metrics.ends.clone());
        registry.register("istio_tcp_sockets_open", "Connections that live", metrics.sockets_open.clone());
        registry.register("istio_xds_message", "Messages of the control plane", metrics.xds_messages.clone());
        registry.register("istio_xds_message_bytes", "Their sizes together", metrics.xds_message_bytes.clone());
        let terminations = metrics.xds_terminations.clone();
        registry.register("istio_xds_connection_terminations", "Ends of the connection to it", terminations);
        let pods = &metrics.pods;
        registry.register("workload_manager_active_proxy_count", "Pods served", pods.active.clone());
        registry.register("workload_manager_pending_proxy_count", "Pods not served yet", pods.pending.clone());
        registry.register("workload_manager_proxies_started", "Pods that began to be served", pods.started.clone());
        registry.register("workload_manager_proxies_stopped", "Pods that ended", pods.stopped.clone());
        metrics
    }

    /// The counters of connections with these labels.
    pub fn traffic(&self, labels: &TrafficLabels) -> Traffic {
        Traffic(self.traffic.series(labels))
    }

    /// A connection of `direction` lives.
    pub fn socket_opened(&self, direction: Direction) {
        self.sockets_open.get_or_create(&[("reporter", direction.reporter())]).inc();
    }

    /// A connection of `direction` ended, for `reason` unless it finished.
    pub fn socket_closed(&self, direction: Direction, reason: Option<Reason>) {
        self.sockets_open.get_or_create(&[("reporter", direction.reporter())]).dec();
        let reason = reason.map_or("finished", Reason::as_str);
        self.ends.get_or_create(&EndLabels { direction: direction.as_str(), reason }).inc();
    }

    /// A policy, or the lack of one, decided about an arrival.
    pub fn judged(&self, verdict: &'static str, policy: Option<&Arc<str>>) {
        let policy = policy.map_or_else(Arc::default, Arc::clone);
        self.verdicts.series(&VerdictLabels { verdict, policy }).add(0, 1);
    }

    /// A connection was refused or cut.
    pub fn denied(&self, reason: Reason, policy: Option<&Arc<str>>) {
        let policy = policy.map_or_else(Arc::default, Arc::clone);
        self.denials.series(&DenialLabels { reason: reason.as_str(), policy }).add(0, 1);
    }

    /// What would have been decided about an arrival if policies on trial were in force.
    pub fn dry_run(&self, verdict: &'static str, policy: Option<&Arc<str>>) {
        let policy = policy.map_or_else(Arc::default, Arc::clone);
        self.dry_run.series(&VerdictLabels { verdict, policy }).add(0, 1);
    }

    /// A waypoint was not there for a connection, which was refused or went past it.
    pub fn waypoint_absent(&self, waypoint: &GatewayAddr, reason: Reason, outcome: &'static str) {
        let labels = AbsenceLabels { waypoint: waypoint.to_string().into(), reason: reason.as_str(), outcome };
        self.absences.series(&labels).add(0, 1);
    }

    /// The control plane sent a message of a type.
    pub fn xds_message(&self, type_url: &'static str, bytes: usize) {
        let labels = [("url", type_url)];
        self.xds_messages.get_or_create(&labels).inc();
        self.xds_message_bytes.get_or_create(&labels).inc_by(bytes as u64);
    }

    /// The connection to the control plane ended; Istio's reasons are `ConnectionError`, `Error`, `Reconnect` and
    /// `Complete`.
    pub fn xds_terminated(&self, reason: &'static str) {
        self.xds_terminations.get_or_create(&[("reason", reason)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use loam_core::ids::WorkloadUid;
    use loam_rt::metrics::Exposition;

    use super::*;

    fn workload(namespace: &str, name: &str) -> Arc<Workload> {
        let identity: Identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").parse().unwrap();
        let mut workload = Workload::new(WorkloadUid::of_pod("Kubernetes", namespace, name), name, identity);
        workload.owner = format!("{name}-deployment").into();
        workload.canonical_name = name.into();
        workload.canonical_revision = "v1".into();
        workload.cluster = "Kubernetes".into();
        Arc::new(workload)
    }

    fn peer(workload: &Arc<Workload>) -> Peer {
        Peer { identity: Some(workload.identity.clone()), workload: Some(workload.clone()), baggage: None }
    }

    fn text(registry: &Registry) -> String {
        registry.encode(Exposition::Text, Instant::now())
    }

    fn line<'a>(text: &'a str, name: &str) -> &'a str {
        text.lines()
            .find(|line| line.starts_with(&format!("{name}{{")))
            .unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    #[test]
    fn traffic_has_every_label_of_istio() {
        let registry = Registry::default();
        let metrics = Metrics::new(&registry);
        let (web, api) = (workload("shop", "web"), workload("back", "api"));
        let labels = TrafficLabels::new(Direction::Inbound, &peer(&web), &peer(&api), None, true);
        metrics.traffic(&labels).opened();
        assert_eq!(
            line(&text(&registry), "istio_tcp_connections_opened_total"),
            "istio_tcp_connections_opened_total{reporter=\"destination\",\
             source_workload=\"web-deployment\",source_workload_namespace=\"shop\",\
             source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",\
             source_canonical_service=\"web\",source_canonical_revision=\"v1\",\
             source_app=\"web\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
             destination_workload=\"api-deployment\",destination_workload_namespace=\"back\",\
             destination_principal=\"spiffe://cluster.local/ns/back/sa/api\",\
             destination_canonical_service=\"api\",destination_canonical_revision=\"v1\",\
             destination_app=\"api\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",\
             destination_service=\"unknown\",destination_service_name=\"unknown\",\
             destination_service_namespace=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
             connection_security_policy=\"mutual_tls\"} 1"
        );
    }

    #[test]
    fn what_is_not_known_is_unknown_and_never_empty() {
        let registry = Registry::default();
        let metrics = Metrics::new(&registry);
        let nobody = Peer::default();
        metrics.traffic(&TrafficLabels::new(Direction::Outbound, &nobody, &nobody, None, false)).opened();
        let text = text(&registry);
        let line = line(&text, "istio_tcp_connections_opened_total");
        assert!(!line.contains("=\"\""), "{line}");
        assert_eq!(line.matches("=\"unknown\"").count(), 20, "{line}");
    }

    #[test]
    fn a_principal_is_named_only_when_it_was_proven() {
        let web = workload("shop", "web");
        let in_the_clear = Peer { identity: None, ..peer(&web) };
        assert_eq!(PeerLabels::of(&in_the_clear).principal, None);
        assert_eq!(&*PeerLabels::of(&in_the_clear).namespace, "shop");
    }

    #[test]
    fn baggage_cannot_claim_another_namespace_than_the_certificate() {
        let baggage = Baggage { namespace: "kube-system".into(), workload: "web".into(), ..Baggage::default() };
        let identity = workload("shop", "web").identity.clone();
        let labels = PeerLabels::of(&Peer { workload: None, identity: Some(identity), baggage: Some(baggage.into()) });
        assert_eq!((&*labels.namespace, &*labels.workload), ("shop", "web"));
    }

    #[test]
    fn flags_stand_on_ends_only() {
        let registry = Registry::default();
        let metrics = Metrics::new(&registry);
        let nobody = Peer::default();
        let labels = TrafficLabels::new(Direction::Outbound, &nobody, &nobody, None, false);
        let failed = metrics.traffic(&labels.ended(Reason::Denied));
        failed.closed();
        failed.failed();
        let text = text(&registry);
        assert!(line(&text, "istio_tcp_connections_closed_total").contains("response_flags=\"DENY\""));
        assert!(line(&text, "istio_tcp_connections_failed_total").ends_with(" 1"));
        assert!(!text.contains("istio_tcp_sent_bytes_total{"), "{text}");
    }

    #[test]
    fn the_names_of_dashboards_are_there() {
        let registry = Registry::with_process();
        let metrics = Metrics::new(&registry);
        metrics.xds_message("type.googleapis.com/istio.workload.Address", 10);
        metrics.xds_terminated("Reconnect");
        metrics.pods.started();
        metrics.pods.count(1, 0);
        metrics.socket_opened(Direction::Outbound);
        metrics.judged("deny", None);
        let text = text(&registry);
        for name in [
            "istio_build{component=\"ztunnel\",tag=",
            "istio_tcp_sockets_open{reporter=\"source\"} 1",
            "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"} 1",
            "istio_xds_message_bytes_total{url=\"type.googleapis.com/istio.workload.Address\"} 10",
            "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 1",
            "workload_manager_active_proxy_count 1",
            "workload_manager_pending_proxy_count 0",
            "workload_manager_proxies_started_total 1",
            "workload_manager_proxies_stopped_total 0",
            "loam_policy_verdicts_total{verdict=\"deny\",policy=\"none\"} 1",
            "process_open_fds ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing in {text}");
        }
    }
}
