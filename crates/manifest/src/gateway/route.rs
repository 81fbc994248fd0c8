//! `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute`.

use serde::Deserialize;

use super::{BackendRef, GrpcRule, HttpRule, ParentRef};

/// What an `HTTPRoute` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// What it is for.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// What it does; one rule for everything where it is not said.
    pub rules: Option<Vec<HttpRule>>,
}

/// What a `GRPCRoute` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// What it is for.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// What it does.
    #[serde(default)]
    pub rules: Vec<GrpcRule>,
}

/// What a `TLSRoute` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// What it is for.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Names that clients ask for in their hello.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// What it does.
    #[serde(default)]
    pub rules: Vec<StreamRule>,
}

/// What a `TCPRoute` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRouteSpec {
    /// What it is for.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// What it does.
    #[serde(default)]
    pub rules: Vec<StreamRule>,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamRule {
    /// Its name.
    pub name: Option<String>,
    /// Among these.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}
