//! What people are told about each policy.

use std::sync::Arc;

use loam_manifest::{Key, Kind, Severity};

use super::{Authorization, Held, Peer, Policies};
use crate::index::Problem;
use crate::policy::reader::Flaw;
use crate::policy::status::{Condition, Reason, RuleStatus, Status, WAYPOINT_ACCEPTED, ZTUNNEL_ACCEPTED};
use crate::policy::translate::Effect;
use crate::resource::Name;
use crate::resource::authorization_policy::{Action, AuthorizationPolicy, Target};

impl Policies {
    pub(super) fn authorization_status(&self, name: &Name, held: &Held<Authorization>) -> Status {
        let written = &held.in_force.written;
        let is = |reason, message: String| Condition::is(ZTUNNEL_ACCEPTED, reason, message);
        let is_not = |reason, message: String| Condition::is_not(ZTUNNEL_ACCEPTED, reason, message);
        let outcomes = &held.in_force.outcomes;
        let stricter = outcomes.iter().any(|o| matches!(o.effect, Effect::DeniesMore | Effect::AllowsNothing));
        let condition = match (&written.target, written.action) {
            _ if !held.flaws.is_empty() => Condition::invalid(&held.flaws, held.standing),
            (Target::Waypoint(targets), action) => {
                let message = match written.dry_run || action == Action::Audit {
                    true => "waypoints do not evaluate policies: it is not in force".to_owned(),
                    false => {
                        format!(
                            "waypoints do not evaluate policies, so they refuse all requests to {}",
                            targets.join(", ")
                        )
                    }
                };
                Condition::is_not(WAYPOINT_ACCEPTED, Reason::UnsupportedValue, message)
            }
            (_, Action::Audit | Action::Custom) => {
                let action = if written.action == Action::Audit { "AUDIT" } else { "CUSTOM" };
                is_not(Reason::UnsupportedValue, format!("L4 does not support the action {action}: it is not in force"))
            }
            (_, Action::Allow | Action::Deny) => {
                let reason = if stricter { Reason::PartiallyInvalid } else { Reason::Accepted };
                is(reason, self.effect(name, written, stricter))
            }
        };
        let rules = outcomes.iter().enumerate().map(|(i, outcome)| RuleStatus::of(i, outcome)).collect();
        status(Kind::AuthorizationPolicy, name, held, condition, rules)
    }

    /// What a policy that is in force does, for people.
    fn effect(&self, name: &Name, written: &AuthorizationPolicy, stricter: bool) -> String {
        let mut words = Vec::new();
        if stricter {
            words.push("in force, and stricter than it is written: see the rules");
        } else if written.dry_run {
            words.push("watched and not enforced");
        } else {
            words.push("in force");
        }
        match (written.action, written.rules.is_empty()) {
            (Action::Deny, true) => words.push("without a rule it denies nothing"),
            (Action::Allow, true) => words.push("without a rule it allows nothing"),
            _ => {}
        }
        let selects = matches!(&written.target, Target::Workloads(labels) if !labels.is_empty());
        if selects && !self.delivery.is_listed(&name.to_string()) {
            words.push("it selects no workload");
        }
        words.join("; ")
    }

    pub(super) fn peer_status(&self, name: &Name, held: &Held<Peer>) -> Status {
        let written = &held.in_force.written;
        let (labels, root) = (&written.selector, name.namespace == self.root);
        let level = self.level(&name.namespace).filter(|first| *first != name);
        let condition = if !held.flaws.is_empty() {
            Condition::invalid(&held.flaws, held.standing)
        } else if root && !labels.is_empty() {
            let message = "with a selector it is not in force in the root namespace: write it in the workloads' own";
            Condition::is_not(ZTUNNEL_ACCEPTED, Reason::UnsupportedValue, message)
        } else if let Some(first) = level.filter(|_| labels.is_empty()) {
            let message = format!("not in force: {first} is older, and there can be only one");
            Condition::is_not(ZTUNNEL_ACCEPTED, Reason::Overridden, message)
        } else {
            let strictness = self.strictness(&name.namespace, (!labels.is_empty()).then_some(name));
            let ports: Vec<String> = strictness.except.iter().map(ToString::to_string).collect();
            let mut message = match (strictness.strict, ports.is_empty()) {
                (true, true) => "mutual TLS is needed".to_owned(),
                (true, false) => format!("mutual TLS is needed, except at {}", ports.join(", ")),
                (false, true) => "mutual TLS is not needed".to_owned(),
                (false, false) => format!("mutual TLS is needed at {} only", ports.join(", ")),
            };
            if !labels.is_empty() {
                message.push_str("; where an older one selects the same workload, that one counts");
            }
            Condition::is(ZTUNNEL_ACCEPTED, Reason::Accepted, message)
        };
        status(Kind::PeerAuthentication, name, held, condition, Vec::new())
    }
}

/// What somebody should look at: flaws, and what is otherwise not as it is written.
pub(super) fn problems_of<T>(kind: Kind, name: &Name, held: &Held<T>, status: &Status) -> Vec<Problem> {
    let problem = |severity, line, message| Problem {
        object: Key { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) },
        severity,
        file: Some(Arc::clone(&held.place.file)),
        line: Some(if line > 0 { line } else { held.place.line }),
        message,
    };
    let note = |c: &&Condition| !matches!(c.reason, Reason::Accepted | Reason::Invalid);
    let notes = status.conditions.iter().filter(note).map(|c| problem(Severity::Note, 0, c.message.clone()));
    let told = |f: &Flaw| problem(Severity::Error, f.line, format!("{}; {}", f.message, held.standing.words()));
    held.flaws.iter().map(told).chain(notes).collect()
}

fn status<T>(kind: Kind, name: &Name, held: &Held<T>, condition: Condition, rules: Vec<RuleStatus>) -> Status {
    Status {
        object: format!("{kind} {name}"),
        file: held.place.file.to_string(),
        line: held.place.line,
        conditions: vec![Condition { observed_generation: held.generation, ..condition }],
        rules,
    }
}
