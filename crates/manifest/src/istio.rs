//! Kinds of Istio's API groups: no library has types for them, so they are here, reduced to what a mesh without
//! sidecars reads. Words and numbers are as written; whoever gives them a meaning checks them.

mod networking;
mod security;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

pub use networking::{
    EntryPort, LabelSelector, OutboundTrafficPolicy, ServiceEntrySpec, SidecarSpec, WorkloadEntrySpec,
};
pub use security::{AuthorizationPolicySpec, PeerAuthenticationSpec};

/// An object that is metadata and a specification.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Custom<S> {
    /// What every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What this one asks for.
    #[serde(default, bound(deserialize = "S: Default + Deserialize<'de>"))]
    pub spec: S,
    /// Where it is written.
    #[serde(skip)]
    pub place: Place,
}

/// Where an object is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The file below the directory.
    pub file: Arc<str>,
    /// The line on which the object begins.
    pub line: u32,
}
