use std::collections::BTreeMap;

use super::*;
use crate::snapshot::Snapshot;
use crate::testmesh::{key, mesh, uid};

/// A fixed sequence that looks random.
fn numbers() -> impl Iterator<Item = u64> {
    let mut x = 7u64;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

/// How often each endpoint of a/api is picked by a/web-1.
fn shares(mesh: &Snapshot, draws: usize) -> BTreeMap<String, f64> {
    let members = mesh.members(&key("a/api")).unwrap();
    let (service, picker) = (members.service().unwrap(), members.picker().unwrap());
    let caller = mesh.workload(&uid("a/web-1")).unwrap();
    let mut shares = BTreeMap::new();
    for entropy in numbers().take(draws) {
        if let Ok(i) = picker.pick(service, caller, Some(80), entropy) {
            *shares.entry(members.workloads()[i].name.to_string()).or_default() += 1.0 / draws as f64;
        }
    }
    shares
}

#[test]
fn endpoints_are_picked_in_proportion_to_their_weights() {
    for weights in [vec![1, 1, 1], vec![1, 2, 3, 4], vec![1, 1000], vec![5], vec![0, 7, 3], vec![u32::MAX, u32::MAX, 1]]
    {
        let pods: String = (0..weights.len())
            .map(|i| format!("pod a/api-{i} 10.0.1.{i} hbone serves=a/api weight={}\n", weights[i]))
            .collect();
        let mesh = mesh(&format!("pod a/web-1 10.0.0.1\nsvc a/api 10.1.0.1 ports=80>80\n{pods}"));
        let shares = shares(&mesh, 100_000);
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (i, weight) in weights.iter().enumerate() {
            let (want, got) = (f64::from(*weight) / total, shares.get(&format!("api-{i}")).copied().unwrap_or(0.0));
            assert!((want - got).abs() < 0.01, "{weights:?}: endpoint {i} got {got}, not {want}");
        }
    }
}

#[test]
fn a_table_gives_each_weight_its_exact_share() {
    let mut random = numbers();
    for n in [2, 3, 17, 100] {
        let weights: Vec<u32> = (0..n).map(|_| (random.next().unwrap() % 50) as u32 + 1).collect();
        let table = alias_table(&weights);
        let mut shares = vec![0u64; n];
        for (i, slot) in table.iter().enumerate() {
            shares[i] += u64::from(slot.keep);
            shares[slot.other as usize] += (1 << 32) - u64::from(slot.keep);
        }
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        for (share, weight) in shares.iter().zip(&weights) {
            let want = u64::from(*weight) * ((n as u64) << 32) / total;
            assert!(share.abs_diff(want) <= 2 * n as u64, "{share} for {want}");
        }
    }
}

const PLACES: &str = "
    pod a/web-1   10.0.0.1            region=r1 zone=z1 node=n1
    pod a/same-1  10.0.0.2 serves=a/api region=r1 zone=z1 node=n1
    pod a/zone-1  10.0.0.3 serves=a/api region=r1 zone=z1 node=n2
    pod a/zone-2  10.0.0.4 serves=a/api region=r1 zone=z1 node=n3
    pod a/reg-1   10.0.0.5 serves=a/api region=r1 zone=z2 node=n4
    pod a/far-1   10.0.0.6 serves=a/api region=r2 zone=z1 node=n1
";

#[track_caller]
fn check_places(mode: &str, without: &[&str], expected: &[&str]) {
    let pods: String =
        PLACES.lines().filter(|l| !without.iter().any(|w| l.contains(w))).map(|l| format!("{l}\n")).collect();
    let mesh = mesh(&format!("{pods}svc a/api 10.1.0.1 ports=80>80 mode={mode}"));
    assert_eq!(shares(&mesh, 500).into_keys().collect::<Vec<_>>(), expected, "{mode} without {without:?}");
}

#[test]
fn failover_takes_the_endpoints_that_share_most_leading_places() {
    let mode = "failover:region,zone,node";
    check_places(mode, &[], &["same-1"]);
    check_places(mode, &["same"], &["zone-1", "zone-2"]);
    check_places(mode, &["a/same", "a/zone"], &["reg-1"]);
    check_places(mode, &["a/same", "a/zone", "a/reg"], &["far-1"]);
    check_places("failover:network,region", &[], &["reg-1", "same-1", "zone-1", "zone-2"]);
    check_places("failover:node,region", &["same"], &["far-1"]);
}

#[test]
fn strict_takes_only_endpoints_that_share_every_place() {
    check_places("strict:node", &[], &["far-1", "same-1"]);
    check_places("strict:region,node", &[], &["same-1"]);
    check_places("strict:region,node", &["same"], &[]);
}

#[test]
fn the_nearest_endpoint_is_passed_over_when_it_is_not_healthy() {
    let mesh = mesh(
        "
        pod a/web-1  10.0.0.1 node=n1
        pod a/same-1 10.0.0.2 serves=a/api node=n1 unhealthy
        pod a/far-1  10.0.0.3 serves=a/api node=n2
        svc a/api 10.1.0.1 ports=80>80 mode=failover:node",
    );
    assert_eq!(shares(&mesh, 100).into_keys().collect::<Vec<_>>(), ["far-1"]);
}

#[test]
fn endpoints_of_the_callers_network_are_taken_alone() {
    let mesh = mesh(
        "
        pod a/web-1  10.0.0.1
        pod a/near-1 10.0.0.2 serves=a/api
        pod a/far-1  10.0.0.3 serves=a/api network=other
        svc a/api 10.1.0.1 ports=80>80",
    );
    assert_eq!(shares(&mesh, 100).into_keys().collect::<Vec<_>>(), ["near-1"]);
}

#[test]
fn few_alternatives_are_drawn_by_weight() {
    assert_eq!(draw_weighted([].into_iter(), 5), None);
    assert_eq!(draw_weighted([0, 0].into_iter(), 5), None);
    let drawn = |weights: &'static [u32]| {
        let seconds = numbers().take(10_000).filter(|e| draw_weighted(weights.iter().copied(), *e) == Some(1));
        seconds.count()
    };
    assert_eq!(drawn(&[0, 3]), 10_000);
    assert_eq!(drawn(&[3, 0]), 0);
    assert!(drawn(&[75, 25]).abs_diff(2500) < 200);
}
