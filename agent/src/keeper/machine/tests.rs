use super::*;
use std::collections::BTreeSet;

const GRACE: Duration = Duration::from_secs(2);

fn info(uid: &str) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        node: "n1".into(),
        addresses: vec![],
        dns: true,
        resolv: None,
        starting: false,
    }
}

/// A machine, the time, and everything it has asked for.
struct Keeper {
    machine: Machine,
    now: Instant,
    next_request: u64,
}

impl Keeper {
    /// One to which no ztunnel came for so long that connections are refused.
    fn new() -> Self {
        let mut keeper = Self::just_started();
        check(keeper.after(GRACE), &[]);
        keeper
    }

    fn just_started() -> Self {
        let now = Instant::now();
        Self { machine: Machine::new(now, GRACE), now, next_request: 0 }
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.machine.on(self.now, event)
    }

    fn after(&mut self, elapsed: Duration) -> Vec<Action> {
        self.now += elapsed;
        self.on(Event::Tick)
    }

    /// Adds a pod whose namespace has this number; what is to be done once its listeners are made.
    fn add(&mut self, uid: &str, index: u32, netns: u64) -> Vec<Action> {
        let mut actions = self.ask(uid, index, netns);
        for made in actions.clone() {
            if let Action::Make { incarnation, .. } = made {
                actions.extend(self.on(Event::Made { incarnation, result: Ok(netns + 1000) }));
            }
        }
        actions
    }

    fn ask(&mut self, uid: &str, index: u32, netns: u64) -> Vec<Action> {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.on(Event::AddPod { request, index, info: info(uid), netns: NetnsId::fake(netns) })
    }

    fn remove(&mut self, uid: &str) -> Vec<Action> {
        self.on(Event::RemovePod { uid: uid.into() })
    }

    fn connect(&mut self, proxy: u64) -> Vec<Action> {
        self.on(Event::ProxyConnected { proxy: ProxyId(proxy), leaving: false })
    }

    fn gone(&mut self, proxy: u64) -> Vec<Action> {
        self.on(Event::ProxyGone { proxy: ProxyId(proxy) })
    }

    fn ack(&mut self, proxy: u64, incarnation: u64, result: Result<(), &str>) -> Vec<Action> {
        let (proxy, incarnation) = (ProxyId(proxy), Incarnation(incarnation));
        self.on(Event::Acked { proxy, incarnation, result: result.map_err(str::to_owned) })
    }

    fn drained(&mut self, proxy: u64, incarnation: u64) -> Vec<Action> {
        self.on(Event::Drained { proxy: ProxyId(proxy), incarnation: Incarnation(incarnation) })
    }

    fn serving(&mut self, proxy: u64) -> Vec<Action> {
        self.on(Event::Serving { proxy: ProxyId(proxy) })
    }
}

/// Actions in short, for comparison.
fn short(actions: &[Action]) -> Vec<String> {
    let line = |action: &Action| match action {
        Action::Make { incarnation, reuse: None, .. } => format!("make {}", incarnation.0),
        Action::Make { incarnation, reuse: Some(former), .. } => format!("make {} from {}", incarnation.0, former.0),
        Action::Fill { incarnation, index } => format!("fill {index} with {}", incarnation.0),
        Action::Empty { index, .. } => format!("empty {index}"),
        Action::StartResetting { incarnation } => format!("reset {}", incarnation.0),
        Action::StopResetting { incarnation } => format!("leave {}", incarnation.0),
        Action::Release { incarnation } => format!("release {}", incarnation.0),
        Action::SendAdd { proxy, incarnation, .. } => format!("offer {} to z{}", incarnation.0, proxy.0),
        Action::SendRemove { proxy, pod } => format!("take {} from z{}", pod.incarnation, proxy.0),
        Action::SendSnapshotSent { proxy } => format!("all to z{}", proxy.0),
        Action::SendRetire { proxy } => format!("retire z{}", proxy.0),
        Action::Answer { request, added } if !added.error.is_empty() => {
            format!("refuse {}: {}", request.0, added.error)
        }
        Action::Answer { request, added } if added.serving => format!("answer {}: serving", request.0),
        Action::Answer { request, added } => format!("answer {}: {}", request.0, added.problem),
    };
    actions.iter().map(line).collect()
}

#[track_caller]
fn check(actions: Vec<Action>, expected: &[&str]) {
    assert_eq!(short(&actions), expected);
}

#[test]
fn a_pod_is_answered_when_its_ztunnel_serves_it() {
    let mut keeper = Keeper::new();
    check(keeper.connect(1), &["all to z1"]);
    check(keeper.add("a", 0, 10), &["make 1", "offer 1 to z1", "fill 0 with 1"]);
    check(keeper.ack(1, 1, Ok(())), &["answer 1: serving"]);
    check(keeper.add("a", 0, 10), &["answer 2: serving"]);
}

#[test]
fn without_a_ztunnel_a_pod_is_answered_after_five_seconds_and_refuses_connections() {
    let mut keeper = Keeper::new();
    check(keeper.add("a", 0, 10), &["make 1", "reset 1"]);
    assert_eq!(keeper.machine.next_deadline(), Some(keeper.now + SERVE_TIMEOUT));
    check(keeper.after(SERVE_TIMEOUT - Duration::from_millis(1)), &[]);
    check(keeper.after(Duration::from_millis(1)), &["answer 1: no ztunnel is connected"]);
    assert_eq!(keeper.machine.next_deadline(), None);
}

#[test]
fn a_keeper_that_is_new_resets_nothing_before_ztunnels_had_the_grace_to_come_back() {
    let mut keeper = Keeper::just_started();
    keeper.on(Event::ProxyConnected { proxy: ProxyId(1), leaving: true });
    check(keeper.add("a", 0, 10), &["make 1"]);
    check(keeper.after(GRACE / 2), &[]);
    check(keeper.connect(2), &["offer 1 to z2", "all to z2", "fill 0 with 1"]);
    let mut alone = Keeper::just_started();
    check(alone.add("a", 0, 10), &["make 1"]);
    check(alone.after(GRACE), &["reset 1"]);
}

#[test]
fn a_ztunnel_that_leaves_is_offered_the_pods_that_it_has_and_no_others() {
    let mut keeper = Keeper::just_started();
    let leaving = ProxyId(1);
    check(keeper.on(Event::ProxyConnected { proxy: leaving, leaving: true }), &[]);
    check(keeper.on(Event::Held { proxy: leaving, uid: "a".into() }), &[]);
    check(keeper.add("a", 0, 10), &["make 1", "offer 1 to z1"]);
    check(keeper.add("b", 1, 11), &["make 2"]);
    assert!(keeper.machine.is_offered(leaving, &PodRef { uid: "a".into(), incarnation: 1 }), "it gets no sockets");
    // Its word counts for nothing: it accepts no more.
    check(keeper.ack(1, 1, Ok(())), &[]);
    assert!(!keeper.machine.check("a").unwrap().serving);
    // The order does not matter.
    check(keeper.on(Event::Held { proxy: leaving, uid: "b".into() }), &["offer 2 to z1"]);
    // And it is waited for like any that was retired here.
    check(keeper.remove("b"), &["refuse 2: the pod was removed", "take 2 from z1"]);
    check(keeper.drained(1, 2), &["release 2"]);
}

#[test]
fn a_pod_that_the_ztunnel_cannot_serve_is_answered_with_its_reason() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    check(keeper.ack(1, 1, Err("no certificate")), &["answer 1: the ztunnel does not serve it: no certificate"]);
    check(keeper.ack(1, 1, Ok(())), &[]);
    assert!(keeper.machine.check("a").unwrap().serving);
}

#[test]
fn a_ztunnel_that_comes_within_the_grace_finds_the_slots_filled() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    check(keeper.gone(1), &[]);
    check(keeper.after(GRACE - Duration::from_millis(1)), &[]);
    check(keeper.connect(2), &["offer 1 to z2", "all to z2"]);
    check(keeper.after(GRACE), &[]);
}

#[test]
fn after_the_grace_slots_are_emptied_before_what_waits_is_reset_until_a_ztunnel_comes() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.ack(1, 1, Ok(()));
    keeper.gone(1);
    check(keeper.after(GRACE), &["empty 0", "reset 1"]);
    check(keeper.after(GRACE), &[]);
    check(keeper.connect(2), &["leave 1", "offer 1 to z2", "all to z2", "fill 0 with 1"]);
}

#[test]
fn the_older_ztunnel_retires_when_the_newer_says_that_it_serves() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    check(keeper.connect(2), &["offer 1 to z2", "all to z2"]);
    check(keeper.ack(2, 1, Ok(())), &["answer 1: serving"]);
    check(keeper.serving(2), &["retire z1"]);
    check(keeper.serving(2), &[]);
}

#[test]
fn an_older_ztunnel_that_serves_does_not_retire_the_newer() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.connect(2);
    check(keeper.serving(1), &[]);
    check(keeper.serving(2), &["retire z1"]);
}

#[test]
fn a_draining_ztunnel_does_not_count_as_serving() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.connect(2);
    keeper.ack(2, 1, Ok(()));
    keeper.serving(2);
    check(keeper.gone(2), &[]);
    check(keeper.after(GRACE), &["empty 0", "reset 1"]);
    assert!(!keeper.machine.check("a").unwrap().serving);
}

#[test]
fn a_successor_that_dies_before_it_serves_leaves_the_older_in_service() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.ack(1, 1, Ok(()));
    keeper.connect(2);
    keeper.gone(2);
    check(keeper.after(GRACE * 2), &[]);
    assert!(keeper.machine.check("a").unwrap().serving);
}

#[test]
fn a_ztunnel_that_leaves_starts_the_grace_and_keeps_its_sockets() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    check(keeper.on(Event::Leaving { proxy: ProxyId(1) }), &[]);
    check(keeper.after(GRACE), &["empty 0", "reset 1"]);
    let pod = PodRef { uid: "a".into(), incarnation: 1 };
    assert!(keeper.machine.is_offered(ProxyId(1), &pod));
}

#[test]
fn a_removed_pod_is_kept_until_every_ztunnel_has_drained_it() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.connect(2);
    keeper.add("a", 0, 10);
    check(keeper.remove("a"), &["refuse 1: the pod was removed", "empty 0", "take 1 from z1", "take 1 from z2"]);
    check(keeper.drained(1, 1), &[]);
    assert!(!keeper.machine.is_offered(ProxyId(1), &PodRef { uid: "a".into(), incarnation: 1 }));
    check(keeper.drained(2, 1), &["release 1"]);
}

#[test]
fn a_removed_pod_goes_with_its_last_ztunnel_or_at_once_without_one_or_when_it_is_deserted() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.remove("a");
    check(keeper.gone(1), &["release 1"]);
    keeper.after(GRACE);
    keeper.add("b", 0, 11);
    check(keeper.remove("b"), &["refuse 2: the pod was removed", "leave 2", "release 2"]);
    keeper.connect(2);
    keeper.add("c", 0, 12);
    let incarnation = Incarnation(3);
    check(keeper.on(Event::Deserted { incarnation }), &[]);
    keeper.remove("c");
    check(keeper.on(Event::Deserted { incarnation }), &["release 3"]);
}

#[test]
fn an_unknown_pod_is_removed_without_effect() {
    let mut keeper = Keeper::new();
    check(keeper.remove("ghost"), &[]);
    check(keeper.ack(1, 7, Ok(())), &[]);
    check(keeper.drained(1, 7), &[]);
}

#[test]
fn a_pod_that_is_added_again_while_it_drains_gets_the_listeners_it_had() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.ack(1, 1, Ok(()));
    check(keeper.remove("a"), &["empty 0", "take 1 from z1"]);
    check(keeper.add("a", 0, 10), &["make 2 from 1", "offer 2 to z1", "fill 0 with 2"]);
    check(keeper.drained(1, 1), &["release 1"]);
    check(keeper.ack(1, 1, Ok(())), &[]);
    check(keeper.ack(1, 2, Ok(())), &["answer 2: serving"]);
}

#[test]
fn a_pod_removed_and_added_while_its_listeners_are_made_is_made_once() {
    let mut keeper = Keeper::new();
    check(keeper.ask("a", 0, 10), &["make 1"]);
    check(keeper.remove("a"), &["refuse 1: the pod was removed"]);
    check(keeper.ask("a", 0, 10), &[]);
    check(keeper.on(Event::Made { incarnation: Incarnation(1), result: Ok(5) }), &["reset 1"]);
}

#[test]
fn a_pod_whose_namespace_changes_there_and_back_while_it_is_made_is_kept_once() {
    let mut keeper = Keeper::new();
    keeper.ask("a", 0, 10);
    check(keeper.ask("a", 0, 11), &["refuse 1: the agent added the pod anew", "make 2"]);
    check(keeper.ask("a", 0, 10), &["refuse 2: the agent added the pod anew"]);
    assert_eq!(keeper.machine.kept().count(), 1);
    check(keeper.on(Event::Made { incarnation: Incarnation(2), result: Ok(5) }), &["release 2"]);
}

#[test]
fn a_pod_removed_while_its_listeners_are_made_goes_when_they_are() {
    let mut keeper = Keeper::new();
    keeper.ask("a", 0, 10);
    keeper.remove("a");
    assert!(keeper.machine.check("a").is_none());
    check(keeper.on(Event::Made { incarnation: Incarnation(1), result: Ok(5) }), &["release 1"]);
}

#[test]
fn another_namespace_replaces_the_pod() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.ack(1, 1, Ok(()));
    check(keeper.add("a", 0, 11), &["make 2", "empty 0", "take 1 from z1", "offer 2 to z1", "fill 0 with 2"]);
    check(keeper.ack(1, 1, Ok(())), &[]);
    check(keeper.drained(1, 1), &["release 1"]);
    check(keeper.ack(1, 2, Ok(())), &["answer 2: serving"]);
}

#[test]
fn a_namespace_and_an_index_belong_to_one_pod() {
    let mut keeper = Keeper::new();
    keeper.add("a", 0, 10);
    check(keeper.add("b", 1, 10), &["refuse 2: its network namespace is that of pod shop/a (a)"]);
    check(keeper.add("b", 0, 11), &["refuse 3: its index 0 is that of pod shop/a (a)"]);
    check(keeper.add("b", 1, 11), &["make 2", "reset 2"]);
}

#[test]
fn another_index_moves_the_listeners() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    keeper.ack(1, 1, Ok(()));
    check(keeper.add("a", 5, 10), &["empty 0", "fill 5 with 1", "answer 2: serving"]);
}

#[test]
fn other_facts_about_a_pod_are_told_as_another_incarnation_with_the_same_listeners() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    let changed = PodInfo { service_account: "api".into(), ..info("a") };
    let event = Event::AddPod { request: RequestId(9), index: 0, info: changed, netns: NetnsId::fake(10) };
    check(keeper.on(event), &["refuse 1: the agent added the pod anew", "make 2 from 1", "empty 0", "take 1 from z1"]);
}

/// Adds a pod whose questions are captured or not.
fn switch(keeper: &mut Keeper, request: u64, dns: bool) -> Vec<Action> {
    let info = PodInfo { dns, ..info("a") };
    let netns = NetnsId::fake(10);
    keeper.on(Event::AddPod { request: RequestId(request), index: 0, info, netns })
}

#[test]
fn a_pod_whose_names_are_switched_while_it_is_made_is_asked_for_again() {
    let mut keeper = Keeper::new();
    check(switch(&mut keeper, 1, true), &["make 1"]);
    check(switch(&mut keeper, 2, false), &[]);
    let why = "pod shop/a: capture of its questions was switched on or off";
    check(
        keeper.on(Event::Made { incarnation: Incarnation(1), result: Ok(5) }),
        &[&format!("refuse 1: {why}"), &format!("refuse 2: {why}"), "release 1"],
    );
}

#[test]
fn names_that_are_switched_on_again_have_the_sockets_that_they_had() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    switch(&mut keeper, 1, true);
    keeper.on(Event::Made { incarnation: Incarnation(1), result: Ok(5) });
    assert!(short(&switch(&mut keeper, 2, false)).contains(&"make 2 from 1".to_owned()));
    keeper.on(Event::Made { incarnation: Incarnation(2), result: Ok(5) });
    assert!(short(&switch(&mut keeper, 3, true)).contains(&"make 3 from 1".to_owned()));
}

#[test]
fn listeners_that_cannot_be_made_are_the_agents_answer_and_leave_nothing() {
    let mut keeper = Keeper::new();
    keeper.ask("a", 0, 10);
    let result = Err("port 15001 is taken by a process in the pod".into());
    check(
        keeper.on(Event::Made { incarnation: Incarnation(1), result }),
        &["refuse 1: pod shop/a: port 15001 is taken by a process in the pod", "release 1"],
    );
    assert_eq!(keeper.machine.kept().count(), 0);
}

#[test]
fn slots_that_cannot_be_filled_are_a_problem_until_they_are() {
    let mut keeper = Keeper::new();
    keeper.connect(1);
    keeper.add("a", 0, 10);
    let incarnation = Incarnation(1);
    let result = Err("fill slot: no space".into());
    check(keeper.on(Event::Slots { incarnation, result }), &["answer 1: fill slot: no space"]);
    keeper.ack(1, 1, Ok(()));
    assert_eq!(keeper.machine.check("a").unwrap().problem, "fill slot: no space");
    keeper.on(Event::Slots { incarnation, result: Ok(()) });
    assert_eq!(keeper.machine.check("a").unwrap().problem, "");
}

#[test]
fn an_agent_that_is_gone_is_not_answered() {
    let mut keeper = Keeper::new();
    keeper.add("a", 0, 10);
    check(keeper.on(Event::AgentGone), &[]);
    check(keeper.after(SERVE_TIMEOUT), &[]);
    assert_eq!(keeper.machine.kept().count(), 1);
}

#[test]
fn pods_and_open_additions_are_bounded() {
    let mut keeper = Keeper::new();
    for n in 0..MAX_PODS as u64 {
        keeper.add(&n.to_string(), n as u32, n);
    }
    check(
        keeper.add("more", 5000, 5000),
        &[&format!("refuse {}: the keeper has 1024 pods, more are not supported", MAX_PODS + 1)],
    );
    for _ in MAX_PODS..MAX_WAITING {
        keeper.add("0", 0, 0);
    }
    let actions = short(&keeper.add("0", 0, 0));
    assert!(actions[0].ends_with("more than 2048 additions are without an answer"), "{actions:?}");
}

// ---- random histories ----

/// What the actions have done to the world outside.
#[derive(Default)]
struct World {
    /// Who lies in a slot.
    slots: BTreeMap<u32, Incarnation>,
    resetting: BTreeSet<Incarnation>,
    /// Namespaces that are open.
    open: BTreeSet<Incarnation>,
    making: BTreeSet<Incarnation>,
    /// Pods that a ztunnel was offered and that were not taken back.
    offered: BTreeSet<(ProxyId, Incarnation)>,
    taken_back: BTreeSet<(ProxyId, Incarnation)>,
    retired: BTreeSet<ProxyId>,
    /// What ztunnels have from a former keeper.
    held: BTreeSet<(ProxyId, String)>,
    unanswered: BTreeSet<RequestId>,
}

impl World {
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Make { incarnation, reuse, .. } => {
                    assert!(self.open.insert(incarnation), "made twice");
                    assert!(reuse.is_none_or(|former| self.open.contains(&former)), "reuse of what is closed");
                    self.making.insert(incarnation);
                }
                Action::Fill { incarnation, index } => {
                    assert!(self.open.contains(&incarnation) && !self.making.contains(&incarnation));
                    assert!(!self.resetting.contains(&incarnation), "filled while its queue is reset");
                    let former = self.slots.insert(index, incarnation);
                    assert!(former.is_none(), "slot {index} had an owner");
                }
                Action::Empty { index, .. } => assert!(self.slots.remove(&index).is_some(), "emptied an empty slot"),
                Action::StartResetting { incarnation } => {
                    assert!(!self.slots.values().any(|filled| *filled == incarnation), "reset while filled");
                    assert!(self.resetting.insert(incarnation));
                }
                Action::StopResetting { incarnation } => assert!(self.resetting.remove(&incarnation)),
                Action::Release { incarnation } => {
                    assert!(self.open.remove(&incarnation), "released twice");
                    assert!(!self.resetting.contains(&incarnation) && !self.slots.values().any(|f| *f == incarnation));
                    self.making.remove(&incarnation);
                    self.offered.retain(|(_, offered)| *offered != incarnation);
                    self.taken_back.retain(|(_, taken)| *taken != incarnation);
                }
                Action::SendAdd { proxy, incarnation, info } => {
                    let has = self.held.contains(&(proxy, info.uid));
                    assert!(has || !self.retired.contains(&proxy), "offered to one that leaves and does not have it");
                    assert!(self.offered.insert((proxy, incarnation)), "offered twice");
                }
                Action::SendRemove { proxy, pod } => {
                    let pair = (proxy, Incarnation(pod.incarnation));
                    assert!(self.offered.remove(&pair), "took back what was not offered");
                    self.taken_back.insert(pair);
                }
                Action::SendSnapshotSent { .. } => {}
                Action::SendRetire { proxy } => assert!(self.retired.insert(proxy), "retired twice"),
                Action::Answer { request, .. } => assert!(self.unanswered.remove(&request), "answered twice"),
            }
        }
    }
}

/// xorshift64: a seed reproduces a history.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn random_histories_keep_every_promise() {
    for seed in 1..400 {
        history(seed);
    }
}

fn history(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (mut keeper, mut world) = (Keeper::new(), World::default());
    let mut connected: BTreeSet<ProxyId> = BTreeSet::new();
    let mut last_proxy = 0_u64;
    let mut silent_since: Option<Instant> = None;
    let mut ever_served = false;
    for step in 0..300 {
        let proxy = ProxyId(last_proxy.saturating_sub(dice.below(3)));
        let incarnation = Incarnation(keeper.machine.last_incarnation.saturating_sub(dice.below(4)));
        let uid = format!("p{}", dice.below(4));
        let event = match dice.below(15) {
            0 | 1 => {
                keeper.next_request += 1;
                let request = RequestId(keeper.next_request);
                world.unanswered.insert(request);
                let (index, netns) = (dice.below(4) as u32, NetnsId::fake(dice.below(5)));
                Event::AddPod { request, index, info: info(&uid), netns }
            }
            2 | 3 if !world.making.is_empty() => {
                let incarnation = *world.making.iter().next().unwrap();
                world.making.remove(&incarnation);
                let result = if dice.below(5) == 0 { Err("busy".into()) } else { Ok(1) };
                Event::Made { incarnation, result }
            }
            4 => Event::RemovePod { uid },
            5 => {
                last_proxy += 1;
                let leaving = dice.below(8) == 0;
                connected.insert(ProxyId(last_proxy));
                if leaving {
                    world.retired.insert(ProxyId(last_proxy));
                }
                Event::ProxyConnected { proxy: ProxyId(last_proxy), leaving }
            }
            6 => {
                connected.remove(&proxy);
                world.offered.retain(|(holder, _)| *holder != proxy);
                world.taken_back.retain(|(holder, _)| *holder != proxy);
                Event::ProxyGone { proxy }
            }
            7 | 8 => {
                let result = if dice.below(3) == 0 { Err("no certificate".into()) } else { Ok(()) };
                Event::Acked { proxy, incarnation, result }
            }
            9 => Event::Serving { proxy },
            10 if dice.below(4) == 0 => {
                world.retired.insert(proxy);
                Event::Leaving { proxy }
            }
            11 => {
                world.taken_back.remove(&(proxy, incarnation));
                Event::Drained { proxy, incarnation }
            }
            14 => {
                world.held.insert((proxy, uid.clone()));
                Event::Held { proxy, uid }
            }
            12 if dice.below(4) == 0 => {
                world.unanswered.clear();
                Event::AgentGone
            }
            _ => {
                keeper.now += Duration::from_millis(dice.below(2500));
                Event::Tick
            }
        };
        let actions = keeper.on(event);
        world.act(actions);

        let live = connected.iter().any(|proxy| !world.retired.contains(proxy));
        ever_served |= live;
        silent_since = if live { None } else { silent_since.or(Some(keeper.now)) };
        let grace = ever_served && silent_since.is_some_and(|since| keeper.now < since + GRACE);
        for (id, pod) in &keeper.machine.pods {
            let filled = world.slots.values().any(|filled| filled == id);
            let at = format!("seed {seed} step {step} pod {id:?} {:?}", pod.phase);
            match pod.phase {
                Phase::Ready if live => assert!(filled, "{at}: a ztunnel lives and the slots are empty"),
                Phase::Ready if grace => assert!(!world.resetting.contains(id), "{at}: reset within the grace"),
                Phase::Ready => {
                    assert!(!filled, "{at}: filled without a ztunnel after the grace");
                    assert!(world.resetting.contains(id), "{at}: connections hang");
                }
                Phase::Making { .. } | Phase::Removing => assert!(!filled, "{at}: filled"),
            }
            assert!(world.open.contains(id), "{at}: its namespace is closed");
        }
        assert_eq!(world.open.len(), keeper.machine.pods.len(), "seed {seed} step {step}: a namespace leaked");
        if let Some(deadline) = keeper.machine.next_deadline() {
            assert!(deadline > keeper.now, "seed {seed} step {step}: a deadline has passed without effect");
        }
    }
    // Everybody goes: nothing stays.
    for incarnation in std::mem::take(&mut world.making) {
        let actions = keeper.on(Event::Made { incarnation, result: Ok(1) });
        world.act(actions);
    }
    for n in 0..4 {
        let actions = keeper.remove(&format!("p{n}"));
        world.act(actions);
    }
    for proxy in connected {
        let actions = keeper.on(Event::ProxyGone { proxy });
        world.act(actions);
    }
    assert!(world.open.is_empty() && world.slots.is_empty() && world.resetting.is_empty(), "seed {seed}");
    assert!(world.unanswered.is_empty(), "seed {seed}: {:?} never answered", world.unanswered);
}
