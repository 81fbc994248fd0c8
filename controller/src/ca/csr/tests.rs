use base64::Engine as _;
use loam_tls::key::Key;
use rcgen::PublicKeyData;

use super::*;

const P256: &str = include_str!("../corpus/ec-prime256v1.pem");

fn request() -> String {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    Key::generate().unwrap().request(&identity).unwrap()
}

/// A request whose bytes are changed.
fn with_der(pem: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let engine = base64::engine::general_purpose::STANDARD;
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = engine.decode(text).unwrap();
    change(&mut der);
    let label = "CERTIFICATE REQUEST";
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", engine.encode(der))
}

fn refused(pem: &str) -> CsrError {
    proven_key(pem).err().unwrap_or_else(|| panic!("accepted: {pem}"))
}

#[test]
fn keys_of_accepted_kinds_are_proven() {
    for pem in [
        &request(),
        P256,
        include_str!("../corpus/ec-secp384r1.pem"),
        include_str!("../corpus/rsa-2048.pem"),
        &P256.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
        &format!("\n{P256}\n\n"),
    ] {
        proven_key(pem).unwrap_or_else(|e| panic!("{e}: {pem}"));
    }
}

#[test]
fn weak_keys_and_other_curves_are_refused() {
    for pem in [
        include_str!("../corpus/rsa-512.pem"),
        include_str!("../corpus/rsa-1024.pem"),
        include_str!("../corpus/rsa-8192.pem"),
        include_str!("../corpus/ec-prime192v1.pem"),
        include_str!("../corpus/ec-secp256k1.pem"),
        include_str!("../corpus/ec-secp521r1.pem"),
        include_str!("../corpus/ec-explicit.pem"),
    ] {
        assert_eq!(refused(pem), CsrError::WeakKey, "{pem}");
    }
}

#[test]
fn weak_signatures_are_refused() {
    for pem in [
        include_str!("../corpus/rsa-2048-sha1.pem"),
        include_str!("../corpus/rsa-2048-pss.pem"),
        include_str!("../corpus/ec-prime256v1-sha1.pem"),
        include_str!("../corpus/ed25519.pem"),
    ] {
        assert_eq!(refused(pem), CsrError::WeakSignature, "{pem}");
    }
}

#[test]
fn what_is_not_one_pem_block_of_a_request_is_refused() {
    let body = P256.lines().nth(1).unwrap();
    for pem in [
        "",
        "hello",
        body,
        "-----BEGIN CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----",
        &P256.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        &P256.replace("CERTIFICATE REQUEST", "PRIVATE KEY"),
        &P256.replace("END CERTIFICATE REQUEST", "END CERTIFICATE"),
        &format!("{P256}more"),
        &format!("more\n{P256}"),
        &format!("{P256}-----END CERTIFICATE REQUEST-----"),
    ] {
        assert_eq!(refused(pem), CsrError::NotPem, "{pem}");
    }
    assert_eq!(refused(&format!("{P256}{P256}")), CsrError::Several);
    assert_eq!(refused(&format!("{P256}{}", request())), CsrError::Several);
    assert_eq!(refused(&"A".repeat(MAX_CSR_BYTES + 1)), CsrError::TooLong);
}

#[test]
fn bytes_after_the_request_are_refused() {
    assert_eq!(refused(&with_der(P256, |der| der.push(0))), CsrError::TrailingBytes);
    assert_eq!(refused(&with_der(P256, |der| der.extend(der.clone()))), CsrError::TrailingBytes);
}

#[test]
fn a_request_cut_anywhere_is_refused_and_never_a_panic() {
    let full = with_der(P256, |_| {});
    proven_key(&full).unwrap();
    let mut length = 0;
    with_der(P256, |der| length = der.len());
    for cut in 0..length {
        refused(&with_der(P256, |der| der.truncate(cut)));
    }
}

#[test]
fn a_changed_byte_never_passes_as_another_request() {
    let original = proven_key(P256).unwrap().subject_public_key_info();
    let mut length = 0;
    with_der(P256, |der| length = der.len());
    for at in 0..length {
        if let Ok(key) = proven_key(&with_der(P256, |der| der[at] ^= 0x01)) {
            // Bytes outside the signed part, such as parameters of the algorithm, may pass with the same key.
            assert_eq!(key.subject_public_key_info(), original, "byte {at}");
        }
    }
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let mut length = 0;
    with_der(P256, |der| length = der.len());
    assert_eq!(refused(&with_der(P256, |der| der[length - 1] ^= 1)), CsrError::BadSignature);
}

#[test]
fn wishes_in_a_request_are_not_even_read() {
    proven_key(include_str!("../corpus/greedy.pem")).unwrap();
}
