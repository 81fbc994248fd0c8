//! `loam.http.ServiceRoutes`.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, Method};
use loam_core::http::backend::{Backend, BackendService, InvalidRef, Upstream};
use loam_core::http::host::HostPattern;
use loam_core::http::pattern::{Pattern, Regex};
use loam_core::http::route::{
    HeaderMatch, Kind, Match, NameMatch, Order, PathMatch, QueryMatch, Route, RouteKey, Rule, ServiceRoutes, Timeouts,
};
use loam_core::ids::ServiceKey;

use super::{FieldError, filters, named, port, traffic, valid_text};
use crate::intern::Interner;
use crate::waypoint as wire;

/// Longest value of a match, a path or a header.
pub(super) const MAX_VALUE_BYTES: usize = 4096;

pub(super) fn read(interner: &mut Interner, message: wire::ServiceRoutes) -> Result<ServiceRoutes, FieldError> {
    let service = interner.service_key(&message.namespace, &message.hostname).map_err(named("namespace/hostname"))?;
    let mut routes = Vec::with_capacity(message.routes.len());
    for (i, route) in message.routes.into_iter().enumerate() {
        routes.push(Arc::new(one(interner, route).map_err(|e| e.within(format_args!("routes[{i}]")))?));
    }
    Ok(ServiceRoutes { service, routes })
}

fn one(interner: &mut Interner, message: wire::Route) -> Result<Route, FieldError> {
    let kind = match wire::route::Kind::try_from(message.kind) {
        Ok(wire::route::Kind::Http) => Kind::Http,
        Ok(wire::route::Kind::Grpc) => Kind::Grpc,
        Ok(wire::route::Kind::Tls) => Kind::Tls,
        Ok(wire::route::Kind::Tcp) => Kind::Tcp,
        Ok(wire::route::Kind::Unknown) | Err(_) => {
            return Err(FieldError::new("kind", format!("{} is not known", message.kind)));
        }
    };
    let key = RouteKey {
        kind,
        namespace: super::text(interner, "namespace", &message.namespace)?,
        name: valid_text("name", &message.name)?.into(),
    };
    let ports = message.ports.iter().enumerate().map(|(i, number)| port(&format!("ports[{i}]"), *number));
    let hostnames = message.hostnames.iter().enumerate().map(|(i, text)| {
        text.parse::<HostPattern>().map_err(|e| FieldError::new(format!("hostnames[{i}]"), e.to_string()))
    });
    let mut rules = Vec::with_capacity(message.rules.len());
    let (ports, hostnames) = (ports.collect::<Result<_, _>>()?, hostnames.collect::<Result<_, _>>()?);
    for (i, message) in message.rules.into_iter().enumerate() {
        rules.push(Arc::new(rule(interner, message).map_err(|e| e.within(format_args!("rules[{i}]")))?));
    }
    Ok(Route {
        key,
        created: message.created,
        ports,
        hostnames,
        order: match wire::route::Order::try_from(message.order) {
            Ok(wire::route::Order::Listed) => Order::Listed,
            Ok(wire::route::Order::Specific) => Order::Specific,
            // Another order sends requests elsewhere than was asked for.
            Err(_) => return Err(FieldError::new("order", format!("{} is not known", message.order))),
        },
        rules,
    })
}

fn rule(interner: &mut Interner, message: wire::Rule) -> Result<Rule, FieldError> {
    let mut backends = Vec::with_capacity(message.backends.len());
    for (i, message) in message.backends.into_iter().enumerate() {
        backends.push(backend(interner, message).map_err(|e| e.within(format_args!("backends[{i}]")))?);
    }
    let matches = message.matches.into_iter().enumerate();
    let matches = matches.map(|(i, m)| one_match(m).map_err(|e| e.within(format_args!("matches[{i}]"))));
    Ok(Rule {
        name: Some(message.name)
            .filter(|name| !name.is_empty())
            .map(|name| valid_text("name", &name).map(Arc::from))
            .transpose()?,
        matches: matches.collect::<Result<_, _>>()?,
        filters: filters::read(interner, message.filters)?,
        backends,
        timeouts: Timeouts {
            request: message.request_timeout_millis.map(Duration::from_millis),
            backend_request: message.backend_timeout_millis.map(Duration::from_millis),
        },
        retry: message.retry.map(traffic::retry).transpose().map_err(|e| e.within("retry"))?,
        session: message.session.map(traffic::session).transpose().map_err(|e| e.within("session"))?,
    })
}

fn backend(interner: &mut Interner, message: wire::Backend) -> Result<Backend, FieldError> {
    Ok(Backend {
        weight: message.weight,
        upstream: upstream(interner, message.upstream)?,
        filters: filters::read(interner, message.filters)?,
    })
}

pub(super) fn upstream(interner: &mut Interner, message: Option<wire::Upstream>) -> Result<Upstream, FieldError> {
    use wire::invalid_reference::Why;
    Ok(match message.and_then(|message| message.r#type) {
        Some(wire::upstream::Type::Service(message)) => Upstream::Service(BackendService {
            service: service(interner, &message.namespace, &message.hostname)?,
            port: port("upstream.port", message.port)?,
            subset: match message.subset.as_str() {
                "" => None,
                subset => Some(super::text(interner, "upstream.subset", subset)?),
            },
        }),
        Some(wire::upstream::Type::Invalid(message)) => Upstream::Invalid {
            reference: valid_text("upstream.reference", &message.reference)?.into(),
            why: match Why::try_from(message.why) {
                Ok(Why::InvalidKind | Why::Unknown) | Err(_) => InvalidRef::InvalidKind,
                Ok(Why::BackendNotFound) => InvalidRef::BackendNotFound,
                Ok(Why::RefNotPermitted) => InvalidRef::RefNotPermitted,
                Ok(Why::UnsupportedProtocol) => InvalidRef::UnsupportedProtocol,
                Ok(Why::UnmetPolicy) => InvalidRef::UnmetPolicy,
            },
        },
        // Its share of the requests fails; the other backends need not.
        None => Upstream::Invalid {
            reference: "a backend of a kind that is not known".into(),
            why: InvalidRef::InvalidKind,
        },
    })
}

fn service(interner: &mut Interner, namespace: &str, hostname: &str) -> Result<ServiceKey, FieldError> {
    interner.service_key(namespace, hostname).map_err(named("upstream"))
}

fn one_match(message: wire::Match) -> Result<Match, FieldError> {
    let headers = message.headers.into_iter().enumerate().map(|(i, m)| {
        let field = format!("headers[{i}]");
        let name = header(&format!("{field}.name"), &m.name)?;
        Ok(HeaderMatch { name, value: required(&field, m.value)?, absent: m.absent })
    });
    let query = message.query.into_iter().enumerate().map(|(i, m)| {
        let field = format!("query[{i}]");
        let name = value(&format!("{field}.name"), &m.name)?;
        Ok(QueryMatch { name, value: required(&field, m.value)? })
    });
    Ok(Match {
        path: message.path.map(path).transpose()?,
        method: match message.method.as_str() {
            "" => None,
            text => Some(method("method", text)?),
        },
        headers: headers.collect::<Result<_, FieldError>>()?,
        query: query.collect::<Result<_, FieldError>>()?,
    })
}

fn path(message: wire::PathMatch) -> Result<PathMatch, FieldError> {
    use wire::path_match::Type;
    Ok(match message.r#type {
        Some(Type::Exact(text)) => PathMatch::Exact(value("path", &text)?),
        Some(Type::Prefix(text)) => PathMatch::Prefix(value("path", &text)?),
        Some(Type::Text(text)) => PathMatch::Text(value("path", &text)?),
        Some(Type::Regex(text)) => PathMatch::Regex(regex("path", &text)?),
        Some(Type::Grpc(message)) => {
            let name = |field: &str, pattern: Option<wire::Pattern>| match pattern.map(|p| pattern_of(field, p)) {
                None => Ok(None),
                Some(Ok(Pattern::Exact(text))) => Ok(Some(NameMatch::Exact(text))),
                Some(Ok(Pattern::Regex(regex))) => Ok(Some(NameMatch::Regex(regex))),
                Some(Ok(_)) => Err(FieldError::new(field, "is neither exact nor a regular expression")),
                Some(Err(error)) => Err(error),
            };
            PathMatch::Grpc {
                service: name("path.service", message.service)?,
                method: name("path.method", message.method)?,
            }
        }
        // Without it the rule would hold for requests that it is not for.
        None => return Err(FieldError::new("path", "is of a kind that is not known")),
    })
}

fn required(field: &str, pattern: Option<wire::Pattern>) -> Result<Pattern, FieldError> {
    pattern_of(field, pattern.ok_or_else(|| FieldError::new(field, "has no value"))?)
}

fn pattern_of(field: &str, message: wire::Pattern) -> Result<Pattern, FieldError> {
    use wire::pattern::Type;
    Ok(match message.r#type {
        Some(Type::Exact(text)) => Pattern::Exact(value(field, &text)?),
        Some(Type::Prefix(text)) => Pattern::Prefix(value(field, &text)?),
        Some(Type::Suffix(text)) => Pattern::Suffix(value(field, &text)?),
        Some(Type::Regex(text)) => Pattern::Regex(regex(field, &text)?),
        Some(Type::Present(_)) => Pattern::Present,
        None => return Err(FieldError::new(field, "is of a kind that is not known")),
    })
}

pub(super) fn regex(field: &str, text: &str) -> Result<Regex, FieldError> {
    Regex::new(text).map_err(|e| FieldError::new(field, e.to_string()))
}

pub(super) fn header(field: &str, name: &str) -> Result<HeaderName, FieldError> {
    HeaderName::try_from(name).map_err(|e| FieldError::new(field, e.to_string()))
}

pub(super) fn method(field: &str, name: &str) -> Result<Method, FieldError> {
    Method::from_bytes(name.as_bytes()).map_err(|e| FieldError::new(field, e.to_string()))
}

/// A text to compare with, or to put in the place of another.
pub(super) fn value(field: &str, text: &str) -> Result<Arc<str>, FieldError> {
    match text.len() {
        len if len > MAX_VALUE_BYTES => {
            Err(FieldError::new(field, format!("{len} bytes are more than {MAX_VALUE_BYTES}")))
        }
        _ => Ok(text.into()),
    }
}
