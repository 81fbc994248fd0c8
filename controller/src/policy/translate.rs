//! From rules as people write them to rules over what L4 sees.
//!
//! What L4 cannot see is never passed over in silence. A rule that allows and asks for more than L4 knows allows
//! nothing; a rule that denies and asks for more denies all that it may be about.

use std::collections::BTreeSet;

use loam_core::policy::{Clause, Match, Rule as L4Rule};
use serde::Serialize;

use crate::resource::authorization_policy::{Action, Alternative, AuthorizationPolicy, Rule};

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It holds as it is written.
    Enforced,
    /// It denies more than is written.
    DeniesMore,
    /// It allows nothing.
    AllowsNothing,
    /// It is not for L4.
    NotEnforced,
}

/// What became of a rule, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub effect: Effect,
    /// Fields that L4 cannot see.
    pub unseen: BTreeSet<String>,
    /// Whether a part of it was not understood.
    pub wrong: bool,
}

/// The rules of a policy that L4 can judge, and what became of each that was written.
pub fn translate(policy: &AuthorizationPolicy) -> (Vec<L4Rule>, Vec<Outcome>) {
    let mut rules = Vec::new();
    let mut outcomes = Vec::new();
    for rule in &policy.rules {
        let all = || rule.clauses.iter().flatten();
        let unseen: BTreeSet<String> = all().flat_map(|a| a.unseen.iter().cloned()).collect();
        let wrong = rule.wrong || all().any(|a| a.wrong);
        let clear = unseen.is_empty() && !wrong;
        let effect = match policy.action {
            Action::Allow if clear => Effect::Enforced,
            Action::Allow => Effect::AllowsNothing,
            Action::Deny if clear => Effect::Enforced,
            Action::Deny => Effect::DeniesMore,
            Action::Audit | Action::Custom => Effect::NotEnforced,
        };
        match effect {
            Effect::Enforced | Effect::DeniesMore => rules.push(superset(rule)),
            Effect::AllowsNothing | Effect::NotEnforced => {}
        }
        outcomes.push(Outcome { effect, unseen, wrong });
    }
    (rules, outcomes)
}

/// The rule without what L4 cannot see. Of a rule that it sees whole, the rule itself.
fn superset(rule: &Rule) -> L4Rule {
    // A clause with an alternative that L4 knows nothing about may hold for everything.
    let limits =
        |clause: &&Vec<Alternative>| !clause.iter().any(|a| a.wrong || (!a.never && a.seen == Match::default()));
    let clause = |alternatives: &Vec<Alternative>| Clause {
        matches: alternatives.iter().filter(|a| !a.never).map(|a| a.seen.clone()).collect(),
    };
    L4Rule { clauses: rule.clauses.iter().filter(limits).map(clause).collect() }
}
