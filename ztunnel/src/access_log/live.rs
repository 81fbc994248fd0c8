//! The connections that are carried at this moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use loam_hbone::Meter;
use serde::Serialize;

use super::{Bytes, Denial, Facts};
use crate::metrics::{Peer, Traffic};

/// Most connections in one listing. A node carries many more; nobody reads them.
pub const MAX_LISTED: usize = 1000;

/// Parts of the registry with a lock each, so that threads seldom meet.
const SHARDS: usize = 16;

/// A connection that is carried.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) id: u64,
    pub(super) began: Instant,
    pub(super) facts: Facts,
    pub(super) meter: Arc<Meter>,
    pub(super) traffic: Traffic,
    /// Why policies end it.
    pub(super) denial: OnceLock<Box<Denial>>,
    /// What of `meter` is in `traffic`; written under the lock of the connection's shard, or after it left.
    folded: [AtomicU64; 2],
}

impl Living {
    pub(super) fn new(id: u64, began: Instant, facts: Facts, traffic: Traffic) -> Self {
        Self { id, began, facts, meter: Arc::default(), traffic, denial: OnceLock::new(), folded: Default::default() }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes { to_upstream: self.meter.sent(), to_downstream: self.meter.received() }
    }

    /// Adds what came since the last time.
    pub(super) fn fold(&self, bytes: Bytes) {
        let since = |folded: &AtomicU64, total: u64| total.saturating_sub(folded.fetch_max(total, Ordering::Relaxed));
        let [upstream, downstream] = &self.folded;
        self.traffic.carried(since(upstream, bytes.to_upstream), since(downstream, bytes.to_downstream));
    }
}

#[derive(Debug, Default)]
pub(super) struct Live {
    shards: [Mutex<HashMap<u64, Arc<Living>>>; SHARDS],
}

impl Live {
    pub(super) fn add(&self, living: Arc<Living>) {
        self.shard(living.id).insert(living.id, living);
    }

    /// The connection leaves, and what it carried in all is counted.
    pub(super) fn end(&self, living: &Living, bytes: Bytes) {
        // Out of sight of `fold` before the last bytes are counted, so that none is counted twice.
        let removed = self.shard(living.id).remove(&living.id);
        living.fold(bytes);
        drop(removed);
    }

    /// Counts what living connections have carried so far. Connections count for themselves in between, so that those
    /// with equal labels do not contend for one counter.
    pub(super) fn fold(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            shard.values().for_each(|living| living.fold(living.bytes()));
        }
    }

    pub(super) fn list(&self, limit: usize) -> Listing {
        let mut all: Vec<Arc<Living>> = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).values().cloned());
        }
        let total = all.len();
        all.sort_unstable_by_key(|living| living.id);
        all.truncate(limit);
        Listing { total, connections: all.iter().map(|living| ConnectionView::of(living)).collect() }
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Arc<Living>>> {
        // The remainder is far below the size of any integer.
        lock(&self.shards[(id % SHARDS as u64) as usize])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some of the connections.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// How many there are.
    pub total: usize,
    /// The oldest of them.
    pub connections: Vec<ConnectionView>,
}

/// One connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the access log")]
pub struct ConnectionView {
    pub id: u64,
    pub direction: &'static str,
    pub src: PeerView,
    pub dst: PeerView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hbone_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent_waypoint: Option<String>,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub age_ms: u64,
}

/// One end of it.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the access log")]
pub struct PeerView {
    pub addr: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

impl PeerView {
    pub(super) fn of(addr: impl ToString, peer: &Peer) -> Self {
        let (workload, namespace, _) = peer.names();
        let identity = peer.identity.as_ref().map(ToString::to_string);
        Self { addr: addr.to_string(), workload: workload.to_owned(), namespace: namespace.to_owned(), identity }
    }
}

impl ConnectionView {
    fn of(living: &Living) -> Self {
        let facts = &living.facts;
        let bytes = living.bytes();
        Self {
            id: living.id,
            direction: facts.direction.as_str(),
            src: PeerView::of(facts.downstream, &facts.source),
            dst: PeerView::of(facts.addr, &facts.destination),
            hbone_addr: facts.authority.as_ref().map(ToString::to_string),
            service: facts.service.as_ref().map(|service| service.key.hostname.to_string()),
            absent_waypoint: facts.absent_waypoint.as_ref().map(|absent| absent.waypoint.to_string()),
            bytes_sent: bytes.to_upstream,
            bytes_received: bytes.to_downstream,
            age_ms: u64::try_from(living.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
