//! Why a connection was refused or how it failed: a closed list, which is also the list of metric labels.

/// Why a connection was not carried, or how it ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The local workload is not in the mesh configuration (yet).
    WorkloadUnknown,
    /// The address belongs to a service that has no endpoint which may be used.
    NoHealthyUpstream,
    /// The endpoints are known by name only, and the names lead nowhere.
    NameUnresolved,
    /// The service exists but not this port of it.
    PortUnknown,
    /// The waypoint that must be traversed is not known or has no endpoint.
    WaypointUnavailable,
    /// The caller may reach only what is in the registry, and this is not.
    NotRegistered,
    /// The connection would come back to us.
    Loop,
    /// The destination is in another network and there is no gateway to it.
    NetworkUnreachable,
    /// A CONNECT asked for something that this workload does not serve.
    AuthorityMismatch,
    /// A CONNECT that cannot be read.
    MalformedRequest,
    /// A policy denies it.
    Denied,
    /// A policy that applies has not arrived.
    PolicyPending,
    /// There is no certificate for the workload's identity (yet).
    CertificateUnavailable,
    /// The peer's certificate is not one we accept, or it did not accept ours.
    TlsFailure,
    /// The peer does not speak HTTP/2 as it should.
    TunnelFailure,
    /// The peer's ztunnel or waypoint answered CONNECT with a refusal.
    PeerRefused,
    /// The upstream refused the connection.
    ConnectRefused,
    /// The upstream did not answer in time.
    ConnectTimeout,
    /// The upstream cannot be reached for another reason.
    ConnectFailed,
    /// A limit was reached.
    Overload,
    /// The connection was ended because this process ends.
    Drained,
    /// The workload left this node.
    WorkloadGone,
    /// One side reset the connection.
    Reset,
    /// Anything the list does not name; it always comes with an error in the log.
    Internal,
}

impl Reason {
    /// Every reason, for documentation and tests.
    pub const ALL: [Reason; 24] = [
        Reason::WorkloadUnknown,
        Reason::NoHealthyUpstream,
        Reason::NameUnresolved,
        Reason::PortUnknown,
        Reason::WaypointUnavailable,
        Reason::NotRegistered,
        Reason::Loop,
        Reason::NetworkUnreachable,
        Reason::AuthorityMismatch,
        Reason::MalformedRequest,
        Reason::Denied,
        Reason::PolicyPending,
        Reason::CertificateUnavailable,
        Reason::TlsFailure,
        Reason::TunnelFailure,
        Reason::PeerRefused,
        Reason::ConnectRefused,
        Reason::ConnectTimeout,
        Reason::ConnectFailed,
        Reason::Overload,
        Reason::Drained,
        Reason::WorkloadGone,
        Reason::Reset,
        Reason::Internal,
    ];

    /// The reason in logs and in our own metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::WorkloadUnknown => "workload_unknown",
            Reason::NoHealthyUpstream => "no_healthy_upstream",
            Reason::NameUnresolved => "name_unresolved",
            Reason::PortUnknown => "port_unknown",
            Reason::WaypointUnavailable => "waypoint_unavailable",
            Reason::NotRegistered => "not_registered",
            Reason::Loop => "loop",
            Reason::NetworkUnreachable => "network_unreachable",
            Reason::AuthorityMismatch => "authority_mismatch",
            Reason::MalformedRequest => "malformed_request",
            Reason::Denied => "denied",
            Reason::PolicyPending => "policy_pending",
            Reason::CertificateUnavailable => "certificate_unavailable",
            Reason::TlsFailure => "tls_failure",
            Reason::TunnelFailure => "tunnel_failure",
            Reason::PeerRefused => "peer_refused",
            Reason::ConnectRefused => "connect_refused",
            Reason::ConnectTimeout => "connect_timeout",
            Reason::ConnectFailed => "connect_failed",
            Reason::Overload => "overload",
            Reason::Drained => "drained",
            Reason::WorkloadGone => "workload_gone",
            Reason::Reset => "reset",
            Reason::Internal => "internal",
        }
    }

    /// The value of Istio's metric label `response_flags`.
    pub fn response_flags(self) -> &'static str {
        match self {
            Reason::Denied | Reason::PolicyPending | Reason::NotRegistered => "DENY",
            Reason::TlsFailure => "TLS_FAILURE",
            Reason::TunnelFailure => "H2_HANDSHAKE_FAILURE",
            Reason::CertificateUnavailable => "IDENTITY_ERROR",
            Reason::WorkloadUnknown
            | Reason::NoHealthyUpstream
            | Reason::NameUnresolved
            | Reason::PortUnknown
            | Reason::WaypointUnavailable
            | Reason::Loop
            | Reason::NetworkUnreachable
            | Reason::AuthorityMismatch
            | Reason::MalformedRequest
            | Reason::PeerRefused
            | Reason::ConnectRefused
            | Reason::ConnectTimeout
            | Reason::ConnectFailed
            | Reason::Overload => "CONNECT",
            Reason::Drained | Reason::WorkloadGone | Reason::Reset | Reason::Internal => "-",
        }
    }
}
