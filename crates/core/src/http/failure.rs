//! How a request ends that the proxy answers itself because it could not be served: a closed list, which is also the
//! list of metric labels.

use http::StatusCode;

use super::grpc::Code;
use super::target::Malformed;

/// Why the proxy answers a request with an error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It has no canonical form.
    Malformed(Malformed),
    /// The port has routes, and none is for it.
    NoRoute,
    /// The rule has no backend, or only such as have weight 0.
    NoBackend,
    /// The backend reference that was picked leads nowhere.
    InvalidBackend,
    /// The rule has a filter that is not known here.
    UnknownFilter,
    /// What the filters make of it has no legal form.
    IllFiltered,
    /// The backend has no endpoint that may be used.
    NoEndpoint,
    /// A policy denies it.
    Denied,
    /// A policy that applies has not arrived.
    PolicyPending,
    /// A limit of the backend or of this process is reached.
    Overload,
    /// The upstream could not be connected to.
    ConnectFailed,
    /// The upstream broke off before it answered.
    UpstreamReset,
    /// The upstream's answer cannot be read.
    UpstreamProtocol,
    /// The whole request took too long.
    Timeout,
    /// The last try took too long.
    TryTimeout,
    /// The client broke off; nobody reads the answer.
    ClientGone,
    /// The route fails it on purpose, with this status.
    Injected(StatusCode),
    /// Anything the list does not name; it always comes with an error in the log.
    Internal,
}

impl Failure {
    /// Every failure, one of each kind, for documentation and tests.
    pub const ALL: [Failure; 18] = [
        Failure::Malformed(Malformed::NoHost),
        Failure::NoRoute,
        Failure::NoBackend,
        Failure::InvalidBackend,
        Failure::UnknownFilter,
        Failure::IllFiltered,
        Failure::NoEndpoint,
        Failure::Denied,
        Failure::PolicyPending,
        Failure::Overload,
        Failure::ConnectFailed,
        Failure::UpstreamReset,
        Failure::UpstreamProtocol,
        Failure::Timeout,
        Failure::TryTimeout,
        Failure::ClientGone,
        Failure::Injected(StatusCode::SERVICE_UNAVAILABLE),
        Failure::Internal,
    ];

    /// The failure in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Malformed(_) => "malformed_request",
            Failure::NoRoute => "no_route",
            Failure::NoBackend => "no_backend",
            Failure::InvalidBackend => "invalid_backend",
            Failure::UnknownFilter => "unknown_filter",
            Failure::IllFiltered => "ill_filtered",
            Failure::NoEndpoint => "no_healthy_upstream",
            Failure::Denied => "denied",
            Failure::PolicyPending => "policy_pending",
            Failure::Overload => "overload",
            Failure::ConnectFailed => "connect_failed",
            Failure::UpstreamReset => "upstream_reset",
            Failure::UpstreamProtocol => "upstream_protocol",
            Failure::Timeout => "timeout",
            Failure::TryTimeout => "try_timeout",
            Failure::ClientGone => "client_gone",
            Failure::Injected(_) => "injected",
            Failure::Internal => "internal",
        }
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Failure::Malformed(malformed) => malformed.status(),
            Failure::NoRoute => StatusCode::NOT_FOUND,
            Failure::NoBackend
            | Failure::InvalidBackend
            | Failure::UnknownFilter
            | Failure::IllFiltered
            | Failure::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Failure::NoEndpoint | Failure::Overload | Failure::ConnectFailed | Failure::UpstreamReset => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Failure::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Failure::Denied | Failure::PolicyPending => StatusCode::FORBIDDEN,
            Failure::Timeout | Failure::TryTimeout => StatusCode::GATEWAY_TIMEOUT,
            // nginx's number for it, which Envoy's logs have as 0.
            Failure::ClientGone => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Failure::Injected(status) => status,
        }
    }

    /// The status of the answer to a gRPC request, which goes with HTTP's 200 (gRPC over HTTP/2, "Responses").
    pub fn grpc(self) -> Code {
        match self {
            Failure::NoRoute => Code::Unimplemented,
            Failure::NoBackend
            | Failure::InvalidBackend
            | Failure::NoEndpoint
            | Failure::ConnectFailed
            | Failure::UpstreamReset => Code::Unavailable,
            Failure::Overload => Code::ResourceExhausted,
            Failure::Timeout | Failure::TryTimeout => Code::DeadlineExceeded,
            Failure::ClientGone => Code::Cancelled,
            Failure::Malformed(_) | Failure::UnknownFilter | Failure::IllFiltered | Failure::Internal => Code::Internal,
            Failure::UpstreamProtocol => Code::Unavailable,
            Failure::Denied | Failure::PolicyPending => Code::PermissionDenied,
            Failure::Injected(status) => Code::of_status(status),
        }
    }

    /// Envoy's flag for it, in access logs and the metric label `response_flags`.
    pub fn response_flags(self) -> &'static str {
        match self {
            Failure::Malformed(_) => "DPE",
            Failure::NoRoute => "NR",
            Failure::NoBackend | Failure::InvalidBackend => "NC",
            Failure::NoEndpoint => "UH",
            Failure::Overload => "UO",
            Failure::ConnectFailed => "UF",
            Failure::UpstreamReset => "UC",
            Failure::UpstreamProtocol => "UPE",
            Failure::Timeout | Failure::TryTimeout => "UT",
            Failure::ClientGone => "DC",
            Failure::Injected(_) => "FI",
            Failure::Denied
            | Failure::PolicyPending
            | Failure::UnknownFilter
            | Failure::IllFiltered
            | Failure::Internal => "-",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn failures_have_names_of_their_own() {
        let names: BTreeSet<&str> = Failure::ALL.iter().map(|failure| failure.as_str()).collect();
        assert_eq!(names.len(), Failure::ALL.len());
    }

    #[test]
    fn failures_have_the_statuses_that_the_gateway_api_asks_for() {
        for (failure, status, grpc) in [
            (Failure::NoRoute, 404, 12),
            (Failure::NoBackend, 500, 14),
            (Failure::InvalidBackend, 500, 14),
            (Failure::UnknownFilter, 500, 13),
            (Failure::NoEndpoint, 503, 14),
            (Failure::Overload, 503, 8),
            (Failure::ConnectFailed, 503, 14),
            (Failure::UpstreamReset, 503, 14),
            (Failure::Timeout, 504, 4),
            (Failure::TryTimeout, 504, 4),
            (Failure::Denied, 403, 7),
            (Failure::Malformed(Malformed::SlashLike), 400, 13),
            (Failure::Malformed(Malformed::TooLong), 414, 13),
            (Failure::Injected(StatusCode::TOO_MANY_REQUESTS), 429, 14),
        ] {
            assert_eq!((failure.status().as_u16(), failure.grpc().number()), (status, grpc), "{failure:?}");
        }
    }
}
