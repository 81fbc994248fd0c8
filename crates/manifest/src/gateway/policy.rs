//! `BackendTLSPolicy` and `XBackendTrafficPolicy`: how a backend is spoken to.

use serde::Deserialize;

use super::{LocalRef, PolicyRef, SessionPersistence};

/// What a `BackendTLSPolicy` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTlsPolicySpec {
    /// The services it is about.
    #[serde(default)]
    pub target_refs: Vec<PolicyRef>,
    /// Who must answer.
    #[serde(default)]
    pub validation: Validation,
}

/// Who must answer.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Validation {
    /// Where the roots are written.
    #[serde(default)]
    pub ca_certificate_refs: Vec<LocalRef>,
    /// `System`: the roots that the proxy's machine trusts.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    /// The name that is asked for, and that the certificate has where no others are listed.
    #[serde(default)]
    pub hostname: String,
    /// Names of which the certificate has one.
    #[serde(default)]
    pub subject_alt_names: Vec<AlternativeName>,
}

/// A name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct AlternativeName {
    /// `Hostname` or `URI`.
    #[serde(default)]
    pub r#type: String,
    /// For the former.
    pub hostname: Option<String>,
    /// For the latter.
    pub uri: Option<String>,
}

/// What an `XBackendTrafficPolicy` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTrafficPolicySpec {
    /// The services it is about.
    #[serde(default)]
    pub target_refs: Vec<PolicyRef>,
    /// How many requests may be retries.
    pub retry_constraint: Option<RetryConstraint>,
    /// What keeps a client with its endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// How many requests may be retries.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryConstraint {
    /// A share of all.
    pub budget: Option<RetryBudget>,
    /// So many in any case.
    pub min_retry_rate: Option<RequestRate>,
}

/// A share of all requests.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct RetryBudget {
    /// In percent.
    pub percent: Option<i64>,
    /// Of those within this time.
    pub interval: Option<String>,
}

/// Requests in a time.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct RequestRate {
    /// How many.
    pub count: Option<i64>,
    /// In which time.
    pub interval: Option<String>,
}
