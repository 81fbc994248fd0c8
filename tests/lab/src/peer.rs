//! Peers that the mesh must not talk to: what they show in a handshake is wrong in one way. A right one is among them,
//! since a refusal means something only where the same bytes with a right certificate are welcome.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::ValueEnum;
use loam_tests::report::{Greeted, Lured};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client;

/// What a client of HTTP/2 says first: its preface and empty settings. A server answers with settings of its own.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// Longest wait for a handshake and its answer.
const LIMIT: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// In which way a peer is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaw {
    /// In none.
    None,
    /// Its certificate is signed by somebody else's authority.
    ForeignRoot,
    /// Its certificate names another trust domain.
    ForeignTrustDomain,
    /// Its certificate names two identities.
    TwoUris,
    /// Its certificate was valid until an hour ago.
    Expired,
    /// It shows no certificate.
    NoCertificate,
    /// It speaks an old version of TLS.
    OldTls,
}

impl Flaw {
    fn version(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::OldTls => &rustls::version::TLS12,
            Self::None
            | Self::ForeignRoot
            | Self::ForeignTrustDomain
            | Self::TwoUris
            | Self::Expired
            | Self::NoCertificate => &rustls::version::TLS13,
        }
    }
}

/// A certificate for `identity` with its key, but for the flaw as the authority in the directory signs them.
fn certificate(
    authority: &Path,
    identity: &str,
    flaw: Flaw,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let issuer = match flaw {
        Flaw::ForeignRoot => foreign_authority()?,
        Flaw::None | Flaw::ForeignTrustDomain | Flaw::TwoUris | Flaw::Expired | Flaw::NoCertificate | Flaw::OldTls => {
            own_authority(authority)?
        }
    };
    let names = match flaw {
        Flaw::ForeignTrustDomain => vec![identity.replacen("spiffe://cluster.local/", "spiffe://other.example/", 1)],
        Flaw::TwoUris => vec![identity.to_owned(), format!("{identity}-two")],
        Flaw::None | Flaw::ForeignRoot | Flaw::Expired | Flaw::NoCertificate | Flaw::OldTls => {
            vec![identity.to_owned()]
        }
    };
    let end = if flaw == Flaw::Expired { SystemTime::now() - HOUR } else { SystemTime::now() + HOUR };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (SystemTime::now() - 2 * HOUR).into();
    params.not_after = end.into();
    let uri = |name: String| Ok(SanType::URI(name.try_into()?));
    params.subject_alt_names = names.into_iter().map(uri).collect::<Result<_, rcgen::Error>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let signed = params.signed_by(&key, &issuer)?;
    Ok((vec![signed.into()], key.into()))
}

/// The authority of the mesh itself: in the lab nothing keeps us from its key.
fn own_authority(directory: &Path) -> Result<Issuer<'static, KeyPair>> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let key = KeyPair::from_pem(&read("ca-key.pem")?).context("read the key of the authority")?;
    Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key).context("read the certificate of the authority")
}

fn foreign_authority() -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "somebody else");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(Issuer::new(params, KeyPair::generate()?))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Greets whoever holds the tunnel port of a pod, and describes the answer.
pub(crate) async fn greet(to: SocketAddr, authority: &Path, identity: &str, flaw: Flaw) -> Result<Greeted> {
    let anyone = Arc::new(Anyone(provider()));
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[flaw.version()])?
        .dangerous()
        .with_custom_certificate_verifier(anyone);
    let mut config = match flaw {
        Flaw::NoCertificate => config.with_no_client_auth(),
        _ => {
            let (chain, key) = certificate(authority, identity, flaw)?;
            config.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = client::connect(to, None).await.with_context(|| format!("connect to {to}"))?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut answered = 0;
    let exchange = async {
        let mut stream = connector.connect(ServerName::from(to.ip()), tcp).await?;
        stream.write_all(PREFACE).await?;
        let mut answer = [0; 1024];
        answered = stream.read(&mut answer).await?;
        if answered == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok::<_, io::Error>(()) }
    };
    let error = match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("nothing after {LIMIT:?}")),
    };
    Ok(Greeted { error, answered: answered as u64 })
}

/// Holds a tunnel port until SIGTERM, takes every client, and says what it was told.
pub(crate) async fn lure(listen: SocketAddr, authority: &Path, identity: &str, flaw: Flaw) -> Result<Lured> {
    let (chain, key) = certificate(authority, identity, flaw)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[flaw.version()])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind {listen}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("serving");
    let told = Arc::new(Told::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, _) = accepted?;
                told.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(listen_to(tcp, acceptor.clone(), told.clone()));
            }
            _ = terminate.recv() => break,
        }
    }
    Ok(Lured { connections: told.connections.load(Ordering::Relaxed), bytes: told.bytes.load(Ordering::Relaxed) })
}

#[derive(Debug, Default)]
struct Told {
    connections: AtomicU64,
    bytes: AtomicU64,
}

async fn listen_to(tcp: TcpStream, acceptor: TlsAcceptor, told: Arc<Told>) {
    // A client that refuses us ends here.
    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
    let mut buffer = [0; 4096];
    while let Ok(n) = stream.read(&mut buffer).await
        && n > 0
    {
        told.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Takes any server: here only the server judges.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
