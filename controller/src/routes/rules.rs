//! Rules.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use loam_core::http::backend::{Backend, Upstream};
use loam_core::http::filter::Filter;
use loam_core::http::host::HostPattern;
use loam_core::http::pattern::{Pattern, Regex};
use loam_core::http::route::{
    HeaderMatch, Match, NameMatch, PathMatch, QueryMatch, RouteKey, Rule, Timeouts as CoreTimeouts,
};
use loam_core::http::traffic::{Retry as CoreRetry, RetryOn, Session, Token};
use loam_manifest::gateway::{
    BackendRef, Filter as WrittenFilter, GrpcMatch, GrpcRule, HttpMatch, HttpRule, Retry, SessionPersistence,
    StreamRule, Timeouts, ValueMatch,
};

use super::backends::{Unresolved, resolve};
use super::duration::{duration, limit};
use super::filters::{self, Read};
use super::{Compiled, MAX_BACKENDS, MAX_FILTERS, MAX_MATCHES, MAX_RULES, Neighbours};
use crate::resource::quoted;
use crate::status::Reason;

/// Pause before a retry where nothing is said.
const BACKOFF: Duration = Duration::from_millis(25);
/// How many times the first pause the longest may be.
const MAX_BACKOFF_FACTOR: u32 = 10;
/// Retries where nothing is said, and most of them.
const ATTEMPTS: i64 = 1;
const MAX_ATTEMPTS: i64 = 20;
/// Largest weight, as the API has it.
const MAX_WEIGHT: u32 = 1_000_000;
/// What a session is called where nothing is said.
const COOKIE: &str = "loam-session";
const HEADER: &str = "x-loam-session";

/// The rules of one route as they come.
pub(super) struct Rules<'a, N> {
    key: &'a RouteKey,
    neighbours: &'a N,
    out: Compiled,
    /// Rules seen.
    seen: usize,
}

/// What a rule has beside matches and backends.
#[derive(Default)]
struct Extras<'a> {
    timeouts: Option<&'a Timeouts>,
    retry: Option<&'a Retry>,
    session: Option<&'a SessionPersistence>,
}

impl Extras<'_> {
    fn read(&self) -> Result<(CoreTimeouts, Option<CoreRetry>, Option<Session>), String> {
        let written = |pick: fn(&Timeouts) -> &Option<String>| {
            let text = self.timeouts.and_then(|timeouts| pick(timeouts).as_deref());
            text.map(limit).transpose().map(Option::flatten)
        };
        let timeouts =
            CoreTimeouts { request: written(|t| &t.request)?, backend_request: written(|t| &t.backend_request)? };
        Ok((timeouts, self.retry.map(read_retry).transpose()?, self.session.map(read_session).transpose()?))
    }
}

impl<'a, N: Neighbours> Rules<'a, N> {
    pub(super) fn new(key: &'a RouteKey, neighbours: &'a N) -> Self {
        Self { key, neighbours, out: Compiled::default(), seen: 0 }
    }

    pub(super) fn end(mut self) -> Compiled {
        // Nothing that could be unsound is sound.
        self.out.sound |= self.seen == 0 && self.out.flaws.is_empty();
        self.out
    }

    /// Says which rules are left out, if there are `written` of them.
    pub(super) fn count(&mut self, written: usize) {
        if written > MAX_RULES {
            self.out.flaws.push(format!("rules from {MAX_RULES} on are left out: split the route"));
        }
    }

    /// Takes in the names that a route is for. False if none of them is one: without any it would be for all.
    pub(super) fn hostnames(&mut self, written: &[String]) -> bool {
        for text in written {
            match text.parse::<HostPattern>() {
                Ok(host) => self.out.hostnames.push(host),
                Err(error) => self.out.flaws.push(error.to_string()),
            }
        }
        written.is_empty() || !self.out.hostnames.is_empty()
    }

    pub(super) fn http(&mut self, rule: &HttpRule) {
        let matches = few(&rule.matches).and_then(|matches| matches.iter().map(http_match).collect());
        let extras = Extras {
            timeouts: rule.timeouts.as_ref(),
            retry: rule.retry.as_ref(),
            session: rule.session_persistence.as_ref(),
        };
        self.rule(rule.name.as_deref(), matches, &rule.filters, &rule.backend_refs, &extras);
    }

    pub(super) fn grpc(&mut self, rule: &GrpcRule) {
        let matches = few(&rule.matches).and_then(|matches| matches.iter().map(grpc_match).collect());
        let extras = Extras { session: rule.session_persistence.as_ref(), ..Extras::default() };
        self.rule(rule.name.as_deref(), matches, &rule.filters, &rule.backend_refs, &extras);
    }

    pub(super) fn stream(&mut self, rule: &StreamRule) {
        self.rule(rule.name.as_deref(), Ok(Vec::new()), &[], &rule.backend_refs, &Extras::default());
    }

    fn rule(
        &mut self,
        name: Option<&str>,
        matches: Result<Vec<Match>, String>,
        filters: &[WrittenFilter],
        backends: &[BackendRef],
        extras: &Extras<'_>,
    ) {
        let number = self.seen;
        self.seen += 1;
        let flaw = |why: String| format!("rule {number}: {why}");
        let matches = match matches {
            Ok(matches) => matches,
            // Nobody knows which requests it is for.
            Err(why) => return self.out.flaws.push(flaw(format!("{why}, so it is not in force"))),
        };
        let mut wrong = Vec::new();
        let mut keep = |why: String| {
            let unknown = Filter::Unknown(why.as_str().into());
            wrong.push(flaw(format!("{why}, so requests are answered with an error")));
            unknown
        };
        let mut own_filters = self.filters(filters, &mut keep);
        let (timeouts, retry, session) = extras.read().unwrap_or_else(|why| {
            // What cannot be kept is answered as a filter that nobody knows.
            own_filters.push(keep(why));
            Default::default()
        });
        if backends.len() > MAX_BACKENDS {
            own_filters.push(keep(format!("there are more than {MAX_BACKENDS} backends")));
        }
        let mut own_backends = Vec::new();
        for reference in backends.iter().take(MAX_BACKENDS) {
            let mut filters = self.filters(&reference.filters, &mut keep);
            let weight = reference.weight.unwrap_or(1);
            let weight = u32::try_from(weight).ok().filter(|weight| *weight <= MAX_WEIGHT).unwrap_or_else(|| {
                filters.push(keep(format!("weight {weight} is not between 0 and {MAX_WEIGHT}")));
                1
            });
            own_backends.push(Backend { weight, upstream: self.upstream(reference), filters });
        }
        self.out.sound |= wrong.is_empty();
        self.out.flaws.extend(wrong);
        self.out.rules.push(Arc::new(Rule {
            name: name.filter(|name| !name.is_empty()).map(Arc::from),
            matches,
            filters: own_filters,
            backends: own_backends,
            timeouts,
            retry,
            session,
        }));
    }

    fn upstream(&mut self, reference: &BackendRef) -> Upstream {
        match resolve(&self.key.namespace, &reference.object, self.neighbours) {
            Ok(upstream) => upstream,
            Err(unresolved) => {
                let upstream = unresolved.upstream();
                self.unresolved(&unresolved);
                upstream
            }
        }
    }

    fn unresolved(&mut self, unresolved: &Unresolved) {
        let reason: Reason = unresolved.reason();
        self.out.unresolved.get_or_insert_with(|| (reason, unresolved.message.clone()));
    }

    fn filters(&mut self, written: &[WrittenFilter], keep: &mut impl FnMut(String) -> Filter) -> Vec<Filter> {
        let mut filters = Vec::new();
        if written.len() > MAX_FILTERS {
            filters.push(keep(format!("there are more than {MAX_FILTERS} filters")));
        }
        for written in written.iter().take(MAX_FILTERS) {
            match filters::read(written) {
                Ok(Read::Filter(filter)) => filters.push(filter),
                Ok(Read::Mirror(mirror)) => match filters::share(mirror) {
                    Ok(share) => match resolve(&self.key.namespace, &mirror.backend_ref, self.neighbours) {
                        Ok(upstream) => filters.push(filters::mirror(upstream, share)),
                        // The request itself goes its way.
                        Err(unresolved) => self.unresolved(&unresolved),
                    },
                    Err(why) => filters.push(keep(why)),
                },
                Err(why) => filters.push(keep(why)),
            }
        }
        filters
    }
}

/// The matches of a rule, unless there are too many.
fn few<T>(matches: &[T]) -> Result<&[T], String> {
    match matches.len() > MAX_MATCHES {
        true => Err(format!("there are more than {MAX_MATCHES} matches")),
        false => Ok(matches),
    }
}

fn http_match(written: &HttpMatch) -> Result<Match, String> {
    let path = match &written.path {
        None => None,
        Some(path) => {
            let text = path.value.as_deref().unwrap_or("/");
            Some(match path.r#type.as_deref().unwrap_or("PathPrefix") {
                "Exact" => PathMatch::Exact(text.into()),
                "PathPrefix" => PathMatch::Prefix(text.into()),
                "RegularExpression" => PathMatch::Regex(regex(text)?),
                other => return Err(format!("a match of the path of type {} is not known", quoted(other))),
            })
        }
    };
    let method = written
        .method
        .as_deref()
        .map(|text| Method::from_bytes(text.as_bytes()).map_err(|_| format!("{} is no method", quoted(text))));
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in &written.query_params {
        // The first of a name counts.
        if query.iter().all(|known| *known.name != parameter.name) {
            query.push(QueryMatch { name: parameter.name.as_str().into(), value: pattern("query", parameter)? });
        }
    }
    Ok(Match { path, method: method.transpose()?, headers: headers(&written.headers)?, query })
}

fn grpc_match(written: &GrpcMatch) -> Result<Match, String> {
    let path = match &written.method {
        None => None,
        Some(method) => {
            let name = |text: &Option<String>| match (text, method.r#type.as_deref().unwrap_or("Exact")) {
                (None, _) => Ok(None),
                (Some(text), "Exact") => Ok(Some(NameMatch::Exact(text.as_str().into()))),
                (Some(text), "RegularExpression") => regex(text).map(|regex| Some(NameMatch::Regex(regex))),
                (Some(_), other) => Err(format!("a match of the method of type {} is not known", quoted(other))),
            };
            Some(PathMatch::Grpc { service: name(&method.service)?, method: name(&method.method)? })
        }
    };
    Ok(Match { path, method: None, headers: headers(&written.headers)?, query: Vec::new() })
}

fn headers(written: &[ValueMatch]) -> Result<Vec<HeaderMatch>, String> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for header in written {
        let name = filters::name(&header.name)?;
        // The first of a name counts.
        if headers.iter().all(|known| known.name != name) {
            headers.push(HeaderMatch { name, value: pattern("header", header)?, absent: false });
        }
    }
    Ok(headers)
}

fn pattern(what: &str, written: &ValueMatch) -> Result<Pattern, String> {
    let value = written.value.as_deref().unwrap_or_default();
    match written.r#type.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(Pattern::Exact(value.into())),
        "RegularExpression" => regex(value).map(Pattern::Regex),
        other => Err(format!("a match of {what} {} of type {} is not known", quoted(&written.name), quoted(other))),
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}

fn read_retry(written: &Retry) -> Result<CoreRetry, String> {
    let attempts = written.attempts.unwrap_or(ATTEMPTS);
    if !(0..=MAX_ATTEMPTS).contains(&attempts) {
        return Err(format!("{attempts} retries are not between 0 and {MAX_ATTEMPTS}"));
    }
    let status = |code: &i64| {
        let status = u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        status
            .filter(|status| status.is_client_error() || status.is_server_error())
            .ok_or_else(|| format!("status {code} is none after which a request could be tried again"))
    };
    let backoff = written.backoff.as_deref().map(duration).transpose()?.unwrap_or(BACKOFF);
    Ok(CoreRetry {
        attempts: u32::try_from(attempts).unwrap_or(0),
        on: RetryOn {
            statuses: written.codes.iter().map(status).collect::<Result<_, _>>()?,
            connect_failure: true,
            reset: true,
            refused_stream: true,
            timeout: true,
            ..RetryOn::default()
        },
        backoff,
        max_backoff: backoff.saturating_mul(MAX_BACKOFF_FACTOR),
    })
}

pub(super) fn read_session(written: &SessionPersistence) -> Result<Session, String> {
    let name = written.session_name.as_deref().filter(|name| !name.is_empty());
    let cookie = written.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_deref());
    let absolute_timeout = written.absolute_timeout.as_deref().map(limit).transpose()?.flatten();
    let token = match written.r#type.as_deref().unwrap_or("Cookie") {
        "Cookie" => Token::Cookie {
            name: token_name(name.unwrap_or(COOKIE))?,
            path: "/".into(),
            permanent: match cookie.unwrap_or("Session") {
                "Session" => false,
                "Permanent" if absolute_timeout.is_some() => true,
                "Permanent" => return Err("a permanent cookie needs an absoluteTimeout".to_owned()),
                other => return Err(format!("a cookie of lifetime {} is not known", quoted(other))),
            },
        },
        "Header" => Token::Header(filters::name(name.unwrap_or(HEADER))?),
        other => return Err(format!("session persistence of type {} is not known", quoted(other))),
    };
    Ok(Session {
        token,
        absolute_timeout,
        idle_timeout: written.idle_timeout.as_deref().map(limit).transpose()?.flatten(),
    })
}

/// RFC 6265 4.1.1: the name of a cookie is a token, as that of a header is.
fn token_name(name: &str) -> Result<Arc<str>, String> {
    filters::name(name).map_err(|_| format!("{} is no name of a cookie", quoted(name))).map(|_| name.into())
}
