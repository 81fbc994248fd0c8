//! `loam.http.ServiceRoutes`.

use loam_core::http::backend::{Backend, BackendService, InvalidRef, Upstream};
use loam_core::http::pattern::Pattern;
use loam_core::http::route::{Kind, Match, NameMatch, Order, PathMatch, Route, Rule, ServiceRoutes};

use super::filters::filters;
use super::traffic::{millis, retry, session};
use crate::waypoint as wire;

pub(super) fn message(gateway: &str, value: &ServiceRoutes) -> wire::ServiceRoutes {
    wire::ServiceRoutes {
        gateway: gateway.to_owned(),
        namespace: value.service.namespace.to_string(),
        hostname: value.service.hostname.to_string(),
        routes: value.routes.iter().map(|route| one(route)).collect(),
    }
}

fn one(value: &Route) -> wire::Route {
    wire::Route {
        kind: match value.key.kind {
            Kind::Http => wire::route::Kind::Http,
            Kind::Grpc => wire::route::Kind::Grpc,
            Kind::Tls => wire::route::Kind::Tls,
            Kind::Tcp => wire::route::Kind::Tcp,
        }
        .into(),
        namespace: value.key.namespace.to_string(),
        name: value.key.name.to_string(),
        created: value.created,
        ports: value.ports.iter().map(|port| u32::from(*port)).collect(),
        hostnames: value.hostnames.iter().map(ToString::to_string).collect(),
        order: match value.order {
            Order::Specific => wire::route::Order::Specific,
            Order::Listed => wire::route::Order::Listed,
        }
        .into(),
        rules: value.rules.iter().map(|rule| one_rule(rule)).collect(),
    }
}

fn one_rule(value: &Rule) -> wire::Rule {
    wire::Rule {
        name: value.name.as_deref().unwrap_or_default().to_owned(),
        matches: value.matches.iter().map(one_match).collect(),
        filters: filters(&value.filters),
        backends: value.backends.iter().map(backend).collect(),
        request_timeout_millis: value.timeouts.request.map(millis),
        backend_timeout_millis: value.timeouts.backend_request.map(millis),
        retry: value.retry.as_ref().map(retry),
        session: value.session.as_ref().map(session),
    }
}

fn backend(value: &Backend) -> wire::Backend {
    wire::Backend { weight: value.weight, upstream: Some(upstream(&value.upstream)), filters: filters(&value.filters) }
}

pub(super) fn upstream(value: &Upstream) -> wire::Upstream {
    use wire::invalid_reference::Why;
    let target = match value {
        Upstream::Service(BackendService { service, port, subset }) => {
            wire::upstream::Type::Service(wire::ServicePort {
                namespace: service.namespace.to_string(),
                hostname: service.hostname.to_string(),
                port: u32::from(*port),
                subset: subset.as_deref().unwrap_or_default().to_owned(),
            })
        }
        Upstream::Invalid { reference, why } => wire::upstream::Type::Invalid(wire::InvalidReference {
            reference: reference.to_string(),
            why: match why {
                InvalidRef::InvalidKind => Why::InvalidKind,
                InvalidRef::BackendNotFound => Why::BackendNotFound,
                InvalidRef::RefNotPermitted => Why::RefNotPermitted,
                InvalidRef::UnsupportedProtocol => Why::UnsupportedProtocol,
                InvalidRef::UnmetPolicy => Why::UnmetPolicy,
            }
            .into(),
        }),
    };
    wire::Upstream { r#type: Some(target) }
}

fn one_match(value: &Match) -> wire::Match {
    let headers = value.headers.iter().map(|m| wire::ValueMatch {
        name: m.name.as_str().to_owned(),
        value: Some(pattern(&m.value)),
        absent: m.absent,
    });
    let query = value.query.iter().map(|m| wire::ValueMatch {
        name: m.name.to_string(),
        value: Some(pattern(&m.value)),
        absent: false,
    });
    wire::Match {
        path: value.path.as_ref().map(path),
        method: value.method.as_ref().map(|method| method.as_str().to_owned()).unwrap_or_default(),
        headers: headers.collect(),
        query: query.collect(),
    }
}

fn path(value: &PathMatch) -> wire::PathMatch {
    use wire::path_match::Type;
    let name = |name: &NameMatch| match name {
        NameMatch::Exact(text) => of(wire::pattern::Type::Exact(text.to_string())),
        NameMatch::Regex(regex) => of(wire::pattern::Type::Regex(regex.as_str().to_owned())),
    };
    let path = match value {
        PathMatch::Exact(text) => Type::Exact(text.to_string()),
        PathMatch::Prefix(text) => Type::Prefix(text.to_string()),
        PathMatch::Text(text) => Type::Text(text.to_string()),
        PathMatch::Regex(regex) => Type::Regex(regex.as_str().to_owned()),
        PathMatch::Grpc { service, method } => {
            Type::Grpc(wire::GrpcMethod { service: service.as_ref().map(name), method: method.as_ref().map(name) })
        }
    };
    wire::PathMatch { r#type: Some(path) }
}

fn pattern(value: &Pattern) -> wire::Pattern {
    use wire::pattern::Type;
    of(match value {
        Pattern::Exact(text) => Type::Exact(text.to_string()),
        Pattern::Prefix(text) => Type::Prefix(text.to_string()),
        Pattern::Suffix(text) => Type::Suffix(text.to_string()),
        Pattern::Regex(regex) => Type::Regex(regex.as_str().to_owned()),
        Pattern::Present => Type::Present(true),
    })
}

fn of(pattern: wire::pattern::Type) -> wire::Pattern {
    wire::Pattern { r#type: Some(pattern) }
}
