//! A request on its way to a backend: tried until an endpoint answers, or as often as it may be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use loam_core::balance::By;
use loam_core::balance::ejection::Outcome;
use loam_core::http::failure::Failure;
use loam_core::http::headers::strip_hop_by_hop;
use loam_core::http::plan::Forward;
use loam_core::http::retry::{End, Tried};
use loam_core::http::target::Request;
use loam_core::http::traffic::{Algorithm, Retry};
use loam_core::outbound::{Plan, Refusal};
use loam_core::reason::Reason;
use loam_core::waypoint::Target;
use tokio::io::copy_bidirectional;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::route::Course;
use super::session::Sticky;
use super::{Call, respond};
use crate::body::{Kept, RequestBody};
use crate::endpoints::Busy;
use crate::ledger::Entry;
use crate::mirror::Copies;
use crate::reply::{Ongoing, Reply, grpc_status};
use crate::stream::{Meter, Metered};
use crate::tcp::peer;
use crate::upstream::{Answered, Hop, Unanswered};

/// The body of a request, and how often it can be sent.
enum Payload {
    /// There is none, or it is gone.
    None { gone: bool },
    /// Once.
    Once(RequestBody),
    /// As often as it is whole.
    Again(Arc<Kept>),
}

/// How a try failed.
struct Failed {
    end: End,
    /// What it is if there is no further try.
    failure: Failure,
    /// Why, for the log.
    error: Option<String>,
    /// Whether it may be tried again at all.
    again: bool,
}

impl Failed {
    fn timeout(failure: Failure) -> Self {
        Self { end: End::TimedOut, failure, error: None, again: failure == Failure::TryTimeout }
    }
}

impl Call {
    /// Sends the request where `course` leads, and answers with what comes back.
    pub(super) async fn go(mut self, course: Course, body: Incoming, permit: OwnedSemaphorePermit) -> Response<Reply> {
        self.draft.http2 |= course.http2;
        let rule = course.rule().cloned();
        let timeouts = rule.as_ref().map(|rule| rule.timeouts).unwrap_or_default();
        let retry = rule.as_ref().and_then(|rule| rule.retry.as_ref());
        let Course { to, forward, sticky, .. } = course;
        if let Some(forward) = &forward {
            forward.edit_request(&mut self.draft.headers);
            self.target = forward.target.clone();
        }
        self.describe(&to, forward.as_ref());
        let copied = forward.as_ref().is_some_and(|forward| !forward.mirrors.is_empty());
        let mut payload = match retry.is_some() || copied {
            true => Kept::new(body, &self.session.engine.kept).map_or(Payload::None { gone: false }, Payload::Again),
            false => Payload::Once(RequestBody::once(body, self.received.clone())),
        };
        let copies = forward.as_ref().filter(|_| copied).map(|forward| Copies {
            backends: forward.mirrors.clone(),
            session: self.session.clone(),
            target: self.target.clone(),
            draft: self.draft.clone(),
            body: match &payload {
                Payload::Again(kept) => Some(kept.clone()),
                Payload::None { .. } | Payload::Once(_) => None,
            },
        });
        let Some(entry) = self.session.engine.ledger.enter(&to) else {
            return self.fail(Failure::Overload, None, copies);
        };
        let mut places = Places { by: self.by(&entry), ..Places::default() };
        let mut repeated = false;
        loop {
            let held = sticky.as_ref().zip(forward.as_ref()).filter(|_| places.tries == 0);
            let held = held.and_then(|(sticky, forward)| sticky.endpoint(&forward.backend));
            let plan = match self.choose(&to, &entry, held, &places).await {
                Ok(plan) => plan,
                Err(Refusal { detail, .. }) => {
                    let failure = if places.tries == 0 { Failure::NoEndpoint } else { Failure::ConnectFailed };
                    return self.fail(failure, (places.tries == 0).then_some(detail), copies);
                }
            };
            let hop = Arc::new(self.draft.hop(&plan, to.app_protocol()));
            let endpoint = hop.place.endpoint;
            let facts = self.record.facts();
            facts.destination = peer(&plan, &hop.place.way);
            facts.upstream = Some(endpoint);
            places.tries += 1;
            let busy = self.session.engine.endpoints.join(endpoint);
            let began = Instant::now();
            let limit = timeouts.next_try(self.record.began().elapsed());
            let sent = self.attempt(&hop, payload.next(&self.received), limit).await;
            let (answered, failed) = match sent {
                Ok(answered) => {
                    busy.worked();
                    self.record.facts().upstream_took = Some(began.elapsed());
                    let (status, headers) = (answered.response.status(), answered.response.headers());
                    let end = End::Answer { status, grpc: grpc_status(headers) };
                    (Some(answered), Failed { end, failure: Failure::UpstreamReset, error: None, again: true })
                }
                Err(Lost::Late(failure)) => (None, Failed::timeout(failure)),
                Err(Lost::Unanswered(Unanswered::Full)) => return self.fail(Failure::Overload, None, copies),
                Err(Lost::Unanswered(Unanswered::Unreached { error, request })) => {
                    payload.give_back(request.into_body());
                    if error.endpoint {
                        busy.failed();
                    }
                    places.tunnels_only |= error.reason == Reason::TlsFailure;
                    let failure = match error.reason {
                        Reason::Overload => Failure::Overload,
                        _ => Failure::ConnectFailed,
                    };
                    (None, Failed { end: End::ConnectFailed, failure, error: Some(error.error), again: error.another })
                }
                Err(Lost::Unanswered(Unanswered::Broken { error, reused, request })) => {
                    let unsent = request.is_some() || loam_hbone::is_unprocessed(&error);
                    if let Some(request) = request {
                        payload.give_back(request.into_body());
                    }
                    // The server has closed an idle connection at the moment when the request came (RFC 9110 9.2.2).
                    let harmless = reused && self.draft.method.is_idempotent() && payload.is_left();
                    if harmless && !unsent && !std::mem::replace(&mut repeated, true) {
                        self.session.engine.log.metrics().retried("closed");
                        continue;
                    }
                    let failure = match error.is_parse() || error.is_parse_too_large() {
                        true => Failure::UpstreamProtocol,
                        false => Failure::UpstreamReset,
                    };
                    let end = if unsent { End::Unprocessed } else { End::Reset };
                    (None, Failed { end, failure, error: Some(error.to_string()), again: true })
                }
            };
            self.note(&entry, endpoint, failed.end);
            let left = timeouts.request.map(|limit| limit.saturating_sub(self.record.began().elapsed()));
            let tried = Tried { retry, tries: places.tries, end: failed.end, replayable: payload.is_left(), left };
            let again = tried.again(rand::random()).filter(|_| failed.again);
            // What no program has seen costs nobody anything.
            match (again.filter(|_| failed.end.is_unserved() || entry.may_retry()), answered) {
                (Some(wait), answered) => {
                    // Its connection is not held while nothing is read from it.
                    drop(answered);
                    places.tried(endpoint, failed.end, retry);
                    self.record.facts().transport_failure = failed.error;
                    self.session.engine.log.metrics().retried(word(failed.end));
                    drop(busy);
                    sleep(wait).await;
                }
                (None, Some(answered)) => {
                    let deadline = timeouts.request.map(|limit| self.record.began() + limit);
                    return self.pass(answered, forward, sticky, Between { copies, permit, entry, busy, deadline });
                }
                (None, None) => return self.fail(failed.failure, failed.error, copies),
            }
        }
    }

    fn describe(&mut self, to: &Target, forward: Option<&Forward>) {
        let facts = self.record.facts();
        if let Target::Service { service, port, .. } = to {
            facts.service = Some((service.clone(), port.service_port));
        }
        facts.route = forward.and_then(|forward| forward.via.as_ref()).map(|via| {
            let key = &via.route.key;
            match &via.rule.name {
                Some(name) => format!("{}.{}.{name}", key.namespace, key.name).into(),
                None => format!("{}.{}", key.namespace, key.name).into(),
            }
        });
    }

    /// Takes note of how a try at `endpoint` ended.
    fn note(&self, entry: &Entry, endpoint: SocketAddr, end: End) {
        let outcome = match end {
            End::Answer { status, .. } => Outcome::of(status),
            End::ConnectFailed | End::Reset | End::TimedOut => Outcome::GatewayError,
            // A kept connection that was closed says nothing.
            End::Unprocessed => return,
        };
        if entry.note(endpoint, outcome) {
            tracing::info!(%endpoint, "endpoint ejected");
            self.session.engine.log.metrics().ejected();
        }
    }

    /// How an endpoint is chosen for this request.
    fn by(&self, entry: &Entry) -> By {
        let Some(traffic) = entry.traffic() else { return By::default() };
        if traffic.algorithm == Algorithm::default() {
            // What the service itself says, such as that callers stay with their endpoint, is not undone by silence.
            return By::Service;
        }
        let asked = Request { method: &self.draft.method, target: &self.target, headers: &self.draft.headers };
        traffic.algorithm.by(&asked, self.session.origin.downstream.ip(), entry.turn)
    }

    /// An endpoint: the one that the session holds, else one where it was not tried yet, if there is one.
    async fn choose(
        &self,
        to: &Target,
        entry: &Entry,
        held: Option<&Arc<str>>,
        places: &Places,
    ) -> Result<Plan, Refusal> {
        let engine = &self.session.engine;
        if let Some(plan) = held.and_then(|endpoint| engine.held(to, entry, endpoint)) {
            return Ok(plan);
        }
        match engine.choose(to, entry, places.by, &places.endpoints, places.tunnels_only).await {
            Err(_) if places.again && !places.endpoints.is_empty() => {
                engine.choose(to, entry, places.by, &[], places.tunnels_only).await
            }
            chosen => chosen,
        }
    }

    /// One try. `limit` is how long it may take, and what it is if it takes longer.
    async fn attempt(
        &self,
        hop: &Arc<Hop>,
        body: RequestBody,
        limit: Option<(Duration, Failure)>,
    ) -> Result<Answered, Lost> {
        let request = self.draft.request(&self.target, hop.version, body);
        let sending = self.session.engine.upstreams.send(hop, request);
        let sent = match limit {
            None => sending.await,
            Some((limit, failure)) => match timeout(limit, sending).await {
                Ok(sent) => sent,
                Err(_) => return Err(Lost::Late(failure)),
            },
        };
        sent.map_err(Lost::Unanswered)
    }

    fn fail(mut self, failure: Failure, error: Option<String>, copies: Option<Copies>) -> Response<Reply> {
        let facts = self.record.facts();
        facts.transport_failure = error.or(facts.transport_failure.take());
        if let Some(copies) = copies {
            copies.send();
        }
        respond::failure(self.record, failure, self.is_grpc)
    }

    /// Passes an upstream's answer on.
    fn pass(
        mut self,
        answered: Answered,
        forward: Option<Forward>,
        sticky: Option<Sticky>,
        between: Between,
    ) -> Response<Reply> {
        let Answered { mut response, lease } = answered;
        let status = response.status();
        self.record.facts().status = Some(status);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            drop(lease);
            return self.switch(response, between);
        }
        let Between { copies, permit, entry, busy, deadline } = between;
        keep_one_length(response.headers_mut());
        strip_hop_by_hop(response.headers_mut());
        if let Some(forward) = &forward {
            forward.edit_response(response.headers_mut());
        }
        if let (Some(sticky), Some(forward), Some(endpoint)) =
            (sticky, &forward, &self.record.facts().destination.workload)
        {
            sticky.tell(&forward.backend, endpoint.uid.as_shared(), response.headers_mut());
        }
        if self.is_grpc {
            self.record.facts().grpc = grpc_status(response.headers());
        }
        let (head, body) = response.into_parts();
        let mut ongoing = Ongoing::new(self.record);
        ongoing.lease = Some(lease);
        ongoing.busy = Some(busy);
        ongoing.entry = Some(entry);
        ongoing.deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        ongoing.copies = copies;
        ongoing.permit = Some(permit);
        let mut passed = Response::new(Reply::upstream(body, ongoing));
        *passed.status_mut() = head.status;
        *passed.headers_mut() = head.headers;
        passed
    }

    /// Joins client and upstream, which have agreed to speak something else.
    fn switch(mut self, mut response: Response<Incoming>, between: Between) -> Response<Reply> {
        let (Some(downstream), Some(protocol)) =
            (self.upgrade.take(), response.headers().get(header::UPGRADE).cloned())
        else {
            // Nobody asked for it.
            return respond::failure(self.record, Failure::UpstreamProtocol, self.is_grpc);
        };
        let upstream = hyper::upgrade::on(&mut response);
        strip_hop_by_hop(response.headers_mut());
        let mut switched = Response::new(Reply::none());
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switched.headers_mut() = std::mem::take(response.headers_mut());
        switched.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        switched.headers_mut().insert(header::UPGRADE, protocol);
        let (drain, mut record) = (self.session.engine.drain.clone(), self.record);
        let joined = async move {
            let (_guard, _between) = (drain.guard(), between);
            let joined = async {
                let (downstream, upstream) = tokio::try_join!(downstream, upstream)?;
                let meter = Arc::<Meter>::default();
                let mut downstream = Metered::new(TokioIo::new(downstream), meter.clone());
                let ended = copy_bidirectional(&mut downstream, &mut TokioIo::new(upstream)).await;
                let facts = record.facts();
                facts.received.store(meter.sent.load(Ordering::Relaxed), Ordering::Relaxed);
                facts.sent = meter.received.load(Ordering::Relaxed);
                if ended.is_err() {
                    facts.failure = Some(Failure::UpstreamReset);
                }
                Ok::<_, hyper::Error>(())
            };
            tokio::select! {
                joined = joined => match joined {
                    Ok(()) => record.finish(),
                    // Its drop says that the client has gone.
                    Err(_) => drop(record),
                },
                () = drain.forced() => drop(record),
            }
        };
        self.session.engine.upgrades.spawn(joined);
        switched
    }
}

/// Leaves no length beside a coding, and one where it is said several times (RFC 9112 6.3): the client shall see the
/// end of the message where it was seen here.
fn keep_one_length(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // Where they differ the message was refused.
    let first = |value: &HeaderValue| value.to_str().ok()?.split(',').next()?.trim().parse::<u64>().ok();
    if let Some(length) = headers.get(header::CONTENT_LENGTH).and_then(first) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// What lasts between a request and the end of its response.
struct Between {
    copies: Option<Copies>,
    permit: OwnedSemaphorePermit,
    entry: Entry,
    busy: Busy,
    deadline: Option<Instant>,
}

impl Payload {
    /// The body for the next try.
    fn next(&mut self, counter: &Arc<AtomicU64>) -> RequestBody {
        match self {
            Payload::None { .. } => RequestBody::empty(),
            Payload::Again(kept) => kept.body(counter.clone()),
            Payload::Once(_) => match std::mem::replace(self, Payload::None { gone: true }) {
                Payload::Once(body) => {
                    *self = Payload::None { gone: !body.is_end_stream() };
                    body
                }
                Payload::None { .. } | Payload::Again(_) => RequestBody::empty(),
            },
        }
    }

    /// A try did not take it.
    fn give_back(&mut self, body: RequestBody) {
        if let Payload::None { gone: true } = self {
            *self = Payload::Once(body);
        }
    }

    /// Whether it can be sent again from its beginning.
    fn is_left(&self) -> bool {
        match self {
            Payload::None { gone } => !gone,
            Payload::Once(_) => true,
            Payload::Again(kept) => kept.is_whole(),
        }
    }
}

/// Why a try gave no answer.
enum Lost {
    Unanswered(Unanswered),
    /// It took too long.
    Late(Failure),
}

/// Where a request was tried in vain.
#[derive(Default)]
struct Places {
    /// How endpoints are chosen.
    by: By,
    tries: u32,
    endpoints: Vec<SocketAddr>,
    /// Whether one of them did not prove who it is. From then on only endpoints that can prove it will do: whoever
    /// disturbs TLS must not be rewarded with plaintext.
    tunnels_only: bool,
    /// Whether they may be tried again where there is no other.
    again: bool,
}

impl Places {
    fn tried(&mut self, endpoint: SocketAddr, end: End, retry: Option<&Retry>) {
        // An endpoint that has closed a kept connection is as good as before.
        if end == End::Unprocessed {
            return;
        }
        self.endpoints.push(endpoint);
        self.again = retry.is_some_and(|retry| retry.on.fits(end));
    }
}

/// Why a request is tried again, in metrics.
fn word(end: End) -> &'static str {
    match end {
        End::Answer { .. } => "status",
        End::ConnectFailed => "connect",
        End::Unprocessed => "closed",
        End::Reset => "reset",
        End::TimedOut => "timeout",
    }
}
