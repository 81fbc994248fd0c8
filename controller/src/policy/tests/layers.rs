//! Levels of policies against evaluators written down from what Istio documents, over seeded random changes.

use std::collections::BTreeMap;

use loam_core::snapshot::Change;

use super::*;
use crate::index::Resource;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const NAMESPACES: [&str; 3] = ["istio-system", "shop", "other"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SELECTORS: [&[(&str, &str)]; 5] =
    [&[], &[("app", "api")], &[("app", "db")], &[("tier", "front")], &[("app", "api"), ("tier", "front")]];
const MODES: [&str; 5] = ["", "UNSET", "STRICT", "PERMISSIVE", "DISABLE"];
const PORTS: [u16; 3] = [80, 443, 9000];

type Selector = &'static [(&'static str, &'static str)];

/// A PeerAuthentication as a person thinks of it.
#[derive(Debug, Clone)]
struct Peer {
    selector: Selector,
    mode: &'static str,
    ports: Vec<(u16, &'static str)>,
    /// Year of its making.
    created: Option<u16>,
}

/// An AuthorizationPolicy of one rule, as a person thinks of it.
#[derive(Debug, Clone)]
struct Rule {
    selector: Selector,
    deny: bool,
    from: &'static str,
    port: Option<u16>,
}

type Peers = BTreeMap<(&'static str, &'static str), Peer>;
type Rules = BTreeMap<(&'static str, &'static str), Rule>;

fn selects(selector: Selector, labels: &str) -> bool {
    selector.iter().all(|(k, v)| labels.contains(&format!("{k}: {v}")))
}

fn selector(selector: Selector) -> String {
    let pairs: Vec<_> = selector.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    format!("selector: {{matchLabels: {{{}}}}}", pairs.join(", "))
}

impl Peer {
    fn any(random: &mut Random) -> Self {
        let selector = random.of(&SELECTORS);
        let mut ports = Vec::new();
        for port in PORTS {
            if !selector.is_empty() && random.below(2) == 0 {
                ports.push((port, random.of(&MODES)));
            }
        }
        let created = (random.below(3) > 0).then(|| 2020 + u16::try_from(random.below(3)).unwrap());
        Self { selector, mode: random.of(&MODES), ports, created }
    }

    fn manifest(&self, namespace: &str, name: &str) -> String {
        let mode = |mode: &str| if mode.is_empty() { "{}".to_owned() } else { format!("{{mode: {mode}}}") };
        let ports: Vec<_> = self.ports.iter().map(|(port, m)| format!("{port}: {}", mode(m))).collect();
        let ports = if ports.is_empty() { String::new() } else { format!(", portLevelMtls: {{{}}}", ports.join(", ")) };
        let created = self.created.map_or(String::new(), |y| format!(", creationTimestamp: \"{y}-01-01T00:00:00Z\""));
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}{created}}}\n\
             spec: {{{}, mtls: {}{ports}}}\n",
            selector(self.selector),
            mode(self.mode),
        )
    }
}

impl Rule {
    fn any(random: &mut Random) -> Self {
        Self {
            selector: random.of(&SELECTORS),
            deny: random.below(2) == 0,
            from: random.of(&["red", "blue"]),
            port: (random.below(3) == 0).then(|| random.of(&PORTS)),
        }
    }

    fn spec(&self) -> String {
        let action = if self.deny { "DENY" } else { "ALLOW" };
        let to = self.port.map_or(String::new(), |p| format!(", to: [{{operation: {{ports: [\"{p}\"]}}}}]"));
        let from = self.from;
        let selector = selector(self.selector);
        format!("{{action: {action}, {selector}, rules: [{{from: [{{source: {{namespaces: [{from}]}}}}]{to}}}]}}")
    }

    fn matches(&self, from: Option<&str>, port: u16) -> bool {
        from == Some(self.from) && self.port.is_none_or(|p| p == port)
    }
}

/// Whether a port of a pod needs mutual TLS: the workload's port, the workload, its namespace, the mesh, nothing. Of
/// several on one level the oldest counts, and where the dates say nothing the first by name.
fn needs_mutual_tls(peers: &Peers, namespace: &str, labels: &str, port: u16) -> bool {
    let oldest = |fits: &dyn Fn(&str, &Peer) -> bool| {
        let mut found: Vec<_> = peers.iter().filter(|((ns, _), peer)| fits(ns, peer)).collect();
        found.sort_by_key(|((_, name), peer)| (peer.created.unwrap_or(u16::MAX), *name));
        found.first().map(|(_, peer)| (*peer).clone())
    };
    let root = "istio-system";
    let workload =
        oldest(&|ns, p| ns == namespace && ns != root && !p.selector.is_empty() && selects(p.selector, labels));
    let of_namespace = oldest(&|ns, p| ns == namespace && ns != root && p.selector.is_empty());
    let of_mesh = oldest(&|ns, p| ns == root && p.selector.is_empty());
    let of_port = workload.iter().flat_map(|p| &p.ports).find(|(p, _)| *p == port).map(|(_, mode)| *mode);
    let levels = [of_port, workload.as_ref().map(|p| p.mode), of_namespace.map(|p| p.mode), of_mesh.map(|p| p.mode)];
    let set = levels.into_iter().flatten().find(|mode| !mode.is_empty() && *mode != "UNSET");
    set == Some("STRICT")
}

/// Whether AuthorizationPolicies let a connection pass.
fn authorized(rules: &Rules, namespace: &str, labels: &str, from: Option<&str>, port: u16) -> bool {
    let applies = |(ns, _): &(&str, &str), rule: &Rule| {
        (*ns == namespace || *ns == "istio-system") && (rule.selector.is_empty() || selects(rule.selector, labels))
    };
    let applying: Vec<&Rule> = rules.iter().filter(|(key, rule)| applies(key, rule)).map(|(_, rule)| rule).collect();
    let any = |deny| applying.iter().any(|r| r.deny == deny && r.matches(from, port));
    !any(true) && (any(false) || applying.iter().all(|r| r.deny))
}

#[test]
fn whatever_order_proxies_are_told_in_nothing_is_opened_or_broken_on_the_way() {
    let mut renamed = 0;
    for seed in 0..120 {
        let (mut random, mut cluster) = (Random(seed), Cluster::new());
        // What a proxy knows that hears of everything in an order of its own.
        let mut proxy = cluster.published.snapshot();
        for _ in 0..40 {
            let (namespace, name) = (random.of(&NAMESPACES), random.of(&NAMES));
            let full = format!("{namespace}/{name}");
            let kind = random.of(&["AuthorizationPolicy", "PeerAuthentication"]);
            let text = match (random.below(4), kind) {
                (0, _) => String::new(),
                (_, "PeerAuthentication") => Peer::any(&mut random).manifest(namespace, name),
                _ => manifest(kind, &full, "{}", &Rule::any(&mut random).spec()),
            };
            let before = cluster.published.snapshot();
            if text.is_empty() {
                let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).unwrap();
                cluster.index.delete(&Key { kind, namespace: namespace.into(), name: name.into() });
            } else {
                let objects = loam_manifest::read([("m.yaml", text.as_bytes())]).objects;
                objects.into_iter().for_each(|object| cluster.index.apply(object));
            }
            let compiled = cluster.index.compile();
            let steps: Vec<Vec<Change>> = compiled.clone().steps().into_iter().map(told).collect();
            cluster.published.publish(compiled);
            let after = cluster.published.snapshot();
            for mut step in steps {
                while !step.is_empty() {
                    let change = step.swap_remove(random.below(step.len()));
                    renamed += usize::from(
                        matches!(&change, Change::Policy(p) if p.key.contains('_') && !p.key.contains("conv")),
                    );
                    proxy = proxy.apply(vec![change]);
                    for (pod, ..) in PODS {
                        for who in ["-", "red/web", "blue/web", "z/web"] {
                            let question = format!("{who} > {pod}:{}", random.of(&PORTS));
                            let [was, is, will] = [&before, &proxy, &after].map(|s| verdict(s, &question));
                            let held = is.starts_with("policy_pending");
                            let known = [&was, &will].iter().any(|v| (**v == "allow") == (is == "allow"));
                            assert!(held || known, "seed {seed}: {question}: {was}, {is}, {will}\n{text}");
                        }
                    }
                }
            }
            for (pod, ..) in PODS {
                for who in ["-", "red/web", "blue/web", "z/web"] {
                    let question = format!("{who} > {pod}:80");
                    assert_eq!(verdict(&proxy, &question), verdict(&after, &question), "seed {seed}: {question}");
                }
            }
        }
    }
    assert!(renamed > 0, "no policy was moved and changed at once");
}

/// A step as the changes that proxies make of it.
fn told(step: crate::index::Compiled) -> Vec<Change> {
    let workloads = step.changes.into_iter().map(|(name, resource)| match resource {
        Some(Resource::Workload(workload)) => Change::Workload(workload),
        Some(Resource::Service(service)) => Change::Service(service),
        None => Change::RemoveWorkload(name.parse().unwrap()),
    });
    let policies = step.policies.into_iter().chain(step.last).map(|(key, policy)| match policy {
        Some(policy) => Change::Policy(policy),
        None => Change::RemovePolicy(key),
    });
    workloads.chain(policies).collect()
}

#[track_caller]
fn compare(cluster: &Cluster, peers: &Peers, rules: &Rules, seed: u64) {
    let snapshot = cluster.published.snapshot();
    for (pod, _, labels) in PODS {
        let namespace = pod.split_once('/').unwrap().0;
        for port in PORTS.into_iter().chain([1234]) {
            for from in [None, Some("red"), Some("blue"), Some("z")] {
                let tls = from.is_some() || !needs_mutual_tls(peers, namespace, labels, port);
                let expected = tls && authorized(rules, namespace, labels, from, port);
                let who = from.map_or("-".to_owned(), |ns| format!("{ns}/web"));
                let question = format!("{who} > {pod}:{port}");
                let verdict = verdict(&snapshot, &question);
                assert_eq!(
                    verdict == "allow",
                    expected,
                    "seed {seed}: {question} is {verdict}\n{peers:#?}\n{rules:#?}\n{}",
                    cluster.told()
                );
            }
        }
    }
}

#[test]
fn every_combination_of_peer_authentications_is_what_istio_documents() {
    for seed in 0..150 {
        let (mut random, mut cluster, mut peers) = (Random(seed), Cluster::new(), Peers::new());
        for _ in 0..40 {
            let (namespace, name) = (random.of(&NAMESPACES), random.of(&NAMES));
            if random.below(4) == 0 {
                peers.remove(&(namespace, name));
                cluster.delete(Kind::PeerAuthentication, &format!("{namespace}/{name}"));
            } else {
                let peer = Peer::any(&mut random);
                assert_eq!(cluster.apply(&peer.manifest(namespace, name)), [""; 0]);
                peers.insert((namespace, name), peer);
            }
            compare(&cluster, &peers, &Rules::new(), seed);
        }
        let wrong: Vec<_> = cluster.problems().into_iter().filter(|p| p.contains("spec")).collect();
        assert_eq!(wrong, [""; 0]);
    }
}

#[test]
fn policies_of_both_kinds_and_all_scopes_together_are_what_istio_documents() {
    for seed in 0..100 {
        let (mut random, mut cluster) = (Random(seed), Cluster::new());
        let (mut peers, mut rules) = (Peers::new(), Rules::new());
        for _ in 0..40 {
            let (namespace, name) = (random.of(&NAMESPACES), random.of(&NAMES));
            let full = format!("{namespace}/{name}");
            match random.below(8) {
                0 => {
                    rules.remove(&(namespace, name));
                    cluster.delete(Kind::AuthorizationPolicy, &full);
                }
                1..5 => {
                    let rule = Rule::any(&mut random);
                    cluster.authorize(&full, &rule.spec());
                    rules.insert((namespace, name), rule);
                }
                5 => {
                    peers.remove(&(namespace, name));
                    cluster.delete(Kind::PeerAuthentication, &full);
                }
                _ => {
                    let peer = Peer::any(&mut random);
                    cluster.apply(&peer.manifest(namespace, name));
                    peers.insert((namespace, name), peer);
                }
            }
            compare(&cluster, &peers, &rules, seed);
        }
    }
}

#[test]
fn the_older_of_two_counts_and_the_younger_says_so() {
    let mut cluster = Cluster::new();
    let peer = |created, mode| Peer { selector: &[], mode, ports: Vec::new(), created };
    cluster.apply(&peer(Some(2021), "STRICT").manifest("shop", "young"));
    cluster.apply(&peer(Some(2020), "PERMISSIVE").manifest("shop", "old"));
    cluster.apply(&peer(None, "STRICT").manifest("shop", "a"));
    cluster.check(&[("- > shop/api:80", "allow")]);
    for name in ["young", "a"] {
        let told = "ZtunnelAccepted False Overridden: not in force: shop/old is older, and there can be only one";
        assert_eq!(cluster.status(&format!("shop/{name}")), told);
    }
    cluster.delete(Kind::PeerAuthentication, "shop/old");
    cluster.check(&[("- > shop/api:80", "denied istio-system/istio_converted_static_strict")]);
    assert_eq!(cluster.status("shop/young"), "ZtunnelAccepted True Accepted: mutual TLS is needed");
}

#[test]
fn what_holds_for_a_port_is_told() {
    let mut cluster = Cluster::new();
    let api = "selector: {matchLabels: {app: api}}";
    cluster.authenticate("istio-system/default", "{mtls: {mode: STRICT}}");
    cluster
        .authenticate("shop/p", &format!("{{{api}, portLevelMtls: {{80: {{mode: DISABLE}}, 81: {{mode: STRICT}}}}}}"));
    cluster.check(&[
        ("- > shop/api:80", "allow"),
        ("- > shop/api:81", "denied shop/converted_peer_authentication_p"),
        ("- > shop/db:80", "denied istio-system/istio_converted_static_strict"),
        ("a/web > shop/api:81", "allow"),
    ]);
    let told = "ZtunnelAccepted True Accepted: mutual TLS is needed, except at 80; ";
    assert!(cluster.status("shop/p").starts_with(told), "{}", cluster.status("shop/p"));
    cluster.authenticate("istio-system/q", &format!("{{{api}, mtls: {{mode: STRICT}}}}"));
    let told = "ZtunnelAccepted False UnsupportedValue: with a selector it is not in force in the root namespace";
    assert!(cluster.status("istio-system/q").starts_with(told));
}
