//! May this connection pass? (policies, facts) -> verdict, and the policy that decided.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::ids::Identity;
use crate::policy::{Action, Clause, Match, Policy, Rule, ServiceAccount, StringMatch};
use crate::reason::Reason;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

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
        /// [`Reason::Denied`] or [`Reason::PolicyPending`].
        reason: Reason,
        /// The policy that decided; `None` when no ALLOW policy matched.
        policy: Option<Arc<str>>,
        /// For the log.
        detail: String,
    },
}

impl Verdict {
    /// Whether it is [`Verdict::Allow`].
    pub fn is_allowed(&self) -> bool {
        *self == Verdict::Allow
    }
}

/// Judges a connection to `destination`: any DENY that matches refuses; without an ALLOW policy it may pass; else one
/// ALLOW policy must match. A policy that the workload lists and that has not arrived refuses.
pub fn judge(snapshot: &Snapshot, destination: &Workload, facts: &Facts<'_>) -> Verdict {
    let mut connection = None;
    let mut allow_policies = 0usize;
    let mut allowed = false;
    for found in snapshot.policies_for(destination) {
        let policy = match found {
            Ok(policy) if policy.dry_run => continue,
            Ok(policy) => policy,
            Err(missing) => {
                return Verdict::Deny {
                    reason: Reason::PolicyPending,
                    policy: Some(missing.clone()),
                    detail: format!("policy {missing} applies but has not arrived"),
                };
            }
        };
        // The principal's text is needed only when there is a policy.
        let connection = connection.get_or_insert_with(|| Connection::new(facts));
        match policy.action {
            Action::Deny if connection.fits(policy) => {
                return Verdict::Deny {
                    reason: Reason::Denied,
                    policy: Some(policy.key.clone()),
                    detail: format!("denied by policy {}", policy.key),
                };
            }
            Action::Deny => {}
            Action::Allow => {
                allow_policies += 1;
                allowed = allowed || connection.fits(policy);
            }
        }
    }
    if allowed || allow_policies == 0 {
        return Verdict::Allow;
    }
    Verdict::Deny {
        reason: Reason::Denied,
        policy: None,
        detail: format!("none of the {allow_policies} policies that allow matches"),
    }
}

/// The dry-run policies for `destination` that match a connection: what they would have decided, for the log.
pub fn dry_run(snapshot: &Snapshot, destination: &Workload, facts: &Facts<'_>) -> Vec<Arc<Policy>> {
    let watched = |policy: &&Arc<Policy>| policy.dry_run && Connection::new(facts).fits(policy);
    snapshot.policies_for(destination).filter_map(Result::ok).filter(watched).cloned().collect()
}

/// Facts in the form that patterns are compared with.
struct Connection<'a> {
    facts: &'a Facts<'a>,
    /// The identity without `spiffe://`.
    principal: Option<String>,
}

impl<'a> Connection<'a> {
    fn new(facts: &'a Facts<'a>) -> Self {
        let principal =
            facts.source.map(|id| format!("{}/ns/{}/sa/{}", id.trust_domain(), id.namespace(), id.service_account()));
        Self { facts, principal }
    }

    fn fits(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.fits_rule(rule))
    }

    fn fits_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|Clause { matches }| matches.iter().any(|m| self.fits_match(m)))
    }

    fn fits_match(&self, m: &Match) -> bool {
        if *m == Match::default() {
            return false;
        }
        let Facts { source, source_ip, destination_ip, destination_port } = *self.facts;
        let namespace = |p: &StringMatch| p.matches(source.map(Identity::namespace));
        let principal = |p: &StringMatch| p.matches(self.principal.as_deref());
        let account = |a: &ServiceAccount| source.is_some_and(|source| a.is_of(source));
        let from = |net: &IpNet| net.contains(&source_ip);
        let to = |net: &IpNet| net.contains(&destination_ip);
        let port = |p: &u16| *p == destination_port;
        field(&m.namespaces, &m.not_namespaces, namespace)
            && field(&m.principals, &m.not_principals, principal)
            && field(&m.service_accounts, &m.not_service_accounts, account)
            && field(&m.source_ips, &m.not_source_ips, from)
            && field(&m.destination_ips, &m.not_destination_ips, to)
            && field(&m.destination_ports, &m.not_destination_ports, port)
    }
}

fn field<T>(values: &[T], not: &[T], fits: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&fits)) && !not.iter().any(&fits)
}

#[cfg(test)]
mod tests;
