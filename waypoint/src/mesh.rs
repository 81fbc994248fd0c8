//! The mesh as this process knows it, and where it learns it.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use loam_api::convert::Decoder;
use loam_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, ROUTES_TYPE, TRAFFIC_TYPE};
use loam_core::snapshot::{Change, Snapshot};
use loam_xds::client::{Rejected, Sink, Update};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// The types of resources that a waypoint asks for.
pub const TYPES: [&str; 4] = [ADDRESS_TYPE, AUTHORIZATION_TYPE, ROUTES_TYPE, TRAFFIC_TYPE];

/// The newest snapshot. Readers never wait; the one writer swaps a whole new one in.
#[derive(Debug)]
pub struct Mesh {
    current: ArcSwap<Snapshot>,
    revision: watch::Sender<u64>,
}

impl Default for Mesh {
    fn default() -> Self {
        // Until the control plane has told of its policies, doubt denies.
        Self { current: ArcSwap::from_pointee(Snapshot::awaited()), revision: watch::Sender::new(0) }
    }
}

impl Mesh {
    /// The newest snapshot.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Applies changes. Only the configuration's one owner calls it.
    pub fn apply(&self, changes: Vec<Change>) {
        let next = self.current.load().apply(changes);
        let revision = next.revision();
        self.current.store(Arc::new(next));
        self.revision.send_replace(revision);
    }

    /// Waits until `find` finds something in a snapshot.
    pub async fn wait_for<T>(&self, mut find: impl FnMut(&Snapshot) -> Option<T>) -> T {
        let mut revision = self.revision.subscribe();
        loop {
            revision.mark_unchanged();
            if let Some(found) = find(&self.load()) {
                return found;
            }
            // The sender is in `self`, so the channel cannot close while this waits.
            let _ = revision.changed().await;
        }
    }
}

/// Brings what the control plane says into the mesh.
pub struct Feed {
    mesh: Arc<Mesh>,
    decoder: Decoder,
    metrics: Metrics,
    /// The namespace whose policies are about the whole mesh.
    root_namespace: Arc<str>,
    addresses_arrived: bool,
    policies_arrived: bool,
}

impl Feed {
    /// Feeds `mesh`.
    pub fn new(mesh: Arc<Mesh>, metrics: Metrics, root_namespace: Arc<str>) -> Self {
        Self {
            mesh,
            decoder: Decoder::default(),
            metrics,
            root_namespace,
            addresses_arrived: false,
            policies_arrived: false,
        }
    }
}

impl Sink for Feed {
    fn apply(&mut self, update: &Update) -> Vec<Rejected> {
        let mut changes = Vec::with_capacity(update.resources.len() + update.removed.len());
        let mut rejected = Vec::new();
        let mut bytes = 0;
        // First: a name in both is there afterwards.
        for name in &update.removed {
            changes.extend(self.decoder.removed(&update.type_url, name));
        }
        for resource in &update.resources {
            bytes += resource.body.len();
            match self.decoder.decode(&update.type_url, &resource.name, &resource.body) {
                Ok(change) => changes.push(change),
                Err(error) => {
                    let why = format!("{}: {}", error.field, error.why);
                    let (name, body) = (&resource.name, &resource.body);
                    changes.extend(self.decoder.doubt(&update.type_url, name, body, &self.root_namespace, &why));
                    rejected.push(Rejected { name: resource.name.clone(), why });
                }
            }
        }
        for known in TYPES {
            if update.type_url == known {
                self.metrics.xds_message(known, bytes);
            }
        }
        let is_last = |url| update.type_url == url && !update.more;
        if is_last(AUTHORIZATION_TYPE) && !std::mem::replace(&mut self.policies_arrived, true) {
            changes.push(Change::PoliciesArrived);
        }
        if is_last(ADDRESS_TYPE) && !std::mem::replace(&mut self.addresses_arrived, true) {
            changes.push(Change::AddressesArrived);
        }
        if !changes.is_empty() {
            self.mesh.apply(changes);
        }
        rejected
    }
}
