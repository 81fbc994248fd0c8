//! One record per request and per carried connection: one line in the log and one set of counters, from the same facts.
//!
//! A record gathers facts and is consumed by its end. One that is dropped on the way still ends: the client has gone,
//! or this process ends.

mod line;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, StatusCode, Version};
use loam_core::addr::{DownstreamAddr, OrigDst};
use loam_core::http::failure::Failure;
use loam_core::reason::Reason;
use loam_core::service::Service;
use loam_rt::drain::Drain;
use loam_rt::metrics::Registry;
use loam_rt::telemetry::{ACCESS, LogFormat, Sink, Telemetry};
use tokio::time::Instant;
use tracing::Level;

use crate::metrics::{ConnectionLabels, Ends, Metrics, Peer, PeerLabels, RequestLabels, Traffic};
use crate::stream::Meter;

/// The log of requests and connections. Clones share it.
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
}

/// Who asks, and what for: the same for all requests of one CONNECT.
#[derive(Debug)]
pub struct Origin {
    /// Who asks.
    pub source: Peer,
    /// The same as labels.
    pub labels: Arc<PeerLabels>,
    /// Its address.
    pub downstream: DownstreamAddr,
    /// What it asked for.
    pub asked: OrigDst,
}

/// What is known about a request. Facts are filled in as they become known.
#[derive(Debug)]
pub struct Facts {
    /// Who asks.
    pub origin: Arc<Origin>,
    /// Its method.
    pub method: Method,
    /// Its path with its query, in canonical form.
    pub path: String,
    /// The version in which it came.
    pub version: Version,
    /// The host it is for.
    pub authority: String,
    /// Its header `user-agent`.
    pub user_agent: Option<HeaderValue>,
    /// Its header `x-forwarded-for`.
    pub forwarded_for: Option<HeaderValue>,
    /// Its header `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// Whether it is gRPC.
    pub is_grpc: bool,
    /// The route that was taken.
    pub route: Option<Arc<str>>,
    /// The service that was asked for or routed to.
    pub service: Option<(Arc<Service>, u16)>,
    /// Who answers.
    pub destination: Peer,
    /// Where that serves.
    pub upstream: Option<SocketAddr>,
    /// Why it could not be reached.
    pub transport_failure: Option<String>,
    /// How long it took to begin its answer.
    pub upstream_took: Option<Duration>,
    /// Status of the answer.
    pub status: Option<StatusCode>,
    /// Status of gRPC in it.
    pub grpc: Option<u32>,
    /// How the proxy failed it.
    pub failure: Option<Failure>,
    /// Bytes of its body.
    pub received: Arc<AtomicU64>,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// A request under way.
#[must_use = "a request ends by finish"]
#[derive(Debug)]
pub struct Record {
    log: AccessLog,
    began: Instant,
    wall: SystemTime,
    /// Taken by the end.
    facts: Option<Box<Facts>>,
}

impl AccessLog {
    /// A log that writes through `telemetry` and counts in `metrics`.
    pub fn new(telemetry: &Telemetry, metrics: Metrics, registry: &Registry, drain: Drain) -> Self {
        let sink = telemetry.sink().clone();
        let lost = sink.clone();
        registry.counter("loam_log_lines_dropped", "Log lines lost to a stalled output", move || lost.dropped());
        Self { shared: Arc::new(Shared { metrics, sink, format: telemetry.format(), drain }) }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Begins the record of a request.
    pub fn begin(&self, facts: Facts) -> Record {
        self.shared.metrics.request_began();
        Record { log: self.clone(), began: Instant::now(), wall: SystemTime::now(), facts: Some(Box::new(facts)) }
    }

    /// Begins the record of a connection that is no HTTP.
    pub fn begin_connection(&self, origin: Arc<Origin>) -> ConnectionRecord {
        ConnectionRecord {
            log: self.clone(),
            began: Instant::now(),
            wall: SystemTime::now(),
            origin,
            service: None,
            destination: Peer::default(),
            upstream: None,
            meter: Arc::default(),
            traffic: None,
            ended: false,
        }
    }
}

impl Record {
    /// What is known so far, to be filled in.
    pub fn facts(&mut self) -> &mut Facts {
        self.facts.as_deref_mut().expect("a record has facts until it ends")
    }

    /// Since when it is under way.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The answer came to its end, or to what the facts say.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(facts) = self.facts.take() else { return };
        let shared = &self.log.shared;
        let took = self.began.elapsed();
        let labels = RequestLabels {
            ends: Ends::new(&facts.origin.labels, &facts.destination, facts.service.as_ref().map(|(s, _)| &**s)),
            code: facts.status.map_or(0, |status| status.as_u16()),
            grpc: facts.grpc,
            is_grpc: facts.is_grpc,
            flags: facts.failure.map_or("-", Failure::response_flags),
        };
        shared.metrics.request_ended(&labels, took, facts.received.load(Ordering::Relaxed), facts.sent);
        if let Some(failure) = facts.failure {
            shared.metrics.failed(failure.as_str());
        }
        if tracing::enabled!(target: ACCESS, Level::INFO) {
            shared.sink.write(line::request(&facts, self.wall, took, shared.format).as_bytes());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(facts) = &mut self.facts {
            facts.failure.get_or_insert(Failure::ClientGone);
            self.end();
        }
    }
}

/// A connection that is no HTTP.
#[must_use = "a connection ends by finish or fail"]
#[derive(Debug)]
pub struct ConnectionRecord {
    log: AccessLog,
    began: Instant,
    wall: SystemTime,
    origin: Arc<Origin>,
    /// The service that was asked for.
    pub service: Option<(Arc<Service>, u16)>,
    /// Who answers.
    pub destination: Peer,
    /// Where that serves.
    pub upstream: Option<SocketAddr>,
    meter: Arc<Meter>,
    traffic: Option<Traffic>,
    ended: bool,
}

impl ConnectionRecord {
    /// Where its bytes are counted.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// It is carried; who answers is known.
    pub fn open(&mut self) {
        let traffic = self.log.shared.metrics.connection(&self.labels("-"));
        traffic.opened();
        self.traffic = Some(traffic);
    }

    /// Both sides finished.
    pub fn finish(mut self) {
        self.end(None);
    }

    /// It was not carried, or not to its end.
    pub fn fail(mut self, reason: Reason, error: &dyn std::fmt::Display) {
        self.end(Some((reason, error)));
    }

    fn labels(&self, flags: &'static str) -> ConnectionLabels {
        let service = self.service.as_ref().map(|(service, _)| &**service);
        ConnectionLabels { ends: Ends::new(&self.origin.labels, &self.destination, service), flags }
    }

    fn end(&mut self, failure: Option<(Reason, &dyn std::fmt::Display)>) {
        self.ended = true;
        let shared = &self.log.shared;
        if self.traffic.is_none() {
            let traffic = shared.metrics.connection(&self.labels("-"));
            traffic.opened();
            self.traffic = Some(traffic);
        }
        let (sent, received) = (self.meter.sent.load(Ordering::Relaxed), self.meter.received.load(Ordering::Relaxed));
        match (failure, &self.traffic) {
            (None, Some(traffic)) => traffic.closed(sent, received),
            (Some((reason, _)), _) => shared.metrics.connection(&self.labels(reason.response_flags())).failed(),
            (None, None) => {}
        }
        if tracing::enabled!(target: ACCESS, Level::INFO) {
            let took = self.began.elapsed();
            let text = line::connection(self, self.wall, took, sent, received, failure, shared.format);
            shared.sink.write(text.as_bytes());
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match self.log.shared.drain.has_started() {
            true => self.end(Some((Reason::Drained, &"closed because this process ends"))),
            false => self.end(Some((Reason::Reset, &"the tunnel ended"))),
        }
    }
}

#[cfg(test)]
mod tests;
