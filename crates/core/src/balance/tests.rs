use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::snapshot::{Members, Snapshot};
use crate::testmesh::{changes, key, mesh, uid};

mod by;

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

/// The endpoint of a/api that `caller` is given, by name.
fn pick(
    mesh: &Snapshot,
    caller: &str,
    entropy: u64,
    standing: impl Fn(&Workload) -> Option<Standing>,
) -> Option<String> {
    let members: &Members = mesh.members(&key("a/api")).unwrap();
    let (service, picker) = (members.service().unwrap(), members.picker().unwrap());
    let ask = Ask { caller: mesh.workload(&uid(caller)).unwrap(), service_port: Some(80), by: By::Service, entropy };
    let picked = picker.pick(service, &ask, |i| standing(&members.workloads()[i])).ok()?;
    Some(members.workloads()[picked.member].name.to_string())
}

fn alike(_: &Workload) -> Option<Standing> {
    Some(Standing::default())
}

/// How often each endpoint of a/api is picked by a/web-1.
fn shares_of(mesh: &Snapshot, draws: usize, standing: impl Fn(&Workload) -> Option<Standing>) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for name in numbers().take(draws).filter_map(|entropy| pick(mesh, "a/web-1", entropy, &standing)) {
        *shares.entry(name).or_default() += 1.0 / draws as f64;
    }
    shares
}

fn shares(mesh: &Snapshot, draws: usize) -> BTreeMap<String, f64> {
    shares_of(mesh, draws, alike)
}

/// A service a/api with an endpoint api-N of each weight, and a caller.
fn weighted(weights: &[u32], words: &str) -> Snapshot {
    let pods: String = (0..weights.len())
        .map(|i| format!("pod a/api-{i} 10.0.{}.{} hbone serves=a/api weight={}\n", 1 + i / 250, i % 250, weights[i]))
        .collect();
    mesh(&format!("pod a/web-1 10.0.0.1\nsvc a/api 10.1.0.1 ports=80>80 {words}\n{pods}"))
}

#[track_caller]
fn assert_follow(weights: &[u32], shares: &BTreeMap<String, f64>) {
    assert_follow_within(0.01, weights, shares);
}

#[track_caller]
fn assert_follow_within(error: f64, weights: &[u32], shares: &BTreeMap<String, f64>) {
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    for (i, weight) in weights.iter().enumerate() {
        let (want, got) = (f64::from(*weight) / total, shares.get(&format!("api-{i}")).copied().unwrap_or(0.0));
        assert!((want - got).abs() < error, "{weights:?}: endpoint {i} got {got}, not {want}");
    }
}

#[test]
fn endpoints_are_picked_in_proportion_to_their_weights() {
    for weights in [vec![1, 1, 1], vec![1, 2, 3, 4], vec![1, 1000], vec![5], vec![0, 7, 3], vec![u32::MAX, u32::MAX, 1]]
    {
        assert_follow(&weights, &shares(&weighted(&weights, ""), 100_000));
    }
}

#[test]
fn of_two_endpoints_the_one_with_fewer_connections_for_its_weight_is_picked() {
    let busy = |connections: [u32; 2]| {
        move |w: &Workload| {
            let connections = connections[usize::from(&*w.name == "api-1")];
            Some(Standing { connections, ..Standing::default() })
        }
    };
    let only = |weights: &[u32], connections| {
        let shares = shares_of(&weighted(weights, ""), 500, busy(connections));
        shares.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(only(&[1, 1], [5, 4]), ["api-1"]);
    assert_eq!(only(&[1, 1], [4, 5]), ["api-0"]);
    assert_eq!(only(&[1, 1], [4, 4]), ["api-0", "api-1"]);
    assert_eq!(only(&[3, 1], [5, 2]), ["api-0"]);
    assert_eq!(only(&[3, 1], [7, 2]), ["api-1"]);
}

/// Connections that are held: how many each endpoint has in the end.
fn filled(weights: &[u32], connections: usize) -> Vec<u32> {
    let mesh = weighted(weights, "");
    let held = RefCell::new(BTreeMap::<String, u32>::new());
    for entropy in numbers().take(connections) {
        let standing = |w: &Workload| {
            let connections = held.borrow().get(&*w.name).copied().unwrap_or_default();
            Some(Standing { connections, ..Standing::default() })
        };
        let name = pick(&mesh, "a/web-1", entropy, standing).unwrap();
        *held.borrow_mut().entry(name).or_default() += 1;
    }
    (0..weights.len()).map(|i| held.borrow().get(&format!("api-{i}")).copied().unwrap_or_default()).collect()
}

#[test]
fn held_connections_spread_as_the_weights_say() {
    let even = filled(&[1; 10], 1000);
    // Drawn without looking, some would have 120 and others 80.
    assert!(even.iter().all(|n| n.abs_diff(100) <= 3), "{even:?}");
    let skewed = filled(&[1, 2, 3, 4], 1000);
    assert!(skewed.iter().zip([100, 200, 300, 400]).all(|(n, want)| n.abs_diff(want) <= 6), "{skewed:?}");
}

#[test]
fn an_endpoint_that_is_set_aside_is_taken_only_when_all_are() {
    let aside = |names: &'static [&str]| {
        move |w: &Workload| Some(Standing { aside: names.contains(&&*w.name), ..Standing::default() })
    };
    let mesh = weighted(&[1, 1, 1], "");
    let picked = |names| shares_of(&mesh, 300, aside(names)).into_keys().collect::<Vec<_>>();
    assert_eq!(picked(&["api-0"]), ["api-1", "api-2"]);
    assert_eq!(picked(&["api-0", "api-2"]), ["api-1"]);
    assert_eq!(picked(&["api-0", "api-1", "api-2"]), ["api-0", "api-1", "api-2"]);
    let skewed = weighted(&[1_000_000, 1, 1], "");
    let shares = shares_of(&skewed, 3000, aside(&["api-0"]));
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["api-1", "api-2"], "however heavy the one is");
    let large = weighted(&[1; 1000], "");
    let most = |w: &Workload| Some(Standing { aside: &*w.name > "api-2", ..Standing::default() });
    let good = numbers().take(300).filter_map(|e| pick(&large, "a/web-1", e, most)).filter(|n| &**n <= "api-2");
    assert!(good.count() > 295, "most of a large pool is set aside");
}

#[test]
fn the_next_place_is_taken_when_the_nearest_is_set_aside_or_was_tried() {
    let mesh = |mode: &str| mesh(&format!("{PLACES}svc a/api 10.1.0.1 ports=80>80 mode={mode}"));
    let near = |w: &Workload| &*w.name == "same-1";
    let names = |mesh: &Snapshot, standing: &dyn Fn(&Workload) -> Option<Standing>| {
        shares_of(mesh, 300, standing).into_keys().collect::<Vec<_>>()
    };
    let failover = mesh("failover:region,zone,node");
    assert_eq!(
        names(&failover, &|w| Some(Standing { aside: near(w), ..Standing::default() })),
        ["zone-1", "zone-2"],
        "set aside"
    );
    assert_eq!(names(&failover, &|w| (!near(w)).then(Standing::default)), ["zone-1", "zone-2"], "tried");
    assert_eq!(
        names(&failover, &|_| Some(Standing { aside: true, ..Standing::default() })),
        ["same-1"],
        "all set aside"
    );
    let strict = mesh("strict:region,node");
    assert_eq!(names(&strict, &|w| Some(Standing { aside: near(w), ..Standing::default() })), ["same-1"]);
    assert_eq!(names(&strict, &|w| (!near(w)).then(Standing::default)), Vec::<String>::new());
}

#[test]
fn in_any_mesh_a_pick_may_be_used_and_nothing_better_was_left_out() {
    let mut random = numbers();
    let mut below = |n: u64| random.next().unwrap() % n;
    for _ in 0..300 {
        let n = 1 + below(12);
        let mut text = String::from("pod a/web-1 10.0.0.1 region=r0 zone=z0 node=n0\n");
        for i in 0..n {
            let [region, zone, node] = [2, 2, 3].map(&mut below);
            let health = ["", "", "", "unhealthy"][below(4) as usize];
            let network = ["", "", "network=far"][below(3) as usize];
            let serves = ["a/api", "a/api", "a/api:80>0"][below(3) as usize];
            text.push_str(&format!(
                "pod a/api-{i} 10.0.1.{i} serves={serves} region=r{region} zone=z{zone} node=n{node} weight={} {health} \
                 {network}\n",
                below(4)
            ));
        }
        let mode = ["", "mode=failover:region,zone,node", "mode=strict:zone"][below(3) as usize];
        let words = [["", "unhealthy-too"][below(2) as usize], ["", "affinity"][below(2) as usize], mode].join(" ");
        text.push_str(&format!("svc a/api 10.1.0.1 ports=80>80 {words}"));
        let mesh = mesh(&text);
        let standings: Vec<Option<Standing>> = (0..n)
            .map(|_| {
                let standing = Standing { connections: below(3) as u32, aside: below(2) == 0, ..Standing::default() };
                (below(4) > 0).then_some(standing)
            })
            .collect();
        let number = |w: &Workload| w.name["api-".len()..].parse::<usize>().unwrap();
        let service = mesh.service(&key("a/api")).unwrap();
        let caller = mesh.workload(&uid("a/web-1")).unwrap();
        let usable = |w: &Workload| {
            may_be_used(service, w)
                && w.network == caller.network
                && target_port(service, w, 80).is_some()
                && standings[number(w)].is_some()
        };
        // How many leading places it shares, in a mode that asks.
        let shared = |w: &Workload| {
            preference(service).iter().take_while(|scope| place(w, **scope) == place(caller, **scope)).count()
        };
        let strict = service.balancing.mode == BalancingMode::Strict;
        let candidates: Vec<&Arc<Workload>> = mesh
            .members(&key("a/api"))
            .unwrap()
            .workloads()
            .iter()
            .filter(|w| usable(w) && (!strict || shared(w) == preference(service).len()))
            .collect();
        let better = |w: &Workload| (standings[number(w)].is_some_and(|s| !s.aside), shared(w));
        let best = candidates.iter().map(|w| better(w)).max();
        for _ in 0..20 {
            let picked = pick(&mesh, "a/web-1", below(u64::MAX), |w| standings[number(w)]);
            let found = picked.as_ref().map(|name| candidates.iter().find(|w| *w.name == **name));
            match (found, best) {
                (None, None) => {}
                (Some(Some(w)), Some(best)) => assert_eq!(better(w), best, "{picked:?} of {text}"),
                other => panic!("{picked:?}, {other:?} of {text}"),
            }
        }
    }
}

#[test]
fn a_caller_stays_with_its_endpoint_and_callers_spread() {
    let mut text: String = (1..=200).map(|i| format!("pod a/web-{i} 10.0.0.{i}\n")).collect();
    text.push_str("svc a/api 10.1.0.1 ports=80>80 affinity\n");
    (0..10).for_each(|i| text.push_str(&format!("pod a/api-{i} 10.0.1.{i} serves=a/api\n")));
    let before = mesh(&text);
    let of = |mesh: &Snapshot, i: usize| {
        let given: BTreeSet<_> =
            numbers().take(5).map(|entropy| pick(mesh, &format!("a/web-{i}"), entropy, alike).unwrap()).collect();
        assert_eq!(given.len(), 1, "a/web-{i} was given {given:?}");
        given.into_iter().next().unwrap()
    };
    let homes: Vec<String> = (1..=200).map(|i| of(&before, i)).collect();
    let spread = homes.iter().fold(BTreeMap::<&str, usize>::new(), |mut n, home| {
        *n.entry(home).or_default() += 1;
        n
    });
    assert!(spread.len() == 10 && spread.values().all(|n| (8..=35).contains(n)), "{spread:?}");

    let without = before.apply(changes("-pod a/api-3"));
    let moved = |after: &Snapshot| (1..=200).filter(|i| of(after, *i) != homes[i - 1]).collect::<Vec<_>>();
    let of_three: Vec<usize> = (1..=200).filter(|i| homes[i - 1] == "api-3").collect();
    assert_eq!(moved(&without), of_three, "only the callers of the endpoint that left move");
    let again = without.apply(changes("pod a/api-3 10.0.1.77 serves=a/api"));
    assert_eq!(moved(&again), [] as [usize; 0], "it has its callers again, also at another address");

    let aside = |w: &Workload| Some(Standing { aside: &*w.name == "api-3", ..Standing::default() });
    let one = of_three[0];
    assert_eq!(pick(&before, &format!("a/web-{one}"), 1, aside).unwrap(), of(&without, one));
}

#[test]
fn callers_that_stay_spread_as_the_weights_say() {
    let weights = [1, 2, 3, 4];
    let mut text: String =
        (0..4).map(|i| format!("pod a/api-{i} 10.0.1.{i} serves=a/api weight={}\n", weights[i])).collect();
    text.push_str("svc a/api 10.1.0.1 ports=80>80 affinity\n");
    let callers = 20_000;
    (0..callers).for_each(|i| text.push_str(&format!("pod a/web-{i} 10.9.{}.{}\n", i / 256, i % 256)));
    let mesh = mesh(&text);
    let mut shares = BTreeMap::new();
    for i in 0..callers {
        *shares.entry(pick(&mesh, &format!("a/web-{i}"), 0, alike).unwrap()).or_default() += 1.0 / f64::from(callers);
    }
    assert_follow_within(0.04, &weights, &shares);
}

#[test]
fn a_table_gives_each_weight_its_exact_share() {
    let mut random = numbers();
    for n in [2, 3, 17, 100] {
        let weights: Vec<u32> = (0..n).map(|_| (random.next().unwrap() % 50) as u32 + 1).collect();
        let table = pool::alias_table(&weights);
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
