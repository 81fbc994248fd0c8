//! Routes: which requests they are for, and what becomes of these (Gateway API `HTTPRoute`, `GRPCRoute`, `TLSRoute`,
//! `TCPRoute`).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::backend::Backend;
use super::filter::Filter;
use super::host::HostPattern;
use super::pattern::{Pattern, Regex};
use super::target::{PathRules, SlashLike, Target, canonical_path};
use super::traffic::{Retry, Session};
use crate::ids::ServiceKey;

/// All routes whose parent is one service. There may be none; then requests go to the service's own endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRoutes {
    /// The service.
    pub service: ServiceKey,
    /// Its routes, in any order. Those of other namespaces are for callers of these namespaces only (GEP-1294).
    pub routes: Vec<Arc<Route>>,
}

/// What a route is about. The order is that of precedence where several kinds want one port (GEP-1294).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of kinds say it")]
pub enum Kind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl Kind {
    /// The kind of the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Grpc => "GRPCRoute",
            Kind::Http => "HTTPRoute",
            Kind::Tls => "TLSRoute",
            Kind::Tcp => "TCPRoute",
        }
    }
}

/// A route by the object that declares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// One route as far as it is about one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The object that declares it.
    pub key: RouteKey,
    /// When it was created, in seconds since 1970. The older of two that tie comes first.
    pub created: u64,
    /// The service ports it is for.
    pub ports: Vec<u16>,
    /// The names it is for: of hosts, or for TLS those that the client indicates. Empty means all. A mesh ignores the
    /// hostnames of `HTTPRoute` and `GRPCRoute`, so they are empty here.
    pub hostnames: Vec<HostPattern>,
    /// Which of several rules that match is taken.
    pub order: Order,
    /// Its rules, in the order in which they are written.
    pub rules: Vec<Arc<Rule>>,
}

/// Which of the matches that hold is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// The most specific (Gateway API).
    #[default]
    Specific,
    /// The first that is written (Istio's `VirtualService`). Such routes come before others of their port.
    Listed,
}

/// Alternatives of matches, and what becomes of requests for which one holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Its name, if it has one, for logs and metrics.
    pub name: Option<Arc<str>>,
    /// The alternatives: one is enough. A rule without matches holds for every request.
    pub matches: Vec<Match>,
    /// What is done to the request and its response, in order.
    pub filters: Vec<Filter>,
    /// Where the request goes, by weight.
    pub backends: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Whether it is tried again.
    pub retry: Option<Retry>,
    /// What keeps a client with its endpoint.
    pub session: Option<Session>,
}

/// Conditions that must all hold. Without any, it always holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// What the path is.
    pub path: Option<PathMatch>,
    /// What the method is.
    pub method: Option<Method>,
    /// What headers hold. Of several values each is looked at; one is enough.
    pub headers: Vec<HeaderMatch>,
    /// What parameters of the query hold. Of several of a name the first counts.
    pub query: Vec<QueryMatch>,
}

/// A condition for the path, in canonical form and without the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// It is this.
    Exact(Arc<str>),
    /// It begins with these segments: `/a` matches `/a` and `/a/b`, not `/ab`. A final slash means nothing.
    Prefix(Arc<str>),
    /// It begins with this text (Istio's `prefix`).
    Text(Arc<str>),
    /// The whole of it matches.
    Regex(Regex),
    /// It names a method of gRPC: `/<service>/<method>`. What is absent may be anything.
    Grpc {
        /// The service, with its package.
        service: Option<NameMatch>,
        /// The method.
        method: Option<NameMatch>,
    },
}

impl PathMatch {
    /// Whether `path`, in canonical form, is like that.
    pub fn holds(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => **exact == *path,
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatch::Text(text) => path.starts_with(&**text),
            PathMatch::Regex(regex) => regex.matches(path),
            PathMatch::Grpc { service, method } => {
                let named = path.strip_prefix('/').and_then(|path| path.split_once('/'));
                named.is_some_and(|(of, name)| {
                    !name.contains('/')
                        && service.as_ref().is_none_or(|service| service.holds(of))
                        && method.as_ref().is_none_or(|method| method.holds(name))
                })
            }
        }
    }

    /// The condition as canonical paths are compared with it. A path without canonical form stays: no request has it.
    pub(super) fn in_canonical_form(&self) -> Self {
        let rules = PathRules { merge_slashes: false, slash_like: SlashLike::Keep };
        let canonical = |path: &Arc<str>| match canonical_path(path, &rules) {
            Ok(Cow::Owned(canonical)) => canonical.into(),
            Ok(Cow::Borrowed(_)) | Err(_) => path.clone(),
        };
        match self {
            PathMatch::Exact(path) => PathMatch::Exact(canonical(path)),
            PathMatch::Prefix(path) => PathMatch::Prefix(canonical(path)),
            PathMatch::Text(path) => PathMatch::Text(canonical(path)),
            PathMatch::Regex(_) | PathMatch::Grpc { .. } => self.clone(),
        }
    }
}

/// A condition for the name of a service or method of gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameMatch {
    /// It is this.
    Exact(Arc<str>),
    /// The whole of it matches.
    Regex(Regex),
}

impl NameMatch {
    fn holds(&self, name: &str) -> bool {
        match self {
            NameMatch::Exact(exact) => **exact == *name,
            NameMatch::Regex(regex) => regex.matches(name),
        }
    }
}

/// A condition for the values of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// What one of its values must be.
    pub value: Pattern,
    /// Whether the condition is turned round: no value may be like that (Istio's `withoutHeaders`).
    pub absent: bool,
}

impl HeaderMatch {
    /// Whether the headers are like that. A value that is no text is only present.
    pub(super) fn holds(&self, headers: &HeaderMap) -> bool {
        let fits = |value: &HeaderValue| match value.to_str() {
            Ok(text) => self.value.matches(text),
            Err(_) => self.value == Pattern::Present,
        };
        headers.get_all(&self.name).iter().any(fits) != self.absent
    }
}

/// A condition for a parameter of the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// The parameter; case counts.
    pub name: Arc<str>,
    /// What its value must be, after percent-decoding.
    pub value: Pattern,
}

impl QueryMatch {
    /// Whether the query of `target` is like that.
    pub(super) fn holds(&self, target: &Target) -> bool {
        target.parameter(&self.name).is_some_and(|value| self.value.matches(&value))
    }
}

/// How long a request may take. `None` is no limit; `0s` in a manifest means the same (GEP-1742).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From its first byte until the end of the response, all tries included.
    pub request: Option<Duration>,
    /// One try at one backend.
    pub backend_request: Option<Duration>,
}
