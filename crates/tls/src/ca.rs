//! Asks a certificate authority to sign.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use loam_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use loam_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use loam_core::ids::Identity;
use loam_rt::explain;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};
use zeroize::Zeroizing;

use crate::cert;
use crate::channel::{ChannelError, Channels, ControlPlane, Dial, read, tcp};
use crate::verify::MAX_INTERMEDIATES;

/// Life of a certificate that is asked for.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// The key in the request's metadata that names whom the certificate is for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What a CA answers to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that everyone in the mesh shall trust.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a CA did not sign.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SignError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("token file {}: {why}", path.display())]
    Token { path: PathBuf, why: &'static str },
    #[error("the CA refused: {0}")]
    Refused(String),
    #[error("the CA cannot be reached: {0}")]
    Unreachable(String),
    #[error("the answer of the CA cannot be used: {0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Failed(String),
}

impl SignError {
    /// The request did not get to the CA.
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Channel(_) | Self::Token { .. } | Self::Unreachable(_))
    }
}

/// Somebody who signs requests for certificates.
pub trait SignCsr: Send + Sync + 'static {
    /// Asks for a certificate that proves `identity` for the key in `csr_pem`.
    fn sign(&self, identity: &Identity, csr_pem: &str) -> impl Future<Output = Result<Issued, SignError>> + Send;
}

/// Where the CA is and how we prove that we may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaConfig {
    /// The control plane that signs.
    pub control_plane: ControlPlane,
    /// File with the bearer token; read for each call, because tokens are replaced before they expire.
    pub token_file: PathBuf,
    /// Our cluster, for a CA that serves several.
    pub cluster: String,
    /// Life of a certificate that is asked for.
    pub ttl: Duration,
}

/// Speaks Istio's CA protocol.
pub struct CaClient {
    config: CaConfig,
    channels: Channels,
}

impl CaClient {
    /// Nothing is read or dialled yet.
    pub fn new(config: CaConfig) -> Self {
        Self::dialling(config, tcp())
    }

    /// As [`new`](Self::new), over other connections than plain TCP.
    pub fn dialling(config: CaConfig, dial: Dial) -> Self {
        let channels = Channels::new(config.control_plane.clone(), dial);
        Self { config, channels }
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, SignError> {
        let fail = |why| SignError::Token { path: self.config.token_file.clone(), why };
        let bytes = Zeroizing::new(read(&self.config.token_file).await?);
        let token = std::str::from_utf8(&bytes).map_err(|_| fail("is not text"))?.trim();
        if token.is_empty() {
            return Err(fail("is empty"));
        }
        let bearer = Zeroizing::new(format!("Bearer {token}"));
        let mut value =
            MetadataValue::try_from(bearer.as_str()).map_err(|_| fail("has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl SignCsr for CaClient {
    async fn sign(&self, identity: &Identity, csr_pem: &str) -> Result<Issued, SignError> {
        let whom = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), whom)]) }),
        });
        request.metadata_mut().insert("authorization", self.token().await?);
        if let Ok(cluster) = self.config.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let channel = self.channels.channel().await?;
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
        issued(answer.map_err(|status| refusal(&status))?.into_inner())
    }
}

/// Reads the answer of a CA: one certificate per element from ours upwards, the roots in the last one.
pub fn issued(answer: IstioCertificateResponse) -> Result<Issued, SignError> {
    let Some((roots, chain)) = answer.cert_chain.split_last() else {
        return Err(SignError::Malformed("it is empty"));
    };
    if chain.is_empty() {
        return Err(SignError::Malformed("it has roots but no certificate"));
    }
    if chain.len() > 1 + MAX_INTERMEDIATES {
        return Err(SignError::Malformed("its chain is too long"));
    }
    let read = |pem: &String| {
        cert::certificates_in_pem(pem.as_bytes()).map_err(|_| SignError::Malformed("it holds a broken certificate"))
    };
    let mut issued = Issued { chain: Vec::new(), roots: read(roots)? };
    for element in chain {
        issued.chain.extend(read(element)?);
    }
    Ok(issued)
}

fn refusal(status: &Status) -> SignError {
    use std::error::Error;
    match status.source() {
        // Only errors of the transport have something beneath.
        Some(beneath) => SignError::Unreachable(explain(beneath)),
        None => SignError::Refused(format!("{:?}: {}", status.code(), status.message())),
    }
}

#[cfg(test)]
mod tests;
