use super::*;
use crate::pods::source::Pod;
use crate::pods::spec::SpecError;

/// A registry, a clock, and what was asked of it last.
struct Node {
    registry: Registry,
    now: Instant,
}

fn node() -> Node {
    Node { registry: Registry::default(), now: Instant::now() }
}

fn spec(name: &str, address: &str) -> PodSpec {
    PodSpec {
        uid: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        addresses: vec![address.parse().unwrap()],
        netns: format!("/run/netns/{name}").into(),
        dns: true,
        resolv_conf: None,
        resolv: None,
        starting: false,
        probes: Vec::new(),
    }
}

impl Node {
    fn want(&mut self, pods: &[PodSpec]) {
        let pod = |spec: &PodSpec| (spec.uid.clone(), Pod { title: spec.to_string(), spec: Ok(spec.clone()) });
        self.registry.want(pods.iter().map(pod).collect());
    }

    fn want_without(&mut self, name: &str, lack: SpecError) {
        let pod = Pod { title: format!("shop/{name}"), spec: Err(lack) };
        self.registry.want([(name.into(), pod)].into());
    }

    /// The steps in short: `+web` enrols, `-web` withdraws.
    fn next(&mut self) -> Vec<String> {
        let name = |action: &Action| match action {
            Action::Enrol(place) => format!("+{}", place.spec.name),
            Action::Withdraw(place) => format!("-{}", place.spec.name),
        };
        self.registry.next(self.now).iter().map(name).collect()
    }

    fn enrol(&mut self, name: &str) {
        self.next();
        let netns = NetnsId::fake(self.registry.place_of(name).unwrap().index.into());
        assert!(self.registry.claim(&name.into(), netns, self.now));
        self.registry.enrolled(&name.into(), 100);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn see(&self, name: &str) -> (State, String) {
        let view = self.registry.views().find(|view| &**view.uid == name).unwrap();
        (view.state, view.reason.to_owned())
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_pod_that_was_found_before_it_ran_is_not_another_one_when_it_runs() {
    for starting in [true, false] {
        let mut node = node();
        node.want(&[PodSpec { starting, ..spec("web", "10.0.0.1") }]);
        node.enrol("web");
        node.want(&[PodSpec { starting: !starting, ..spec("web", "10.0.0.1") }]);
        assert_eq!(node.next(), NOTHING, "starting: {starting}");
    }
}

#[test]
fn a_wanted_pod_is_enrolled_once_and_an_unwanted_one_withdrawn_once() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    assert_eq!(node.next(), ["+web"]);
    assert_eq!(node.next(), NOTHING);
    assert_eq!(node.see("web").0, State::Pending);
    node.registry.enrolled(&"web".into(), 100);
    assert_eq!(node.next(), NOTHING);
    assert_eq!(node.see("web"), (State::Enrolled, String::new()));
    node.want(&[]);
    assert_eq!(node.next(), ["-web"]);
    assert_eq!(node.see("web").0, State::Removing);
    node.registry.withdrawn(&"web".into());
    assert_eq!(node.next(), NOTHING);
    assert_eq!(node.registry.views().count(), 0);
}

#[test]
fn a_pod_that_is_unwanted_while_it_is_enrolled_is_withdrawn_afterwards() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    assert_eq!(node.next(), ["+web"]);
    node.want(&[]);
    assert_eq!(node.next(), NOTHING);
    node.registry.enrolled(&"web".into(), 100);
    assert_eq!(node.next(), ["-web"]);
}

#[test]
fn a_pod_that_is_wanted_again_while_it_is_withdrawn_is_enrolled_afterwards() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.want(&[]);
    assert_eq!(node.next(), ["-web"]);
    node.want(&[spec("web", "10.0.0.1")]);
    assert_eq!(node.next(), NOTHING);
    node.registry.withdrawn(&"web".into());
    assert_eq!(node.next(), ["+web"]);
}

#[test]
fn a_failure_delays_its_own_pod_more_each_time_and_no_other() {
    let mut node = node();
    node.want(&[spec("bad", "10.0.0.1"), spec("good", "10.0.0.2")]);
    assert_eq!(node.next(), ["+bad", "+good"]);
    node.registry.enrolled(&"good".into(), 100);
    node.registry.failed(&"bad".into(), "no".into(), false, node.now);
    assert_eq!(node.see("bad"), (State::Failed, "no".into()));
    assert_eq!(node.see("good").0, State::Enrolled);
    assert_eq!(node.next(), NOTHING);
    assert_eq!(node.registry.due_at(), Some(node.now + FIRST_DELAY));
    for _ in 0..20 {
        node.pass(10);
        assert_eq!(node.next(), ["+bad"]);
        node.registry.failed(&"bad".into(), "no".into(), false, node.now);
    }
    assert_eq!(node.registry.due_at(), Some(node.now + LAST_DELAY));
}

#[test]
fn waiting_for_a_ztunnel_is_no_failure() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    for _ in 0..5 {
        assert_eq!(node.next(), ["+web"]);
        node.registry.failed(&"web".into(), "no ztunnel".into(), true, node.now);
        assert_eq!(node.see("web"), (State::Pending, "no ztunnel".into()));
        assert_eq!(node.registry.due_at(), Some(node.now + FIRST_DELAY));
        node.pass(1);
    }
}

#[test]
fn the_second_pod_with_an_address_waits_until_the_first_is_gone() {
    let mut node = node();
    node.want(&[spec("a", "10.0.0.1"), spec("b", "10.0.0.1")]);
    assert_eq!(node.next(), ["+a"]);
    assert_eq!(node.see("b"), (State::Failed, "address 10.0.0.1 belongs to pod shop/a already".into()));
    node.registry.enrolled(&"a".into(), 100);
    node.want(&[spec("b", "10.0.0.1")]);
    assert_eq!(node.next(), ["-a"]);
    node.registry.withdrawn(&"a".into());
    assert_eq!(node.next(), ["+b"]);
}

#[test]
fn an_enrolled_pod_keeps_its_address_against_one_that_sorts_before_it() {
    let mut node = node();
    node.want(&[spec("z", "10.0.0.1")]);
    node.enrol("z");
    node.want(&[spec("a", "10.0.0.1"), spec("z", "10.0.0.1")]);
    assert_eq!(node.next(), NOTHING);
    assert_eq!((node.see("a").0, node.see("z").0), (State::Failed, State::Enrolled));
}

#[test]
fn the_second_pod_with_a_network_namespace_is_told_whose_it_is() {
    let mut node = node();
    node.want(&[spec("a", "10.0.0.1"), spec("b", "10.0.0.2")]);
    assert_eq!(node.next(), ["+a", "+b"]);
    assert!(node.registry.claim(&"a".into(), NetnsId::fake(1), node.now));
    assert!(!node.registry.claim(&"b".into(), NetnsId::fake(1), node.now));
    assert_eq!(node.see("b"), (State::Failed, "its network namespace belongs to pod shop/a already".into()));
    assert!(node.registry.place_of("b").is_none());
}

#[test]
fn a_pod_whose_network_namespace_was_replaced_is_withdrawn_and_enrolled_again() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.registry.repair(&"web".into());
    assert_eq!(node.next(), ["+web"]);
    assert!(!node.registry.claim(&"web".into(), NetnsId::fake(77), node.now));
    assert_eq!(node.next(), ["-web"]);
    node.registry.withdrawn(&"web".into());
    assert_eq!(node.next(), ["+web"]);
    assert!(node.registry.claim(&"web".into(), NetnsId::fake(77), node.now));
}

#[test]
fn a_pod_whose_network_namespace_vanished_is_withdrawn_at_once_and_tried_again_later() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.registry.vanished(&"web".into(), "gone".into(), node.now);
    assert_eq!(node.next(), ["-web"]);
    node.registry.withdrawn(&"web".into());
    assert_eq!(node.see("web"), (State::Failed, "gone".into()));
    node.pass(10);
    assert_eq!(node.next(), ["+web"]);
}

#[test]
fn a_pod_whose_network_namespace_never_was_holds_no_place() {
    let mut node = node();
    node.want(&[spec("a", "10.0.0.1"), spec("b", "10.0.0.2")]);
    assert_eq!(node.next(), ["+a", "+b"]);
    node.registry.vanished(&"a".into(), "gone".into(), node.now);
    assert!(node.registry.place_of("a").is_none());
    assert_eq!(node.next(), NOTHING);
    node.pass(1);
    assert_eq!(node.next(), ["+a"]);
}

#[test]
fn a_pod_that_cannot_be_read_any_more_stays_enrolled_as_it_was() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.want_without("web", SpecError::NoNetns);
    assert_eq!(node.next(), NOTHING);
    let (state, reason) = node.see("web");
    assert_eq!(state, State::Enrolled);
    assert!(reason.contains("loam.dev/netns"), "{reason}");
    node.registry.repair(&"web".into());
    assert_eq!(node.next(), ["+web"]);
}

#[test]
fn a_pod_that_cannot_be_read_is_failed_and_one_that_has_no_process_yet_waits() {
    for (error, state) in [(SpecError::NoNetns, State::Failed), (SpecError::NoProcess, State::Pending)] {
        let mut node = node();
        let reason = error.to_string();
        node.want_without("web", error);
        assert_eq!(node.next(), NOTHING);
        assert_eq!(node.see("web"), (state, reason));
        assert_eq!(node.registry.due_at(), None);
    }
}

#[test]
fn a_failure_after_capture_leaves_the_pod_captured_and_is_repaired() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.registry.repair(&"web".into());
    assert_eq!(node.next(), ["+web"]);
    node.registry.failed(&"web".into(), "no keeper".into(), false, node.now);
    assert_eq!(node.see("web"), (State::Enrolled, "no keeper".into()));
    node.pass(1);
    assert_eq!(node.next(), ["+web"]);
    node.registry.enrolled(&"web".into(), 100);
    assert_eq!(node.see("web"), (State::Enrolled, String::new()));
}

#[test]
fn an_adopted_pod_is_left_alone_if_it_is_wanted_as_it_is() {
    let mut node = node();
    let adopt = |name: &str, index| Place {
        spec: spec(name, &format!("10.0.0.{index}")),
        index,
        netns: Some(NetnsId::fake(index.into())),
        cookie: Some(u64::from(index)),
    };
    node.registry.adopt(adopt("same", 1), true);
    node.registry.adopt(adopt("gone", 2), true);
    node.registry.adopt(adopt("half", 3), false);
    assert_eq!(node.next(), ["+half"], "until more is known they are wanted as they are");
    node.registry.failed(&"half".into(), "no keeper".into(), true, node.now);
    node.pass(1);
    node.want(&[spec("same", "10.0.0.1"), spec("half", "10.0.0.3"), spec("fresh", "10.0.0.4")]);
    assert_eq!(node.next(), ["+fresh", "-gone", "+half"]);
    assert_eq!(node.registry.place_of("fresh").unwrap().index, 0);
    assert_eq!(node.registry.place_of("half").unwrap().index, 3);
}

#[test]
fn a_pod_with_other_addresses_is_enrolled_again_in_its_place() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.enrol("web");
    node.want(&[spec("web", "10.0.0.9")]);
    assert_eq!(node.next(), ["+web"]);
    let place = node.registry.place_of("web").unwrap();
    assert_eq!((place.index, place.spec.addresses[0].to_string()), (0, "10.0.0.9".into()));
}

#[test]
fn one_pod_more_than_the_maps_hold_is_refused_and_no_other_suffers() {
    let mut node = node();
    let pods: Vec<_> =
        (0..=MAX_PODS).map(|n| spec(&format!("p{n:04}"), &format!("10.1.{}.{}", n / 256, n % 256))).collect();
    node.want(&pods);
    let mut enrolled = 0;
    loop {
        let actions = node.registry.next(node.now);
        if actions.is_empty() {
            break;
        }
        assert!(actions.len() <= MAX_BUSY);
        for action in actions {
            let Action::Enrol(place) = action else { panic!("{action:?}") };
            node.registry.enrolled(&place.spec.uid, 100);
            enrolled += 1;
        }
    }
    assert_eq!(enrolled, MAX_PODS);
    let (state, reason) = node.see(&format!("p{MAX_PODS:04}"));
    assert_eq!(state, State::Failed);
    assert_eq!(reason, "this node has 1024 pods in the mesh already, and the maps hold no more");
}

#[test]
fn a_pod_that_failed_half_way_is_withdrawn_when_its_network_namespace_vanishes() {
    let mut node = node();
    node.want(&[spec("web", "10.0.0.1")]);
    node.next();
    assert!(node.registry.claim(&"web".into(), NetnsId::fake(1), node.now));
    node.registry.failed(&"web".into(), "no".into(), false, node.now);
    node.registry.vanished(&"web".into(), "gone".into(), node.now);
    assert_eq!(node.next(), ["-web"]);
}

#[test]
fn an_adopted_pod_whose_network_namespace_is_gone_is_withdrawn() {
    let mut node = node();
    let place = Place { spec: spec("web", "10.0.0.1"), index: 4, netns: None, cookie: Some(9) };
    node.registry.adopt(place, true);
    node.want(&[spec("web", "10.0.0.1")]);
    assert_eq!(node.next(), NOTHING);
    node.registry.vanished(&"web".into(), "gone".into(), node.now);
    assert_eq!(node.next(), ["-web"]);
}
