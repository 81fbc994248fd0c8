//! The kinds of objects that are read, and the name an object goes by.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::gateway::{
    BackendTlsPolicySpec, BackendTrafficPolicySpec, GatewayClassSpec, GatewaySpec, GrpcRouteSpec, HttpRouteSpec,
    ReferenceGrantSpec, TcpRouteSpec, TlsRouteSpec,
};
use crate::istio::{
    AuthorizationPolicySpec, Custom, PeerAuthenticationSpec, Place, ServiceEntrySpec, SidecarSpec, WorkloadEntrySpec,
};

/// Every kind this crate gives types to. The order is the one in which a batch lists objects: what others refer to
/// comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds say it")]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    PeerAuthentication,
    AuthorizationPolicy,
    Sidecar,
    NetworkPolicy,
    GatewayClass,
    Gateway,
    Service,
    ServiceEntry,
    EndpointSlice,
    WorkloadEntry,
    ReferenceGrant,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    BackendTlsPolicy,
    BackendTrafficPolicy,
    Pod,
}

/// Versions of Istio's groups that say the same.
const NETWORKING: [&str; 3] = ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const SECURITY: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

/// Versions of the Gateway API in which its kinds have been read alike since they exist.
const GATEWAY: [&str; 2] = ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
const GATEWAY_V1: [&str; 1] = ["gateway.networking.k8s.io/v1"];
const GATEWAY_ALPHA: [&str; 3] =
    ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"];
const GATEWAY_TRIAL: [&str; 1] = ["gateway.networking.x-k8s.io/v1alpha1"];

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 21] = [
        Kind::Namespace,
        Kind::Node,
        Kind::ServiceAccount,
        Kind::PeerAuthentication,
        Kind::AuthorizationPolicy,
        Kind::Sidecar,
        Kind::NetworkPolicy,
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::Service,
        Kind::ServiceEntry,
        Kind::EndpointSlice,
        Kind::WorkloadEntry,
        Kind::ReferenceGrant,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::BackendTlsPolicy,
        Kind::BackendTrafficPolicy,
        Kind::Pod,
    ];

    /// The kind as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::PeerAuthentication => "PeerAuthentication",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
            Kind::Sidecar => "Sidecar",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Service => "Service",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::WorkloadEntry => "WorkloadEntry",
            Kind::GatewayClass => "GatewayClass",
            Kind::Gateway => "Gateway",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::TlsRoute => "TLSRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::BackendTrafficPolicy => "XBackendTrafficPolicy",
            Kind::Pod => "Pod",
        }
    }

    /// Every `apiVersion` in which it is read, the newest first.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Namespace | Kind::Node | Kind::ServiceAccount | Kind::Service | Kind::Pod => &["v1"],
            Kind::EndpointSlice => &["discovery.k8s.io/v1"],
            Kind::NetworkPolicy => &["networking.k8s.io/v1"],
            Kind::Sidecar | Kind::ServiceEntry | Kind::WorkloadEntry => &NETWORKING,
            Kind::PeerAuthentication | Kind::AuthorizationPolicy => &SECURITY,
            Kind::GatewayClass | Kind::Gateway | Kind::ReferenceGrant | Kind::HttpRoute => &GATEWAY,
            Kind::GrpcRoute => &GATEWAY_V1,
            Kind::TlsRoute | Kind::TcpRoute | Kind::BackendTlsPolicy => &GATEWAY_ALPHA,
            Kind::BackendTrafficPolicy => &GATEWAY_TRIAL,
        }
    }

    /// Whether its objects say where they are written, and so are told again when they only move.
    pub(crate) fn placed(self) -> bool {
        match self {
            Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::Sidecar
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::GatewayClass
            | Kind::Gateway
            | Kind::ReferenceGrant
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::BackendTlsPolicy
            | Kind::BackendTrafficPolicy => true,
            Kind::NetworkPolicy => false,
            Kind::Namespace | Kind::Node | Kind::ServiceAccount | Kind::Service | Kind::EndpointSlice | Kind::Pod => {
                false
            }
        }
    }

    /// Whether its objects live in a namespace.
    pub fn namespaced(self) -> bool {
        match self {
            Kind::Namespace | Kind::Node | Kind::GatewayClass => false,
            Kind::ServiceAccount
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::Sidecar
            | Kind::NetworkPolicy
            | Kind::Service
            | Kind::ServiceEntry
            | Kind::EndpointSlice
            | Kind::WorkloadEntry
            | Kind::Gateway
            | Kind::ReferenceGrant
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::BackendTlsPolicy
            | Kind::BackendTrafficPolicy
            | Kind::Pod => true,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What names an object: unique among all files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a kind that has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One object of a manifest. Its metadata always has a valid name and, where the kind has one, a namespace.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds say it")]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    ServiceAccount(Box<ServiceAccount>),
    PeerAuthentication(Box<Custom<PeerAuthenticationSpec>>),
    AuthorizationPolicy(Box<Custom<AuthorizationPolicySpec>>),
    Sidecar(Box<Custom<SidecarSpec>>),
    NetworkPolicy(Box<NetworkPolicy>),
    Service(Box<Service>),
    ServiceEntry(Box<Custom<ServiceEntrySpec>>),
    EndpointSlice(Box<EndpointSlice>),
    WorkloadEntry(Box<Custom<WorkloadEntrySpec>>),
    GatewayClass(Box<Custom<GatewayClassSpec>>),
    Gateway(Box<Custom<GatewaySpec>>),
    ReferenceGrant(Box<Custom<ReferenceGrantSpec>>),
    HttpRoute(Box<Custom<HttpRouteSpec>>),
    GrpcRoute(Box<Custom<GrpcRouteSpec>>),
    TlsRoute(Box<Custom<TlsRouteSpec>>),
    TcpRoute(Box<Custom<TcpRouteSpec>>),
    BackendTlsPolicy(Box<Custom<BackendTlsPolicySpec>>),
    BackendTrafficPolicy(Box<Custom<BackendTrafficPolicySpec>>),
    Pod(Box<Pod>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::ServiceAccount(_) => Kind::ServiceAccount,
            Object::PeerAuthentication(_) => Kind::PeerAuthentication,
            Object::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Object::Sidecar(_) => Kind::Sidecar,
            Object::NetworkPolicy(_) => Kind::NetworkPolicy,
            Object::Service(_) => Kind::Service,
            Object::ServiceEntry(_) => Kind::ServiceEntry,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::WorkloadEntry(_) => Kind::WorkloadEntry,
            Object::GatewayClass(_) => Kind::GatewayClass,
            Object::Gateway(_) => Kind::Gateway,
            Object::ReferenceGrant(_) => Kind::ReferenceGrant,
            Object::HttpRoute(_) => Kind::HttpRoute,
            Object::GrpcRoute(_) => Kind::GrpcRoute,
            Object::TlsRoute(_) => Kind::TlsRoute,
            Object::TcpRoute(_) => Kind::TcpRoute,
            Object::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Object::BackendTrafficPolicy(_) => Kind::BackendTrafficPolicy,
            Object::Pod(_) => Kind::Pod,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Namespace(o) => &o.metadata,
            Object::Node(o) => &o.metadata,
            Object::ServiceAccount(o) => &o.metadata,
            Object::PeerAuthentication(o) => &o.metadata,
            Object::AuthorizationPolicy(o) => &o.metadata,
            Object::Sidecar(o) => &o.metadata,
            Object::NetworkPolicy(o) => &o.metadata,
            Object::Service(o) => &o.metadata,
            Object::ServiceEntry(o) => &o.metadata,
            Object::EndpointSlice(o) => &o.metadata,
            Object::WorkloadEntry(o) => &o.metadata,
            Object::GatewayClass(o) => &o.metadata,
            Object::Gateway(o) => &o.metadata,
            Object::ReferenceGrant(o) => &o.metadata,
            Object::HttpRoute(o) => &o.metadata,
            Object::GrpcRoute(o) => &o.metadata,
            Object::TlsRoute(o) => &o.metadata,
            Object::TcpRoute(o) => &o.metadata,
            Object::BackendTlsPolicy(o) => &o.metadata,
            Object::BackendTrafficPolicy(o) => &o.metadata,
            Object::Pod(o) => &o.metadata,
        }
    }

    /// The name it goes by.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        let part = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        Key { kind: self.kind(), namespace: part(&metadata.namespace), name: part(&metadata.name) }
    }

    /// Writes down where it was found, for those who want to know.
    pub(crate) fn place(&mut self, file: &Arc<str>, line: u32) {
        let place = match self {
            Object::PeerAuthentication(o) | Object::AuthorizationPolicy(o) => &mut o.place,
            Object::Sidecar(o) => &mut o.place,
            Object::ServiceEntry(o) => &mut o.place,
            Object::WorkloadEntry(o) => &mut o.place,
            Object::GatewayClass(o) => &mut o.place,
            Object::Gateway(o) => &mut o.place,
            Object::ReferenceGrant(o) => &mut o.place,
            Object::HttpRoute(o) => &mut o.place,
            Object::GrpcRoute(o) => &mut o.place,
            Object::TlsRoute(o) => &mut o.place,
            Object::TcpRoute(o) => &mut o.place,
            Object::BackendTlsPolicy(o) => &mut o.place,
            Object::BackendTrafficPolicy(o) => &mut o.place,
            Object::Namespace(_)
            | Object::Node(_)
            | Object::ServiceAccount(_)
            | Object::NetworkPolicy(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Pod(_) => return,
        };
        *place = Place { file: Arc::clone(file), line };
    }

    /// Writes the name it was identified by into its metadata: a manifest may leave the namespace out.
    pub(crate) fn complete(&mut self, key: &Key) {
        let metadata = match self {
            Object::Namespace(o) => &mut o.metadata,
            Object::Node(o) => &mut o.metadata,
            Object::ServiceAccount(o) => &mut o.metadata,
            Object::PeerAuthentication(o) => &mut o.metadata,
            Object::AuthorizationPolicy(o) => &mut o.metadata,
            Object::Sidecar(o) => &mut o.metadata,
            Object::NetworkPolicy(o) => &mut o.metadata,
            Object::Service(o) => &mut o.metadata,
            Object::ServiceEntry(o) => &mut o.metadata,
            Object::EndpointSlice(o) => &mut o.metadata,
            Object::WorkloadEntry(o) => &mut o.metadata,
            Object::GatewayClass(o) => &mut o.metadata,
            Object::Gateway(o) => &mut o.metadata,
            Object::ReferenceGrant(o) => &mut o.metadata,
            Object::HttpRoute(o) => &mut o.metadata,
            Object::GrpcRoute(o) => &mut o.metadata,
            Object::TlsRoute(o) => &mut o.metadata,
            Object::TcpRoute(o) => &mut o.metadata,
            Object::BackendTlsPolicy(o) => &mut o.metadata,
            Object::BackendTrafficPolicy(o) => &mut o.metadata,
            Object::Pod(o) => &mut o.metadata,
        };
        metadata.namespace = key.kind.namespaced().then(|| key.namespace.to_string());
    }
}

/// Where an object without a namespace goes, as with `kubectl apply`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Longest name of an object (RFC 1123 as Kubernetes applies it).
const MAX_NAME_BYTES: usize = 253;

/// Checks a name as an API server would, so that nothing behind this door meets a slash or a line break in one.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let why = if bytes.is_empty() {
        "is empty"
    } else if bytes.len() > MAX_NAME_BYTES {
        "is longer than 253 bytes"
    } else if !bytes.iter().copied().all(inner) {
        "has a character other than a-z, 0-9, '-' and '.'"
    } else if !outer(bytes.first()) || !outer(bytes.last()) {
        "does not begin and end with a letter or digit"
    } else {
        return Ok(());
    };
    Err(format!("{what} {:?} {why}", name.chars().take(64).collect::<String>()))
}
