//! `loam.http.ServiceTraffic`.

use std::time::Duration;

use loam_core::http::traffic::{
    Algorithm, Budget, HashOn, Limits, Outliers, Retry, Roots, ServiceTraffic, Session, Tls, Token, Traffic,
};

use crate::waypoint as wire;

pub(super) fn message(gateway: &str, value: &ServiceTraffic) -> wire::ServiceTraffic {
    wire::ServiceTraffic {
        gateway: gateway.to_owned(),
        namespace: value.service.namespace.to_string(),
        hostname: value.service.hostname.to_string(),
        traffic: Some(traffic(&value.traffic)),
        ports: value
            .ports
            .iter()
            .map(|(port, value)| wire::PortTraffic { port: u32::from(*port), traffic: Some(traffic(value)) })
            .collect(),
        subsets: value
            .subsets
            .iter()
            .map(|subset| wire::Subset {
                name: subset.name.to_string(),
                labels: subset.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
                traffic: subset.traffic.as_ref().map(traffic),
            })
            .collect(),
    }
}

/// Whole milliseconds; more than fit are as good as for ever.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn traffic(value: &Traffic) -> wire::Traffic {
    wire::Traffic {
        algorithm: Some(algorithm(&value.algorithm)),
        slow_start_millis: value.slow_start.map(millis),
        limits: (value.limits != Limits::default()).then(|| limits(&value.limits)),
        outliers: value.outliers.as_ref().map(outliers),
        budget: (value.budget != Budget::default()).then(|| budget(&value.budget)),
        session: value.session.as_ref().map(session),
        tls: value.tls.as_ref().map(tls),
    }
}

fn algorithm(value: &Algorithm) -> wire::Algorithm {
    use wire::algorithm::Kind;
    use wire::hash_on::Type;
    let (kind, hash_on): (Kind, &[HashOn]) = match value {
        Algorithm::LeastRequest => (Kind::LeastRequest, &[]),
        Algorithm::RoundRobin => (Kind::RoundRobin, &[]),
        Algorithm::Random => (Kind::Random, &[]),
        Algorithm::Ring(on) => (Kind::Ring, on),
        Algorithm::Maglev(on) => (Kind::Maglev, on),
    };
    let on = |on: &HashOn| wire::HashOn {
        r#type: Some(match on {
            HashOn::Header(name) => Type::Header(name.as_str().to_owned()),
            HashOn::Cookie(name) => Type::Cookie(name.to_string()),
            HashOn::Query(name) => Type::Query(name.to_string()),
            HashOn::Address => Type::Address(true),
        }),
    };
    wire::Algorithm { kind: kind.into(), hash_on: hash_on.iter().map(on).collect() }
}

fn limits(value: &Limits) -> wire::Limits {
    wire::Limits {
        connections: Some(value.connections),
        pending: Some(value.pending),
        requests: Some(value.requests),
        retries: Some(value.retries),
        requests_per_connection: Some(value.requests_per_connection),
        connect_timeout_millis: Some(millis(value.connect_timeout)),
        idle_timeout_millis: value.idle_timeout.map(millis),
    }
}

fn outliers(value: &Outliers) -> wire::Outliers {
    wire::Outliers {
        consecutive_5xx: value.consecutive_5xx,
        consecutive_gateway: value.consecutive_gateway,
        interval_millis: millis(value.interval),
        base_ejection_millis: millis(value.base_ejection),
        max_ejection_millis: millis(value.max_ejection),
        max_percent: u32::from(value.max_percent),
        min_health_percent: u32::from(value.min_health_percent),
    }
}

fn budget(value: &Budget) -> wire::Budget {
    wire::Budget {
        percent: value.percent,
        interval_millis: millis(value.interval),
        min_retries: value.min_retries,
        min_interval_millis: millis(value.min_interval),
    }
}

pub(super) fn retry(value: &Retry) -> wire::Retry {
    wire::Retry {
        attempts: value.attempts,
        statuses: value.on.statuses.iter().map(|status| u32::from(status.as_u16())).collect(),
        any_5xx: value.on.any_5xx,
        connect_failure: value.on.connect_failure,
        reset: value.on.reset,
        refused_stream: value.on.refused_stream,
        timeout: value.on.timeout,
        grpc: value.on.grpc.clone(),
        backoff_millis: millis(value.backoff),
        max_backoff_millis: millis(value.max_backoff),
    }
}

pub(super) fn session(value: &Session) -> wire::Session {
    use wire::session::Token as Wire;
    wire::Session {
        token: Some(match &value.token {
            Token::Cookie { name, path, permanent } => Wire::Cookie(wire::session::Cookie {
                name: name.to_string(),
                path: path.to_string(),
                permanent: *permanent,
            }),
            Token::Header(name) => Wire::Header(name.as_str().to_owned()),
        }),
        absolute_timeout_millis: value.absolute_timeout.map(millis),
        idle_timeout_millis: value.idle_timeout.map(millis),
    }
}

fn tls(value: &Tls) -> wire::Tls {
    wire::Tls {
        server_name: value.server_name.to_string(),
        names: value.names.iter().map(ToString::to_string).collect(),
        roots: Some(match &value.roots {
            Roots::System => wire::tls::Roots::System(true),
            Roots::Pem(pem) => wire::tls::Roots::Pem(pem.to_string()),
        }),
    }
}
