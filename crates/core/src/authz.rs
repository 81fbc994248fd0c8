//! May this connection pass? (policies, facts) -> verdict, and the policy that decided.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ids::Identity;
use crate::policy::Policy;
use crate::reason::Reason;
use crate::snapshot::Snapshot;
use crate::traversal;
use crate::workload::Workload;

mod explain;
mod fit;
mod index;

pub use explain::{Explanation, MAX_NAMED, MAX_VALUES, Miss, explain};
pub(crate) use fit::Connection;
pub(crate) use index::Set;

/// What is known about a connection that arrives.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Who connects, as proven by its certificate; `None` in the clear.
    pub source: Option<&'a Identity>,
    /// Where it comes from.
    pub source_ip: IpAddr,
    /// The workload's address that it goes to.
    pub destination_ip: IpAddr,
    /// The port of the workload, after a service port was resolved.
    pub destination_port: u16,
}

/// Whether a connection may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny {
        /// [`Reason::Denied`], [`Reason::PolicyPending`] or [`Reason::WaypointRequired`].
        reason: Reason,
        /// The policy that decided or is waited for; `None` when no ALLOW policy matched, when no policy at all has
        /// arrived, or when it went past a waypoint.
        policy: Option<Arc<str>>,
    },
}

impl Verdict {
    /// Whether it is [`Verdict::Allow`].
    pub fn is_allowed(&self) -> bool {
        *self == Verdict::Allow
    }

    /// Whether it is no decision yet: a policy that applies has not arrived, and may change it either way.
    pub fn is_pending(&self) -> bool {
        matches!(self, Verdict::Deny { reason: Reason::PolicyPending, .. })
    }

    /// `allow` or `deny`.
    pub fn as_str(&self) -> &'static str {
        if self.is_allowed() { "allow" } else { "deny" }
    }

    fn denied(policy: Option<&Arc<str>>) -> Self {
        Verdict::Deny { reason: Reason::Denied, policy: policy.cloned() }
    }

    fn past_waypoint() -> Self {
        Verdict::Deny { reason: Reason::WaypointRequired, policy: None }
    }

    fn pending(policy: Option<&Arc<str>>) -> Self {
        Verdict::Deny { reason: Reason::PolicyPending, policy: policy.cloned() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allow => f.write_str("allowed"),
            Verdict::Deny { reason: Reason::PolicyPending, policy: Some(policy) } => {
                write!(f, "policy {policy} applies but has not arrived")
            }
            Verdict::Deny { reason: Reason::PolicyPending, policy: None } => f.write_str("no policy has arrived yet"),
            Verdict::Deny { reason: Reason::WaypointRequired, .. } => {
                f.write_str("the port takes connections from its waypoint alone")
            }
            Verdict::Deny { policy: Some(policy), .. } => write!(f, "denied by policy {policy}"),
            Verdict::Deny { policy: None, .. } => f.write_str("no policy allows it"),
        }
    }
}

/// The policies that apply to a workload.
pub(crate) struct Applying<'a> {
    /// Those of the mesh, of its namespace, and those it lists.
    pub(crate) sets: [SetRef<'a>; 3],
    pub(crate) missing: Option<Missing<'a>>,
}

/// Policies that are kept arranged, or were arranged for this one question.
pub(crate) enum SetRef<'a> {
    None,
    Kept(&'a Set),
    Made(Box<Set>),
}

/// What has not arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Missing<'a> {
    /// All policies: the control plane has said nothing about them yet.
    Everything,
    /// One that the workload lists.
    Policy(&'a Arc<str>),
}

impl Applying<'_> {
    fn sets(&self) -> impl Iterator<Item = &Set> {
        self.sets.iter().filter_map(|set| match set {
            SetRef::None => None,
            SetRef::Kept(set) => Some(*set),
            SetRef::Made(set) => Some(&**set),
        })
    }

    fn is_empty(&self) -> bool {
        self.sets().all(Set::is_empty)
    }

    /// The policy that denies a connection, whatever else allows it.
    fn denying(&self, connection: &Connection<'_>) -> Option<&Arc<Policy>> {
        self.sets().find_map(|set| set.deny.first(connection))
    }

    /// The verdict about a connection to `destination`, to which they apply.
    fn verdict(&self, destination: &Workload, connection: &Connection<'_>) -> Verdict {
        let facts = connection.facts;
        match traversal::is_past(destination, facts.destination_port, facts.source) {
            true => Verdict::past_waypoint(),
            false => self.of_policies(connection),
        }
    }

    fn of_policies(&self, connection: &Connection<'_>) -> Verdict {
        if let Some(policy) = self.denying(connection) {
            return Verdict::denied(Some(&policy.key));
        }
        match self.missing {
            Some(Missing::Policy(policy)) => Verdict::pending(Some(policy)),
            Some(Missing::Everything) => Verdict::pending(None),
            None if self.sets().all(|set| set.allow.len() == 0) => Verdict::Allow,
            None if self.sets().any(|set| set.allow.any(connection)) => Verdict::Allow,
            None => Verdict::denied(None),
        }
    }

    /// The verdict if those that are only watched were in force; `None` where none applies.
    fn dry_run(&self, connection: &Connection<'_>, verdict: &Verdict) -> Option<Verdict> {
        let denying: usize = self.sets().map(|set| set.watched_deny.len()).sum();
        let allowing: usize = self.sets().map(|set| set.watched_allow.len()).sum();
        if denying + allowing == 0 {
            return None;
        }
        let decided = matches!(
            verdict,
            Verdict::Deny { reason: Reason::Denied, policy: Some(_) }
                | Verdict::Deny { reason: Reason::WaypointRequired, .. }
        );
        if decided || verdict.is_pending() {
            return Some(verdict.clone());
        }
        if let Some(policy) = self.sets().find_map(|set| set.watched_deny.first(connection)) {
            return Some(Verdict::denied(Some(&policy.key)));
        }
        if allowing == 0 {
            return Some(verdict.clone());
        }
        // Without one that is in force everything was allowed, which one more policy that allows would end.
        let by_match = verdict.is_allowed() && self.sets().any(|set| set.allow.len() > 0);
        match by_match || self.sets().any(|set| set.watched_allow.any(connection)) {
            true => Some(Verdict::Allow),
            false => Some(Verdict::denied(None)),
        }
    }
}

/// Judges a connection to `destination`: one that goes past its waypoint is refused; any DENY that matches refuses; a
/// policy that the workload lists and that has not arrived refuses; without an ALLOW policy it may pass; else one ALLOW
/// policy must match. Of several policies that refuse, those of the mesh are named before those of the namespace and
/// these before those that are listed, each by name.
pub fn judge(snapshot: &Snapshot, destination: &Workload, facts: &Facts<'_>) -> Verdict {
    let applying = snapshot.applying(destination);
    if applying.is_empty() && applying.missing.is_none() && destination.traversal.is_empty() {
        return Verdict::Allow;
    }
    applying.verdict(destination, &Connection::new(facts))
}

/// What the verdict would be if the dry-run policies for `destination` were in force; `None` where there is none.
pub fn dry_run(snapshot: &Snapshot, destination: &Workload, facts: &Facts<'_>) -> Option<Verdict> {
    let applying = snapshot.applying(destination);
    if applying.sets().all(|set| set.watched_deny.len() + set.watched_allow.len() == 0) {
        return None;
    }
    let connection = Connection::new(facts);
    applying.dry_run(&connection, &applying.verdict(destination, &connection))
}

#[cfg(test)]
mod tests;
