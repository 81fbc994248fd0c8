use std::io;
use std::sync::Mutex;

use loam_core::headers::baggage::Baggage;
use loam_core::ids::{Identity, WorkloadUid};
use loam_core::workload::{GatewayAddr, GatewayDestination, Workload};
use loam_hbone::{End as Ending, Side};
use loam_rt::drain::{self, Trigger};
use loam_rt::metrics::Exposition;
use loam_rt::telemetry;

use super::*;

/// An output that keeps what is written.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    log: AccessLog,
    registry: Registry,
    trigger: Trigger,
    telemetry: Telemetry,
    output: Output,
    _in_force: tracing::subscriber::DefaultGuard,
}

impl Bench {
    fn new(filter: &str) -> Self {
        Self::with_format(LogFormat::Plain, filter)
    }

    fn with_format(format: LogFormat, filter: &str) -> Self {
        let output = Output::default();
        let (telemetry, subscriber) = telemetry::detached(format, filter, Box::new(output.clone())).unwrap();
        let in_force = tracing::subscriber::set_default(subscriber);
        let registry = Registry::default();
        let (trigger, drain) = drain::channel();
        let log = AccessLog::new(&telemetry, Metrics::new(&registry), &registry, drain);
        Self { log, registry, trigger, telemetry, output, _in_force: in_force }
    }

    fn begin(&self, direction: Direction) -> Record {
        let downstream = DownstreamAddr::new("10.0.1.5:40000".parse().unwrap());
        let mut record = self.log.begin(direction, downstream, OrigDst::new("10.96.0.1:80".parse().unwrap()));
        let facts = record.facts();
        facts.addr = "10.0.2.6:15008".parse().unwrap();
        facts.authority = Some(Authority::Addr("10.0.2.6:8080".parse().unwrap()));
        facts.secured = true;
        facts.source = peer("shop", "web");
        facts.destination = peer("back", "api");
        facts.service = Some(service());
        record
    }

    /// Lines without their times, with the duration made equal.
    fn lines(&self) -> Vec<String> {
        assert!(self.telemetry.sink().flush(Duration::from_secs(10)));
        let text = String::from_utf8(self.output.0.lock().unwrap().clone()).unwrap();
        let plain = |line: &str| {
            let (_, rest) = line.split_once('\t').unwrap();
            let (head, tail) = rest.split_once("duration=\"").unwrap_or((rest, "\""));
            match tail.split_once('"') {
                Some((_, tail)) if head != rest => format!("{head}duration=_{tail}"),
                _ => rest.to_owned(),
            }
        };
        text.lines().map(plain).collect()
    }

    fn metric(&self, start: &str) -> Vec<String> {
        let text = self.registry.encode(Exposition::Text, Instant::now());
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    /// The sum of a metric's series whose labels contain `label`.
    fn sum(&self, name: &str, label: &str) -> u64 {
        let lines = self.metric(&format!("{name}{{"));
        let value = |line: &String| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        lines.iter().filter(|line| line.contains(label)).map(value).sum()
    }
}

fn peer(namespace: &str, name: &str) -> Peer {
    let identity: Identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").parse().unwrap();
    let pod = format!("{name}-7c9f-x2");
    let mut workload = Workload::new(WorkloadUid::of_pod("Kubernetes", namespace, &pod), pod, identity.clone());
    workload.owner = name.into();
    workload.cluster = "Kubernetes".into();
    Peer { workload: Some(Arc::new(workload)), identity: Some(identity), baggage: None }
}

fn service() -> Arc<Service> {
    Arc::new(Service::new("back/api.back.svc.cluster.local".parse().unwrap(), "api"))
}

fn outcome(end: Ending) -> Outcome {
    Outcome { bytes_sent: 84, bytes_received: 175, end }
}

#[test]
fn an_outbound_connection_has_one_line_with_istios_fields() {
    let bench = Bench::new("");
    bench.begin(Direction::Outbound).open().finish(outcome(Ending::Finished));
    assert_eq!(
        bench.lines(),
        ["info\taccess\tconnection complete\t\
          src.addr=10.0.1.5:40000 src.workload=\"web-7c9f-x2\" src.namespace=\"shop\" \
          src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" src.cluster=\"Kubernetes\" \
          dst.addr=10.0.2.6:15008 dst.hbone_addr=10.0.2.6:8080 dst.service=\"api.back.svc.cluster.local\" \
          dst.workload=\"api-7c9f-x2\" dst.namespace=\"back\" dst.identity=\"spiffe://cluster.local/ns/back/sa/api\" \
          dst.cluster=\"Kubernetes\" direction=\"outbound\" bytes_sent=84 bytes_recv=175 duration=_ conn_id=1"]
    );
}

#[test]
fn sent_is_what_the_local_workload_sent_in_logs_and_the_response_in_metrics() {
    for (direction, line) in
        [(Direction::Outbound, "bytes_sent=84 bytes_recv=175"), (Direction::Inbound, "bytes_sent=175 bytes_recv=84")]
    {
        let bench = Bench::new("");
        bench.begin(direction).open().finish(outcome(Ending::Finished));
        assert!(bench.lines()[0].contains(line), "{:?}", bench.lines());
        assert_eq!(bench.sum("istio_tcp_sent_bytes_total", direction.reporter()), 175);
        assert_eq!(bench.sum("istio_tcp_received_bytes_total", direction.reporter()), 84);
    }
}

#[test]
fn a_refused_connection_is_opened_closed_and_failed_once() {
    let bench = Bench::new("");
    bench.begin(Direction::Outbound).refuse(Reason::ConnectTimeout, "dial 10.0.2.6:15008: timed out");
    let lines = bench.lines();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("error\taccess\tconnection complete\t"), "{lines:?}");
    let end = "bytes_sent=0 bytes_recv=0 duration=_ error=\"dial 10.0.2.6:15008: timed out\" conn_id=1 reason=\"connect_timeout\"";
    assert!(lines[0].ends_with(end), "{lines:?}");
    assert_eq!(bench.sum("istio_tcp_connections_opened_total", "response_flags=\"-\""), 1);
    assert_eq!(bench.sum("istio_tcp_connections_closed_total", "response_flags=\"CONNECT\""), 1);
    assert_eq!(bench.sum("istio_tcp_connections_failed_total", "response_flags=\"CONNECT\""), 1);
    assert_eq!(bench.sum("istio_tcp_connections_closed_total", ""), 1);
    assert_eq!(bench.sum("istio_tcp_sockets_open", "source"), 0);
    assert_eq!(bench.sum("loam_connection_ends_total", "reason=\"connect_timeout\""), 1);
}

#[test]
fn a_waypoint_that_is_not_there_is_told_of_whether_it_is_passed_or_not() {
    let bench = Bench::new("");
    let destination = GatewayDestination::Service("shop/wp.shop.svc".parse().unwrap());
    let waypoint = Arc::new(GatewayAddr { destination, hbone_port: 15008, bypass: true });
    let begin = |why| {
        let mut record = bench.begin(Direction::Outbound);
        record.facts().absent_waypoint = Some(Box::new(Absent { waypoint: waypoint.clone(), why }));
        record
    };
    let carried = begin(Reason::WaypointNotReady).open();
    let listed = serde_json::to_value(bench.log.connections(1)).unwrap();
    assert_eq!(listed["connections"][0]["absentWaypoint"], "shop/wp.shop.svc:15008");
    carried.finish(outcome(Ending::Finished));
    begin(Reason::WaypointNotReady).refuse(Reason::ConnectRefused, "dial 10.0.2.6:8080: refused");
    begin(Reason::WaypointMissing).refuse(Reason::WaypointMissing, "waypoint shop/wp.shop.svc:15008 is not known");
    let lines = bench.lines();
    let told =
        "dst.cluster=\"Kubernetes\" waypoint=shop/wp.shop.svc:15008 waypoint.absent=\"waypoint_not_ready\" direction=";
    assert!(lines[0].contains(told), "{lines:?}");
    assert!(lines[2].contains("waypoint.absent=\"waypoint_missing\""), "{lines:?}");
    let counted = |labels: &str| bench.sum("loam_waypoint_absent_total", labels);
    let of = "waypoint=\"shop/wp.shop.svc:15008\",reason=";
    assert_eq!(counted(&format!("{of}\"waypoint_not_ready\",outcome=\"bypassed\"")), 2);
    assert_eq!(counted(&format!("{of}\"waypoint_missing\",outcome=\"refused\"")), 1);
    assert_eq!(counted(""), 3);
}

#[test]
fn a_denial_names_its_policy() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    let detail = "denied by policy back/no-shop";
    record.facts().verdict = Some(Verdict::Deny { reason: Reason::Denied, policy: Some("back/no-shop".into()) });
    record.refuse(Reason::Denied, detail);
    let lines = bench.lines();
    assert!(lines[0].ends_with("reason=\"denied\" policy=\"back/no-shop\" verdict=\"deny\""), "{lines:?}");
    assert_eq!(bench.sum("loam_policy_verdicts_total", "policy=\"back/no-shop\""), 1);
    assert_eq!(bench.sum("loam_policy_denials_total", "reason=\"denied\",policy=\"back/no-shop\""), 1);
    assert_eq!(bench.sum("istio_tcp_connections_failed_total", "response_flags=\"DENY\""), 1);
}

#[test]
fn a_connection_that_is_cut_tells_of_the_policy_that_changed_its_mind() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    record.facts().verdict = Some(Verdict::Allow);
    let record = record.open();
    let late = Verdict::Deny { reason: Reason::Denied, policy: Some("back/late".into()) };
    let reason = record.late().deny(late, "denied by policy back/late".into());
    record.finish(outcome(Ending::Aborted(reason)));
    let lines = bench.lines();
    let end = "error=\"denied by policy back/late\" conn_id=1 reason=\"denied\" policy=\"back/late\" verdict=\"deny\"";
    assert!(lines[0].ends_with(end), "{lines:?}");
    assert_eq!(bench.sum("loam_policy_denials_total", "reason=\"denied\",policy=\"back/late\""), 1);
    let denials = bench.log.denials(10);
    assert_eq!((denials.len(), denials[0].cut, denials[0].policy.as_deref()), (1, true, Some("back/late")));
}

#[test]
fn a_connection_that_ends_in_the_moment_it_is_to_be_cut_ended_by_itself() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    record.facts().verdict = Some(Verdict::Allow);
    let record = record.open();
    record.late().deny(Verdict::Deny { reason: Reason::Denied, policy: None }, "no policy allows it".into());
    record.finish(outcome(Ending::Finished));
    assert!(bench.lines()[0].ends_with("conn_id=1 verdict=\"allow\""), "{:?}", bench.lines());
    assert!(bench.log.denials(10).is_empty());
}

#[test]
fn policies_on_trial_are_told_beside_the_verdict() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    record.facts().verdict = Some(Verdict::Allow);
    let trial = Verdict::Deny { reason: Reason::Denied, policy: Some("back/trial".into()) };
    record.facts().dry_run = Some(Box::new(trial));
    record.open().finish(outcome(Ending::Finished));
    let end = "verdict=\"allow\" dry_run.policy=\"back/trial\" dry_run.verdict=\"deny\"";
    assert!(bench.lines()[0].ends_with(end), "{:?}", bench.lines());
    assert_eq!(bench.sum("loam_policy_dry_run_total", "verdict=\"deny\",policy=\"back/trial\""), 1);
    assert_eq!(bench.sum("loam_policy_denials_total", ""), 0);
}

#[test]
fn an_allowed_connection_says_so() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    record.facts().verdict = Some(Verdict::Allow);
    record.open().finish(outcome(Ending::Finished));
    assert!(bench.lines()[0].ends_with("conn_id=1 verdict=\"allow\""), "{:?}", bench.lines());
    assert_eq!(bench.sum("loam_policy_verdicts_total", "verdict=\"allow\""), 1);
}

#[test]
fn a_reset_is_a_failure_without_flags() {
    let bench = Bench::new("");
    bench.begin(Direction::Outbound).open().finish(outcome(Ending::Reset(Side::Upstream)));
    let lines = bench.lines();
    assert!(lines[0].contains("error=\"reset by the upstream\" conn_id=1 reason=\"reset\""), "{lines:?}");
    assert_eq!(bench.sum("istio_tcp_connections_failed_total", "response_flags=\"-\""), 1);
    assert_eq!(bench.sum("istio_tcp_connections_closed_total", "response_flags=\"-\""), 1);
}

#[test]
fn a_record_that_is_dropped_ends_as_our_fault_or_as_drained() {
    let bench = Bench::new("");
    drop(bench.begin(Direction::Outbound));
    drop(bench.begin(Direction::Outbound).open());
    bench.trigger.start();
    drop(bench.begin(Direction::Outbound));
    drop(bench.begin(Direction::Outbound).open());
    let lines = bench.lines();
    let reasons: Vec<_> = lines.iter().map(|line| line.rsplit_once("reason=").unwrap().1).collect();
    assert_eq!(reasons, ["\"internal\"", "\"internal\"", "\"drained\"", "\"drained\""]);
    assert_eq!(bench.sum("istio_tcp_connections_opened_total", ""), 4);
    assert_eq!(bench.sum("istio_tcp_connections_closed_total", ""), 4);
    assert_eq!(bench.sum("istio_tcp_sockets_open", ""), 0);
    assert_eq!(bench.log.connections(10).total, 0);
}

#[test]
fn opening_is_a_line_for_those_who_debug() {
    let bench = Bench::new("access=debug");
    let record = bench.begin(Direction::Outbound).open();
    let lines = bench.lines();
    assert!(lines[0].starts_with("debug\taccess\tconnection opened\tsrc.addr="), "{lines:?}");
    record.finish(outcome(Ending::Finished));
}

#[test]
fn a_silenced_log_still_counts() {
    let bench = Bench::new("access=off");
    bench.begin(Direction::Outbound).open().finish(outcome(Ending::Finished));
    bench.begin(Direction::Outbound).refuse(Reason::Internal, "x");
    assert_eq!(bench.lines(), [""; 0]);
    assert_eq!(bench.sum("istio_tcp_connections_closed_total", ""), 2);
}

#[test]
fn lines_are_json_where_that_is_wanted() {
    let bench = Bench::with_format(LogFormat::Json, "");
    bench.begin(Direction::Inbound).open().finish(outcome(Ending::Finished));
    assert!(bench.telemetry.sink().flush(Duration::from_secs(10)));
    let line: serde_json::Value = serde_json::from_slice(&bench.output.0.lock().unwrap()).unwrap();
    assert_eq!(line["scope"], "access");
    assert_eq!(line["src.addr"], "10.0.1.5:40000");
    assert_eq!(line["bytes_sent"], 175);
    assert_eq!(line["conn_id"], 1);
}

#[test]
fn what_a_peer_says_cannot_forge_a_field_or_a_line() {
    let bench = Bench::new("");
    let mut record = bench.begin(Direction::Inbound);
    let hostile = "x\" src.identity=\"spiffe://td/ns/kube-system/sa/root\"\n2026\tinfo\taccess";
    let baggage = Baggage { workload: hostile.into(), ..Baggage::default() };
    record.facts().source = Peer { workload: None, identity: None, baggage: Some(Box::new(baggage)) };
    record.open().finish(outcome(Ending::Finished));
    let lines = bench.lines();
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains(" src.identity=\"spiffe"), "{lines:?}");
    assert_eq!(lines[0].split('\t').count(), 4);
}

#[test]
fn living_connections_are_listed_oldest_first_and_bounded() {
    let bench = Bench::new("");
    let records: Vec<_> = (0..20).map(|_| bench.begin(Direction::Outbound).open()).collect();
    let listing = bench.log.connections(5);
    assert_eq!(listing.total, 20);
    assert_eq!(listing.connections.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let view = serde_json::to_value(&listing.connections[0]).unwrap();
    assert_eq!(view["src"]["workload"], "web-7c9f-x2");
    assert_eq!(view["hboneAddr"], "10.0.2.6:8080");
    records.into_iter().for_each(|record| record.finish(outcome(Ending::Finished)));
    assert_eq!(bench.log.connections(5).total, 0);
}

#[test]
fn bytes_are_counted_while_the_connection_lives_and_never_twice() {
    let bench = Bench::new("");
    let record = bench.begin(Direction::Outbound).open();
    let so_far = Bytes { to_upstream: 50, to_downstream: 100 };
    record.living().fold(so_far);
    assert_eq!(bench.sum("istio_tcp_sent_bytes_total", ""), 100);
    record.living().fold(so_far);
    record.finish(outcome(Ending::Finished));
    assert_eq!(bench.sum("istio_tcp_sent_bytes_total", ""), 175);
    assert_eq!(bench.sum("istio_tcp_received_bytes_total", ""), 84);
}
