//! One record per connection: one line in the log and one set of counters, from the same facts.
//!
//! A [`Record`] begins when a connection is accepted and gathers facts. It is consumed by [`Record::refuse`], or by
//! [`Record::open`] once the connection is carried; the [`OpenRecord`] is consumed by [`OpenRecord::finish`]. Either
//! one dropped on the way still ends its connection, as drained or as a fault of ours.

mod denials;
mod live;

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loam_core::addr::{DownstreamAddr, OrigDst};
use loam_core::authority::Authority;
use loam_core::authz::{self, Verdict};
use loam_core::outbound::Absent;
use loam_core::reason::Reason;
use loam_core::service::Service;
use loam_hbone::{Meter, Outcome};
use loam_rt::drain::Drain;
use loam_rt::metrics::Registry;
use loam_rt::telemetry::{ACCESS, Line, LogFormat, Sink, Telemetry};
use tracing::Level;

pub use denials::{DenialView, MAX_DENIALS};
pub use live::{ConnectionView, Listing, MAX_LISTED, PeerView};

use crate::metrics::{Direction, Metrics, Peer, TrafficLabels};
use denials::Denials;
use live::{Live, Living};

/// The log of connections. Clones share it.
#[derive(Debug, Clone)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    sink: Sink,
    format: LogFormat,
    drain: Drain,
    live: Live,
    denials: Denials,
    next_id: AtomicU64,
}

/// What is known about a connection. Facts are filled in as they become known.
#[derive(Debug)]
pub struct Facts {
    /// Which end this process stands at.
    pub direction: Direction,
    /// Who connected to us.
    pub downstream: DownstreamAddr,
    /// What is dialled (outbound) or was dialled (inbound): the peer's tunnel port where there is a tunnel.
    pub addr: SocketAddr,
    /// What the tunnel asks for.
    pub authority: Option<Authority>,
    /// Whether the connection runs in a tunnel with mutual TLS.
    pub secured: bool,
    /// The end that connected.
    pub source: Peer,
    /// The end that was connected to.
    pub destination: Peer,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// The waypoint that should be on the way and is not there: it goes past it, or is refused.
    pub absent_waypoint: Option<Box<Absent>>,
    /// How often it was dialled, each time to another endpoint; 0 when it was not.
    pub tries: usize,
    /// What the policies said; `None` where they are not asked.
    pub verdict: Option<Verdict>,
    /// What they would have said if those on trial were in force, where there are any.
    pub dry_run: Option<Box<Verdict>>,
}

/// A connection that is not carried yet.
#[must_use = "a connection ends by refuse or open"]
#[derive(Debug)]
pub struct Record {
    log: AccessLog,
    id: u64,
    began: Instant,
    /// Taken by the call that consumes the record.
    facts: Option<Box<Facts>>,
}

/// A connection that is carried.
#[must_use = "a connection ends by finish"]
#[derive(Debug)]
pub struct OpenRecord {
    log: AccessLog,
    /// Taken by the call that consumes the record.
    living: Option<Arc<Living>>,
}

/// A carried connection in the hands of who may have to end it.
#[derive(Debug)]
pub struct Late {
    living: Arc<Living>,
}

/// Why a connection was cut.
#[derive(Debug)]
struct Denial {
    reason: Reason,
    /// Of the policies, where they are why.
    verdict: Option<Verdict>,
    detail: String,
}

impl AccessLog {
    /// A log that writes through `telemetry` and counts in `metrics`. Connections that live when metrics are read from
    /// `registry` are counted as far as they got.
    pub fn new(telemetry: &Telemetry, metrics: Metrics, registry: &Registry, drain: Drain) -> Self {
        let shared = Arc::new(Shared {
            metrics,
            sink: telemetry.sink().clone(),
            format: telemetry.format(),
            drain,
            live: Live::default(),
            denials: Denials::default(),
            next_id: AtomicU64::new(1),
        });
        let sink = shared.sink.clone();
        registry.counter("loam_log_lines_dropped", "Log lines lost to a stalled output", move || sink.dropped());
        let folded = Arc::downgrade(&shared);
        registry.before(move || {
            if let Some(shared) = folded.upgrade() {
                shared.live.fold();
            }
        });
        Self { shared }
    }

    /// Begins the record of a connection that `downstream` opened towards `dialled`.
    pub fn begin(&self, direction: Direction, downstream: DownstreamAddr, dialled: OrigDst) -> Record {
        self.shared.metrics.socket_opened(direction);
        Record {
            log: self.clone(),
            id: self.shared.next_id.fetch_add(1, Ordering::Relaxed),
            began: Instant::now(),
            facts: Some(Box::new(Facts {
                direction,
                downstream,
                addr: dialled.get(),
                authority: None,
                secured: false,
                source: Peer::default(),
                destination: Peer::default(),
                service: None,
                absent_waypoint: None,
                tries: 0,
                verdict: None,
                dry_run: None,
            })),
        }
    }

    /// The denials by policy that came last, newest first, at most `limit` and [`MAX_DENIALS`] of them.
    pub fn denials(&self, limit: usize) -> Vec<DenialView> {
        self.shared.denials.list(limit)
    }

    /// The connections that are carried, oldest first, at most `limit` and [`MAX_LISTED`] of them.
    pub fn connections(&self, limit: usize) -> Listing {
        self.shared.live.list(limit.min(MAX_LISTED))
    }
}

impl Record {
    /// Its number in the log.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What is known so far, to be filled in.
    pub fn facts(&mut self) -> &mut Facts {
        self.facts.as_deref_mut().expect("a record has facts until it is consumed")
    }

    /// The connection is not carried. A denial by policy is told by [`Facts::verdict`]; its reason goes here too.
    pub fn refuse(mut self, reason: Reason, error: impl Display) {
        self.end(reason, &error);
    }

    /// The connection is carried from here on; its facts are final.
    pub fn open(mut self) -> OpenRecord {
        let facts = self.facts.take().expect("a record has facts until it is consumed");
        let shared = &self.log.shared;
        let labels = facts.labels();
        let traffic = shared.metrics.traffic(&labels);
        traffic.opened();
        facts.count_verdict(&shared.metrics);
        facts.count_absence(&shared.metrics, None);
        if tracing::enabled!(target: ACCESS, Level::DEBUG) {
            Line::write(&shared.sink, shared.format, Level::DEBUG, ACCESS, &"connection opened", |line| {
                facts.write(line);
                line.number("conn_id", self.id);
            });
        }
        let living = Arc::new(Living::new(self.id, self.began, *facts, traffic));
        shared.live.add(Arc::clone(&living));
        OpenRecord { log: self.log.clone(), living: Some(living) }
    }

    fn end(&mut self, reason: Reason, error: &dyn Display) {
        let Some(facts) = self.facts.take() else { return };
        let shared = &self.log.shared;
        let labels = facts.labels();
        shared.metrics.traffic(&labels).opened();
        facts.count_verdict(&shared.metrics);
        facts.count_absence(&shared.metrics, Some(reason));
        let failed = shared.metrics.traffic(&labels.ended(reason));
        failed.closed();
        failed.failed();
        if let Some(verdict @ Verdict::Deny { .. }) = &facts.verdict {
            shared.denied(&facts, self.id, verdict, error, false);
        }
        let verdict = facts.verdict.as_ref();
        let end = End { bytes: Bytes::default(), reason: Some(reason), error: Some(error), verdict };
        shared.ended(&facts, self.id, self.began, &end);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.facts.is_some() {
            let (reason, error) = self.log.shared.unfinished();
            self.end(reason, &error);
        }
    }
}

impl OpenRecord {
    /// Its number in the log.
    pub fn id(&self) -> u64 {
        self.living().id
    }

    /// What is known about it.
    pub fn facts(&self) -> &Facts {
        &self.living().facts
    }

    /// Where its bytes are counted while it lives; given to the engine that carries it.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.living().meter)
    }

    /// For who may have to end it.
    pub fn late(&self) -> Late {
        Late { living: Arc::clone(self.living()) }
    }

    /// The connection ended.
    pub fn finish(mut self, outcome: Outcome) {
        let bytes = Bytes { to_upstream: outcome.bytes_sent, to_downstream: outcome.bytes_received };
        match outcome.end.reason() {
            None => self.end(bytes, None),
            Some(reason) => self.end(bytes, Some((reason, &outcome.end))),
        }
    }

    /// The connection could not be carried after all: one side was lost before the engine took over.
    pub fn fail(mut self, reason: Reason, error: impl Display) {
        let bytes = self.living().bytes();
        self.end(bytes, Some((reason, &error)));
    }

    fn living(&self) -> &Arc<Living> {
        self.living.as_ref().expect("a record lives until it is consumed")
    }

    fn end(&mut self, bytes: Bytes, error: Option<(Reason, &dyn Display)>) {
        let Some(living) = self.living.take() else { return };
        let shared = &self.log.shared;
        shared.live.end(&living, bytes);
        match error {
            None => living.traffic.closed(),
            Some((reason, _)) => {
                let failed = shared.metrics.traffic(&living.facts.labels().ended(reason));
                failed.closed();
                failed.failed();
            }
        }
        let (reason, mut error) = (error.map(|(reason, _)| reason), error.map(|(_, error)| error));
        let mut verdict = living.facts.verdict.as_ref();
        // It may have ended by itself in the same moment.
        if let Some(denial) = living.denial.get().filter(|denial| reason == Some(denial.reason)) {
            error = Some(&denial.detail as &dyn Display);
            if let Some(denied) = &denial.verdict {
                verdict = Some(denied);
                shared.denied(&living.facts, living.id, denied, &denial.detail, true);
            }
        }
        shared.ended(&living.facts, living.id, living.began, &End { bytes, reason, error, verdict });
    }
}

impl Late {
    /// What is known about the connection.
    pub fn facts(&self) -> &Facts {
        &self.living.facts
    }

    /// Policies deny it now. Returns the reason with which it is to be ended.
    pub fn deny(&self, verdict: Verdict, detail: String) -> Reason {
        let reason = match &verdict {
            Verdict::Deny { reason, .. } => *reason,
            Verdict::Allow => Reason::Internal,
        };
        self.end(Denial { reason, verdict: Some(verdict), detail })
    }

    /// It would be refused by now. Returns the reason with which it is to be ended.
    pub fn refuse(&self, reason: Reason, detail: String) -> Reason {
        self.end(Denial { reason, verdict: None, detail })
    }

    fn end(&self, denial: Denial) -> Reason {
        let reason = denial.reason;
        // The first counts, and there is one: it ends the connection.
        let _ = self.living.denial.set(Box::new(denial));
        reason
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        if let Some(living) = &self.living {
            let bytes = living.bytes();
            let (reason, error) = self.log.shared.unfinished();
            self.end(bytes, Some((reason, &error)));
        }
    }
}

/// Bytes of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    to_upstream: u64,
    to_downstream: u64,
}

/// How a connection ended, for its line.
struct End<'a> {
    bytes: Bytes,
    reason: Option<Reason>,
    error: Option<&'a dyn Display>,
    /// The last that policies said.
    verdict: Option<&'a Verdict>,
}

impl Shared {
    /// What became of a record that nobody finished.
    fn unfinished(&self) -> (Reason, &'static str) {
        match self.drain.has_started() {
            true => (Reason::Drained, "closed because this process ends"),
            false => (Reason::Internal, "given up without an outcome"),
        }
    }

    fn ended(&self, facts: &Facts, id: u64, began: Instant, end: &End<'_>) {
        self.metrics.socket_closed(facts.direction, end.reason);
        // Istio's levels, which log pipelines select by.
        let level = match end.reason {
            None if tracing::enabled!(target: ACCESS, Level::INFO) => Level::INFO,
            Some(_) if tracing::enabled!(target: ACCESS, Level::ERROR) => Level::ERROR,
            None | Some(_) => return,
        };
        // Sent and received as the local workload sees it.
        let (sent, received) = match facts.direction {
            Direction::Outbound => (end.bytes.to_upstream, end.bytes.to_downstream),
            Direction::Inbound => (end.bytes.to_downstream, end.bytes.to_upstream),
        };
        Line::write(&self.sink, self.format, level, ACCESS, &"connection complete", |line| {
            facts.write(line);
            line.number("bytes_sent", sent);
            line.number("bytes_recv", received);
            line.text("duration", Milliseconds(began.elapsed()));
            if facts.tries > 1 {
                line.number("tries", facts.tries as u64);
            }
            if let Some(error) = end.error {
                line.text("error", error);
            }
            line.number("conn_id", id);
            if let Some(reason) = end.reason {
                line.text("reason", reason.as_str());
            }
            facts.write_verdict(end.verdict, line);
        });
    }

    /// Keeps and counts a denial by policy.
    fn denied(&self, facts: &Facts, id: u64, verdict: &Verdict, detail: &dyn Display, carried: bool) {
        let Verdict::Deny { reason, policy } = verdict else { return };
        self.metrics.denied(*reason, policy.as_ref());
        self.denials.push(DenialView::new(facts, id, *reason, policy.as_deref(), detail, carried));
    }
}

struct Milliseconds(Duration);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

impl Facts {
    fn labels(&self) -> TrafficLabels {
        let service = self.service.as_deref();
        TrafficLabels::new(self.direction, &self.source, &self.destination, service, self.secured)
    }

    /// What policies look at.
    pub fn for_policy(&self) -> authz::Facts<'_> {
        authz::Facts {
            source: self.source.identity.as_ref(),
            source_ip: self.downstream.ip(),
            destination_ip: self.addr.ip(),
            destination_port: self.addr.port(),
        }
    }

    fn count_verdict(&self, metrics: &Metrics) {
        if let Some(verdict) = &self.verdict {
            metrics.judged(verdict.as_str(), policy_of(verdict));
        }
        if let Some(verdict) = &self.dry_run {
            metrics.dry_run(verdict.as_str(), policy_of(verdict));
        }
    }

    /// Counts a waypoint that was not there for a connection, which was carried past it or ended for `reason`.
    fn count_absence(&self, metrics: &Metrics, reason: Option<Reason>) {
        if let Some(absent) = &self.absent_waypoint {
            let outcome = if reason == Some(absent.why) { "refused" } else { "bypassed" };
            metrics.waypoint_absent(&absent.waypoint, absent.why, outcome);
        }
    }

    /// The fields of Istio's access log, in its order. What is not known is left out.
    fn write(&self, line: &mut Line<'_>) {
        line.shown("src.addr", self.downstream);
        self.source.write(&SOURCE, line);
        line.shown("dst.addr", self.addr);
        if let Some(authority) = &self.authority {
            line.shown("dst.hbone_addr", authority);
        }
        if let Some(service) = &self.service {
            line.text("dst.service", service.key.hostname.as_str());
        }
        self.destination.write(&DESTINATION, line);
        if let Some(absent) = &self.absent_waypoint {
            line.shown("waypoint", &absent.waypoint);
            line.text("waypoint.absent", absent.why.as_str());
        }
        line.text("direction", self.direction.as_str());
    }

    fn write_verdict(&self, verdict: Option<&Verdict>, line: &mut Line<'_>) {
        let both = [("policy", "verdict", verdict), ("dry_run.policy", "dry_run.verdict", self.dry_run.as_deref())];
        for (policy_key, verdict_key, verdict) in both {
            let Some(verdict) = verdict else { continue };
            if let Some(policy) = policy_of(verdict) {
                line.text(policy_key, policy);
            }
            line.text(verdict_key, verdict.as_str());
        }
    }
}

fn policy_of(verdict: &Verdict) -> Option<&Arc<str>> {
    match verdict {
        Verdict::Allow => None,
        Verdict::Deny { policy, .. } => policy.as_ref(),
    }
}

/// Keys of workload, namespace, identity and cluster.
type PeerKeys = [&'static str; 4];
const SOURCE: PeerKeys = ["src.workload", "src.namespace", "src.identity", "src.cluster"];
const DESTINATION: PeerKeys = ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];

impl Peer {
    /// Name, namespace and cluster: of the workload, else what the certificate proves, else what the peer says.
    fn names(&self) -> (&str, &str, &str) {
        match (&self.workload, &self.baggage, &self.identity) {
            (Some(workload), _, _) => (&workload.name, workload.namespace(), &workload.cluster),
            (None, Some(baggage), identity) => {
                let namespace = identity.as_ref().map_or(&*baggage.namespace, |identity| identity.namespace());
                (&baggage.workload, namespace, &baggage.cluster)
            }
            (None, None, Some(identity)) => ("", identity.namespace(), ""),
            (None, None, None) => ("", "", ""),
        }
    }

    fn write(&self, [workload, namespace, identity, cluster]: &PeerKeys, line: &mut Line<'_>) {
        let (name, namespace_name, cluster_name) = self.names();
        let mut known = |key: &str, text: &str| {
            if !text.is_empty() {
                line.text(key, text);
            }
        };
        known(workload, name);
        known(namespace, namespace_name);
        if let Some(proven) = &self.identity {
            line.text(identity, proven);
        }
        if !cluster_name.is_empty() {
            line.text(cluster, cluster_name);
        }
    }
}

#[cfg(test)]
mod tests;
