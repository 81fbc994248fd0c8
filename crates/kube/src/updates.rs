//! What changes among objects, wherever they come from.

use loam_manifest::{Manifests, Update};

use crate::Objects;

/// A source that is being followed.
#[derive(Debug)]
pub enum Updates {
    /// A directory of manifests.
    Dir(Manifests),
    /// An API server.
    Kubernetes(Objects),
}

impl Updates {
    /// Waits for the next change. Nothing is lost when the wait is given up. `None` when the source has ended.
    pub async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Dir(manifests) => manifests.next().await,
            Self::Kubernetes(objects) => objects.next().await,
        }
    }
}
