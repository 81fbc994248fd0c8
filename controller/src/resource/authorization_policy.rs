//! An AuthorizationPolicy, field by field.

use std::collections::BTreeSet;

use loam_core::policy::Match;
use loam_manifest::{Located, Value};

use super::{Labels, Name};
use crate::policy::pattern::{self, TrustDomains};
use crate::policy::reader::{At, Fields, Flaws, quoted};
use crate::resource::selector;

/// Says that a policy is watched and not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Fields of a source that only HTTP knows.
const HTTP_SOURCE: [&str; 4] = ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];

/// Fields of an operation that only HTTP knows.
const HTTP_OPERATION: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];

/// Keys of conditions that L4 knows nothing of, and how such keys begin.
const BEYOND_L4: [&str; 2] = ["remote.ip", "connection.sni"];
const BEYOND_L4_BEGIN: [&str; 2] = ["request.", "experimental."];

/// What matters about a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    /// Whom it is about.
    pub target: Target,
    /// What a match means.
    pub action: Action,
    /// Whether it is only watched.
    pub dry_run: bool,
    /// Alternatives.
    pub rules: Vec<Rule>,
}

/// Whom a policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Workloads with these labels; without any, all of its namespace, or of the mesh for the root namespace.
    Workloads(Labels),
    /// What a waypoint serves, as `Service web`.
    Waypoint(Vec<String>),
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of Istio's actions say it")]
pub enum Action {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// Clauses that must all hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// The clauses, each a list of alternatives.
    pub clauses: Vec<Vec<Alternative>>,
    /// Whether a part of it was not understood.
    pub wrong: bool,
}

/// One of several ways to satisfy a clause.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Alternative {
    /// What L4 knows of it.
    pub seen: Match,
    /// Fields that L4 cannot see.
    pub unseen: BTreeSet<String>,
    /// Whether nothing can fit it: two of its fields contradict each other.
    pub never: bool,
    /// Whether a part of it was not understood.
    pub wrong: bool,
}

/// Reads a policy. With flaws, what comes back is the closed reading.
pub fn read(
    name: &Name,
    annotations: &[(&str, &str)],
    spec: &Located,
    domains: &TrustDomains,
    flaws: &mut Flaws,
) -> AuthorizationPolicy {
    let whole = At::of(spec, "spec");
    let dry_run = dry_run(annotations, flaws);
    if spec.value == Value::Null {
        whole.flaw(flaws, "is missing: write \"spec: {}\" for a policy that allows nothing");
        return AuthorizationPolicy { target: everybody(), action: Action::Allow, dry_run, rules: Vec::new() };
    }
    let mut fields = whole.fields(flaws);
    let action = match fields.take("action") {
        None => Some(Action::Allow),
        Some(at) => at.parse(flaws, action),
    };
    let before = flaws.count();
    let target = target(&mut fields, flaws);
    let wide = flaws.count() > before;
    let rules = fields.take("rules").map_or_else(Vec::new, |at| rules(&at, name, domains, flaws));
    let before = flaws.count();
    fields.finish(flaws);
    // What it says beside all that may be its rules.
    let strange = flaws.count() > before;
    match action {
        // Nobody knows what it would do: it denies.
        None => AuthorizationPolicy { target, action: Action::Deny, dry_run, rules: vec![Rule::default()] },
        Some(Action::Deny) if strange => {
            AuthorizationPolicy { target, action: Action::Deny, dry_run, rules: vec![Rule::default()] }
        }
        // It allows something to somebody, and nobody knows what or to whom.
        Some(Action::Allow) if wide || strange => {
            AuthorizationPolicy { target, action: Action::Allow, dry_run, rules: Vec::new() }
        }
        Some(action) => AuthorizationPolicy { target, action, dry_run, rules },
    }
}

fn everybody() -> Target {
    Target::Workloads(Labels::default())
}

fn action(text: &str) -> Result<Action, &'static str> {
    match text {
        "ALLOW" => Ok(Action::Allow),
        "DENY" => Ok(Action::Deny),
        "AUDIT" => Ok(Action::Audit),
        "CUSTOM" => Ok(Action::Custom),
        _ => Err("is not an action: write ALLOW or DENY"),
    }
}

fn dry_run(annotations: &[(&str, &str)], flaws: &mut Flaws) -> bool {
    match annotations.iter().find(|(key, _)| *key == DRY_RUN).map(|(_, value)| *value) {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            let message = format!("annotation {DRY_RUN}: {} is not \"true\" or \"false\"", quoted(other));
            flaws.add(0, message);
            false
        }
    }
}

/// Without a selector that can be read it is about everybody.
fn target(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Target {
    let selector = fields.take("selector");
    let targets: Vec<At<'_>> = match (fields.take("targetRef"), fields.take("targetRefs")) {
        (None, None) => Vec::new(),
        (Some(one), None) => vec![one],
        (one, Some(many)) => {
            if let Some(one) = one {
                one.flaw(flaws, "stands beside targetRefs: write only one of them");
            }
            many.items(flaws)
        }
    };
    // The provider of a CUSTOM action: only waypoints have one.
    let _ = fields.take("provider");
    match selector {
        Some(selector) => {
            if let Some(at) = targets.first() {
                at.flaw(flaws, "stands beside a selector: write only one of them");
            }
            Target::Workloads(selector::read(&selector, "matchLabels", flaws).unwrap_or_default())
        }
        None if targets.is_empty() => everybody(),
        None => Target::Waypoint(targets.iter().map(|at| reference(at, flaws)).collect()),
    }
}

fn reference(at: &At<'_>, flaws: &mut Flaws) -> String {
    let mut fields = at.fields(flaws);
    let mut text =
        |field: &'static str| fields.take(field).and_then(|at| at.text(flaws)).unwrap_or_default().to_owned();
    let (_, kind, name, _) = (text("group"), text("kind"), text("name"), text("namespace"));
    fields.finish(flaws);
    if kind.is_empty() || name.is_empty() {
        at.flaw(flaws, "needs a kind and a name");
    }
    format!("{} {}", quoted(&kind).trim_matches('"'), quoted(&name).trim_matches('"'))
}

fn rules(at: &At<'_>, policy: &Name, domains: &TrustDomains, flaws: &mut Flaws) -> Vec<Rule> {
    // An empty list is as good as none: it is how one writes that nothing is allowed.
    if matches!(&at.value.value, Value::List(items) if items.is_empty()) {
        return Vec::new();
    }
    let before = flaws.count();
    let items = at.items(flaws);
    if flaws.count() > before {
        return vec![Rule { clauses: Vec::new(), wrong: true }];
    }
    items.iter().map(|at| rule(at, policy, domains, flaws)).collect()
}

fn rule(at: &At<'_>, policy: &Name, domains: &TrustDomains, flaws: &mut Flaws) -> Rule {
    let before = flaws.count();
    let mut fields = at.fields(flaws);
    let mut clauses = Vec::new();
    if let Some(from) = fields.take("from") {
        let each = |at: &At<'_>, flaws: &mut Flaws| source(at, policy, domains, flaws);
        clauses.push(clause(&from, "source", each, flaws));
    }
    if let Some(to) = fields.take("to") {
        clauses.push(clause(&to, "operation", operation, flaws));
    }
    if let Some(when) = fields.take("when") {
        clauses.extend(when.items(flaws).iter().map(|at| {
            vec![alternative(at, flaws, |at, out, flaws| {
                condition(at, domains, out, flaws);
            })]
        }));
    }
    fields.finish(flaws);
    Rule { clauses, wrong: flaws.count() > before }
}

/// A list of `{name: {...}}`.
fn clause(
    at: &At<'_>,
    name: &'static str,
    read: impl Fn(&At<'_>, &mut Flaws) -> Alternative,
    flaws: &mut Flaws,
) -> Vec<Alternative> {
    let before = flaws.count();
    let mut alternatives = Vec::new();
    for item in at.items(flaws) {
        let mut fields = item.fields(flaws);
        match fields.take(name) {
            Some(at) => alternatives.push(read(&at, flaws)),
            None => item.flaw(flaws, format_args!("has no {name}")),
        }
        fields.finish(flaws);
    }
    if flaws.count() > before {
        alternatives.push(Alternative { wrong: true, ..Alternative::default() });
    }
    alternatives
}

/// Reads one alternative, and notes whether all of it was understood.
fn alternative(
    at: &At<'_>,
    flaws: &mut Flaws,
    read: impl FnOnce(&At<'_>, &mut Alternative, &mut Flaws),
) -> Alternative {
    let before = flaws.count();
    let mut out = Alternative::default();
    read(at, &mut out, flaws);
    if flaws.count() == before && !out.never && out.unseen.is_empty() && out.seen == Match::default() {
        at.flaw(flaws, "names nothing: leave it out, or write a field");
    }
    out.wrong = flaws.count() > before;
    out
}

fn source(at: &At<'_>, policy: &Name, domains: &TrustDomains, flaws: &mut Flaws) -> Alternative {
    alternative(at, flaws, |at, out, flaws| {
        let mut fields = at.fields(flaws);
        for field in HTTP_SOURCE {
            if let Some(at) = fields.take(field) {
                values(&at, flaws, |_| Ok::<_, String>(()));
                out.unseen.insert(field.to_owned());
            }
        }
        let account = |text: &str| pattern::service_account(text, &policy.namespace);
        let principals = |text: &str| pattern::principals(text, domains);
        let mut trusted = Vec::new();
        let mut has = |field: &'static str| fields.take(field);
        let accounts = [has("serviceAccounts"), has("notServiceAccounts")];
        let others = [has("principals"), has("notPrincipals"), has("namespaces"), has("notNamespaces")];
        if accounts.iter().any(Option::is_some) && others.iter().any(Option::is_some) {
            at.flaw(flaws, "has serviceAccounts beside principals or namespaces: write only one of them");
        }
        let [principal, not_principal, namespace, not_namespace] = others;
        let [account_of, not_account_of] = accounts;
        let m = &mut out.seen;
        m.service_accounts = values_of(account_of, flaws, account);
        m.not_service_accounts = values_of(not_account_of, flaws, account);
        m.namespaces = values_of(namespace, flaws, pattern::namespace);
        m.not_namespaces = values_of(not_namespace, flaws, pattern::namespace);
        m.principals = values_of(principal, flaws, principals).concat();
        m.not_principals = values_of(not_principal, flaws, principals).concat();
        m.source_ips = values_of(fields.take("ipBlocks"), flaws, pattern::ip_block);
        m.not_source_ips = values_of(fields.take("notIpBlocks"), flaws, pattern::ip_block);
        for (field, negated) in [("trustDomains", false), ("notTrustDomains", true)] {
            let read = values_of(fields.take(field), flaws, |text| pattern::trust_domain(text, domains));
            if read.iter().any(Option::is_none) {
                out.unseen.insert(field.to_owned());
            } else if negated {
                m.not_principals.extend(read.into_iter().flatten().flatten());
            } else {
                trusted = read.into_iter().flatten().flatten().collect();
            }
        }
        fields.finish(flaws);
        restrict(out, trusted);
    })
}

/// Adds trust domains to the principals of an alternative.
fn restrict(out: &mut Alternative, trusted: Vec<loam_core::policy::StringMatch>) {
    if trusted.is_empty() {
        return;
    }
    if out.seen.principals.is_empty() {
        out.seen.principals = trusted;
        return;
    }
    match pattern::both(&out.seen.principals, &trusted) {
        Some(common) => {
            out.never = common.is_empty();
            out.seen.principals = common;
        }
        None => drop(out.unseen.insert("trustDomains".to_owned())),
    }
}

fn operation(at: &At<'_>, flaws: &mut Flaws) -> Alternative {
    alternative(at, flaws, |at, out, flaws| {
        let mut fields = at.fields(flaws);
        for field in HTTP_OPERATION {
            if let Some(at) = fields.take(field) {
                values(&at, flaws, |_| Ok::<_, String>(()));
                out.unseen.insert(field.to_owned());
            }
        }
        out.seen.destination_ports = values_of(fields.take("ports"), flaws, pattern::port);
        out.seen.not_destination_ports = values_of(fields.take("notPorts"), flaws, pattern::port);
        fields.finish(flaws);
    })
}

fn condition(at: &At<'_>, domains: &TrustDomains, out: &mut Alternative, flaws: &mut Flaws) {
    let mut fields = at.fields(flaws);
    let key = fields.take("key");
    let (is, not) = (fields.take("values"), fields.take("notValues"));
    fields.finish(flaws);
    let Some(at_key) = key else { return at.flaw(flaws, "has no key") };
    let Some(key) = at_key.text(flaws) else { return };
    if is.is_none() && not.is_none() {
        return at.flaw(flaws, "has neither values nor notValues");
    }
    let principals = |text: &str| pattern::principals(text, domains);
    let m = &mut out.seen;
    match key {
        "source.ip" => {
            m.source_ips = values_of(is, flaws, pattern::ip_block);
            m.not_source_ips = values_of(not, flaws, pattern::ip_block);
        }
        "source.namespace" => {
            m.namespaces = values_of(is, flaws, pattern::namespace);
            m.not_namespaces = values_of(not, flaws, pattern::namespace);
        }
        "source.principal" => {
            m.principals = values_of(is, flaws, principals).concat();
            m.not_principals = values_of(not, flaws, principals).concat();
        }
        "destination.ip" => {
            m.destination_ips = values_of(is, flaws, pattern::ip_block);
            m.not_destination_ips = values_of(not, flaws, pattern::ip_block);
        }
        "destination.port" => {
            m.destination_ports = values_of(is, flaws, pattern::port);
            m.not_destination_ports = values_of(not, flaws, pattern::port);
        }
        _ if BEYOND_L4.contains(&key) || BEYOND_L4_BEGIN.iter().any(|begin| key.starts_with(begin)) => {
            let quoted = quoted(key);
            out.unseen.insert(quoted.trim_matches('"').to_owned());
        }
        _ => {
            let known = "source.ip, source.namespace, source.principal, destination.ip or destination.port";
            at_key.flaw(flaws, format_args!("{} is not a key: write {known}", quoted(key)));
        }
    }
}

fn values_of<T, E: std::fmt::Display>(
    at: Option<At<'_>>,
    flaws: &mut Flaws,
    read: impl Fn(&str) -> Result<T, E>,
) -> Vec<T> {
    at.map_or_else(Vec::new, |at| values(&at, flaws, read))
}

fn values<T, E: std::fmt::Display>(at: &At<'_>, flaws: &mut Flaws, read: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
    at.items(flaws).iter().filter_map(|item| item.parse(flaws, &read)).collect()
}
