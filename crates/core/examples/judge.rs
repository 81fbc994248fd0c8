//! Measures a verdict: `cargo run --release -p loam-core --example judge [POLICIES]` prints nanoseconds for several
//! shapes of policies, all of which apply to the workload.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures and prints")]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use loam_core::authz::{Facts, judge};
use loam_core::ids::{Identity, TrustDomain, WorkloadUid};
use loam_core::policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::Workload;

/// Verdicts per measurement.
const ROUNDS: u32 = 200_000;

type Make = fn(usize) -> Match;

fn main() -> Result<(), Box<dyn Error>> {
    let policies: usize = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let shapes: [(&str, Make); 6] = [
        ("principal", |i| Match {
            principals: vec![exact(&format!("cluster.local/ns/n{i}/sa/web"))],
            ..Match::default()
        }),
        ("account", |i| Match {
            service_accounts: vec![ServiceAccount { namespace: format!("n{i}").into(), name: "web".into() }],
            ..Match::default()
        }),
        ("namespace", |i| Match { namespaces: vec![exact(&format!("n{i}"))], ..Match::default() }),
        ("port", |i| Match { destination_ports: vec![port(i)], ..Match::default() }),
        ("range", |i| Match {
            source_ips: format!("10.{}.{}.0/24", i / 256 % 256, i % 256).parse().into_iter().collect(),
            ..Match::default()
        }),
        ("mixed", |i| match i % 4 {
            0 => Match {
                namespaces: vec![exact(&format!("n{i}"))],
                destination_ports: vec![port(i)],
                ..Match::default()
            },
            1 => Match {
                principals: vec![StringMatch::Prefix(format!("cluster.local/ns/n{i}/").into())],
                ..Match::default()
            },
            2 => Match {
                source_ips: format!("10.{}.0.0/16", i % 256).parse().into_iter().collect(),
                destination_ports: vec![port(i)],
                ..Match::default()
            },
            _ => Match {
                service_accounts: vec![ServiceAccount { namespace: format!("n{i}").into(), name: "web".into() }],
                not_destination_ports: vec![22],
                ..Match::default()
            },
        }),
    ];
    println!("{policies} policies apply; ns per verdict");
    for (name, make) in shapes {
        for (scope, action) in
            [(Scope::Namespace, Action::Allow), (Scope::Namespace, Action::Deny), (Scope::Workload, Action::Allow)]
        {
            let built = Instant::now();
            let (mesh, uid) = mesh(policies, scope, action, make)?;
            let built = built.elapsed();
            let workload = mesh.workload(&uid).ok_or("the workload is in the mesh")?;
            // Callers that one of the policies is about, and one that none is about.
            let callers: Vec<Identity> = (0..16)
                .map(|i| Identity::new(TrustDomain::default(), &format!("n{}", i * policies / 12), "web"))
                .collect::<Result<_, _>>()?;
            let (mut denied, began) = (0u32, Instant::now());
            for i in 0..ROUNDS {
                let n = i as usize % callers.len();
                let facts = Facts {
                    source: Some(&callers[n]),
                    source_ip: [10, n as u8, 3, 4].into(),
                    destination_ip: [10, 0, 0, 2].into(),
                    destination_port: 1000 + n as u16,
                };
                denied += u32::from(!black_box(judge(&mesh, workload, black_box(&facts))).is_allowed());
            }
            let nanoseconds = began.elapsed().as_nanos() / u128::from(ROUNDS);
            println!(
                "{name:10} {scope:?} {action:?}: {nanoseconds} ns, {}% denied, built in {built:?}",
                denied / (ROUNDS / 100)
            );
        }
    }
    Ok(())
}

fn mesh(policies: usize, scope: Scope, action: Action, make: Make) -> Result<(Snapshot, WorkloadUid), Box<dyn Error>> {
    let key = |i: usize| format!("shop/p{i}");
    let policy = |i: usize| Policy {
        key: key(i).into(),
        namespace: "shop".into(),
        scope,
        action,
        dry_run: false,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![make(i)] }] }],
        unreadable: None,
    };
    let uid = WorkloadUid::of_pod("Kubernetes", "shop", "api-1");
    let mut workload = Workload::new(uid.clone(), "api-1", Identity::new(TrustDomain::default(), "shop", "api")?);
    if scope == Scope::Workload {
        workload.policies = (0..policies).map(|i| key(i).into()).collect();
    }
    let changes = (0..policies).map(|i| Change::Policy(policy(i))).chain([Change::Workload(workload)]);
    Ok((Snapshot::default().apply(changes.collect()), uid))
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn port(i: usize) -> u16 {
    (i % 60_000) as u16 + 1000
}
