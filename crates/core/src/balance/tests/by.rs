//! Endpoints chosen in turn, at random and by keys, and those that warm up.

use super::*;
use crate::http::traffic::{Algorithm, ServiceTraffic, Traffic};
use crate::snapshot::Change;

/// The endpoint of a/api that a/web-1 is given.
fn pick_by(mesh: &Snapshot, by: By, entropy: u64, standing: impl Fn(&Workload) -> Option<Standing>) -> String {
    let members = mesh.members(&key("a/api")).unwrap();
    let ask = Ask { caller: mesh.workload(&uid("a/web-1")).unwrap(), service_port: Some(80), by, entropy };
    let picker = members.picker().unwrap();
    let picked = picker.pick(members.service().unwrap(), &ask, |i| standing(&members.workloads()[i])).unwrap();
    members.workloads()[picked.member].name.to_string()
}

fn counts(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

fn traffic(algorithm: Algorithm) -> Change {
    let traffic = Traffic { algorithm, ..Traffic::default() };
    Change::Traffic(ServiceTraffic { service: key("a/api"), traffic, ports: Vec::new(), subsets: Vec::new() })
}

#[test]
fn in_turn_each_endpoint_comes_as_often_as_it_weighs() {
    let equal = weighted(&[1, 1, 1, 1], "");
    for from in 0..20 {
        let round = counts((from..from + 4).map(|turn| pick_by(&equal, By::Turn(turn), 0, alike)));
        assert_eq!(round.len(), 4, "from turn {from}: {round:?}");
    }
    let unequal = weighted(&[1, 2, 5], "");
    let counted = counts((0..800).map(|turn| pick_by(&unequal, By::Turn(turn), 0, alike)));
    for (name, wanted) in [("api-0", 100), ("api-1", 200), ("api-2", 500)] {
        assert!(counted[name].abs_diff(wanted) <= 4, "{counted:?}");
    }
}

#[test]
fn the_turn_of_an_endpoint_that_may_not_be_taken_goes_to_any_other() {
    let mesh = weighted(&[1, 1, 1, 1, 1], "");
    let standing = |w: &Workload| (&*w.name != "api-2").then(Standing::default);
    let picked = counts(numbers().take(5000).zip(0..).map(|(e, turn)| pick_by(&mesh, By::Turn(turn), e, standing)));
    assert!(picked.len() == 4 && picked.values().all(|n| n.abs_diff(1250) < 120), "{picked:?}");
}

#[test]
fn at_random_load_does_not_count() {
    let mesh = weighted(&[1, 3], "");
    let loaded =
        |w: &Workload| Some(Standing { connections: if &*w.name == "api-1" { 100 } else { 0 }, ..Standing::default() });
    let picked = counts(numbers().take(10_000).map(|entropy| pick_by(&mesh, By::Random, entropy, loaded)));
    assert!(picked["api-1"].abs_diff(7500) < 300, "{picked:?}");
    let picked = counts(numbers().take(10_000).map(|entropy| pick_by(&mesh, By::LessBusy, entropy, loaded)));
    assert!(!picked.contains_key("api-1"), "{picked:?}");
}

#[test]
fn a_key_leads_to_one_endpoint_once_the_traffic_asks_for_it() {
    for (algorithm, by) in [
        (Algorithm::Ring(Vec::new()), By::Ring as fn(u64) -> By),
        (Algorithm::Maglev(Vec::new()), By::Maglev as fn(u64) -> By),
    ] {
        let plain = weighted(&[1; 10], "");
        let mesh = plain.apply(vec![traffic(algorithm)]);
        let spread = |mesh: &Snapshot, k: u64| counts(numbers().take(50).map(|e| pick_by(mesh, by(k), e, alike))).len();
        assert!((0..50).all(|k| spread(&mesh, k) == 1));
        assert!(spread(&plain, 1) > 1, "nothing was prepared");
        let all = counts((0..1000).map(|k| pick_by(&mesh, by(k), 0, alike)));
        assert!(all.len() == 10 && all.values().all(|n| (40..200).contains(n)), "{all:?}");
        // The endpoints of the next version, and those without the policy.
        let next = mesh.apply(changes("pod a/api-99 10.0.9.9 hbone serves=a/api"));
        assert_eq!(spread(&next, 1), 1);
        assert!(spread(&next.apply(vec![Change::RemoveTraffic(key("a/api"))]), 1) > 1);
    }
}

#[test]
fn an_endpoint_that_has_just_come_gets_its_share_little_by_little() {
    let mesh = weighted(&[1, 1, 1, 1], "");
    let window = Duration::from_secs(30);
    for (age, part) in [(0, 0.1), (15, 0.55), (30, 1.0), (99, 1.0)] {
        let cold = cold(Duration::from_secs(age), window);
        let standing =
            |w: &Workload| Some(Standing { cold: if &*w.name == "api-3" { cold } else { 0 }, ..Standing::default() });
        for by in [By::Random, By::Turn(0), By::LessBusy] {
            let by = |turn: u64| if by == By::Turn(0) { By::Turn(turn) } else { by };
            let picked = counts(numbers().take(20_000).zip(0..).map(|(e, turn)| pick_by(&mesh, by(turn), e, standing)));
            let wanted = 20_000.0 * part / (3.0 + part);
            let got = picked.get("api-3").copied().unwrap_or(0) as f64;
            // In turn, what it passes over is drawn among all.
            assert!((got - wanted).abs() < 0.1 * wanted + 200.0, "{:?} after {age} s: {got} of {wanted}", by(0));
        }
    }
    assert_eq!(cold(Duration::ZERO, Duration::ZERO), 0);
}

#[test]
fn where_all_have_just_come_one_is_taken_all_the_same() {
    let mesh = weighted(&[1, 1], "");
    let standing = |_: &Workload| Some(Standing { cold: u16::MAX, ..Standing::default() });
    let picked = counts(numbers().take(1000).map(|entropy| pick_by(&mesh, By::Random, entropy, standing)));
    assert_eq!(picked.values().sum::<usize>(), 1000);
    assert_eq!(picked.len(), 2);
}
