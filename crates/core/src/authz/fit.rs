//! Whether a policy fits a connection: the meaning of rules, clauses, matches and fields.

use ipnet::IpNet;

use super::Facts;
use crate::ids::Identity;
use crate::policy::{Clause, Match, Policy, Rule, ServiceAccount, StringMatch};

/// Facts in the form that patterns are compared with.
pub(crate) struct Connection<'a> {
    pub(super) facts: &'a Facts<'a>,
    /// The identity without `spiffe://`.
    pub(super) principal: Option<String>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(facts: &'a Facts<'a>) -> Self {
        Self { facts, principal: facts.source.map(principal) }
    }

    pub(crate) fn fits(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.fits_rule(rule))
    }

    fn fits_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.fits_clause(clause))
    }

    pub(super) fn fits_clause(&self, clause: &Clause) -> bool {
        clause.matches.iter().any(|m| self.first_miss(m).is_none())
    }

    /// The first field of a match that does not hold; [`Field::Nothing`] of a match without fields.
    pub(super) fn first_miss(&self, m: &Match) -> Option<Field> {
        if is_void(m) {
            return Some(Field::Nothing);
        }
        let Facts { source, source_ip, destination_ip, destination_port } = *self.facts;
        let namespace = |p: &StringMatch| p.matches(source.map(Identity::namespace));
        let principal = |p: &StringMatch| p.matches(self.principal.as_deref());
        let account = |a: &ServiceAccount| source.is_some_and(|source| a.is_of(source));
        let from = |net: &IpNet| net.contains(&source_ip);
        let to = |net: &IpNet| net.contains(&destination_ip);
        let port = |p: &u16| *p == destination_port;
        let miss = |field, holds: bool| (!holds).then_some(field);
        miss(Field::Namespaces, one(&m.namespaces, namespace))
            .or_else(|| miss(Field::NotNamespaces, none(&m.not_namespaces, namespace)))
            .or_else(|| miss(Field::Principals, one(&m.principals, principal)))
            .or_else(|| miss(Field::NotPrincipals, none(&m.not_principals, principal)))
            .or_else(|| miss(Field::ServiceAccounts, one(&m.service_accounts, account)))
            .or_else(|| miss(Field::NotServiceAccounts, none(&m.not_service_accounts, account)))
            .or_else(|| miss(Field::SourceIps, one(&m.source_ips, from)))
            .or_else(|| miss(Field::NotSourceIps, none(&m.not_source_ips, from)))
            .or_else(|| miss(Field::DestinationIps, one(&m.destination_ips, to)))
            .or_else(|| miss(Field::NotDestinationIps, none(&m.not_destination_ips, to)))
            .or_else(|| miss(Field::DestinationPorts, one(&m.destination_ports, port)))
            .or_else(|| miss(Field::NotDestinationPorts, none(&m.not_destination_ports, port)))
    }
}

/// A field of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// None of the fields is given.
    Nothing,
    Namespaces,
    NotNamespaces,
    Principals,
    NotPrincipals,
    ServiceAccounts,
    NotServiceAccounts,
    SourceIps,
    NotSourceIps,
    DestinationIps,
    NotDestinationIps,
    DestinationPorts,
    NotDestinationPorts,
}

/// A match without any field, which holds never.
pub(super) fn is_void(m: &Match) -> bool {
    *m == Match::default()
}

/// The identity as policies spell it.
pub(super) fn principal(identity: &Identity) -> String {
    let (domain, namespace, account) = (identity.trust_domain(), identity.namespace(), identity.service_account());
    let parts = [domain.as_str(), "/ns/", namespace, "/sa/", account];
    parts.concat()
}

fn one<T>(values: &[T], fits: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(fits)
}

fn none<T>(values: &[T], fits: impl Fn(&T) -> bool) -> bool {
    !values.iter().any(fits)
}
