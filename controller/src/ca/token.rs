//! Tokens for nodes, where no Kubernetes issues them: a JWT signed with a key of the data directory.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use loam_core::ids::Hostname;
use loam_tls::provider::provider;
use serde::{Deserialize, Serialize};
use tonic::metadata::MetadataMap;
use zeroize::Zeroizing;

use super::files::{self, FileError};
use super::service::{Authenticate, Caller, Refused};

/// What every token is for, as in Istio.
pub const AUDIENCE: &str = "istio-ca";
/// Longest token that is read.
pub const MAX_TOKEN_BYTES: usize = 4096;
const KEY_FILE: &str = "token-key";
const KEY_BYTES: usize = 32;
const ISSUER: &str = "loam";
/// A reader takes this header and no other, so that no token chooses how it is verified.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Signs and verifies tokens.
pub struct Tokens {
    key: hmac::Key,
}

/// The key of tokens cannot be had, or a token cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TokenKeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{0}: is not a key of 64 hexadecimal digits; bring back the right file, or remove it and issue all tokens again"
    )]
    Broken(String),
    #[error("no random numbers")]
    Random,
    #[error("node {0:?}: is not a DNS name")]
    Node(String),
}

/// Why a token does not count. The caller is only told that it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TokenError {
    #[error("there is no bearer token")]
    Missing,
    #[error("the token cannot be read")]
    Malformed,
    #[error("the token is not signed by our key")]
    BadSignature,
    #[error("the token is for another audience")]
    WrongAudience,
    #[error("the token is expired")]
    Expired,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: Vec<String>,
    sub: String,
    iat: u64,
    exp: u64,
}

impl Tokens {
    /// The key of a data directory; made at first use.
    pub fn open(directory: &Path) -> Result<Self, TokenKeyError> {
        files::check_directory(directory)?;
        let path = directory.join(KEY_FILE);
        let broken = || TokenKeyError::Broken(path.display().to_string());
        if files::read_secret(&path)?.is_none() {
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            provider().secure_random.fill(&mut *key).map_err(|_| TokenKeyError::Random)?;
            let text: Zeroizing<String> = Zeroizing::new(key.iter().map(|b| format!("{b:02x}")).collect());
            files::create_secret(&path, text.as_bytes())?;
        }
        let text = files::read_secret(&path)?.ok_or_else(broken)?;
        let key = from_hex(text.trim_ascii()).ok_or_else(broken)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key) })
    }

    /// A token that proves `node` for `ttl`.
    pub fn issue(&self, node: &str, ttl: Duration, now: SystemTime) -> Result<String, TokenKeyError> {
        let node: Hostname = node.parse().map_err(|_| TokenKeyError::Node(node.to_owned()))?;
        let iat = seconds(now);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: vec![AUDIENCE.to_owned()],
            sub: format!("node:{node}"),
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
        };
        let claims = serde_json::to_vec(&claims).expect("claims are plain text and numbers");
        let signed = format!("{}.{}", BASE64.encode(HEADER), BASE64.encode(claims));
        let tag = hmac::sign(&self.key, signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64.encode(tag)))
    }

    /// The node that a token proves.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<String, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, tag) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let tag = BASE64.decode(tag).map_err(|_| TokenError::Malformed)?;
        // In constant time, and before anything of the token is read.
        hmac::verify(&self.key, signed.as_bytes(), &tag).map_err(|_| TokenError::BadSignature)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if header != BASE64.encode(HEADER) {
            return Err(TokenError::Malformed);
        }
        let claims = BASE64.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        if claims.iss != ISSUER || !claims.aud.iter().any(|audience| audience == AUDIENCE) {
            return Err(TokenError::WrongAudience);
        }
        if claims.exp <= seconds(now) {
            return Err(TokenError::Expired);
        }
        claims.sub.strip_prefix("node:").map(str::to_owned).ok_or(TokenError::Malformed)
    }

    /// The node that calls, by the bearer token of its request.
    pub fn caller(&self, metadata: &MetadataMap, now: SystemTime) -> Result<Caller, TokenError> {
        self.verify(bearer(metadata)?, now).map(Caller::of_node)
    }

    /// As the CA and the configuration server ask for it.
    pub fn authenticate(self: Arc<Self>) -> Authenticate {
        Arc::new(move |metadata| {
            let caller = self.caller(metadata, SystemTime::now());
            Box::pin(std::future::ready(caller.map_err(|e| Refused::Stranger(e.to_string()))))
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// The token that a request brings.
pub(super) fn bearer(metadata: &MetadataMap) -> Result<&str, TokenError> {
    let header = metadata.get("authorization").ok_or(TokenError::Missing)?;
    let header = header.to_str().map_err(|_| TokenError::Malformed)?;
    header.strip_prefix("Bearer ").map(str::trim).ok_or(TokenError::Missing)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn from_hex(text: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(key)
}

#[cfg(test)]
mod tests;
