//! The certificate of the controller's own port, from its own authority.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use loam_tls::provider::provider;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroize;

use super::authority::{Authority, AuthorityError};

/// The next try after a certificate could not be made.
const RETRY: Duration = Duration::from_secs(10);

impl Authority {
    /// TLS 1.3 for the control plane's port: clients prove themselves by token, so none needs a certificate. The
    /// certificate for `names` (DNS names and addresses) is renewed at half its life, when somebody connects.
    pub fn serving_config(self: &Arc<Self>, names: &[String]) -> Result<ServerConfig, AuthorityError> {
        self.serving_config_at(names, Arc::new(SystemTime::now))
    }

    fn serving_config_at(self: &Arc<Self>, names: &[String], wall: Wall) -> Result<ServerConfig, AuthorityError> {
        let current = Mutex::new(make(self, names, wall())?);
        let resolver = Serving { authority: self.clone(), names: names.to_vec(), wall, current };
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

type Wall = Arc<dyn Fn() -> SystemTime + Send + Sync>;

struct Serving {
    authority: Arc<Authority>,
    names: Vec<String>,
    wall: Wall,
    current: Mutex<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = (self.wall)();
        // Making one takes a fraction of a millisecond: whoever comes in between may wait.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.renew_at <= now {
            match make(&self.authority, &self.names, now) {
                Ok(next) => *current = next,
                Err(error) => {
                    tracing::error!(%error, "the certificate of the control plane cannot be renewed");
                    current.renew_at = now + RETRY;
                }
            }
        }
        Some(current.key.clone())
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("names", &self.names).finish_non_exhaustive()
    }
}

fn make(authority: &Authority, names: &[String], now: SystemTime) -> Result<Current, AuthorityError> {
    let mut pair = KeyPair::generate()?;
    let signed = authority.sign_server(names, &pair, now)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    pair.zeroize();
    let key = provider().key_provider.load_private_key(der)?;
    let life = signed.not_after.duration_since(now).unwrap_or(Duration::ZERO);
    Ok(Current { key: Arc::new(CertifiedKey::new(signed.chain, key)), renew_at: now + life / 2 })
}

#[cfg(test)]
mod tests;
