//! Tokens of Kubernetes: the API server says whose they are.
//!
//! A node's proxy calls with the token of its pod, as does a waypoint. The API server knows whether that pod still is
//! there, under the same UID, and on which node: it writes both into the token, so the caller's node is not the caller's
//! word.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use loam_kube::Client;
use loam_rt::explain;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;

use super::service::{Authenticate, Caller, Refused};
use super::token::{AUDIENCE, MAX_TOKEN_BYTES, TokenError, bearer};

/// How long an answer is used again: a pod that is deleted is refused after this at the latest.
const ACCEPTED_FOR: Duration = Duration::from_secs(60);
/// A refusal is used again for less: what was missing may be there soon.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Most answers that are kept: each node has a token, and another one while it is renewed.
const MAX_KEPT: usize = 16_384;
/// Questions to the API server at one time.
const MAX_ASKED: usize = 16;
/// How long a caller waits for the API server.
const DEADLINE: Duration = Duration::from_secs(5);
/// Before the name of every account.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An account that is not written as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a service account: write NAMESPACE/NAME")]
pub struct AccountError(String);

impl FromStr for Account {
    type Err = AccountError;

    fn from_str(s: &str) -> Result<Self, AccountError> {
        let plain = |part: &str| {
            let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            !part.is_empty() && part.len() <= 253 && part.bytes().all(valid)
        };
        match s.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(AccountError(s.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Asks the API server about tokens, and remembers what it said by their digests.
pub struct Reviews {
    client: Client,
    trusted: Vec<Account>,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
    asked: Semaphore,
}

#[derive(Debug, Clone)]
struct Kept {
    answer: Result<Caller, String>,
    until: Instant,
}

impl Reviews {
    /// Asks through `client`; proxies of nodes are pods of `trusted` accounts.
    pub fn new(client: Client, trusted: Vec<Account>) -> Self {
        Self { client, trusted, kept: Mutex::default(), asked: Semaphore::new(MAX_ASKED) }
    }

    /// As the CA and the configuration server ask for it.
    pub fn authenticate(self: Arc<Self>) -> Authenticate {
        Arc::new(move |metadata: &MetadataMap| {
            let (reviews, token) = (Arc::clone(&self), bearer(metadata).map(str::to_owned));
            Box::pin(async move {
                let token = token.map_err(|why| Refused::Stranger(why.to_string()))?;
                reviews.caller(token).await
            })
        })
    }

    /// The node or the waypoint that a token proves.
    async fn caller(&self, token: String) -> Result<Caller, Refused> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::Stranger(TokenError::Malformed.to_string()));
        }
        let digest = digest_of(&token);
        if let Some(answer) = self.known(&digest) {
            return answer.map_err(Refused::Stranger);
        }
        let late = || Refused::Unavailable(format!("review a token: no answer within {} s", DEADLINE.as_secs()));
        timeout(DEADLINE, self.ask(digest, token)).await.map_err(|_| late())?
    }

    async fn ask(&self, digest: [u8; 32], token: String) -> Result<Caller, Refused> {
        let failed = |why: &str| Refused::Unavailable(format!("review a token: {why}"));
        let _place = self.asked.acquire().await.map_err(|e| failed(&e.to_string()))?;
        // Whoever was before us may have asked the same.
        if let Some(answer) = self.known(&digest) {
            return answer.map_err(Refused::Stranger);
        }
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::<TokenReview>::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await.map_err(|e| match &e {
            kube::Error::Api(status) if status.code == 403 => failed(
                "forbidden; a ClusterRole of this program's service account must have the rule \
                 {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}",
            ),
            other => failed(&explain(other)),
        })?;
        let answer = decide(review.status.unwrap_or_default(), &self.trusted);
        self.keep(digest, answer.clone());
        answer.map_err(Refused::Stranger)
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Result<Caller, String>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(digest).filter(|kept| Instant::now() < kept.until).map(|kept| kept.answer.clone())
    }

    fn keep(&self, digest: [u8; 32], answer: Result<Caller, String>) {
        let now = Instant::now();
        let until = now + if answer.is_ok() { ACCEPTED_FOR } else { REFUSED_FOR };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| now < kept.until);
        }
        if kept.len() >= MAX_KEPT {
            // Strangers make room for nodes.
            kept.retain(|_, kept| kept.answer.is_ok());
        }
        if kept.len() < MAX_KEPT {
            kept.insert(digest, Kept { answer, until });
        }
    }
}

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviews").field("trusted", &self.trusted).finish_non_exhaustive()
    }
}

fn digest_of(token: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Who calls, by what the API server says about the token; whatever it does not say is a reason to refuse.
fn decide(status: TokenReviewStatus, trusted: &[Account]) -> Result<Caller, String> {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|e| !e.is_empty()).unwrap_or_else(|| "it does not say why".to_owned());
        return Err(format!("the API server does not accept the token: {why}"));
    }
    if !status.audiences.is_some_and(|all| all.iter().any(|audience| audience == AUDIENCE)) {
        return Err(TokenError::WrongAudience.to_string());
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let Some((namespace, name)) = account else {
        return Err(format!("{username:?} is not a service account"));
    };
    let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
    let extra = user.extra.unwrap_or_default();
    claim(&extra, "authentication.kubernetes.io/pod-name")?;
    claim(&extra, "authentication.kubernetes.io/pod-uid")?;
    let node = claim(&extra, "authentication.kubernetes.io/node-name")?;
    // Whoever is not trusted with a node speaks for itself at most; whether it may, others know.
    let account = (!trusted.contains(&account)).then_some(account);
    Ok(Caller { node: node.to_owned(), account })
}

/// A claim of the token: the API server checked it, and that the pod with this UID still is there.
fn claim<'a>(extra: &'a BTreeMap<String, Vec<String>>, name: &str) -> Result<&'a str, String> {
    match extra.get(name).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value),
        _ => {
            Err(format!("the token has no claim {name}: it must be projected into a pod, by Kubernetes 1.30 or newer"))
        }
    }
}

#[cfg(test)]
mod tests;
