//! Decides whether a certificate proves a workload of our mesh, the same way in both directions.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use loam_core::ids::{Identity, NameError, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use crate::cert::{self, Leaf};
use crate::provider::{ALPN, signatures};
use crate::trust::Trust;

/// Most certificates a peer may send beside its own: intermediates, and a root sent along. It bounds path building.
pub const MAX_INTERMEDIATES: usize = 4;

/// Why a peer is not accepted. The peer itself is told nothing but that it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PeerError {
    #[error("sent no certificate")]
    NoCertificate,
    #[error("its certificate cannot be read")]
    Malformed,
    #[error("its chain has {certificates} certificates beside its own, more than {MAX_INTERMEDIATES}")]
    ChainTooLong { certificates: usize },
    #[error("its certificate does not chain to our roots")]
    UnknownIssuer,
    #[error("its chain is not signed by the roots it names: a broken signature, or another root of the same name")]
    BadSignature,
    #[error("its certificate expired at {}", timestamp(.0))]
    Expired(SystemTime),
    #[error("its certificate is not valid before {}", timestamp(.0))]
    NotYetValid(SystemTime),
    #[error("its certificate is not meant for {0}")]
    WrongPurpose(Purpose),
    #[error("its certificate is that of a CA")]
    CaCertificate,
    #[error("its chain is not acceptable: {0}")]
    Chain(webpki::Error),
    #[error("its certificate names no URI")]
    NoUriSan,
    #[error("its certificate names {count} URIs instead of one")]
    SeveralUriSans { count: usize },
    #[error("the names in its certificate cannot be read")]
    MalformedSan,
    #[error("its certificate does not name a workload: {0}")]
    NotSpiffe(NameError),
    #[error("it belongs to the foreign trust domain {0}")]
    ForeignTrustDomain(TrustDomain),
    #[error("it did not agree to speak HTTP/2")]
    NotHttp2,
    #[error("it is {0}, which is not whom we called")]
    Unexpected(Identity),
}

impl PeerError {
    /// A word for it in logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            PeerError::NoCertificate => "no_certificate",
            PeerError::Malformed => "malformed_certificate",
            PeerError::ChainTooLong { .. } => "chain_too_long",
            PeerError::UnknownIssuer => "unknown_issuer",
            PeerError::BadSignature => "bad_signature",
            PeerError::Expired(_) => "expired",
            PeerError::NotYetValid(_) => "not_yet_valid",
            PeerError::WrongPurpose(_) => "wrong_purpose",
            PeerError::CaCertificate => "ca_certificate",
            PeerError::Chain(_) => "bad_chain",
            PeerError::NoUriSan => "no_uri_san",
            PeerError::SeveralUriSans { .. } => "several_uri_sans",
            PeerError::MalformedSan => "malformed_san",
            PeerError::NotSpiffe(_) => "not_spiffe",
            PeerError::ForeignTrustDomain(_) => "foreign_trust_domain",
            PeerError::NotHttp2 => "not_http2",
            PeerError::Unexpected(_) => "unexpected_identity",
        }
    }
}

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To prove a server to its client.
    Server,
    /// To prove a client to its server.
    Client,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Server => "server authentication",
            Purpose::Client => "client authentication",
        })
    }
}

/// Verifies a chain: path to our roots, validity, purpose, one SPIFFE ID, trust domain.
pub fn verify_chain(
    trust: &Trust,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<Leaf, PeerError> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(PeerError::ChainTooLong { certificates: intermediates.len() });
    }
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::client_auth(),
    };
    let roots = trust.roots();
    EndEntityCert::try_from(end_entity)
        .map_err(|e| chain_error(e, purpose))?
        .verify_for_usage(signatures().all, &roots.store.roots, intermediates, now, usage, None, None)
        .map_err(|e| chain_error(e, purpose))?;

    let leaf = cert::leaf(end_entity)?;
    // Path building lets a certificate pass that names no purpose at all.
    let purposed = match purpose {
        Purpose::Server => leaf.server_auth,
        Purpose::Client => leaf.client_auth,
    };
    if !purposed {
        return Err(PeerError::WrongPurpose(purpose));
    }
    if !trust.covers(leaf.identity.trust_domain()) {
        return Err(PeerError::ForeignTrustDomain(leaf.identity.trust_domain().clone()));
    }
    Ok(leaf)
}

fn chain_error(error: webpki::Error, purpose: Purpose) -> PeerError {
    use webpki::Error;
    match error {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => PeerError::Malformed,
        Error::UnknownIssuer => PeerError::UnknownIssuer,
        Error::InvalidSignatureForPublicKey => PeerError::BadSignature,
        Error::CertExpired { not_after, .. } => PeerError::Expired(from_unix(not_after)),
        Error::CertNotValidYet { not_before, .. } => PeerError::NotYetValid(from_unix(not_before)),
        Error::RequiredEkuNotFoundContext(_) => PeerError::WrongPurpose(purpose),
        Error::CaUsedAsEndEntity => PeerError::CaCertificate,
        other => PeerError::Chain(other),
    }
}

/// The identity a finished handshake proved. Fails when HTTP/2 was not agreed, so that no caller can forget to look.
pub fn peer_identity(state: &CommonState) -> Result<Identity, PeerError> {
    // RFC 7301 lets a peer that names no protocol pass; HBONE does not.
    if state.alpn_protocol() != Some(ALPN) {
        return Err(PeerError::NotHttp2);
    }
    let end_entity = state.peer_certificates().and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
    cert::identity_in_certificate(end_entity)
}

/// Our rules as rustls asks for them.
#[derive(Debug)]
pub(crate) struct Verifier(pub(crate) Arc<Trust>);

impl Verifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_chain(&self.0, end_entity, intermediates, purpose, now)
            .map(|_| ())
            // "Other" makes the alert say nothing about the reason.
            .map_err(|e| CertificateError::Other(OtherError(Arc::new(e))).into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Servers are known by identity; the name is a placeholder.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Purpose::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is never negotiated".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, signatures())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signatures().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client has one certificate; hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Purpose::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signatures().supported_schemes()
    }
}

fn from_unix(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// A time as people read it.
pub(crate) fn timestamp(time: &SystemTime) -> String {
    jiff::Timestamp::try_from(*time)
        .ok()
        .and_then(|t| t.round(jiff::Unit::Second).ok())
        .map_or_else(|| "an unreadable time".to_owned(), |t| t.to_string())
}
