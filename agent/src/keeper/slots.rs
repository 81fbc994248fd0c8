//! The maps that the keeper writes: which listeners get a pod's connections, and which sockets are not redirected.

use super::sockets::Listeners;
use crate::sys::bpf::{Map, MapType, Update};
use loam_ebpf_common::layout::{EXEMPT, EXEMPTED, Kind, LISTENERS, slot};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// The maps LISTENERS and EXEMPT.
#[derive(Debug, Clone)]
pub(super) struct Stores {
    listeners: Arc<Map>,
    exempt: Arc<Map>,
}

impl Stores {
    /// The maps behind two descriptors.
    pub(super) fn new(listeners: OwnedFd, exempt: OwnedFd) -> Result<Self, String> {
        let map = |fd, name, map_type| {
            Map::from_fd(fd, map_type, 4, 4).map(Arc::new).map_err(|error| format!("{name}: {error}"))
        };
        Ok(Self {
            listeners: map(listeners, LISTENERS, MapType::SockMap)?,
            exempt: map(exempt, EXEMPT, MapType::SkStorage)?,
        })
    }

    /// Whether a pod may have this index.
    pub(super) fn has(&self, index: u32) -> bool {
        let last = |kind| slot(index, kind) < self.listeners.max_entries();
        index < self.listeners.max_entries() && Kind::ALL.into_iter().all(last)
    }

    /// Puts a pod's listeners into its slots. A listener that lies there already stays.
    pub(super) fn fill(&self, index: u32, listeners: &Listeners) -> Result<(), String> {
        // That there is somebody to answer is said by the listener of IPv4, which every pod has.
        let sockets = listeners.mesh.iter().chain(listeners.dns.iter().flat_map(|dns| dns.listeners().next()));
        for (kind, listener) in Kind::ALL.into_iter().zip(sockets) {
            self.listeners
                .update(&slot(index, kind).to_ne_bytes(), &listener.as_raw_fd().to_ne_bytes(), Update::Any)
                .map_err(|error| format!("fill slot {kind:?} of index {index}: {error}"))?;
        }
        Ok(())
    }

    /// Empties a pod's slots.
    pub(super) fn empty(&self, index: u32) -> Result<(), String> {
        for kind in Kind::ALL {
            match self.listeners.delete(&slot(index, kind).to_ne_bytes()) {
                Ok(()) => {}
                // Nothing lay there.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
                Err(error) => return Err(format!("empty slot {kind:?} of index {index}: {error}")),
            }
        }
        Ok(())
    }

    /// Keeps a socket from being redirected.
    pub(super) fn exempt(&self, socket: impl AsFd) -> io::Result<()> {
        let key = socket.as_fd().as_raw_fd().to_ne_bytes();
        self.exempt.update(&key, &EXEMPTED.to_ne_bytes(), Update::Any)
    }
}
