//! Reads what matters out of certificates that others made.

use std::time::{Duration, SystemTime};

use loam_core::ids::Identity;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::verify::PeerError;

/// The facts of an end-entity certificate, none of them verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its only URI SAN.
    pub identity: Identity,
    /// Beginning of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// Serial number in hexadecimal digits.
    pub serial: String,
    /// Whether it names server authentication as a purpose.
    pub server_auth: bool,
    /// Whether it names client authentication as a purpose.
    pub client_auth: bool,
}

/// Reads a certificate. Exactly one SAN must be a URI, and that one a SPIFFE ID of a workload (X509-SVID 2).
pub fn leaf(der: &[u8]) -> Result<Leaf, PeerError> {
    let cert = parse(der)?;
    // Absent and duplicate extensions look alike to a careless reader: the parser reports the second as an error.
    let sans = cert.subject_alternative_name().map_err(|_| PeerError::MalformedSan)?.ok_or(PeerError::NoUriSan)?;
    let mut uris = Vec::with_capacity(1);
    for name in &sans.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(PeerError::MalformedSan),
            _ => {}
        }
    }
    let identity = match uris[..] {
        [] => return Err(PeerError::NoUriSan),
        [uri] => identity_in_uri(uri)?,
        _ => return Err(PeerError::SeveralUriSans { count: uris.len() }),
    };
    let purposes = cert.extended_key_usage().map_err(|_| PeerError::Malformed)?;
    Ok(Leaf {
        identity,
        not_before: system_time(cert.validity().not_before),
        not_after: system_time(cert.validity().not_after),
        serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
        server_auth: purposes.as_ref().is_some_and(|p| p.value.server_auth),
        client_auth: purposes.as_ref().is_some_and(|p| p.value.client_auth),
    })
}

/// The identity in the SANs of a certificate. Nothing is verified: only for certificates that already are, and for
/// fuzzing.
pub fn identity_in_certificate(der: &[u8]) -> Result<Identity, PeerError> {
    leaf(der).map(|leaf| leaf.identity)
}

/// The identity that a URI SAN means.
pub fn identity_in_uri(uri: &str) -> Result<Identity, PeerError> {
    uri.parse().map_err(PeerError::NotSpiffe)
}

/// Reads every certificate of a PEM text; other sections are skipped, a broken one is an error.
pub fn certificates_in_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PeerError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| PeerError::Malformed)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) | Err(_) => Err(PeerError::Malformed),
    }
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    // X.509 can name years before 1970; for validity these are all "long ago".
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
