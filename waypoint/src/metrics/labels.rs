//! The label sets of Istio's metrics, as a waypoint reports them. Those of the ends are always present.

use std::fmt;
use std::sync::Arc;

use loam_core::headers::baggage::Baggage;
use loam_core::ids::Identity;
use loam_core::service::Service;
use loam_core::workload::Workload;
use loam_rt::metrics::{EncodeLabelSet, LabelSet, value};
use prometheus_client::encoding::LabelSetEncoder;

/// One end of a request, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The workload at the end's address.
    pub workload: Option<Arc<Workload>>,
    /// Who it is, as proven by a certificate.
    pub identity: Option<Identity>,
    /// What it says about itself, where no workload is known.
    pub baggage: Option<Box<Baggage>>,
}

/// What the labels say about one end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PeerLabels {
    workload: Arc<str>,
    namespace: Arc<str>,
    principal: Option<Identity>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
}

impl PeerLabels {
    /// Those of `peer`.
    pub fn of(peer: &Peer) -> Self {
        let principal = peer.identity.clone();
        match (&peer.workload, &peer.baggage) {
            (Some(workload), _) => Self {
                workload: if workload.owner.is_empty() { workload.name.clone() } else { workload.owner.clone() },
                namespace: workload.namespace().into(),
                principal,
                canonical_service: workload.canonical_name.clone(),
                canonical_revision: workload.canonical_revision.clone(),
                cluster: workload.cluster.clone(),
            },
            (None, Some(baggage)) => Self {
                workload: baggage.workload.clone(),
                // What was proven goes before what is said.
                namespace: principal.as_ref().map_or_else(|| baggage.namespace.clone(), |id| id.namespace().into()),
                principal,
                canonical_service: baggage.service_name.clone(),
                canonical_revision: baggage.service_version.clone(),
                cluster: baggage.cluster.clone(),
            },
            (None, None) => Self {
                namespace: principal.as_ref().map_or_else(Arc::default, |id| id.namespace().into()),
                principal,
                ..Self::default()
            },
        }
    }
}

/// The ends of a request or connection, and the service that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Who asks; made once per tunnel.
    pub source: Arc<PeerLabels>,
    /// Who answers.
    pub destination: PeerLabels,
    /// The service that was asked for.
    pub service: Option<ServiceLabels>,
}

/// What the labels say about a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    hostname: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

impl Ends {
    /// The labels of what `source` asks of `destination`.
    pub fn new(source: &Arc<PeerLabels>, destination: &Peer, service: Option<&Service>) -> Self {
        Self {
            source: source.clone(),
            destination: PeerLabels::of(destination),
            service: service.map(|service| ServiceLabels {
                hostname: service.key.hostname.as_str().into(),
                name: service.name.clone(),
                namespace: service.key.namespace.clone(),
            }),
        }
    }

    fn other() -> Self {
        let other = PeerLabels { workload: "other".into(), ..PeerLabels::default() };
        Self { source: Arc::new(other.clone()), destination: other, service: None }
    }

    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        value(encoder, "reporter", "waypoint")?;
        for (peer, names) in [(&*self.source, &SOURCE), (&self.destination, &DESTINATION)] {
            let principal = peer.principal.as_ref().map_or_else(String::new, ToString::to_string);
            let values: [&str; 8] = [
                &peer.workload,
                &peer.namespace,
                &principal,
                &peer.canonical_service,
                &peer.canonical_revision,
                &peer.canonical_service,
                &peer.canonical_revision,
                &peer.cluster,
            ];
            for (name, text) in names.iter().zip(values) {
                value(encoder, name, text)?;
            }
        }
        let service = self.service.as_ref();
        value(encoder, "destination_service", service.map_or("", |s| &s.hostname))?;
        value(encoder, "destination_service_name", service.map_or("", |s| &s.name))?;
        value(encoder, "destination_service_namespace", service.map_or("", |s| &s.namespace))?;
        // Whoever reaches a waypoint has proven who it is.
        value(encoder, "connection_security_policy", "mutual_tls")
    }
}

/// `app` and `version` repeat the canonical service and its revision, as Istio has it.
const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_canonical_service",
    "source_canonical_revision",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// The labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// Its ends.
    pub ends: Ends,
    /// The status of the answer; 0 when there was none.
    pub code: u16,
    /// The status of gRPC, where it was a request of gRPC.
    pub grpc: Option<u32>,
    /// Whether it was one.
    pub is_grpc: bool,
    /// Envoy's flags for how it failed.
    pub flags: &'static str,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.ends.encode(encoder)?;
        value(encoder, "request_protocol", if self.is_grpc { "grpc" } else { "http" })?;
        value(encoder, "response_code", &self.code.to_string())?;
        if self.is_grpc {
            value(encoder, "grpc_response_status", &self.grpc.map_or_else(String::new, |code| code.to_string()))?;
        }
        value(encoder, "response_flags", self.flags)
    }
}

impl LabelSet for RequestLabels {
    fn other() -> Self {
        Self { ends: Ends::other(), code: 0, grpc: None, is_grpc: false, flags: "-" }
    }
}

/// The labels of a connection that is no HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// Its ends.
    pub ends: Ends,
    /// Flags for how it failed.
    pub flags: &'static str,
}

impl EncodeLabelSet for ConnectionLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.ends.encode(encoder)?;
        value(encoder, "request_protocol", "tcp")?;
        value(encoder, "response_flags", self.flags)
    }
}

impl LabelSet for ConnectionLabels {
    fn other() -> Self {
        Self { ends: Ends::other(), flags: "-" }
    }
}
