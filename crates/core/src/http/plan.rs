//! What becomes of a request that has found its rule: (rule, request) -> an answer, a backend, or a failure.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::backend::{Backend, BackendService, Upstream, whose_turn};
use super::failure::Failure;
use super::filter::{Cors, Filter, Rewrite, preflight};
use super::route::{Route, Rule};
use super::session::Held;
use super::table::Found;
use super::target::{Request, Target};

/// Numbers of the shares of a rule, which makes them independent of each other.
const DELAYS: usize = 0;
const ABORTS: usize = 1;
const MIRRORS: usize = 2;

/// A request, and the rule that was found for it.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The rule.
    pub found: Found<'a>,
    /// The request.
    pub request: Request<'a>,
    /// The service port it came to.
    pub port: u16,
    /// Its number among the requests for the rule, from [`Found::turn`].
    pub turn: u64,
    /// The session it belongs to, if it is one of this rule and lasts.
    pub held: Option<&'a Held>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is answered here, as a filter says.
    Answer(Answer),
    /// It is sent on.
    Forward(Forward),
    /// It is answered here, because it cannot be sent on.
    Fail(Failure),
}

/// An answer that a filter gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, edited as the filters say.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Arc<str>,
}

/// A request that is sent on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub backend: BackendService,
    /// What for.
    pub target: Target,
    /// Where copies go; they have the same target and edits.
    pub mirrors: Vec<BackendService>,
    /// The endpoint that the session holds, by its name.
    pub endpoint: Option<Arc<str>>,
    /// By which rule; without one the service has no routes.
    pub via: Option<Via>,
    /// The origin of the page, where the rule has a word on that.
    origin: Option<HeaderValue>,
}

/// The rule by which a request is sent on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// Its route.
    pub route: Arc<Route>,
    /// The rule.
    pub rule: Arc<Rule>,
    /// The number of the backend in the rule.
    pub backend: usize,
}

/// How long a request waits on purpose before anything else is done with it.
pub fn delay(rule: &Rule, turn: u64) -> Option<Duration> {
    let delays = rule.filters.iter().filter_map(|filter| match filter {
        Filter::Fault(fault) => fault.delay,
        _ => None,
    });
    delays.filter(|(share, _)| share.has(turn, DELAYS)).map(|(_, delay)| delay).max()
}

/// What becomes of a request.
pub fn plan(ask: &Ask<'_>) -> Plan {
    let (rule, request) = (&**ask.found.rule, &ask.request);
    // Whatever else a filter does, one that is not known might have done otherwise.
    if rule.filters.iter().any(|filter| matches!(filter, Filter::Unknown(_))) {
        return Plan::Fail(Failure::UnknownFilter);
    }
    let cors = cors_of(&rule.filters);
    if let Some(cors) = cors
        && preflight(request.method, request.headers).is_some()
    {
        let (status, headers) = cors.answer(request);
        return Plan::Answer(Answer { status, headers, body: Arc::default() });
    }
    if let Some(ended) = ended(ask, &rule.filters, &[]) {
        return ended;
    }
    let (number, backend) = match pick(rule, ask) {
        Ok(picked) => picked,
        Err(failure) => return Plan::Fail(failure),
    };
    if backend.filters.iter().any(|filter| matches!(filter, Filter::Unknown(_))) {
        return Plan::Fail(Failure::UnknownFilter);
    }
    let Upstream::Service(service) = &backend.upstream else { return Plan::Fail(Failure::InvalidBackend) };
    if let Some(ended) = ended(ask, &backend.filters, &rule.filters) {
        return ended;
    }
    let filters = || rule.filters.iter().chain(&backend.filters);
    let Some(target) = rewritten(ask, filters()) else { return Plan::Fail(Failure::IllFiltered) };
    let mirrors = filters().enumerate().filter_map(|(at, filter)| match filter {
        Filter::Mirror(mirror) if mirror.share.has(ask.turn, MIRRORS + at) => match &mirror.upstream {
            Upstream::Service(service) => Some(service.clone()),
            // A mirror that leads nowhere does not disturb the request itself.
            Upstream::Invalid { .. } => None,
        },
        _ => None,
    });
    let held = ask.held.filter(|held| held.backend == *service);
    Plan::Forward(Forward {
        backend: service.clone(),
        target,
        mirrors: mirrors.collect(),
        endpoint: held.map(|held| held.endpoint.clone()),
        via: Some(Via { route: ask.found.route.clone(), rule: ask.found.rule.clone(), backend: number }),
        origin: cors.and_then(|_| request.headers.get(header::ORIGIN).cloned()),
    })
}

/// Where a connection goes that is not looked into, by the rule that was found for it. `turn` is its number among those
/// for the rule.
pub fn plan_opaque(found: &Found<'_>, turn: u64) -> Result<BackendService, Failure> {
    let backends = &found.rule.backends;
    let number = whose_turn(backends.iter().map(|backend| backend.weight), turn);
    match number.and_then(|number| backends.get(number)).map(|backend| &backend.upstream) {
        Some(Upstream::Service(service)) => Ok(service.clone()),
        Some(Upstream::Invalid { .. }) => Err(Failure::InvalidBackend),
        None => Err(Failure::NoBackend),
    }
}

/// The end that one of `filters` makes of a request; `outer` are the filters of the rule where they are a backend's.
fn ended(ask: &Ask<'_>, filters: &[Filter], outer: &[Filter]) -> Option<Plan> {
    let answer = |status, mut headers: HeaderMap, body: &Arc<str>| {
        edit_responses(filters, outer, ask.request.headers.get(header::ORIGIN), &mut headers);
        Plan::Answer(Answer { status, headers, body: body.clone() })
    };
    for filter in filters {
        match filter {
            Filter::Redirect(redirect) => {
                let prefix = ask.found.prefix();
                let Some(location) = redirect.location(ask.request.target, ask.port, prefix.as_ref()) else {
                    return Some(Plan::Fail(Failure::IllFiltered));
                };
                let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
                return Some(answer(redirect.status, headers, &Arc::default()));
            }
            Filter::Respond { status, body } => return Some(answer(*status, HeaderMap::new(), body)),
            Filter::Fault(fault) => match fault.abort {
                Some((share, status)) if share.has(ask.turn, ABORTS) => {
                    return Some(Plan::Fail(Failure::Injected(status)));
                }
                Some(_) | None => {}
            },
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Mirror(_)
            | Filter::Cors(_)
            | Filter::Unknown(_) => {}
        }
    }
    None
}

/// The backend of the session, whatever its weight, or the one whose turn it is.
fn pick<'a>(rule: &'a Rule, ask: &Ask<'_>) -> Result<(usize, &'a Backend), Failure> {
    let of_session = ask.held.and_then(|held| {
        let is_held = |backend: &Backend| match &backend.upstream {
            Upstream::Service(service) => *service == held.backend,
            Upstream::Invalid { .. } => false,
        };
        rule.backends.iter().position(is_held)
    });
    let weights = rule.backends.iter().map(|backend| backend.weight);
    let number = of_session.or_else(|| whose_turn(weights, ask.turn)).ok_or(Failure::NoBackend)?;
    rule.backends.get(number).map(|backend| (number, backend)).ok_or(Failure::NoBackend)
}

/// The target after all rewrites, of which a later one has the last word on what it names. `None` if it has no legal
/// form.
fn rewritten<'a>(ask: &Ask<'_>, filters: impl Iterator<Item = &'a Filter>) -> Option<Target> {
    let mut all = Rewrite::default();
    for filter in filters {
        if let Filter::Rewrite(rewrite) = filter {
            all.host = rewrite.host.clone().or(all.host);
            all.path = rewrite.path.clone().or(all.path);
        }
    }
    match all {
        Rewrite { host: None, path: None } => Some(ask.request.target.clone()),
        rewrite => rewrite.apply(ask.request.target, ask.found.prefix().as_ref()),
    }
}

fn cors_of(filters: &[Filter]) -> Option<&Cors> {
    filters.iter().find_map(|filter| match filter {
        Filter::Cors(cors) => Some(cors),
        _ => None,
    })
}

/// Edits the headers of a response to a page of `origin`: `inner` filters come before `outer` ones, and last the word
/// on origins.
fn edit_responses(inner: &[Filter], outer: &[Filter], origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for filter in inner.iter().chain(outer) {
        if let Filter::ResponseHeaders(edits) = filter {
            edits.apply(headers);
        }
    }
    if let Some(cors) = cors_of(outer).or_else(|| cors_of(inner)) {
        cors.apply(origin, headers);
    }
}

impl Forward {
    /// To the endpoints of a service without routes.
    pub fn direct(backend: BackendService, target: Target) -> Self {
        Self { backend, target, mirrors: Vec::new(), endpoint: None, via: None, origin: None }
    }

    /// Edits the headers of the request and of its copies: first as the rule says, then as the backend says.
    pub fn edit_request(&self, headers: &mut HeaderMap) {
        let (rule, backend) = self.filters();
        for filter in rule.iter().chain(backend) {
            if let Filter::RequestHeaders(edits) = filter {
                edits.apply(headers);
            }
        }
    }

    /// Edits the headers of the response: first as the backend says, then as the rule says.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        let (rule, backend) = self.filters();
        edit_responses(backend, rule, self.origin.as_ref(), headers);
    }

    fn filters(&self) -> (&[Filter], &[Filter]) {
        let Some(via) = &self.via else { return (&[], &[]) };
        (&via.rule.filters, via.rule.backends.get(via.backend).map_or(&[], |backend| &backend.filters))
    }
}

#[cfg(test)]
mod tests;
