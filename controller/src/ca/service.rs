//! The CA as nodes call it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use loam_api::ca::istio_certificate_service_server::IstioCertificateService;
use loam_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use loam_core::ids::Identity;
use prost_types::value::Kind;
use rcgen::PublicKeyData;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::authority::{Authority, AuthorityError};
use super::csr::{CsrError, proven_key};
use super::limit::{Admission, Limits};
use super::review::Account;
use super::seen::SeenKeys;

/// The key in a request's metadata that names whom the certificate is for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// Most keys of a request's metadata: Istio defines two.
const MAX_METADATA_KEYS: usize = 16;

/// Under this name callers that are not known share an allowance of log lines; no node is called so.
const STRANGERS: &str = "(unknown)";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The node it runs on, and for which it speaks unless it has an account.
    pub node: String,
    /// The account that it speaks for, and for nobody else: a waypoint's.
    pub account: Option<Account>,
}

impl Caller {
    /// A proxy that speaks for all that runs on its node.
    pub fn of_node(node: impl Into<String>) -> Self {
        Self { node: node.into(), account: None }
    }

    /// What it is called in logs and by limits.
    pub fn name(&self) -> String {
        match &self.account {
            None => self.node.clone(),
            // No node has a slash in its name.
            Some(account) => format!("{account}@{}", self.node),
        }
    }

    /// Whether it may be `identity`.
    pub fn may_be(&self, identity: &Identity, entitled: &impl Entitled) -> bool {
        match &self.account {
            None => entitled.runs_on(identity, &self.node),
            Some(account) => {
                (identity.namespace(), identity.service_account())
                    == (account.namespace.as_str(), account.name.as_str())
                    && entitled.has_waypoint(account, &self.node)
            }
        }
    }
}

/// Why nobody knows who calls; the texts are for the log only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It did not prove itself.
    Stranger(String),
    /// It could not be found out now.
    Unavailable(String),
}

/// Who calls, once it is found out.
pub type Authenticating = Pin<Box<dyn Future<Output = Result<Caller, Refused>> + Send>>;

/// Finds out who calls.
pub type Authenticate = Arc<dyn Fn(&MetadataMap) -> Authenticating + Send + Sync>;

/// Who may be whom.
pub trait Entitled: Send + Sync + 'static {
    /// Whether a workload of this identity runs on the node: a pod that exists and has not ended.
    fn runs_on(&self, identity: &Identity, node: &str) -> bool;
    /// Whether a pod of a waypoint runs on the node with this account.
    fn has_waypoint(&self, account: &Account, node: &str) -> bool;
}

/// Answers requests for certificates.
pub struct CaService<E> {
    authority: Arc<Authority>,
    authenticate: Authenticate,
    entitled: E,
    limits: Limits,
    seen: SeenKeys,
}

/// Why a request was refused, in full. Callers see the code and nothing else.
#[derive(Debug, thiserror::Error)]
enum Denial {
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    #[error("not authenticated yet: {0}")]
    Unavailable(String),
    #[error("too many requests")]
    TooMany,
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("names no identity")]
    NoIdentity,
    #[error("identity asked for: {0}")]
    BadIdentity(String),
    #[error("{0} belongs to a foreign trust domain")]
    ForeignTrustDomain(Identity),
    #[error("no workload of {0} runs there")]
    NotEntitled(Identity),
    #[error("the key asked to prove {0} is another identity's")]
    KeyReused(Identity),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl<E: Entitled> CaService<E> {
    /// A service that signs with `authority` for callers that `authenticate` knows.
    pub fn new(authority: Arc<Authority>, authenticate: Authenticate, entitled: E) -> Self {
        Self { authority, authenticate, entitled, limits: Limits::default(), seen: SeenKeys::default() }
    }

    fn answer(
        &self,
        caller: Result<Caller, Refused>,
        request: &IstioCertificateRequest,
        now: SystemTime,
        instant: Instant,
    ) -> Result<IstioCertificateResponse, Status> {
        let caller = match caller {
            Ok(caller) => caller,
            Err(Refused::Stranger(why)) => {
                return Err(self.refuse_often(STRANGERS, instant, &Denial::Unauthenticated(why)));
            }
            Err(Refused::Unavailable(why)) => {
                return Err(self.refuse_often(STRANGERS, instant, &Denial::Unavailable(why)));
            }
        };
        let who = caller.name();
        if let Admission::Refused { logged } = self.limits.admit(&who, instant) {
            return Err(if logged { status(&Denial::TooMany) } else { refuse(&who, &Denial::TooMany) });
        }
        self.sign(&caller, request, now).map_err(|denial| refuse(&who, &denial))
    }

    /// Refuses somebody who has no limit of their own: a storm must not become one of log lines.
    fn refuse_often(&self, who: &str, instant: Instant, denial: &Denial) -> Status {
        match self.limits.admit(who, instant) {
            Admission::Passed | Admission::Refused { logged: false } => refuse(who, denial),
            Admission::Refused { logged: true } => status(denial),
        }
    }

    fn sign(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<IstioCertificateResponse, Denial> {
        let identity = asked_identity(request)?;
        if identity.trust_domain() != self.authority.domain() {
            return Err(Denial::ForeignTrustDomain(identity));
        }
        if !caller.may_be(&identity, &self.entitled) {
            return Err(Denial::NotEntitled(identity));
        }
        let key = proven_key(&request.csr)?;
        let ttl = u64::try_from(request.validity_duration).ok().filter(|&s| s > 0).map(Duration::from_secs);
        let signed = self.authority.sign(&identity, &key, ttl, now)?;
        if !self.seen.claim(&key.subject_public_key_info(), &identity, signed.not_after, now) {
            return Err(Denial::KeyReused(identity));
        }
        tracing::info!(node = caller.node, %identity, serial = signed.serial, "certificate signed");
        Ok(IstioCertificateResponse { cert_chain: signed.to_elements(&self.authority) })
    }
}

#[tonic::async_trait]
impl<E: Entitled> IstioCertificateService for CaService<E> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = (self.authenticate)(request.metadata()).await;
        let answer = self.answer(caller, request.get_ref(), SystemTime::now(), Instant::now());
        answer.map(Response::new)
    }
}

/// The identity that a request asks for, as parsed text: what is signed is never the text of the caller.
fn asked_identity(request: &IstioCertificateRequest) -> Result<Identity, Denial> {
    let fields = &request.metadata.as_ref().ok_or(Denial::NoIdentity)?.fields;
    if fields.len() > MAX_METADATA_KEYS {
        return Err(Denial::NoIdentity);
    }
    match fields.get(IMPERSONATED_IDENTITY).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.parse().map_err(|e| Denial::BadIdentity(format!("{e}"))),
        _ => Err(Denial::NoIdentity),
    }
}

fn refuse(node: &str, denial: &Denial) -> Status {
    tracing::warn!(node, reason = %denial, "certificate refused");
    status(denial)
}

fn status(denial: &Denial) -> Status {
    match denial {
        Denial::Unauthenticated(_) => Status::unauthenticated("not authenticated"),
        Denial::Unavailable(_) => Status::unavailable("cannot authenticate now"),
        Denial::TooMany => Status::resource_exhausted("too many requests"),
        Denial::Csr(_) | Denial::NoIdentity | Denial::BadIdentity(_) | Denial::KeyReused(_) => {
            Status::invalid_argument("invalid request")
        }
        // One answer for both: a node does not learn what runs elsewhere.
        Denial::ForeignTrustDomain(_) | Denial::NotEntitled(_) => Status::permission_denied("not permitted"),
        Denial::Authority(_) => Status::unavailable("cannot sign"),
    }
}

#[cfg(test)]
mod tests;
