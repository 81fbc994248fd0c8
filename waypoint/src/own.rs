//! This waypoint itself: who it is, and its workload in the mesh.

use std::sync::Arc;

use loam_core::ids::{Identity, WorkloadUid};
use loam_core::snapshot::Snapshot;
use loam_core::workload::Workload;

use crate::config::Config;
use crate::mesh::Mesh;

/// This waypoint.
pub struct Own {
    mesh: Arc<Mesh>,
    uid: WorkloadUid,
    /// As whom it chooses endpoints until the mesh configuration has its workload.
    assumed: Arc<Workload>,
}

impl Own {
    /// The waypoint that `config` describes.
    pub fn new(config: &Config, mesh: Arc<Mesh>) -> Self {
        let uid = WorkloadUid::of_pod(&config.cluster, config.namespace(), &config.pod);
        let assumed = Workload {
            addresses: vec![config.address],
            network: config.network.clone(),
            node: config.node.clone(),
            cluster: config.cluster.clone(),
            owner: config.name.clone(),
            canonical_name: config.name.clone(),
            ..Workload::new(uid.clone(), config.pod.clone(), config.identity.clone())
        };
        Self { mesh, uid, assumed: Arc::new(assumed) }
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.assumed.identity
    }

    /// Its unique name.
    pub fn uid(&self) -> &Arc<str> {
        self.uid.as_shared()
    }

    /// Its workload.
    pub fn workload(&self) -> Arc<Workload> {
        self.workload_in(&self.mesh.load())
    }

    /// Its workload as `snapshot` has it.
    pub fn workload_in(&self, snapshot: &Snapshot) -> Arc<Workload> {
        snapshot.workload(&self.uid).unwrap_or(&self.assumed).clone()
    }
}
