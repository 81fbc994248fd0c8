//! Authorization policies as plain data (`istio.security.Authorization`).

use std::sync::Arc;

use ipnet::IpNet;

use crate::ids::Identity;

/// One policy. A policy without rules matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Which workloads it is about.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Whether it is only watched and not enforced.
    pub dry_run: bool,
    /// Alternatives: one that matches is enough.
    pub rules: Vec<Rule>,
    /// Why it could not be read, where it only stands for a policy that could not be.
    pub unreadable: Option<Arc<str>>,
}

impl Policy {
    /// Stands for a policy that could not be read, because of `why`. What it says is in doubt, so it denies everything
    /// that it may be about: what `scope` says where that much could be read; else the whole mesh if its namespace is
    /// `root`, which holds policies of the mesh, or cannot be told, and its namespace if not.
    pub fn unreadable(key: &str, scope: Option<Scope>, root: &str, why: &str) -> Self {
        let namespace = key.split_once('/').map(|(namespace, _)| namespace);
        let scope = scope.unwrap_or(match namespace {
            Some(namespace) if namespace != root => Scope::Namespace,
            Some(_) | None => Scope::Global,
        });
        Self {
            key: key.into(),
            namespace: namespace.unwrap_or_default().into(),
            scope,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule::default()],
            unreadable: Some(why.into()),
        }
    }
}

/// Which workloads a policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// All of its namespace.
    Namespace,
    /// Those that list it.
    Workload,
}

/// What a match of a policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection may pass, and where there is such a policy nothing else may.
    Allow,
    /// The connection may not pass, whatever else allows it.
    Deny,
}

/// Clauses that must all hold. A rule without clauses always matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// Alternatives: one match that holds is enough.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clause {
    /// The alternatives.
    pub matches: Vec<Match>,
}

/// Fields that must all hold. In a field one value is enough; none of a `not_` field may hold. A match without any
/// field holds never.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names of fields are those of the policy's language")]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccount>,
    pub not_service_accounts: Vec<ServiceAccount>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

/// A pattern for a text that may be absent. Nothing matches an absent text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of patterns say it")]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Presence,
}

impl StringMatch {
    /// Whether `text` is there and fits.
    pub fn matches(&self, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match self {
            StringMatch::Exact(exact) => text == &**exact,
            StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
            StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
            StringMatch::Presence => !text.is_empty(),
        }
    }
}

/// A service account of any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ServiceAccount {
    /// Whether it is the one of `identity`.
    pub fn is_of(&self, identity: &Identity) -> bool {
        identity.namespace() == &*self.namespace && identity.service_account() == &*self.name
    }
}
