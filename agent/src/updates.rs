//! What changes among the objects that decide which pods of this node are ours, wherever they come from.

use loam_kube::{Client, Objects, Selection};
use loam_manifest::{Kind, Manifests, Update};

/// A source that is being followed.
#[derive(Debug)]
pub enum Updates {
    /// A directory of manifests.
    Dir(Manifests),
    /// An API server.
    Kubernetes(Objects),
}

impl Updates {
    /// Follows the namespaces of a cluster and the pods of one of its nodes.
    pub fn of_cluster(client: &Client, node: &str) -> Self {
        Self::Kubernetes(Objects::stream(client, [Selection::all(Kind::Namespace), Selection::pods_on(node)]))
    }

    /// Waits for the next change. Nothing is lost when the wait is given up. `None` when the source has ended.
    pub async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Dir(manifests) => manifests.next().await,
            Self::Kubernetes(objects) => objects.next().await,
        }
    }
}
