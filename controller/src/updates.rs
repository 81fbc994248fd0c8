//! Which objects are followed.

use loam_kube::{Client, Objects, Selection, Updates};
use loam_manifest::{Kind, Manifests, Source};

/// Kinds that decide what proxies may know. Accounts of services are told by the pods that have them.
const KINDS: [Kind; 18] = [
    Kind::Namespace,
    Kind::Node,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Sidecar,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::Service,
    Kind::ServiceEntry,
    Kind::EndpointSlice,
    Kind::WorkloadEntry,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::BackendTlsPolicy,
    Kind::BackendTrafficPolicy,
    Kind::Pod,
];

/// Begins to follow a source; `client` is of the API server, if the source is one.
pub async fn follow(source: &Source, client: Option<&Client>) -> anyhow::Result<Updates> {
    match (source, client) {
        (Source::Dir(dir), _) => Ok(Updates::Dir(Manifests::stream(dir).await?)),
        (Source::Kubernetes, Some(client)) => {
            Ok(Updates::Kubernetes(Objects::stream(client, KINDS.map(Selection::all))))
        }
        (Source::Kubernetes, None) => anyhow::bail!("follow the source kubernetes: there is no client"),
    }
}
