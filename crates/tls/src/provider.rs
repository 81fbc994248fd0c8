//! The one set of cryptography that everything uses.

use std::sync::{Arc, OnceLock};

use rustls::SupportedProtocolVersion;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};

/// The only version spoken: resumption, renegotiation and static keys of older ones are not worth their history.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// HTTP/2, the only protocol inside our TLS connections.
pub(crate) const ALPN: &[u8] = b"h2";

/// Suites and groups in order of preference, made once.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
            // The hybrid first: recorded traffic stays closed to a later quantum computer. The others are for peers
            // that do not have it.
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    })
}

/// Signature algorithms accepted in chains and handshakes.
pub(crate) fn signatures() -> &'static WebPkiSupportedAlgorithms {
    &provider().signature_verification_algorithms
}
