//! The two ends of a TLS handshake, and why one failed.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use loam_core::ids::Identity;
use loam_core::reason::Reason;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, PeerIncompatible};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::credentials::Credentials;
use crate::proof::{Proof, Roots};
use crate::verify::{PeerError, Purpose, peer_identity};

/// Longest handshake. Honest ones take milliseconds; a silent peer must not hold a socket for long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HandshakeError {
    #[error("refuse the peer: {0}")]
    Peer(#[from] PeerError),
    #[error("the peer does not speak TLS 1.3")]
    OldVersion,
    #[error("no suite, group or signature in common with the peer")]
    NothingInCommon(PeerIncompatible),
    #[error("the peer refused us: {0:?}")]
    Refused(AlertDescription),
    #[error("the peer breaks the TLS protocol: {0}")]
    Protocol(rustls::Error),
    #[error("the connection ended during the handshake: {0}")]
    Closed(io::ErrorKind),
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
}

impl HandshakeError {
    /// A word for it in logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            HandshakeError::Peer(error) => error.label(),
            HandshakeError::OldVersion => "old_version",
            HandshakeError::NothingInCommon(_) => "nothing_in_common",
            HandshakeError::Refused(_) => "refused_by_peer",
            HandshakeError::Protocol(_) => "protocol",
            HandshakeError::Closed(_) => "closed",
            HandshakeError::Timeout => "timeout",
        }
    }

    /// How a connection that needed this handshake ends.
    pub fn reason(&self) -> Reason {
        Reason::TlsFailure
    }

    /// Tells what an error of a TLS stream means. A dialler needs it after the handshake too: in TLS 1.3 it is done
    /// before the server has seen its certificate, so a refusal arrives with the first read.
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of_tls(tls),
            None => HandshakeError::Closed(error.kind()),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<PeerError>() {
                Some(peer) => HandshakeError::Peer(peer.clone()),
                None => HandshakeError::Protocol(error.clone()),
            },
            Error::NoCertificatesPresented => PeerError::NoCertificate.into(),
            Error::NoApplicationProtocol => PeerError::NotHttp2.into(),
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => HandshakeError::OldVersion,
            Error::PeerIncompatible(what) => HandshakeError::NothingInCommon(what.clone()),
            Error::AlertReceived(alert) => HandshakeError::Refused(*alert),
            other => HandshakeError::Protocol(other.clone()),
        }
    }
}

/// Who is at the other end.
#[derive(Debug)]
pub struct Peer {
    /// Whom its certificate proves.
    pub identity: Identity,
    /// What proves it.
    pub proof: Proof,
}

/// Accepts a TLS connection as the workload that `credentials` prove; answers who dialled.
pub async fn accept<IO>(io: IO, credentials: &Credentials) -> Result<(server::TlsStream<IO>, Peer), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let roots = Roots::of(credentials.trust());
    let handshake = TlsAcceptor::from(credentials.server_config()).accept(io);
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| HandshakeError::Timeout)?
        .map_err(|e| HandshakeError::of(&e))?;
    let state = stream.get_ref().1;
    let peer = Peer { identity: peer_identity(state)?, proof: roots.proof(state, Purpose::Client) };
    Ok((stream, peer))
}

/// Dials TLS as the workload that `credentials` prove; the server must be one of `expect`.
pub async fn connect<IO>(
    io: IO,
    credentials: &Credentials,
    expect: &[Identity],
) -> Result<(client::TlsStream<IO>, Peer), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let roots = Roots::of(credentials.trust());
    let handshake = TlsConnector::from(credentials.client_config()).connect(placeholder(), io);
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| HandshakeError::Timeout)?
        .map_err(|e| HandshakeError::of(&e))?;
    let state = stream.get_ref().1;
    let identity = peer_identity(state)?;
    if !expect.contains(&identity) {
        return Err(PeerError::Unexpected(identity).into());
    }
    let peer = Peer { identity, proof: roots.proof(state, Purpose::Server) };
    Ok((stream, peer))
}

/// The name rustls wants for a server. It is neither sent nor compared: servers are known by identity.
pub fn placeholder() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

#[cfg(test)]
mod tests;
