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
    /// The waypoint that must be traversed is not known.
    WaypointMissing,
    /// The waypoint that must be traversed has no endpoint that may be used.
    WaypointNotReady,
    /// The port is reached by way of a waypoint alone, and this went past it.
    WaypointRequired,
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
    pub const ALL: [Reason; 26] = [
        Reason::WorkloadUnknown,
        Reason::NoHealthyUpstream,
        Reason::NameUnresolved,
        Reason::PortUnknown,
        Reason::WaypointMissing,
        Reason::WaypointNotReady,
        Reason::WaypointRequired,
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
            Reason::WaypointMissing => "waypoint_missing",
            Reason::WaypointNotReady => "waypoint_not_ready",
            Reason::WaypointRequired => "waypoint_required",
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

    /// What happened, in words that end a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Reason::WorkloadUnknown => "the node has no configuration about the local pod",
            Reason::NoHealthyUpstream => "the service has no endpoint that may be used",
            Reason::NameUnresolved => "the endpoints are known by name only, and no server told an address",
            Reason::PortUnknown => "the service does not have this port",
            Reason::WaypointMissing => "the waypoint that must be passed is not there",
            Reason::WaypointNotReady => "the waypoint that must be passed has no endpoint that is ready",
            Reason::WaypointRequired => "the port takes connections from its waypoint alone, and this one went past it",
            Reason::NotRegistered => "the caller may reach only what is declared, and this is not",
            Reason::Loop => "the connection would come back to the proxy",
            Reason::NetworkUnreachable => "the destination is in another network",
            Reason::AuthorityMismatch => "a tunnel asked for an address or port that this pod does not have",
            Reason::MalformedRequest => "a tunnel's request cannot be read",
            Reason::Denied => "a policy denies it",
            Reason::PolicyPending => "a policy that applies has not arrived within five seconds",
            Reason::CertificateUnavailable => "there is no certificate for the pod's identity",
            Reason::TlsFailure => "the certificate of one side is not accepted by the other",
            Reason::TunnelFailure => "the peer does not speak HTTP/2 as it should",
            Reason::PeerRefused => "the peer's ztunnel refused the connection",
            Reason::ConnectRefused => "nobody listens there",
            Reason::ConnectTimeout => "no answer within ten seconds",
            Reason::ConnectFailed => "the kernel could not connect for another reason",
            Reason::Overload => "a limit was reached",
            Reason::Drained => "the proxy ended and the connection outlived its limit",
            Reason::WorkloadGone => "the pod left this node or the mesh",
            Reason::Reset => "one of the applications reset the connection",
            Reason::Internal => "something that this list does not name",
        }
    }

    /// What whoever sees it can do.
    pub fn remedy(self) -> &'static str {
        match self {
            Reason::WorkloadUnknown => {
                "wait some seconds after the pod's start; then look at the ztunnel's log for the connection to the controller"
            }
            Reason::NoHealthyUpstream => {
                "see that its pods are ready, and that its traffic policy allows endpoints on other nodes"
            }
            Reason::NameUnresolved => "ask the pod's own name server for the name; the log has what it answered",
            Reason::PortUnknown => "compare the port with those of the Service or ServiceEntry",
            Reason::WaypointMissing => {
                "see that the Gateway that the label istio.io/use-waypoint names is there; /debug/waypoints lists what is named"
            }
            Reason::WaypointNotReady => "see that the pods of the waypoint that the log names are ready",
            Reason::WaypointRequired => {
                "call the service instead of the pod, from within the mesh; the log of the pod's node names the waypoint"
            }
            Reason::NotRegistered => "declare it with a ServiceEntry, or set the outbound traffic policy to ALLOW_ANY",
            Reason::Loop => "call the program's own port, not one of 15001, 15006 and 15008",
            Reason::NetworkUnreachable => "gateways between networks are not supported",
            Reason::AuthorityMismatch => "look who calls: a peer works with old configuration, or probes",
            Reason::MalformedRequest => "look who calls: it does not speak HBONE as it should",
            Reason::Denied => {
                "the log names the policy and the first field that did not match; /debug/authz tells what another caller would get"
            }
            Reason::PolicyPending => "see that the controller runs, and what /debug/policies there says of the policy",
            Reason::CertificateUnavailable => "look at the ztunnel's log for the answer of the certificate authority",
            Reason::TlsFailure => "compare the roots and trust domains of both; the log has the reason",
            Reason::TunnelFailure => "see that nothing but a ztunnel listens on the peer's port 15008",
            Reason::PeerRefused => "its own log has the reason; 401 is a policy, 503 a pod that cannot be reached",
            Reason::ConnectRefused => {
                "see that the program listens on this port, on this address family and not on loopback alone"
            }
            Reason::ConnectTimeout => {
                "look for a NetworkPolicy or firewall that drops port 15008 or the program's port, and for a node that is down"
            }
            Reason::ConnectFailed => "the log has the kernel's error",
            Reason::Overload => "the log names it; too many connections at once from or to this pod",
            Reason::Drained => {
                "nothing: it happens at an upgrade after the drain limit, and the application connects again"
            }
            Reason::WorkloadGone => "nothing",
            Reason::Reset => "nothing of the mesh: the line's end tells which side",
            Reason::Internal => "the log has the error; please report it",
        }
    }

    /// The value of Istio's metric label `response_flags`.
    pub fn response_flags(self) -> &'static str {
        match self {
            Reason::Denied | Reason::PolicyPending | Reason::NotRegistered | Reason::WaypointRequired => "DENY",
            Reason::TlsFailure => "TLS_FAILURE",
            Reason::TunnelFailure => "H2_HANDSHAKE_FAILURE",
            Reason::CertificateUnavailable => "IDENTITY_ERROR",
            Reason::WorkloadUnknown
            | Reason::NoHealthyUpstream
            | Reason::NameUnresolved
            | Reason::PortUnknown
            | Reason::WaypointMissing
            | Reason::WaypointNotReady
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
