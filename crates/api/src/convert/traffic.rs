//! `loam.http.ServiceTraffic`.

use std::sync::Arc;
use std::time::Duration;

use loam_core::http::traffic::{
    Algorithm, Budget, HashOn, Limits, Outliers, Retry, RetryOn, Roots, ServiceTraffic, Session, Subset, Tls, Token,
    Traffic,
};

use super::filters::status;
use super::routes::{header, value};
use super::{FieldError, named, port, valid_text};
use crate::intern::Interner;
use crate::waypoint as wire;

/// Longest bundle of roots: some hundred certificates.
const MAX_ROOTS_BYTES: usize = 1 << 20;

pub(super) fn read(interner: &mut Interner, message: wire::ServiceTraffic) -> Result<ServiceTraffic, FieldError> {
    let service = interner.service_key(&message.namespace, &message.hostname).map_err(named("namespace/hostname"))?;
    let ports = message.ports.into_iter().enumerate().map(|(i, message)| {
        let field = format!("ports[{i}]");
        let number = port(&field, message.port)?;
        Ok((number, traffic(message.traffic.unwrap_or_default()).map_err(|e| e.within(field))?))
    });
    let subsets = message.subsets.into_iter().enumerate().map(|(i, message)| {
        let field = format!("subsets[{i}]");
        Ok(Subset {
            name: valid_text(&field, &message.name)?.into(),
            labels: message.labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            traffic: message.traffic.map(traffic).transpose().map_err(|e| e.within(field))?,
        })
    });
    Ok(ServiceTraffic {
        service,
        ports: ports.collect::<Result<_, FieldError>>()?,
        subsets: subsets.collect::<Result<_, FieldError>>()?,
        traffic: traffic(message.traffic.unwrap_or_default())?,
    })
}

fn traffic(message: wire::Traffic) -> Result<Traffic, FieldError> {
    Ok(Traffic {
        algorithm: algorithm(message.algorithm.unwrap_or_default())?,
        slow_start: message.slow_start_millis.map(Duration::from_millis),
        limits: limits(message.limits.unwrap_or_default()),
        outliers: message.outliers.map(outliers).transpose()?,
        budget: message.budget.map_or_else(Budget::default, budget),
        session: message.session.map(session).transpose()?,
        tls: message.tls.map(tls).transpose()?,
    })
}

fn algorithm(message: wire::Algorithm) -> Result<Algorithm, FieldError> {
    use wire::algorithm::Kind;
    use wire::hash_on::Type;
    let hash_on = message.hash_on.into_iter().map(|message| {
        Ok(match message.r#type {
            Some(Type::Header(name)) => HashOn::Header(header("algorithm.header", &name)?),
            Some(Type::Cookie(name)) => HashOn::Cookie(value("algorithm.cookie", &name)?),
            Some(Type::Query(name)) => HashOn::Query(value("algorithm.query", &name)?),
            Some(Type::Address(_)) => HashOn::Address,
            None => return Err(FieldError::new("algorithm.hash_on", "is of a kind that is not known")),
        })
    });
    let hash_on = hash_on.collect::<Result<_, FieldError>>()?;
    Ok(match Kind::try_from(message.kind) {
        Ok(Kind::RoundRobin) => Algorithm::RoundRobin,
        Ok(Kind::Random) => Algorithm::Random,
        Ok(Kind::Ring) => Algorithm::Ring(hash_on),
        Ok(Kind::Maglev) => Algorithm::Maglev(hash_on),
        Ok(Kind::LeastRequest) | Err(_) => Algorithm::LeastRequest,
    })
}

fn limits(message: wire::Limits) -> Limits {
    let usual = Limits::default();
    Limits {
        connections: message.connections.unwrap_or(usual.connections),
        pending: message.pending.unwrap_or(usual.pending),
        requests: message.requests.unwrap_or(usual.requests),
        retries: message.retries.unwrap_or(usual.retries),
        requests_per_connection: message.requests_per_connection.unwrap_or(usual.requests_per_connection),
        connect_timeout: message.connect_timeout_millis.map_or(usual.connect_timeout, Duration::from_millis),
        idle_timeout: message.idle_timeout_millis.map(Duration::from_millis),
    }
}

fn outliers(message: wire::Outliers) -> Result<Outliers, FieldError> {
    let percent = |field: &str, number: u32| match u8::try_from(number) {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err(FieldError::new(field, format!("{number} is more than 100"))),
    };
    Ok(Outliers {
        consecutive_5xx: message.consecutive_5xx,
        consecutive_gateway: message.consecutive_gateway,
        interval: Duration::from_millis(message.interval_millis),
        base_ejection: Duration::from_millis(message.base_ejection_millis),
        max_ejection: Duration::from_millis(message.max_ejection_millis),
        max_percent: percent("outliers.max_percent", message.max_percent)?,
        min_health_percent: percent("outliers.min_health_percent", message.min_health_percent)?,
    })
}

fn budget(message: wire::Budget) -> Budget {
    Budget {
        percent: message.percent.min(100),
        interval: Duration::from_millis(message.interval_millis),
        min_retries: message.min_retries,
        min_interval: Duration::from_millis(message.min_interval_millis),
    }
}

pub(super) fn retry(message: wire::Retry) -> Result<Retry, FieldError> {
    Ok(Retry {
        attempts: message.attempts,
        on: RetryOn {
            statuses: message.statuses.iter().map(|s| status("statuses", *s)).collect::<Result<_, _>>()?,
            any_5xx: message.any_5xx,
            connect_failure: message.connect_failure,
            reset: message.reset,
            refused_stream: message.refused_stream,
            timeout: message.timeout,
            grpc: message.grpc,
        },
        backoff: Duration::from_millis(message.backoff_millis),
        max_backoff: Duration::from_millis(message.max_backoff_millis),
    })
}

pub(super) fn session(message: wire::Session) -> Result<Session, FieldError> {
    let token = match message.token {
        Some(wire::session::Token::Cookie(cookie)) => Token::Cookie {
            name: valid_text("cookie.name", &cookie.name)?.into(),
            path: value("cookie.path", &cookie.path)?,
            permanent: cookie.permanent,
        },
        Some(wire::session::Token::Header(name)) => Token::Header(header("header", &name)?),
        None => return Err(FieldError::new("token", "is of a kind that is not known")),
    };
    Ok(Session {
        token,
        absolute_timeout: message.absolute_timeout_millis.map(Duration::from_millis),
        idle_timeout: message.idle_timeout_millis.map(Duration::from_millis),
    })
}

fn tls(message: wire::Tls) -> Result<Tls, FieldError> {
    Ok(Tls {
        server_name: message.server_name.parse().map_err(named("tls.server_name"))?,
        names: message
            .names
            .iter()
            .map(|name| valid_text("tls.names", name).map(Arc::from))
            .collect::<Result<_, _>>()?,
        roots: match message.roots {
            Some(wire::tls::Roots::Pem(pem)) if pem.len() <= MAX_ROOTS_BYTES => Roots::Pem(pem.into()),
            Some(wire::tls::Roots::System(_)) => Roots::System,
            Some(wire::tls::Roots::Pem(_)) => {
                return Err(FieldError::new("tls.pem", format!("is longer than {MAX_ROOTS_BYTES} bytes")));
            }
            // Nobody must be trusted by mistake.
            None => return Err(FieldError::new("tls.roots", "are of a kind that is not known")),
        },
    })
}
