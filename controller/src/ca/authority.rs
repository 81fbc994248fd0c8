//! The key that vouches for everybody, and the certificates it signs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use loam_core::ids::{Identity, TrustDomain};
use loam_tls::cert::certificates_in_pem;
use loam_tls::provider::provider;
use loam_tls::verify::{PeerError, Purpose, verify_chain};
use loam_tls::{Trust, TrustError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::files::{self, FileError};

/// Life of a root that we make: longer than a cluster usually lives, because replacing one takes three steps.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Longest life of a certificate.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid since a moment ago, for nodes whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(300);

const KEY_FILE: &str = "ca-key.pem";
const CERT_FILE: &str = "ca-cert.pem";
/// The roots for everybody who calls the control plane.
pub const ROOT_FILE: &str = "root-cert.pem";

/// An authority cannot be had. The text says what is wrong where, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AuthorityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: the file is missing; check the path", .0.display())]
    Missing(PathBuf),
    #[error("{}: the key of {} is missing; bring it back, or remove the certificate to begin with another root that \
             every node has to learn", key.display(), cert.display())]
    MissingKey { key: PathBuf, cert: PathBuf },
    #[error("{}: is not a private key in PEM (ECDSA P-256 or P-384, RSA, Ed25519); bring back the right file", .0.display())]
    BadKey(PathBuf),
    #[error("{}: has no certificate, or a broken one; it must hold the CA certificate and those above it in PEM", .0.display())]
    BadCertificates(PathBuf),
    #[error("{}: its first certificate is not for the key in {}; give files that belong together", cert.display(), key.display())]
    OtherKey { cert: PathBuf, key: PathBuf },
    #[error("{}: certificate {index} is not that of a CA; give a certificate that may sign others", path.display())]
    NotCa { path: PathBuf, index: usize },
    #[error("{}: certificate {index} is valid only {period}; give one that is valid today, or correct the clock", path.display())]
    OutOfDate { path: PathBuf, index: usize, period: String },
    #[error("{}: certificate {index} is not signed by the one after it; order them from the CA up to its root", path.display())]
    BrokenChain { path: PathBuf, index: usize },
    #[error("{}: the chain does not end in a root; append the certificates up to a self-signed one", .0.display())]
    NoRoot(PathBuf),
    #[error("the CA cannot be used, because nobody would accept its certificates: {0}")]
    Useless(PeerError),
    #[error("the CA cannot be used: {0}")]
    Roots(#[from] TrustError),
    #[error("sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("sign: no random numbers")]
    Random,
    #[error("{0:?}: is neither a DNS name nor an address")]
    Name(String),
    #[error("configure TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A CA that signs.
pub struct Authority {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    /// The own certificate and those above it, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// When the first of the own certificates expires: nothing that is signed may outlive it.
    not_after: SystemTime,
    max_ttl: Duration,
}

/// A signed certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// It and what is needed to reach a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl Authority {
    /// The authority of a data directory; made at first start.
    pub fn open(directory: &Path, domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        files::check_directory(directory)?;
        let (key_path, cert_path) = (directory.join(KEY_FILE), directory.join(CERT_FILE));
        if files::read_secret(&key_path)?.is_none() {
            if files::read(&cert_path)?.is_some() {
                return Err(AuthorityError::MissingKey { key: key_path, cert: cert_path });
            }
            let pem = Zeroizing::new(KeyPair::generate()?.serialize_pem());
            if files::create_secret(&key_path, pem.as_bytes())? {
                tracing::info!(path = %key_path.display(), "made the key of the certificate authority");
            }
        }
        if files::read(&cert_path)?.is_none() {
            // A start that was interrupted left the key alone. The name of the root comes from its key, so that one
            // made again is the same root to everybody who trusts it.
            let pem = root(&read_key(&key_path)?, &domain, now)?;
            files::create_secret(&cert_path, pem.as_bytes())?;
        }
        let authority = Self::load(&cert_path, &key_path, domain, now)?;
        files::publish(&directory.join(ROOT_FILE), authority.roots_pem().as_bytes())?;
        Ok(authority)
    }

    /// An authority that the user gives: the certificate with those above it up to the root, and its key.
    pub fn load(cert: &Path, key: &Path, domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let key_pem = files::read(key)?.ok_or_else(|| AuthorityError::Missing(key.to_owned()))?;
        let pem = files::read(cert)?.ok_or_else(|| AuthorityError::Missing(cert.to_owned()))?;
        let chain = certificates_in_pem(&pem).unwrap_or_default();
        Self::assemble((cert, &chain), (key, &key_pem), domain, now)
    }

    /// An authority of certificates, from its own up to the root, and its key in PEM. The paths say where they are
    /// from.
    pub(super) fn assemble(
        (cert, chain): (&Path, &[CertificateDer<'static>]),
        (key, key_pem): (&Path, &[u8]),
        domain: TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key_pair = key_of(key, key_pem)?;
        let (intermediates, roots, not_after) = read_chain(cert, key, chain, &key_pair, now)?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], key_pair)?;
        let authority = Self { domain, issuer, intermediates, roots, not_after, max_ttl: MAX_TTL };
        authority.prove(now)?;
        Ok(authority)
    }

    /// Certificates live at most this long.
    pub fn with_max_ttl(mut self, max_ttl: Duration) -> Self {
        self.max_ttl = max_ttl;
        self
    }

    /// The trust domain it vouches for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots that everybody shall trust, in PEM.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|der| to_pem(der)).collect()
    }

    /// Signs a certificate that proves a workload. A wish for a shorter life is heard.
    pub fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Signed, AuthorityError> {
        let uri = identity.to_string().try_into()?;
        let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(vec![SanType::URI(uri)], purposes, key, ttl, now)
    }

    /// Signs a certificate that proves a server by its names and addresses.
    pub(super) fn sign_server(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Signed, AuthorityError> {
        let names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        self.issue(names, vec![ExtendedKeyUsagePurpose::ServerAuth], key, None, now)
    }

    fn issue(
        &self,
        names: Vec<SanType>,
        purposes: Vec<ExtendedKeyUsagePurpose>,
        key: &impl PublicKeyData,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Signed, AuthorityError> {
        let not_after = (now + ttl.map_or(self.max_ttl, |ttl| ttl.min(self.max_ttl))).min(self.not_after);
        let mut serial = [0; 16];
        provider().secure_random.fill(&mut serial).map_err(|_| AuthorityError::Random)?;
        // RFC 5280 4.1.2.2: positive, and without leading zeros its text is the same everywhere.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        params.use_authority_key_identifier_extension = true;
        let mut chain = vec![params.signed_by(key, &self.issuer)?.into()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(Signed { chain, serial: serial.iter().map(|b| format!("{b:02x}")).collect(), not_after })
    }

    /// Signs for nobody and judges the result as a peer would: path lengths, purposes and constraints of the chain
    /// show here and not in every connection of the mesh.
    fn prove(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let nobody = Identity::new(self.domain.clone(), "nobody", "nobody").expect("the names are valid");
        let signed = self.sign(&nobody, &KeyPair::generate()?, None, now)?;
        let trust = Trust::new(self.domain.clone(), []);
        trust.replace_roots(self.roots.clone(), now)?;
        let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO));
        for purpose in [Purpose::Server, Purpose::Client] {
            verify_chain(&trust, &signed.chain[0], &signed.chain[1..], purpose, at).map_err(AuthorityError::Useless)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).field("not_after", &self.not_after).finish()
    }
}

impl Signed {
    /// The answer of Istio's CA protocol: one certificate per element, the roots in the last.
    pub fn to_elements(&self, authority: &Authority) -> Vec<String> {
        let mut elements: Vec<_> = self.chain.iter().map(|der| to_pem(der)).collect();
        elements.push(authority.roots_pem());
        elements
    }
}

type Chain = (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>, SystemTime);

/// Splits a file of certificates into what leads to the root and the roots, and says when the first of them ends.
fn read_chain(
    path: &Path,
    key_path: &Path,
    chain: &[CertificateDer<'static>],
    key: &KeyPair,
    now: SystemTime,
) -> Result<Chain, AuthorityError> {
    let bad = || AuthorityError::BadCertificates(path.to_owned());
    let certs = chain
        .iter()
        .map(|der| X509Certificate::from_der(der).map(|(_, cert)| cert).map_err(|_| bad()))
        .collect::<Result<Vec<_>, _>>()?;
    let first = certs.first().ok_or_else(bad)?;
    if first.public_key().raw != key.subject_public_key_info() {
        return Err(AuthorityError::OtherKey { cert: path.to_owned(), key: key_path.to_owned() });
    }
    let mut end = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX));
    for (index, cert) in certs.iter().enumerate() {
        let signs = cert.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        if !cert.is_ca() || !signs {
            return Err(AuthorityError::NotCa { path: path.to_owned(), index });
        }
        let time = |t: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
        };
        let (from, to) = (time(cert.validity().not_before), time(cert.validity().not_after));
        if now < from || to <= now {
            let period = format!("from {} to {}", timestamp(from), timestamp(to));
            return Err(AuthorityError::OutOfDate { path: path.to_owned(), index, period });
        }
        end = end.min(to);
    }
    let is_root = |cert: &X509Certificate<'_>| {
        cert.subject().as_raw() == cert.issuer().as_raw() && cert.verify_signature(None).is_ok()
    };
    let depth = certs.iter().position(is_root).ok_or_else(|| AuthorityError::NoRoot(path.to_owned()))?;
    for (index, pair) in certs[..=depth].windows(2).enumerate() {
        let named = pair[0].issuer().as_raw() == pair[1].subject().as_raw();
        if !named || pair[0].verify_signature(Some(pair[1].public_key())).is_err() {
            return Err(AuthorityError::BrokenChain { path: path.to_owned(), index });
        }
    }
    // Beyond its root a file may hold others, while one replaces another.
    if let Some(more) = certs[depth..].iter().position(|cert| !is_root(cert)) {
        return Err(AuthorityError::BrokenChain { path: path.to_owned(), index: depth + more - 1 });
    }
    Ok((chain[..depth].to_vec(), chain[depth..].to_vec(), end))
}

fn read_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let pem = files::read(path)?.ok_or_else(|| AuthorityError::Missing(path.to_owned()))?;
    key_of(path, &pem)
}

fn key_of(path: &Path, pem: &[u8]) -> Result<KeyPair, AuthorityError> {
    let text = std::str::from_utf8(pem).map_err(|_| AuthorityError::BadKey(path.to_owned()))?;
    KeyPair::from_pem(text).map_err(|_| AuthorityError::BadKey(path.to_owned()))
}

/// A new root and its key, in PEM.
pub(super) fn new_root(domain: &TrustDomain, now: SystemTime) -> Result<(String, Zeroizing<String>), AuthorityError> {
    let key = KeyPair::generate()?;
    let pem = Zeroizing::new(key.serialize_pem());
    Ok((root(&key, domain, now)?, pem))
}

/// A self-signed root for `key`.
fn root(key: &KeyPair, domain: &TrustDomain, now: SystemTime) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    let tag: String = params.key_identifier(key).iter().take(4).map(|b| format!("{b:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("Loam root {tag}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFE).into();
    Ok(params.self_signed(key)?.pem())
}

fn server_name(name: &str) -> Result<SanType, AuthorityError> {
    let bad = || AuthorityError::Name(name.to_owned());
    match name.parse() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => {
            let host: loam_core::ids::Hostname = name.parse().map_err(|_| bad())?;
            Ok(SanType::DnsName(host.as_str().try_into().map_err(|_| bad())?))
        }
    }
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "an unreadable time".to_owned(), |t| t.to_string())
}

/// A certificate in PEM.
fn to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in digits.as_bytes().chunks(64) {
        text.extend(line.iter().map(|&digit| char::from(digit)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests;
