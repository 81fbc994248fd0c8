//! What may be relied on while news about workloads, policies and services arrives in any order.

use std::collections::VecDeque;

use super::random::{Model, Random};
use super::*;
use crate::snapshot::PolicyVersion;

const PODS: [&str; 3] = ["shop/api-1", "shop/web-1", "a/db-1"];
const SERVICES: [&str; 2] = ["shop/api", "a/db"];

/// A configuration: policies, and what workloads list.
#[derive(Clone, Default)]
struct Config {
    policies: Vec<Policy>,
    lists: Vec<(&'static str, Vec<String>)>,
}

impl Config {
    fn model(&self) -> Model {
        let mut model = Model::default();
        self.policies.iter().for_each(|policy| model.put(policy.clone()));
        self.lists.iter().for_each(|(name, list)| model.list(name, list.clone()));
        model
    }

    /// Lists of policies that exist.
    fn with_lists(policies: Vec<Policy>, random: &mut Random) -> Self {
        let listable: Vec<String> =
            policies.iter().filter(|p| p.scope == Scope::Workload).map(|p| p.key.to_string()).collect();
        let mut lists = Vec::new();
        for name in PODS {
            let length = if listable.is_empty() { 0 } else { random.below(4) };
            lists.push((name, (0..length).map(|_| random.of(&listable)).collect()));
        }
        Self { policies, lists }
    }
}

fn pod(name: &str, list: &[String]) -> Change {
    let policies = if list.is_empty() { String::new() } else { format!("policies={}", list.join(",")) };
    changes(&format!("pod {name} 10.0.0.2 hbone serves=shop/api {policies}")).remove(0)
}

fn remove_pod(name: &str) -> Change {
    Change::RemoveWorkload(uid(name))
}

fn service(name: &str, life: usize) -> Change {
    changes(&format!("svc {name} 10.1.0.{} ports=80>80", 1 + life)).remove(0)
}

/// Takes from queues at random, each in its own order, one to three at a time.
fn batches(mut queues: Vec<VecDeque<Change>>, random: &mut Random) -> Vec<Vec<Change>> {
    let mut batches = Vec::new();
    loop {
        queues.retain(|queue| !queue.is_empty());
        if queues.is_empty() {
            return batches;
        }
        let mut batch = Vec::new();
        for _ in 0..1 + random.below(3) {
            let at = random.below(queues.len());
            batch.extend(queues[at].pop_front());
        }
        batches.push(batch);
    }
}

/// Everybody's verdict about a connection like `facts`, and the version it belongs to.
fn verdicts(mesh: &Snapshot, facts: &Facts<'_>) -> Vec<Option<(Verdict, PolicyVersion)>> {
    let verdict = |name: &&str| {
        let workload = mesh.workload(&uid(name))?;
        Some((judge(mesh, workload, facts), mesh.policy_version(workload)))
    };
    PODS.iter().map(verdict).collect()
}

/// From nothing: whatever the order, and however often things come, go and come again, no connection passes that the
/// whole denies, and in the end the verdicts are those of the whole. Policies that apply without being listed are told
/// of before [`Change::PoliciesArrived`]; whatever is listed may be as late as it likes.
#[test]
fn from_nothing_in_any_order_no_connection_passes_that_the_end_denies() {
    let mut pending = 0;
    for seed in 0..1000 {
        let mut random = Random::new(seed);
        let scopes = [Scope::Global, Scope::Namespace, Scope::Workload, Scope::Workload];
        let policies: Vec<Policy> = (0..random.of(&[2, 6, 20]))
            .map(|i| {
                let scope = random.of(&scopes);
                random.policy(&format!("{}/p{i}", ["shop", "a"][i % 2]), scope)
            })
            .collect();
        let config = Config::with_lists(policies, &mut random);
        let whole = config.model();

        let mut queues: Vec<VecDeque<Change>> = Vec::new();
        let mut first = Vec::new();
        for policy in &config.policies {
            let put = || Change::Policy(policy.clone());
            match policy.scope {
                Scope::Global | Scope::Namespace => first.extend([put(), put()].into_iter().take(1 + random.below(2))),
                Scope::Workload => {
                    let gone = Change::RemovePolicy(policy.key.clone());
                    queues.push([put(), gone, put()].into_iter().skip(2 * random.below(2)).collect());
                }
            }
        }
        for i in (1..first.len()).rev() {
            first.swap(i, random.below(i + 1));
        }
        queues.push(first.into_iter().chain([Change::PoliciesArrived]).collect());
        for (name, list) in &config.lists {
            let put = || pod(name, list);
            queues.push([put(), remove_pod(name), put()].into_iter().skip(2 * random.below(2)).collect());
        }
        for name in SERVICES {
            let gone = Change::RemoveService(crate::testmesh::key(name));
            queues.push(VecDeque::from([service(name, 0), gone, service(name, 1)]));
        }
        // Strangers to the end, of whom nobody there hears.
        queues.push(VecDeque::from([pod("shop/old-1", &["shop/old".into()]), remove_pod("shop/old-1")]));
        let old = random.policy("shop/old", Scope::Workload);
        queues.push(VecDeque::from([Change::Policy(old), Change::RemovePolicy("shop/old".into())]));

        let callers: Vec<_> = (0..8).map(|_| random.caller()).collect();
        let connections: Vec<_> = callers.iter().map(|caller| random.facts(caller.as_ref())).collect();
        let mut mesh = Snapshot::awaited();
        let mut before: Vec<_> = connections.iter().map(|facts| verdicts(&mesh, facts)).collect();
        for batch in batches(queues, &mut random) {
            mesh = mesh.apply(batch);
            for (facts, before) in connections.iter().zip(&mut before) {
                let now = verdicts(&mesh, facts);
                for (name, (was, is)) in PODS.iter().zip(before.iter().zip(&now)) {
                    let Some((verdict, version)) = is else { continue };
                    let end = whole.verdict(name, facts, false);
                    assert!(
                        !verdict.is_allowed() || end.is_allowed(),
                        "seed {seed}: {name} {facts:?}: {end:?} is to come"
                    );
                    pending += usize::from(verdict.is_pending());
                    if let Some((old, old_version)) = was {
                        let told = old == verdict || old_version != version;
                        assert!(told, "seed {seed}: {name} {facts:?}: {old:?} became {verdict:?} unnoticed");
                    }
                }
                *before = now;
            }
        }
        for facts in &connections {
            for name in PODS {
                let verdict = judge(&mesh, mesh.workload(&uid(name)).unwrap(), facts);
                assert_eq!(verdict, whole.verdict(name, facts, false), "seed {seed}: {name} {facts:?}");
            }
        }
    }
    assert!(pending > 10_000, "only {pending} verdicts had to wait: nothing is late");
}

/// From one configuration to the next, where workloads list other policies: whatever the order, every verdict on the
/// way is the old one, the new one, or none yet. So nothing passes that both deny, nothing is denied that both allow
/// once what is listed is there, and the end is the new one. (A policy whose content or scope changes does so at the
/// moment its own news arrives.)
#[test]
fn between_two_configurations_every_verdict_is_one_of_theirs_or_none_yet() {
    for seed in 0..1000 {
        let mut random = Random::new(seed);
        let fixed: Vec<Policy> = (0..random.below(3))
            .map(|i| {
                let scope = random.of(&[Scope::Global, Scope::Namespace]);
                random.policy(&format!("shop/fixed{i}"), scope)
            })
            .collect();
        let listable: Vec<Policy> =
            (0..8).map(|i| random.policy(&format!("{}/p{i}", ["shop", "a"][i % 2]), Scope::Workload)).collect();
        let mut config = || {
            let some = listable.iter().filter(|_| !random.one_in(3)).cloned();
            let policies = fixed.iter().cloned().chain(some).collect();
            Config::with_lists(policies, &mut random)
        };
        let (old, new) = (config(), config());
        let (was, becomes) = (old.model(), new.model());
        let mut start: Vec<Change> = old.policies.iter().cloned().map(Change::Policy).collect();
        start.extend(old.lists.iter().map(|(name, list)| pod(name, list)));
        let mut mesh = Snapshot::default().apply(start);

        let mut queues: Vec<VecDeque<Change>> = Vec::new();
        let has = |config: &Config, key: &Arc<str>| config.policies.iter().any(|p| p.key == *key);
        for policy in old.policies.iter().filter(|p| !has(&new, &p.key)) {
            queues.push(VecDeque::from([Change::RemovePolicy(policy.key.clone())]));
        }
        for policy in new.policies.iter().filter(|p| !has(&old, &p.key)) {
            queues.push(VecDeque::from([Change::Policy(policy.clone())]));
        }
        queues.extend(new.lists.iter().map(|(name, list)| VecDeque::from([pod(name, list)])));
        queues.push(VecDeque::from([service(SERVICES[0], 0), service(SERVICES[0], 1)]));

        let callers: Vec<_> = (0..8).map(|_| random.caller()).collect();
        let connections: Vec<_> = callers.iter().map(|caller| random.facts(caller.as_ref())).collect();
        for batch in batches(queues, &mut random) {
            mesh = mesh.apply(batch);
            for facts in &connections {
                for name in PODS {
                    let verdict = judge(&mesh, mesh.workload(&uid(name)).unwrap(), facts);
                    let either = [was.verdict(name, facts, false), becomes.verdict(name, facts, false)];
                    // Of two that deny, the one that is here already may be named.
                    let as_one = either.iter().any(|e| e.is_allowed() == verdict.is_allowed());
                    assert!(
                        verdict.is_pending() || as_one,
                        "seed {seed}: {name} {facts:?}: {verdict:?} is neither of {either:?}"
                    );
                }
            }
        }
        for facts in &connections {
            for name in PODS {
                let verdict = judge(&mesh, mesh.workload(&uid(name)).unwrap(), facts);
                assert_eq!(verdict, becomes.verdict(name, facts, false), "seed {seed}: {name} {facts:?}");
            }
        }
    }
}
