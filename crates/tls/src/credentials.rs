//! A certificate with its key, ready for handshakes.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use loam_core::ids::Identity;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use crate::ca::Issued;
use crate::cert::Leaf;
use crate::key::{Key, KeyError};
use crate::provider::{ALPN, VERSIONS, provider};
use crate::trust::{Trust, TrustError};
use crate::verify::{PeerError, Purpose, Verifier, verify_chain};

/// One certificate and the TLS configurations made from it, once: handshakes only clone an `Arc`.
pub struct Credentials {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    trust: Arc<Trust>,
}

/// A certificate that cannot become credentials.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CredentialsError {
    #[error("the chain is empty")]
    Empty,
    #[error("the certificate would not be accepted by a peer: {0}")]
    Unacceptable(#[source] PeerError),
    #[error("the certificate is for {got} instead of {asked}")]
    OtherIdentity { asked: Identity, got: Identity },
    #[error("the certificate is for another key")]
    OtherKey,
    #[error(transparent)]
    Roots(#[from] TrustError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("configure TLS: {0}")]
    Tls(rustls::Error),
}

impl Credentials {
    /// Takes a key and what the CA returned for it. Everything a peer will demand is checked first: neither a
    /// certificate that nobody would accept nor a bundle that does not explain it may replace what works. The bundle
    /// then becomes the roots of `trust`.
    pub fn new(
        asked: &Identity,
        key: Key,
        issued: Issued,
        trust: &Arc<Trust>,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let tried = trust.with_roots(issued.roots, now)?;
        let (end_entity, intermediates) = issued.chain.split_first().ok_or(CredentialsError::Empty)?;
        let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO));
        let check = |purpose| {
            verify_chain(&tried, end_entity, intermediates, purpose, at).map_err(CredentialsError::Unacceptable)
        };
        let leaf = check(Purpose::Server).and_then(|_| check(Purpose::Client))?;
        if leaf.identity != *asked {
            return Err(CredentialsError::OtherIdentity { asked: asked.clone(), got: leaf.identity });
        }
        let certified = CertifiedKey::new(issued.chain.clone(), key.into_signer()?);
        certified.keys_match().map_err(|_| CredentialsError::OtherKey)?;
        let (server, client) = configs(certified, trust).map_err(CredentialsError::Tls)?;
        trust.adopt(&tried);
        Ok(Self { leaf, chain: issued.chain, server, client, trust: trust.clone() })
    }

    /// Whom they prove.
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// Beginning of validity.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// Serial number of the certificate in hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// The certificates, own first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom they are measured against, and measure peers against.
    pub(crate) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// For accepting: demands a client certificate of our mesh.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For dialling: accepts only servers of our mesh. Which of them is compared by the caller, see
    /// [`connect`](crate::handshake::connect).
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

/// The two configurations of one certificate.
pub(crate) fn configs(
    certified: CertifiedKey,
    trust: &Arc<Trust>,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), rustls::Error> {
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let verifier = Arc::new(Verifier(trust.clone()));
    let mut server = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(resolver.clone());
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the verification of the peer, which roots and validity may have outdated.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let mut client = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    // A name in the clear would tell the network who is called; the destination address chooses the certificate.
    client.enable_sni = false;
    Ok((Arc::new(server), Arc::new(client)))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &format_args!("{}", self.leaf.identity))
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}
