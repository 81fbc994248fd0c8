//! A private key that has no certificate yet.

use std::fmt;
use std::sync::Arc;

use loam_core::ids::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use zeroize::{Zeroize, Zeroizing};

/// A fresh ECDSA P-256 key. It is used once: for one request, then inside one TLS configuration.
pub struct Key(KeyPair);

/// The key or the request could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("make a key and its signing request: {0}")]
pub struct KeyError(String);

impl Key {
    /// Draws a key.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate().map(Self).map_err(KeyError::of)
    }

    /// The signing request for `identity`, in PEM: one URI SAN and no subject.
    pub fn request(&self, identity: &Identity) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into().map_err(KeyError::of)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.serialize_request(&self.0).and_then(|csr| csr.pem()).map_err(KeyError::of)
    }

    /// The key as TLS uses it; the copy that could be read is wiped.
    pub(crate) fn into_signer(self) -> Result<Arc<dyn SigningKey>, KeyError> {
        let der = Zeroizing::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der())));
        any_ecdsa_type(&der).map_err(KeyError::of)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl KeyError {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
