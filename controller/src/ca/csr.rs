//! Reads a request for a certificate. Only the key counts, and the proof that the sender has it.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// Longest request. One for an RSA key of 4096 bits has 2 KB.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Fewest bits of an RSA key.
const MIN_RSA_BITS: usize = 2048;
/// Most bits of an RSA key: time to verify grows with the square, for every peer.
const MAX_RSA_BITS: usize = 4096;

/// Why a request is refused. The caller is only told that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CsrError {
    #[error("the request is longer than 16 KiB")]
    TooLong,
    #[error("the request is not one PEM block of type CERTIFICATE REQUEST")]
    NotPem,
    #[error("the request holds several PEM blocks")]
    Several,
    #[error("the request is not PKCS#10")]
    Malformed,
    #[error("bytes follow the request")]
    TrailingBytes,
    #[error("the request is signed with an algorithm that is not accepted")]
    WeakSignature,
    #[error("the key of the request is neither ECDSA P-256 or P-384 nor RSA of 2048 to 4096 bits")]
    WeakKey,
    #[error("the request is not signed by its own key")]
    BadSignature,
}

/// The key of a request whose sender has proven to possess it.
pub fn proven_key(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    let der = only_block(pem)?;
    let csr = match X509CertificationRequest::from_der(&der) {
        Ok(([], csr)) => csr,
        Ok(_) => return Err(CsrError::TrailingBytes),
        Err(_) => return Err(CsrError::Malformed),
    };
    let accepted = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
    ];
    if !accepted.contains(&csr.signature_algorithm.algorithm) {
        return Err(CsrError::WeakSignature);
    }
    let key = &csr.certification_request_info.subject_pki;
    let strong = match key.parsed().map_err(|_| CsrError::WeakKey)? {
        PublicKey::RSA(rsa) => {
            key.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION
                && (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&rsa.key_size())
        }
        PublicKey::EC(_) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
            key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
                && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
        }
        _ => false,
    };
    if !strong {
        return Err(CsrError::WeakKey);
    }
    csr.verify_signature().map_err(|_| CsrError::BadSignature)?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::WeakKey)
}

fn only_block(pem: &str) -> Result<CertificateSigningRequestDer<'static>, CsrError> {
    if pem.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLong);
    }
    let pem = pem.trim();
    // Readers of PEM skip what they do not understand: two of them could see two different requests.
    let begins = pem.matches("-----BEGIN").count();
    if begins > 1 {
        return Err(CsrError::Several);
    }
    let labels = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];
    let framed = labels.iter().any(|label| {
        pem.starts_with(&format!("-----BEGIN {label}-----")) && pem.ends_with(&format!("-----END {label}-----"))
    });
    if !framed || pem.matches("-----END").count() != 1 {
        return Err(CsrError::NotPem);
    }
    let pem = pem.replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST");
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::NotPem)
}

#[cfg(test)]
mod tests;
