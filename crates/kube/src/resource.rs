//! Where an API server keeps objects of a kind.

use loam_manifest::{Key, Kind};

/// Objects to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Their kind.
    pub kind: Kind,
    /// Only those with these fields, such as `spec.nodeName=a`.
    pub fields: Option<String>,
}

impl Selection {
    /// All objects of a kind.
    pub fn all(kind: Kind) -> Self {
        Self { kind, fields: None }
    }

    /// The pods of a node.
    pub fn pods_on(node: &str) -> Self {
        Self { kind: Kind::Pod, fields: Some(format!("spec.nodeName={node}")) }
    }
}

/// The word for objects of a kind in addresses and rules.
pub(crate) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Node => "nodes",
        Kind::ServiceAccount => "serviceaccounts",
        Kind::PeerAuthentication => "peerauthentications",
        Kind::AuthorizationPolicy => "authorizationpolicies",
        Kind::Sidecar => "sidecars",
        Kind::NetworkPolicy => "networkpolicies",
        Kind::Service => "services",
        Kind::ServiceEntry => "serviceentries",
        Kind::EndpointSlice => "endpointslices",
        Kind::WorkloadEntry => "workloadentries",
        Kind::GatewayClass => "gatewayclasses",
        Kind::Gateway => "gateways",
        Kind::ReferenceGrant => "referencegrants",
        Kind::HttpRoute => "httproutes",
        Kind::GrpcRoute => "grpcroutes",
        Kind::TlsRoute => "tlsroutes",
        Kind::TcpRoute => "tcproutes",
        Kind::BackendTlsPolicy => "backendtlspolicies",
        Kind::BackendTrafficPolicy => "xbackendtrafficpolicies",
        Kind::Pod => "pods",
    }
}

/// The API group of a kind; empty for the core.
pub(crate) fn group(kind: Kind) -> &'static str {
    kind.api_versions().first().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group)
}

/// Whether a cluster need not know the kind.
pub(crate) fn optional(kind: Kind) -> bool {
    let group = group(kind);
    group.ends_with("istio.io") || group.starts_with("gateway.networking.")
}

/// Path of the objects of a kind in one of its versions, of all namespaces.
pub(crate) fn path(kind: Kind, api_version: &str) -> String {
    format!("{}/{}", root(api_version), plural(kind))
}

/// Path of one object in a version of its kind.
pub fn object_path(key: &Key, api_version: &str) -> String {
    let (root, plural) = (root(api_version), plural(key.kind));
    match key.kind.namespaced() {
        true => format!("{root}/namespaces/{}/{plural}/{}", key.namespace, key.name),
        false => format!("{root}/{plural}/{}", key.name),
    }
}

/// Path of everything in a version of a group.
pub(crate) fn root(api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{api_version}")
}

/// Text as part of a query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_kinds_and_groups_have_their_paths() {
        assert_eq!(path(Kind::Pod, "v1"), "/api/v1/pods");
        assert_eq!(path(Kind::ServiceEntry, "networking.istio.io/v1"), "/apis/networking.istio.io/v1/serviceentries");
        assert_eq!((group(Kind::Pod), group(Kind::EndpointSlice)), ("", "discovery.k8s.io"));
        let optional: Vec<_> = Kind::ALL.into_iter().filter(|k| optional(*k)).map(plural).collect();
        let core = ["namespaces", "nodes", "serviceaccounts", "networkpolicies", "services", "endpointslices", "pods"];
        assert_eq!(optional, Kind::ALL.map(plural).into_iter().filter(|p| !core.contains(p)).collect::<Vec<_>>());
        assert_eq!(escaped("spec.nodeName=a&b"), "spec.nodeName%3Da%26b");
    }
}
