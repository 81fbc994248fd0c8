//! Certificates for whoever asks: a proxy under measurement brings no pods that a real authority could look for, so the
//! identity it wants stands where its token would.

use std::sync::Arc;
use std::time::SystemTime;

use loam_api::ca::istio_certificate_service_server::IstioCertificateService;
use loam_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use loam_controller::ca::Authority;
use loam_controller::ca::csr::proven_key;
use loam_core::ids::Identity;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// Signs with an authority of its own.
pub(crate) struct Signer(pub(crate) Arc<Authority>);

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let refused = |e: &dyn std::fmt::Display| Status::invalid_argument(e.to_string());
        let identity = asked(request.metadata()).map_err(|e| refused(&e))?;
        let key = proven_key(&request.get_ref().csr).map_err(|e| refused(&e))?;
        let signed = self.0.sign(&identity, &key, None, SystemTime::now()).map_err(|e| refused(&e))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: signed.to_elements(&self.0) }))
    }
}

fn asked(metadata: &MetadataMap) -> Result<Identity, String> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = header.strip_prefix("Bearer ").ok_or("there is no token")?;
    token.trim().parse().map_err(|e| format!("the token {token:?} is no identity: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_the_identity() {
        let of = |token: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            asked(&metadata).map(|identity| identity.to_string())
        };
        let identity = "spiffe://cluster.local/ns/client/sa/istio";
        assert_eq!(of(identity), Ok(identity.to_owned()));
        assert!(of("eyJhbGciOi").is_err());
        assert!(asked(&MetadataMap::new()).is_err());
    }
}
