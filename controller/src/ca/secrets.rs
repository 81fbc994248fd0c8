//! The authority where a cluster keeps it: in Secrets, never on disk.
//!
//! `cacerts` is the user's own authority and wins. Without it the first controller makes a root and keeps it as
//! `istio-ca-secret`: an API server lets one of several create it, and the others take what that one made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use loam_core::ids::TrustDomain;
use loam_kube::Client;
use loam_tls::cert::certificates_in_pem;
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::authority::{Authority, AuthorityError, new_root};

/// The user's own authority.
const GIVEN: &str = "cacerts";
/// The authority that a controller made.
const MADE: &str = "istio-ca-secret";
/// As Istio writes it, so that either finds the other's root.
const MADE_TYPE: &str = "istio.io/ca-root";
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// There is no authority to be had from Secrets.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SecretError {
    #[error("{verb} Secret {namespace}/{name}")]
    Api { verb: &'static str, namespace: String, name: &'static str, source: Box<kube::Error> },
    #[error(
        "{verb} Secret {namespace}/{name}: forbidden; a Role of this program's service account must have the rule \
         {{apiGroups: [\"\"], resources: [secrets], verbs: [get, create]}} there"
    )]
    Forbidden { verb: &'static str, namespace: String, name: &'static str },
    #[error("{verb} Secret {namespace}/{name}: no answer within {} s", DEADLINE.as_secs())]
    Late { verb: &'static str, namespace: String, name: &'static str },
    #[error(
        "Secret {namespace}/{name} has no {key}: it must have ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, \
         or tls.crt, tls.key and ca.crt"
    )]
    Lacks { namespace: String, name: &'static str, key: &'static str },
    #[error("Secret {namespace}/{name} was there and is gone; start again")]
    Vanished { namespace: String, name: &'static str },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl SecretError {
    /// Whether it may be otherwise in a moment: the API server could not be reached, or has trouble of its own.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => status.code == 429 || status.code >= 500,
                kube::Error::HyperError(_) | kube::Error::Service(_) => true,
                _ => false,
            },
            Self::Forbidden { .. } | Self::Lacks { .. } | Self::Vanished { .. } | Self::Authority(_) => false,
        }
    }
}

/// The authority of a cluster; made at first start.
pub async fn open(
    client: &Client,
    namespace: &str,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Authority, SecretError> {
    let secrets = Secrets { api: Api::namespaced(client.clone(), namespace), namespace };
    for name in [GIVEN, MADE] {
        if let Some(secret) = secrets.get(name).await? {
            return read(namespace, name, &secret, domain, now);
        }
    }
    let (cert, key) = new_root(domain, now)?;
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = BTreeMap::from([("ca-cert.pem".to_owned(), bytes(&cert)), ("ca-key.pem".to_owned(), bytes(&key))]);
    let metadata = ObjectMeta { name: Some(MADE.to_owned()), ..ObjectMeta::default() };
    let made = Secret { data: Some(data), metadata, type_: Some(MADE_TYPE.to_owned()), ..Secret::default() };
    if secrets.create(MADE, &made).await? {
        tracing::info!(namespace, name = MADE, "made the root of the certificate authority");
    }
    // Whoever came first, what is there counts.
    let secret = secrets.get(MADE).await?;
    let secret = secret.ok_or_else(|| SecretError::Vanished { namespace: namespace.to_owned(), name: MADE })?;
    read(namespace, MADE, &secret, domain, now)
}

struct Secrets<'a> {
    api: Api<Secret>,
    namespace: &'a str,
}

impl Secrets<'_> {
    async fn get(&self, name: &'static str) -> Result<Option<Secret>, SecretError> {
        let answer = timeout(DEADLINE, self.api.get_opt(name)).await;
        answer.map_err(|_| self.late("get", name))?.map_err(|e| self.failed("get", name, e))
    }

    /// False when there is one already.
    async fn create(&self, name: &'static str, secret: &Secret) -> Result<bool, SecretError> {
        let params = PostParams::default();
        let answer = timeout(DEADLINE, self.api.create(&params, secret)).await;
        match answer.map_err(|_| self.late("create", name))? {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(e) => Err(self.failed("create", name, e)),
        }
    }

    fn late(&self, verb: &'static str, name: &'static str) -> SecretError {
        SecretError::Late { verb, namespace: self.namespace.to_owned(), name }
    }

    fn failed(&self, verb: &'static str, name: &'static str, error: kube::Error) -> SecretError {
        let namespace = self.namespace.to_owned();
        match error {
            kube::Error::Api(status) if status.code == 403 => SecretError::Forbidden { verb, namespace, name },
            other => SecretError::Api { verb, namespace, name, source: Box::new(other) },
        }
    }
}

/// The authority that a Secret describes.
fn read(
    namespace: &str,
    name: &'static str,
    secret: &Secret,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Authority, SecretError> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let part = |key: &str| data.get(key).map(|bytes| &*bytes.0).filter(|bytes| !bytes.is_empty());
    let by_cert_manager = part("ca-cert.pem").is_none() && part("tls.crt").is_some();
    let (cert_key, key_key, above): (_, _, &[&str]) = match by_cert_manager {
        true => ("tls.crt", "tls.key", &["ca.crt"]),
        false => ("ca-cert.pem", "ca-key.pem", &["cert-chain.pem", "root-cert.pem"]),
    };
    let lacks = |key| SecretError::Lacks { namespace: namespace.to_owned(), name, key };
    let cert = part(cert_key).ok_or_else(|| lacks(cert_key))?;
    let key = part(key_key).ok_or_else(|| lacks(key_key))?;
    let place = |key: &str| PathBuf::from(format!("Secret {namespace}/{name}, {key}"));
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    let parts = std::iter::once((cert_key, cert)).chain(above.iter().filter_map(|key| Some((*key, part(key)?))));
    for (key, pem) in parts {
        let certificates = certificates_in_pem(pem).map_err(|_| AuthorityError::BadCertificates(place(key)))?;
        // The parts repeat each other: a chain begins with the authority, and may end with the root.
        for certificate in certificates {
            if !chain.contains(&certificate) {
                chain.push(certificate);
            }
        }
    }
    let (cert_place, key_place) = (place(cert_key), place(key_key));
    Ok(Authority::assemble((&cert_place, &chain), (&key_place, key), domain.clone(), now)?)
}

#[cfg(test)]
mod tests;
