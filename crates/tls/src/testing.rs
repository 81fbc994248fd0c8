//! A throw-away CA for tests: credentials for any identity, and certificates that are wrong in one way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use loam_core::ids::{Identity, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::ca::{Issued, SignCsr, SignError};
use crate::credentials::{Credentials, configs};
use crate::key::Key;
use crate::provider::{ALPN, VERSIONS, provider};
use crate::trust::Trust;

/// A CA whose key lives as long as the test.
pub struct TestCa {
    name: String,
    domain: TrustDomain,
    issuer: Arc<Issuer<'static, KeyPair>>,
    root: CertificateDer<'static>,
    trust: Arc<Trust>,
}

/// What a minted certificate says. The default is right in every way; tests spoil one field.
#[derive(Debug, Clone)]
pub struct Spec {
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub names: Vec<String>,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Extended key usages.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Whether it is a CA itself.
    pub ca: bool,
}

impl Spec {
    /// A right certificate for `uri`, valid for an hour.
    pub fn of(uri: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![uri.to_owned()],
            names: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(3600),
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            ca: false,
        }
    }
}

impl TestCa {
    /// A CA for `trust_domain`.
    pub fn new(trust_domain: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self::named(trust_domain, &format!("root {}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A CA whose root has the given name.
    pub fn named(trust_domain: &str, name: &str) -> Self {
        let domain: TrustDomain = trust_domain.parse().expect("a test names a valid trust domain");
        let (root, issuer) = authority(name, None);
        let trust = Trust::new(domain.clone(), []);
        trust.replace_roots(vec![root.clone()], SystemTime::now()).expect("a fresh root is valid");
        Self { name: name.to_owned(), domain, issuer: Arc::new(issuer), root, trust }
    }

    /// The same CA as another process knows it: whom that trusts can change by itself.
    pub fn elsewhere(&self) -> Self {
        let trust = Trust::new(self.domain.clone(), []);
        trust.replace_roots(vec![self.root.clone()], SystemTime::now()).expect("a fresh root is valid");
        Self {
            name: self.name.clone(),
            domain: self.domain.clone(),
            issuer: self.issuer.clone(),
            root: self.root.clone(),
            trust,
        }
    }

    /// Trusts these CAs from here on, and no other.
    pub fn trust_only(&self, cas: &[&TestCa]) {
        let roots = cas.iter().map(|ca| ca.root.clone()).collect();
        self.trust.replace_roots(roots, SystemTime::now()).expect("a fresh root is valid");
    }

    /// The name of its root.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Trusts this CA for its domain.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The identity of a service account in this CA's domain.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Identity {
        Identity::new(self.domain.clone(), namespace, service_account).expect("a test names a valid workload")
    }

    /// Credentials for an identity, as a CA and a [`Store`](crate::store::Store) would make them.
    pub fn credentials(&self, identity: &Identity) -> Arc<Credentials> {
        self.credentials_of(identity, &Spec::of(&identity.to_string()))
    }

    /// Credentials whose certificate says what `spec` says; it must be right enough to be used.
    pub fn credentials_of(&self, identity: &Identity, spec: &Spec) -> Arc<Credentials> {
        let key = Key::generate().expect("a key can be drawn");
        let issued = self.issue(key.pair(), spec);
        Arc::new(Credentials::new(identity, key, issued, &self.trust, SystemTime::now()).expect("a right certificate"))
    }

    /// TLS configurations that show a certificate nobody has checked, for tests of refusals. They accept the peers
    /// that this CA's credentials accept.
    pub fn unchecked(&self, spec: &Spec) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let key = Key::generate().expect("a key can be drawn");
        let chain = self.issue(key.pair(), spec).chain;
        self.unchecked_chain(key, chain)
    }

    /// As [`unchecked`](Self::unchecked), with a chain made elsewhere.
    pub fn unchecked_chain(
        &self,
        key: Key,
        chain: Vec<CertificateDer<'static>>,
    ) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let certified = CertifiedKey::new(chain, key.into_signer().expect("the key is ours"));
        configs(certified, &self.trust).expect("the provider has TLS 1.3")
    }

    /// A server of the control plane, known by DNS names; it asks for no client certificate.
    pub fn control_plane(&self, names: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key can be drawn");
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let spec = Spec { uris: Vec::new(), names, ..Spec::of("") };
        let chain = self.issue(&key, &spec).chain;
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(VERSIONS)
            .expect("the provider has TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key.into())
            .expect("the key is that of the certificate");
        config.alpn_protocols = vec![ALPN.to_vec()];
        Arc::new(config)
    }

    /// Its root certificate in PEM.
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// Signs a certificate for a public key.
    pub fn issue(&self, key: &impl PublicKeyData, spec: &Spec) -> Issued {
        Issued { chain: vec![mint(key, spec, &self.issuer)], roots: vec![self.root.clone()] }
    }

    /// Signs through `depth` intermediate CAs.
    pub fn issue_deep(&self, key: &impl PublicKeyData, spec: &Spec, depth: usize) -> Issued {
        let mut above = Vec::new();
        let mut issuer = None;
        for i in 0..depth {
            let (cert, next) = authority(&format!("intermediate {i}"), Some(issuer.as_ref().unwrap_or(&self.issuer)));
            above.insert(0, cert);
            issuer = Some(next);
        }
        let mut chain = vec![mint(key, spec, issuer.as_ref().unwrap_or(&self.issuer))];
        chain.extend(above);
        Issued { chain, roots: vec![self.root.clone()] }
    }
}

impl SignCsr for TestCa {
    async fn sign(&self, identity: &Identity, csr_pem: &str) -> Result<Issued, SignError> {
        let request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| SignError::Failed(e.to_string()))?;
        Ok(self.issue(&request.public_key, &Spec::of(&identity.to_string())))
    }
}

fn mint(key: &impl PublicKeyData, spec: &Spec, issuer: &Issuer<'_, KeyPair>) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = spec.not_before.into();
    params.not_after = spec.not_after.into();
    let uris = spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("a URI is ASCII")));
    let names = spec.names.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("a name is ASCII")));
    params.subject_alt_names = uris.chain(names).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = spec.purposes.clone();
    params.is_ca = if spec.ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.use_authority_key_identifier_extension = true;
    params.signed_by(key, issuer).expect("the CA's key signs").into()
}

fn authority(
    name: &str,
    above: Option<&Issuer<'static, KeyPair>>,
) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key can be drawn");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Loam test");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(365 * 24 * 3600)).into();
    let cert = match above {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    }
    .expect("the CA's key signs");
    (cert.into(), Issuer::new(params, key))
}

/// DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
            for i in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
                text.push(if i <= group.len() { digit as char } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
