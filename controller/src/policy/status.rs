//! What people are told about a policy: pure values, to be shown and to be written wherever there is a place for them.

use serde::Serialize;

use super::reader::Flaw;
use super::translate::{Effect, Outcome};

/// The condition that says whether L4 enforces a policy.
pub const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// The condition that says whether a waypoint does.
pub const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";

/// What is known about a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its kind, namespace and name.
    pub object: String,
    /// Where it is written; empty for one of an API server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The line of it; 0 for one of an API server.
    #[serde(skip_serializing_if = "is_nowhere")]
    pub line: u32,
    /// What can be said in a word each.
    pub conditions: Vec<Condition>,
    /// What became of its rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleStatus>,
}

fn is_nowhere(line: &u32) -> bool {
    *line == 0
}

/// One thing that is so or is not, as Kubernetes writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// Why, in a word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
    /// The version of the object that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Why a condition is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// All of it is in force.
    Accepted,
    /// It is in force, and stricter than it is written.
    PartiallyInvalid,
    /// This version of it is not in force.
    Invalid,
    /// It asks for what L4 or a waypoint cannot do.
    UnsupportedValue,
    /// Another one of its level is in force instead.
    Overridden,
}

/// What became of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Its place in the list.
    pub rule: usize,
    /// What became of it.
    pub effect: Effect,
    /// Fields that L4 cannot see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// The same for people.
    pub message: String,
}

/// What is in force of an object that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// What is written.
    AsWritten,
    /// An older version: what is written is wrong.
    LastValid,
    /// The closed reading of what is written: it is wrong, and there never was anything else.
    Closed,
}

impl Standing {
    /// What was done about flaws.
    pub fn words(self) -> &'static str {
        match self {
            Standing::AsWritten => "it is in force",
            Standing::LastValid => "the last valid version stays in force",
            Standing::Closed => "there is no valid version, so it denies all that it may be about",
        }
    }
}

impl Condition {
    /// A condition that is so.
    pub fn is(kind: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, status: "True", reason, message: message.into(), observed_generation: None }
    }

    /// A condition that is not so.
    pub fn is_not(kind: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { status: "False", ..Self::is(kind, reason, message) }
    }

    /// The condition of an object with flaws.
    pub fn invalid(flaws: &[Flaw], standing: Standing) -> Self {
        let told: Vec<&str> = flaws.iter().map(|flaw| flaw.message.as_str()).collect();
        Self::is_not(ZTUNNEL_ACCEPTED, Reason::Invalid, format!("{}; {}", told.join("; "), standing.words()))
    }
}

impl RuleStatus {
    /// What is told about the rule number `rule`.
    pub fn of(rule: usize, outcome: &Outcome) -> Self {
        let unseen: Vec<String> = outcome.unseen.iter().cloned().collect();
        let why = match (unseen.is_empty(), outcome.wrong) {
            (true, false) => String::new(),
            (false, false) => format!("L4 cannot see {}", unseen.join(", ")),
            (_, true) => "a part of it is not understood".to_owned(),
        };
        let message = match outcome.effect {
            Effect::Enforced => "enforced as written".to_owned(),
            Effect::DeniesMore => format!("{why}: it denies whatever fits the rest of the rule"),
            Effect::AllowsNothing => format!("{why}: it allows nothing"),
            Effect::NotEnforced => "not enforced at L4".to_owned(),
        };
        Self { rule, effect: outcome.effect, unseen, message }
    }
}
