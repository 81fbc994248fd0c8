//! `istio.security.Authorization`. Whatever is not understood is an error: half a policy is another policy.

use ipnet::IpNet;
use loam_core::policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};

use super::{FieldError, port, range, text};
use crate::intern::Interner;
use crate::security as wire;

pub(super) fn read(interner: &mut Interner, message: wire::Authorization) -> Result<Policy, FieldError> {
    let (namespace, name) = (&message.namespace, &message.name);
    if name.is_empty() || name.contains('/') {
        return Err(FieldError::new("name", format!("{name:?} is empty or has a slash")));
    }
    if namespace.contains('/') {
        return Err(FieldError::new("namespace", format!("{namespace:?} has a slash")));
    }
    let scope = scope(message.scope)?;
    let action = match wire::Action::try_from(message.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(FieldError::new("action", format!("{} is not known", message.action))),
    };
    let mut rules = Vec::with_capacity(message.rules.len());
    for (i, rule) in message.rules.iter().enumerate() {
        let mut clauses = Vec::with_capacity(rule.clauses.len());
        for (j, clause) in rule.clauses.iter().enumerate() {
            let read =
                |(k, m)| read_match(interner, m).map_err(|e| e.within(format!("rules[{i}].clauses[{j}].matches[{k}]")));
            clauses.push(Clause { matches: clause.matches.iter().enumerate().map(read).collect::<Result<_, _>>()? });
        }
        rules.push(Rule { clauses });
    }
    Ok(Policy {
        key: text(interner, "name", &format!("{namespace}/{name}"))?,
        namespace: text(interner, "namespace", namespace)?,
        scope,
        action,
        dry_run: message.dry_run,
        rules,
        unreadable: None,
    })
}

pub(super) fn scope(value: i32) -> Result<Scope, FieldError> {
    match wire::Scope::try_from(value) {
        Ok(wire::Scope::Global) => Ok(Scope::Global),
        Ok(wire::Scope::Namespace) => Ok(Scope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(Scope::Workload),
        Err(_) => Err(FieldError::new("scope", format!("{value} is not known"))),
    }
}

fn read_match(interner: &mut Interner, m: &wire::Match) -> Result<Match, FieldError> {
    Ok(Match {
        namespaces: strings(interner, "namespaces", &m.namespaces)?,
        not_namespaces: strings(interner, "not_namespaces", &m.not_namespaces)?,
        principals: strings(interner, "principals", &m.principals)?,
        not_principals: strings(interner, "not_principals", &m.not_principals)?,
        service_accounts: accounts(interner, "service_accounts", &m.service_accounts)?,
        not_service_accounts: accounts(interner, "not_service_accounts", &m.not_service_accounts)?,
        source_ips: ranges("source_ips", &m.source_ips)?,
        not_source_ips: ranges("not_source_ips", &m.not_source_ips)?,
        destination_ips: ranges("destination_ips", &m.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &m.not_destination_ips)?,
        destination_ports: port_numbers("destination_ports", &m.destination_ports)?,
        not_destination_ports: port_numbers("not_destination_ports", &m.not_destination_ports)?,
    })
}

fn each<T, V>(
    field: &str,
    values: &[T],
    mut read: impl FnMut(&str, &T) -> Result<V, FieldError>,
) -> Result<Vec<V>, FieldError> {
    values.iter().enumerate().map(|(i, value)| read(&format!("{field}[{i}]"), value)).collect()
}

fn strings(interner: &mut Interner, field: &str, values: &[wire::StringMatch]) -> Result<Vec<StringMatch>, FieldError> {
    use wire::string_match::MatchType;
    each(field, values, |field, value| match &value.match_type {
        Some(MatchType::Exact(exact)) => Ok(StringMatch::Exact(text(interner, field, exact)?)),
        Some(MatchType::Prefix(prefix)) => Ok(StringMatch::Prefix(text(interner, field, prefix)?)),
        Some(MatchType::Suffix(suffix)) => Ok(StringMatch::Suffix(text(interner, field, suffix)?)),
        Some(MatchType::Presence(_)) => Ok(StringMatch::Presence),
        None => Err(FieldError::new(field, "is empty or of an unknown kind")),
    })
}

fn accounts(
    interner: &mut Interner,
    field: &str,
    values: &[wire::ServiceAccountMatch],
) -> Result<Vec<ServiceAccount>, FieldError> {
    each(field, values, |field, value| {
        Ok(ServiceAccount {
            namespace: text(interner, field, &value.namespace)?,
            name: text(interner, field, &value.service_account)?,
        })
    })
}

fn ranges(field: &str, values: &[wire::Address]) -> Result<Vec<IpNet>, FieldError> {
    each(field, values, |field, value| range(field, &value.address, Some(value.length)))
}

fn port_numbers(field: &str, values: &[u32]) -> Result<Vec<u16>, FieldError> {
    each(field, values, |field, value| port(field, *value))
}
