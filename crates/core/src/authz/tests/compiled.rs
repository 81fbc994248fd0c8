//! Policies that are arranged for few questions give the answers that all of them, asked one by one, would.

use super::random::{Model, Random};
use super::*;

const PODS: [&str; 3] = ["shop/api-1", "shop/web-1", "a/db-1"];
const SCOPES: [Scope; 3] = [Scope::Global, Scope::Namespace, Scope::Workload];

fn pod(name: &str, list: &[String]) -> Change {
    let policies = if list.is_empty() { String::new() } else { format!("policies={}", list.join(",")) };
    changes(&format!("pod {name} 10.0.0.2 hbone {policies}")).remove(0)
}

#[test]
fn whatever_was_put_and_removed_the_verdict_is_that_of_asking_every_policy() {
    let (mut allowed, mut denied) = (0, 0);
    for seed in 0..2000 {
        let mut random = Random::new(seed);
        let (mut mesh, mut model) = (Snapshot::default(), Model::default());
        // Few policies are asked one by one, many are looked up.
        let keys: Vec<String> =
            (0..random.of(&[3, 12, 30, 60])).map(|i| format!("{}/p{i}", ["shop", "a"][i % 2])).collect();
        for name in PODS {
            mesh = mesh.apply(vec![pod(name, &[])]);
            model.list(name, Vec::new());
        }
        for _ in 0..3 {
            let mut edits = Vec::new();
            for _ in 0..keys.len() {
                let key = random.of(&keys);
                match random.below(12) {
                    0 => {
                        model.remove(&key);
                        edits.push(Change::RemovePolicy(key.as_str().into()));
                    }
                    1 | 2 => {
                        let name = random.of(&PODS);
                        let mut list = Vec::new();
                        for _ in 0..random.of(&[0, 1, 3, 20]) {
                            let key = random.of(&keys);
                            // Rarely one that is not there.
                            if model.policies.contains_key(&key) || random.one_in(20) {
                                list.push(key);
                            }
                        }
                        edits.push(pod(name, &list));
                        model.list(name, list);
                    }
                    _ => {
                        let scope = random.of(&SCOPES);
                        let policy = random.policy(&key, scope);
                        model.put(policy.clone());
                        edits.push(Change::Policy(policy));
                    }
                }
            }
            mesh = mesh.apply(edits);
            for _ in 0..20 {
                let (name, caller) = (random.of(&PODS), random.caller());
                let facts = random.facts(caller.as_ref());
                let workload = mesh.workload(&uid(name)).unwrap();
                let expected = model.verdict(name, &facts, false);
                let what = || format!("seed {seed}: {name} {facts:?}");
                assert_eq!(judge(&mesh, workload, &facts), expected, "{}", what());
                let trial = model.on_trial(name).then(|| model.verdict(name, &facts, true));
                assert_eq!(dry_run(&mesh, workload, &facts), trial, "{}", what());
                let explained = explain(&mesh, workload, &facts);
                assert_eq!((&explained.verdict, &explained.dry_run), (&expected, &trial), "{}", what());
                match &expected {
                    Verdict::Allow => allowed += 1,
                    Verdict::Deny { .. } => denied += 1,
                }
                if expected == Verdict::denied(None) {
                    let told = explained.missed.len() + explained.more_missed;
                    assert!(told >= model.allowing(name) && told <= 3 * model.allowing(name), "{}", what());
                }
            }
        }
    }
    assert!(allowed > 10_000 && denied > 10_000, "{allowed} allowed, {denied} denied: one of them is hardly tried");
}

#[test]
fn a_verdict_asks_few_of_many_policies() {
    let many = 10_000;
    let key = |i: usize| format!("shop/p{i}");
    type Shape = (&'static str, fn(usize) -> Match);
    let shapes: [Shape; 6] = [
        ("principal", |i| Match {
            principals: vec![StringMatch::Exact(format!("cluster.local/ns/n{i}/sa/web").into())],
            ..Match::default()
        }),
        ("one principal, many ports", |i| Match {
            principals: vec![StringMatch::Exact("cluster.local/ns/n7/sa/web".into())],
            destination_ports: vec![i as u16 + 1000],
            ..Match::default()
        }),
        ("namespace", |i| Match { namespaces: vec![StringMatch::Exact(format!("n{i}").into())], ..Match::default() }),
        ("range", |i| Match {
            source_ips: vec![format!("10.{}.{}.0/24", 1 + i / 256, i % 256).parse().unwrap()],
            ..Match::default()
        }),
        ("beginning", |i| Match {
            principals: vec![StringMatch::Prefix(format!("cluster.local/ns/n{i}/").into())],
            ..Match::default()
        }),
        ("namespace and port", |i| Match {
            namespaces: vec![StringMatch::Exact(format!("n{}", i / 100).into())],
            destination_ports: vec![(i % 100) as u16 + 1000],
            ..Match::default()
        }),
    ];
    for (shape, make) in shapes {
        for scope in SCOPES {
            let put = |i| policy(&key(i), scope, Action::Allow, rule(make(i)));
            let list: Vec<String> = if scope == Scope::Workload { (0..many).map(key).collect() } else { Vec::new() };
            let mesh = Snapshot::default().apply((0..many).map(put).chain([pod("shop/api-1", &list)]).collect());
            let workload = mesh.workload(&uid("shop/api-1")).unwrap();
            let source = Identity::new(Default::default(), "n7", "web").unwrap();
            let facts = facts(Some(&source));
            let applying = mesh.applying(workload);
            let connection = Connection::new(&facts);
            let asked: usize = applying.sets().map(|set| set.allow.candidates(&connection)).sum();
            assert!(asked <= 32, "{shape}, {scope:?}: {asked} of {many} policies are asked");
        }
    }
}
