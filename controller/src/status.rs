//! What people are told about objects of the Gateway API and about whoever has a waypoint: pure values.

pub mod gateway;
pub mod patch;

use std::fmt;

use loam_manifest::gateway::ParentRef;

use crate::resource::Name;

/// One thing that is so or is not, as Kubernetes writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// What it is about.
    pub kind: &'static str,
    /// Whether it is so.
    pub holds: bool,
    /// Why, in a word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

impl Condition {
    /// That it is so, for the reason that has its name.
    pub fn is(kind: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: true, reason, message: message.into() }
    }

    /// That it is not so.
    pub fn is_not(kind: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }
}

/// Why a condition is as it is, in the words of the Gateway API and of Istio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the words are theirs, and say it")]
pub enum Reason {
    Accepted,
    AttachmentDenied,
    BackendNotFound,
    CanaryInvalidWeight,
    CanarySameAsPrimary,
    Conflicted,
    Invalid,
    InvalidCACertificateRef,
    InvalidKind,
    InvalidParameters,
    ListenersNotValid,
    NoConflicts,
    NoMatchingParent,
    NoResources,
    NoValidCACertificate,
    NotAllowedByListeners,
    Pending,
    Programmed,
    RefNotPermitted,
    ResolvedRefs,
    ResolvedWaypoints,
    SupportedVersion,
    TargetNotFound,
    UnsupportedProtocol,
    UnsupportedTrafficType,
    UnsupportedValue,
    UnsupportedVersion,
    WaypointAccepted,
    WaypointIsNotReady,
    WaypointMissing,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What is told about a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteStatus {
    /// The version of the object that it is about.
    pub generation: Option<i64>,
    /// What is told to each of its parents that is ours, which is named as the route names it.
    pub parents: Vec<(ParentRef, Vec<Condition>)>,
}

/// What is told about a policy for the waypoint that carries it out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ancestor {
    /// The waypoint.
    pub gateway: Name,
    /// What is told.
    pub conditions: Vec<Condition>,
}
