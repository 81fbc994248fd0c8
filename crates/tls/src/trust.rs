//! Whom we trust: the roots of the mesh and the trust domains they may speak for.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use loam_core::ids::TrustDomain;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::cert;

/// Most roots of a bundle: a rotation needs two, a few federated meshes some more, and each costs time per handshake.
pub const MAX_ROOTS: usize = 32;

/// A root bundle that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TrustError {
    #[error("the root bundle is empty")]
    Empty,
    #[error("the root bundle has {0} certificates, more than {MAX_ROOTS}")]
    TooMany(usize),
    #[error("certificate {0} of the root bundle cannot be read")]
    Malformed(usize),
    #[error("certificate {0} of the root bundle is not that of a CA")]
    NotCa(usize),
    #[error("every root of the bundle is expired or not yet valid")]
    NoneValid,
}

/// What verification of a peer is measured against. Shared by all credentials of a process, so that roots from the
/// newest answer of the CA count at once for every handshake.
pub struct Trust {
    domains: Vec<TrustDomain>,
    roots: ArcSwap<Roots>,
    /// Counts the times that the roots became others.
    changes: watch::Sender<u64>,
}

pub(crate) struct Roots {
    pub(crate) store: RootCertStore,
}

impl Trust {
    /// Trusts `domain` and its `aliases`, and no root yet: every peer is refused until there is one.
    pub fn new(domain: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) -> Arc<Self> {
        let mut domains = vec![domain];
        domains.extend(aliases);
        let roots = Roots { store: RootCertStore::empty() };
        Arc::new(Self { domains, roots: ArcSwap::from_pointee(roots), changes: watch::Sender::new(0) })
    }

    /// The own trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domains[0]
    }

    /// Whether peers of this trust domain are accepted.
    pub fn covers(&self, domain: &TrustDomain) -> bool {
        self.domains.contains(domain)
    }

    /// Replaces the roots; a bundle that has none which is valid `now` changes nothing.
    pub fn replace_roots(&self, bundle: Vec<CertificateDer<'static>>, now: SystemTime) -> Result<(), TrustError> {
        self.store(Arc::new(Roots::new(bundle, now)?));
        Ok(())
    }

    /// The same domains with other roots, to try a bundle before it counts.
    pub(crate) fn with_roots(&self, bundle: Vec<CertificateDer<'static>>, now: SystemTime) -> Result<Self, TrustError> {
        let roots = Roots::new(bundle, now)?;
        Ok(Self { domains: self.domains.clone(), roots: ArcSwap::from_pointee(roots), changes: watch::Sender::new(0) })
    }

    /// Takes over the roots of another.
    pub(crate) fn adopt(&self, tried: &Self) {
        self.store(tried.roots.load_full());
    }

    fn store(&self, roots: Arc<Roots>) {
        let before = self.roots.swap(roots.clone());
        // Every renewal brings a bundle, and nearly always the same.
        if before.store.roots != roots.store.roots {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Wakes when the roots became others.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many roots are trusted.
    pub fn root_count(&self) -> usize {
        self.roots.load().store.len()
    }

    pub(crate) fn roots(&self) -> arc_swap::Guard<Arc<Roots>> {
        self.roots.load()
    }
}

impl Roots {
    pub(crate) fn new(bundle: Vec<CertificateDer<'static>>, now: SystemTime) -> Result<Self, TrustError> {
        match bundle.len() {
            0 => return Err(TrustError::Empty),
            n if n > MAX_ROOTS => return Err(TrustError::TooMany(n)),
            _ => {}
        }
        let mut store = RootCertStore::empty();
        for (i, der) in bundle.iter().enumerate() {
            let cert = cert::parse(der).map_err(|_| TrustError::Malformed(i))?;
            if !cert.is_ca() {
                return Err(TrustError::NotCa(i));
            }
            // Path building takes a root as it is and never looks at its dates.
            let valid = cert::system_time(cert.validity().not_before)..=cert::system_time(cert.validity().not_after);
            if valid.contains(&now) {
                store.add(der.clone()).map_err(|_| TrustError::Malformed(i))?;
            }
        }
        if store.is_empty() {
            return Err(TrustError::NoneValid);
        }
        Ok(Self { store })
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("domains", &self.domains).field("roots", &self.root_count()).finish()
    }
}
