//! What changes among the objects, wherever they come from.

use loam_kube::{Objects, Selection};
use loam_manifest::{Kind, Manifests, Source, Update};

/// Kinds that decide what proxies may know. Accounts of services are told by the pods that have them.
const KINDS: [Kind; 10] = [
    Kind::Namespace,
    Kind::Node,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Sidecar,
    Kind::Service,
    Kind::ServiceEntry,
    Kind::EndpointSlice,
    Kind::WorkloadEntry,
    Kind::Pod,
];

/// A source that is being followed.
#[derive(Debug)]
pub enum Updates {
    /// A directory of manifests.
    Dir(Manifests),
    /// An API server.
    Kubernetes(Objects),
}

impl Updates {
    /// Begins to follow a source; `client` is of the API server, if the source is one.
    pub async fn of(source: &Source, client: Option<&loam_kube::Client>) -> anyhow::Result<Self> {
        match (source, client) {
            (Source::Dir(dir), _) => Ok(Self::Dir(Manifests::stream(dir).await?)),
            (Source::Kubernetes, Some(client)) => {
                Ok(Self::Kubernetes(Objects::stream(client, KINDS.map(Selection::all))))
            }
            (Source::Kubernetes, None) => anyhow::bail!("follow the source kubernetes: there is no client"),
        }
    }

    /// Waits for the next change. Nothing is lost when the wait is given up. `None` when the source has ended.
    pub async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Dir(manifests) => manifests.next().await,
            Self::Kubernetes(objects) => objects.next().await,
        }
    }
}
