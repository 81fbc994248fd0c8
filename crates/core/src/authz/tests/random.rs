//! Random policies and connections over few names, so that they often match, and what policies mean in the fewest words.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A fixed sequence that looks random.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }

    fn several<T: Clone>(&mut self, values: &[T]) -> Vec<T> {
        (0..1 + self.below(2)).map(|_| self.of(values)).collect()
    }

    /// A field of a match is given one time in `n`.
    fn maybe<T: Clone>(&mut self, n: usize, values: &[T]) -> Vec<T> {
        if self.one_in(n) { self.several(values) } else { Vec::new() }
    }

    pub(super) fn policy(&mut self, key: &str, scope: Scope) -> Policy {
        let rules = (0..self.below(4)).map(|_| self.rule()).collect();
        Policy {
            key: key.into(),
            namespace: key.split_once('/').unwrap().0.into(),
            scope,
            action: self.of(&[Action::Allow, Action::Allow, Action::Deny]),
            dry_run: self.one_in(6),
            rules,
            unreadable: None,
        }
    }

    fn rule(&mut self) -> Rule {
        let clauses = if self.one_in(15) { 0 } else { 1 + self.below(3) };
        Rule { clauses: (0..clauses).map(|_| Clause { matches: self.matches() }).collect() }
    }

    fn matches(&mut self) -> Vec<Match> {
        let number = if self.one_in(20) { 0 } else { 1 + self.below(2) };
        (0..number).map(|_| self.a_match()).collect()
    }

    fn a_match(&mut self) -> Match {
        let exact = |texts: &[&str]| texts.iter().map(|t| StringMatch::Exact((*t).into())).collect::<Vec<_>>();
        let mut names = exact(&["a", "b", "c", "shop"]);
        names.extend([StringMatch::Prefix("sh".into()), StringMatch::Suffix("op".into()), StringMatch::Presence]);
        let mut principals = exact(&[
            "cluster.local/ns/a/sa/web",
            "cluster.local/ns/b/sa/web",
            "cluster.local/ns/a/sa/api",
            "other.td/ns/a/sa/web",
            "*/ns/a/sa/web",
            "",
        ]);
        principals.extend([
            StringMatch::Prefix("cluster.local/ns/a/".into()),
            StringMatch::Prefix("cluster.local/".into()),
            StringMatch::Prefix("ot".into()),
            StringMatch::Prefix("".into()),
            StringMatch::Suffix("/sa/web".into()),
            StringMatch::Suffix("b".into()),
            StringMatch::Presence,
        ]);
        let account = |namespace: &str, name: &str| ServiceAccount { namespace: namespace.into(), name: name.into() };
        let accounts = [account("a", "web"), account("a", "api"), account("b", "web"), account("", "")];
        let nets: Vec<IpNet> = ["10.0.0.1/32", "10.0.0.0/30", "10.0.0.0/9", "0.0.0.0/0", "10.0.0.128/25", "fd00::/64"]
            .iter()
            .chain(&["fd00::1/128", "fd00::/7", "::/0", "fd00::1:0/115", "0.0.0.0/2"])
            .map(|net| net.parse().unwrap())
            .collect();
        let ports: [u16; 4] = [80, 443, 8080, 9090];
        Match {
            namespaces: self.maybe(4, &names),
            not_namespaces: self.maybe(12, &names),
            principals: self.maybe(4, &principals),
            not_principals: self.maybe(12, &principals),
            service_accounts: self.maybe(6, &accounts),
            not_service_accounts: self.maybe(12, &accounts),
            source_ips: self.maybe(5, &nets),
            not_source_ips: self.maybe(12, &nets),
            destination_ips: self.maybe(8, &nets),
            not_destination_ips: self.maybe(12, &nets),
            destination_ports: self.maybe(4, &ports),
            not_destination_ports: self.maybe(12, &ports),
        }
    }

    pub(super) fn caller(&mut self) -> Option<Identity> {
        let domain = self.of(&["cluster.local", "cluster.local", "other.td", "b"]);
        let (namespace, account) = (self.of(&["a", "b", "shop", "none"]), self.of(&["web", "api", "b"]));
        (!self.one_in(5)).then(|| Identity::new(domain.parse().unwrap(), namespace, account).unwrap())
    }

    pub(super) fn facts<'a>(&mut self, source: Option<&'a Identity>) -> Facts<'a> {
        let ips = ["10.0.0.1", "10.0.0.2", "10.0.0.200", "192.0.2.1", "fd00::1", "fd00::1:1", "2001:db8::1"];
        let ip = |text: &str| text.parse().unwrap();
        Facts {
            source,
            source_ip: ip(self.of(&ips)),
            destination_ip: ip(self.of(&ips)),
            destination_port: self.of(&[80, 443, 8080, 5432]),
        }
    }
}

/// A workload's policies and what a proxy has of them, without any index.
#[derive(Default, Clone)]
pub(super) struct Model {
    /// By workload: namespace and list.
    pub(super) lists: BTreeMap<String, (String, Vec<String>)>,
    pub(super) policies: BTreeMap<String, Policy>,
    /// Removed, and still listed.
    removed: BTreeSet<String>,
}

impl Model {
    pub(super) fn put(&mut self, policy: Policy) {
        self.removed.remove(&*policy.key);
        self.policies.insert(policy.key.to_string(), policy);
    }

    pub(super) fn remove(&mut self, key: &str) {
        if self.policies.contains_key(key) {
            self.removed.insert(key.to_owned());
        }
        self.forget();
    }

    pub(super) fn list(&mut self, workload: &str, list: Vec<String>) {
        let namespace = workload.split_once('/').unwrap().0.to_owned();
        self.lists.insert(workload.to_owned(), (namespace, list));
        self.forget();
    }

    fn forget(&mut self) {
        let listed = |key: &String| self.lists.values().any(|(_, list)| list.contains(key));
        let gone: Vec<String> = self.removed.iter().filter(|key| !listed(key)).cloned().collect();
        for key in gone {
            self.policies.remove(&key);
            self.removed.remove(&key);
        }
    }

    /// The policies for a workload, in the order in which they are named, and the first that is missing.
    fn applying(&self, workload: &str) -> (Vec<&Policy>, Option<&String>) {
        let (namespace, list) = &self.lists[workload];
        let in_scope =
            |scope| self.policies.values().filter(move |p| p.scope == scope && !self.removed.contains(&*p.key));
        let listed: BTreeMap<_, _> = list.iter().filter_map(|key| self.policies.get_key_value(key)).collect();
        let mut all: Vec<_> = in_scope(Scope::Global).collect();
        all.extend(in_scope(Scope::Namespace).filter(|p| *p.namespace == **namespace));
        all.extend(listed.into_values());
        (all, list.iter().find(|key| !self.policies.contains_key(*key)))
    }

    pub(super) fn allowing(&self, workload: &str) -> usize {
        let (all, _) = self.applying(workload);
        let mut keys: Vec<_> = all.iter().filter(|p| p.action == Action::Allow && !p.dry_run).map(|p| &p.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.len()
    }

    /// The verdict; with `trial` as if dry-run policies were in force.
    pub(super) fn verdict(&self, workload: &str, facts: &Facts<'_>, trial: bool) -> Verdict {
        let (all, missing) = self.applying(workload);
        let (on_trial, in_force): (Vec<&Policy>, Vec<&Policy>) = all.into_iter().partition(|p| p.dry_run);
        let first = |policies: &[&Policy]| {
            policies.iter().find(|p| p.action == Action::Deny && holds(p, facts)).map(|p| p.key.clone())
        };
        let allows = |policies: &[&Policy]| policies.iter().any(|p| p.action == Action::Allow);
        let allowed = |policies: &[&Policy]| policies.iter().any(|p| p.action == Action::Allow && holds(p, facts));
        if let Some(policy) = first(&in_force) {
            return Verdict::Deny { reason: Reason::Denied, policy: Some(policy) };
        }
        if let Some(missing) = missing {
            return Verdict::Deny { reason: Reason::PolicyPending, policy: Some(missing.as_str().into()) };
        }
        let all = if trial { [in_force, on_trial.clone()].concat() } else { in_force };
        if trial && let Some(policy) = first(&on_trial) {
            return Verdict::Deny { reason: Reason::Denied, policy: Some(policy) };
        }
        match !allows(&all) || allowed(&all) {
            true => Verdict::Allow,
            false => Verdict::Deny { reason: Reason::Denied, policy: None },
        }
    }

    pub(super) fn on_trial(&self, workload: &str) -> bool {
        self.applying(workload).0.iter().any(|p| p.dry_run)
    }
}

/// Whether a policy fits, word for word as it is documented.
pub(super) fn holds(policy: &Policy, facts: &Facts<'_>) -> bool {
    policy
        .rules
        .iter()
        .any(|rule| rule.clauses.iter().all(|clause| clause.matches.iter().any(|m| match_holds(m, facts))))
}

fn match_holds(m: &Match, facts: &Facts<'_>) -> bool {
    let namespace = facts.source.map(|s| s.namespace().to_owned());
    let principal = facts.source.map(|s| s.to_string().strip_prefix("spiffe://").unwrap().to_owned());
    let text = |pattern: &StringMatch, text: &Option<String>| match (pattern, text) {
        (_, None) => false,
        (StringMatch::Exact(exact), Some(text)) => **exact == **text,
        (StringMatch::Prefix(prefix), Some(text)) => text.starts_with(&**prefix),
        (StringMatch::Suffix(suffix), Some(text)) => text.ends_with(&**suffix),
        (StringMatch::Presence, Some(text)) => !text.is_empty(),
    };
    let account = |a: &ServiceAccount| {
        facts.source.is_some_and(|s| s.namespace() == &*a.namespace && s.service_account() == &*a.name)
    };
    let mut given = 0;
    let mut all = true;
    let mut field = |yes: Vec<bool>, no: Vec<bool>| {
        given += yes.len() + no.len();
        all &= (yes.is_empty() || yes.contains(&true)) && !no.contains(&true);
    };
    let each = |patterns: &[StringMatch], of: &Option<String>| patterns.iter().map(|p| text(p, of)).collect::<Vec<_>>();
    let nets = |nets: &[IpNet], ip: IpAddr| nets.iter().map(|net| net.contains(&ip)).collect::<Vec<_>>();
    let ports = |ports: &[u16]| ports.iter().map(|port| *port == facts.destination_port).collect::<Vec<_>>();
    field(each(&m.namespaces, &namespace), each(&m.not_namespaces, &namespace));
    field(each(&m.principals, &principal), each(&m.not_principals, &principal));
    field(m.service_accounts.iter().map(account).collect(), m.not_service_accounts.iter().map(account).collect());
    field(nets(&m.source_ips, facts.source_ip), nets(&m.not_source_ips, facts.source_ip));
    field(nets(&m.destination_ips, facts.destination_ip), nets(&m.not_destination_ips, facts.destination_ip));
    field(ports(&m.destination_ports), ports(&m.not_destination_ports));
    given > 0 && all
}
