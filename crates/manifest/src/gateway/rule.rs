//! Rules of routes for requests: matches, filters and the rest.

use serde::Deserialize;

use super::{BackendRef, LocalRef, ObjectRef};

/// A rule of an `HTTPRoute`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// Its name.
    pub name: Option<String>,
    /// Which requests it is for; any of these, and all where there is none.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// What happens to them.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where they go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    pub timeouts: Option<Timeouts>,
    /// How often they are tried.
    pub retry: Option<Retry>,
    /// What keeps a client with its endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// A rule of a `GRPCRoute`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRule {
    /// Its name.
    pub name: Option<String>,
    /// Which calls it is for; any of these, and all where there is none.
    #[serde(default)]
    pub matches: Vec<GrpcMatch>,
    /// What happens to them.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where they go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// What keeps a client with its endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// Requests that have all of this.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// Path; `PathPrefix` and `/` where it is not said.
    pub path: Option<ValueMatch>,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// Parameters of the query.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    /// Method.
    pub method: Option<String>,
}

/// A value that something must have.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct ValueMatch {
    /// How it is compared, such as `Exact`.
    pub r#type: Option<String>,
    /// Name of a header or parameter.
    #[serde(default)]
    pub name: String,
    /// The value.
    pub value: Option<String>,
}

/// Calls that have all of this.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcMatch {
    /// What is called.
    pub method: Option<GrpcMethod>,
    /// Metadata.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct GrpcMethod {
    /// `Exact` where it is not said, or `RegularExpression`.
    pub r#type: Option<String>,
    /// Service with its package.
    pub service: Option<String>,
    /// Method of it.
    pub method: Option<String>,
}

/// Something that happens to a request. `type` says which of the fields counts.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Such as `RequestMirror`.
    #[serde(default)]
    pub r#type: String,
    /// Changes of the request's headers.
    pub request_header_modifier: Option<HeaderEdits>,
    /// Changes of the response's headers.
    pub response_header_modifier: Option<HeaderEdits>,
    /// A copy for somebody else.
    pub request_mirror: Option<Mirror>,
    /// An answer that sends the client elsewhere.
    pub request_redirect: Option<Redirect>,
    /// Another host or path.
    pub url_rewrite: Option<Rewrite>,
    /// What browsers may ask for other sites.
    pub cors: Option<Cors>,
    /// A filter of somebody else.
    pub extension_ref: Option<LocalRef>,
}

/// Changes of headers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct HeaderEdits {
    /// Headers to have with exactly this value.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Values to have beside others.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Names to be gone.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Header {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

/// A copy for somebody else.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Who gets it.
    #[serde(default)]
    pub backend_ref: ObjectRef,
    /// Share of all requests, in percent.
    pub percent: Option<i64>,
    /// Share of all requests.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Fraction {
    /// So many.
    #[serde(default)]
    pub numerator: i64,
    /// Of so many; 100 where it is not said.
    pub denominator: Option<i64>,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// Scheme there.
    pub scheme: Option<String>,
    /// Host there.
    pub hostname: Option<String>,
    /// Path there.
    pub path: Option<PathChange>,
    /// Port there.
    pub port: Option<i64>,
    /// Status; 302 where it is not said.
    pub status_code: Option<i64>,
}

/// Another host or path.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathChange {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(default)]
    pub r#type: String,
    /// For the former.
    pub replace_full_path: Option<String>,
    /// For the latter.
    pub replace_prefix_match: Option<String>,
}

/// What browsers may ask for other sites.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Sites.
    #[serde(default)]
    pub allow_origins: Vec<String>,
    /// Whether with credentials.
    pub allow_credentials: Option<bool>,
    /// Methods.
    #[serde(default)]
    pub allow_methods: Vec<String>,
    /// Headers of requests.
    #[serde(default)]
    pub allow_headers: Vec<String>,
    /// Headers of responses that pages may see.
    #[serde(default)]
    pub expose_headers: Vec<String>,
    /// How long browsers may remember this, in seconds.
    pub max_age: Option<i64>,
}

/// How long requests may take.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// In all.
    pub request: Option<String>,
    /// Each attempt.
    pub backend_request: Option<String>,
}

/// How often requests are tried.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Retry {
    /// After answers with one of these.
    #[serde(default)]
    pub codes: Vec<i64>,
    /// So often after the first time.
    pub attempts: Option<i64>,
    /// With at least this pause.
    pub backoff: Option<String>,
}

/// What keeps a client with its endpoint.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// Name of the cookie or header.
    pub session_name: Option<String>,
    /// How long at most.
    pub absolute_timeout: Option<String>,
    /// How long without a request.
    pub idle_timeout: Option<String>,
    /// `Cookie` where it is not said, or `Header`.
    pub r#type: Option<String>,
    /// More about the cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// More about a cookie.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CookieConfig {
    /// `Session` where it is not said, or `Permanent`.
    pub lifetime_type: Option<String>,
}
