//! Looks again at what a peer showed, when the roots change while its connection lives.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::CommonState;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::trust::Trust;
use crate::verify::{PeerError, Purpose, verify_chain};

/// What a peer proved itself with.
pub struct Proof {
    chain: Box<[CertificateDer<'static>]>,
    purpose: Purpose,
    /// When it was verified. Only the roots are asked again: a certificate that expires is replaced by its owner, and
    /// its connections live on.
    at: UnixTime,
    roots: Roots,
}

/// The roots of a handshake that begins, and their changes since.
pub(crate) struct Roots {
    trust: Arc<Trust>,
    changes: watch::Receiver<u64>,
}

impl Roots {
    pub(crate) fn of(trust: &Arc<Trust>) -> Self {
        Self { trust: trust.clone(), changes: trust.changes() }
    }

    /// What the peer of a finished handshake showed.
    pub(crate) fn proof(self, state: &CommonState, purpose: Purpose) -> Proof {
        let chain = state.peer_certificates().unwrap_or_default().into();
        Proof { chain, purpose, at: UnixTime::now(), roots: self }
    }
}

impl Proof {
    /// Ends when the peer would no longer be accepted, because the roots that explained it are gone.
    pub async fn lost(mut self) -> PeerError {
        loop {
            if self.roots.changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let Some((end_entity, intermediates)) = self.chain.split_first() else { return PeerError::NoCertificate };
            if let Err(error) = verify_chain(&self.roots.trust, end_entity, intermediates, self.purpose, self.at) {
                return error;
            }
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(self.at.as_secs());
        f.debug_struct("Proof").field("purpose", &self.purpose).field("at", &at).finish_non_exhaustive()
    }
}
