//! `ReferenceGrant`: who may name objects of its namespace.

use serde::Deserialize;

/// What a `ReferenceGrant` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct ReferenceGrantSpec {
    /// Who may.
    #[serde(default)]
    pub from: Vec<GrantFrom>,
    /// What may be named.
    #[serde(default)]
    pub to: Vec<GrantTo>,
}

/// Objects that may name others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct GrantFrom {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Namespace.
    #[serde(default)]
    pub namespace: String,
}

/// Objects that may be named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct GrantTo {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Only this one.
    pub name: Option<String>,
}
