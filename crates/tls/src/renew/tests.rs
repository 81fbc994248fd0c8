use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A machine with a hand on both clocks; chance is always in the middle.
struct Bench {
    machine: Machine,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        Self { machine: Machine::default(), now: Now { instant: Instant::now(), wall: SystemTime::now() } }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall += time;
    }

    fn requests(&mut self) -> Vec<String> {
        self.machine
            .poll(self.now)
            .into_iter()
            .filter_map(|action| match action {
                Action::Request(identity) => Some(identity.service_account().to_owned()),
                Action::Expire(_) => None,
            })
            .collect()
    }

    fn want(&mut self, name: &str) {
        self.machine.want(&id(name));
    }

    fn arrived(&mut self, name: &str, life: Duration) -> bool {
        self.machine.arrived(&id(name), self.now.wall + life, self.now, 0.5)
    }

    fn failed(&mut self, name: &str) {
        self.machine.failed(&id(name), Failure { error: "the CA says no".into(), unheard: false }, self.now, 0.5);
    }

    fn unheard(&mut self, name: &str) {
        self.machine.failed(&id(name), Failure { error: "the CA is away".into(), unheard: true }, self.now, 0.5);
    }

    /// Lets time pass to the next wake-up.
    fn sleep(&mut self) -> Duration {
        let sleep = self.machine.wakeup(self.now).expect("something is due");
        self.pass(sleep);
        sleep
    }
}

fn id(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

#[test]
fn a_wanted_certificate_is_fetched_before_anybody_asks() {
    let mut bench = Bench::new();
    bench.want("web");
    assert_eq!(bench.requests(), ["web"]);
    assert_eq!(bench.requests(), [""; 0], "asked twice");
}

#[test]
fn users_share_one_request_and_the_last_to_leave_ends_it() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.want("web");
    assert_eq!(bench.requests(), ["web"]);
    assert!(bench.arrived("web", DAY));
    assert!(!bench.machine.forget(&id("web")));
    assert!(bench.machine.is_wanted(&id("web")));
    assert!(bench.machine.forget(&id("web")));
    assert!(!bench.machine.forget(&id("web")), "left twice");
    assert_eq!(bench.machine.wakeup(bench.now), None);
    assert!(bench.machine.entries.is_empty());
}

#[test]
fn eight_requests_run_at_once_and_those_with_waiting_connections_go_first() {
    let mut bench = Bench::new();
    bench.want("old");
    assert_eq!(bench.requests(), ["old"]);
    bench.arrived("old", DAY);
    bench.pass(DAY / 2);
    for i in 0..10 {
        bench.want(&format!("pod-{i}"));
    }
    bench.machine.demand(&id("pod-9"), bench.now).unwrap();
    let first = bench.requests();
    assert_eq!(first.len(), MAX_CONCURRENT);
    assert_eq!(first[..3], ["pod-9", "pod-0", "pod-1"]);
    bench.arrived("pod-9", DAY);
    assert_eq!(bench.requests(), ["pod-7"]);
    bench.failed("pod-0");
    bench.arrived("pod-1", DAY);
    assert_eq!(bench.requests(), ["pod-8", "old"], "the renewal comes last");
}

#[test]
fn renewal_comes_at_half_life_spread_by_a_tenth_of_it() {
    for (random, part) in [(0.0, 0.4), (0.5, 0.5), (1.0, 0.6)] {
        let mut bench = Bench::new();
        bench.want("web");
        bench.requests();
        bench.machine.arrived(&id("web"), bench.now.wall + DAY, bench.now, random);
        let began = bench.now.wall;
        while bench.requests().is_empty() {
            assert!(bench.sleep() <= MAX_SLEEP);
        }
        let passed = bench.now.wall.duration_since(began).unwrap().as_secs_f64() / DAY.as_secs_f64();
        assert!((passed - part).abs() < 0.001, "{passed} instead of {part}");
    }
}

#[test]
fn retries_double_from_half_a_second_to_a_hundred_and_fifty_and_spread_by_a_fifth() {
    let mut bench = Bench::new();
    bench.want("web");
    let mut distances = Vec::new();
    for _ in 0..12 {
        assert_eq!(bench.requests(), ["web"]);
        bench.failed("web");
        distances.push(bench.sleep().as_secs_f64());
    }
    assert_eq!(distances[..9], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]);
    assert_eq!(distances[9..], [150.0, 150.0, 150.0]);
    assert_eq!(backoff(1, MAX_BACKOFF, 0.0).as_secs_f64(), 0.4);
    assert_eq!(backoff(1, MAX_BACKOFF, 1.0).as_secs_f64(), 0.6);
    assert_eq!(backoff(u32::MAX, MAX_BACKOFF, 1.0).as_secs_f64(), 180.0);
}

#[test]
fn a_ca_that_is_not_even_reached_is_tried_every_fifteen_seconds_at_least() {
    let mut bench = Bench::new();
    bench.want("web");
    let mut distances = Vec::new();
    for _ in 0..8 {
        assert_eq!(bench.requests(), ["web"]);
        bench.unheard("web");
        distances.push(bench.sleep().as_secs_f64());
    }
    assert_eq!(distances, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]);
    bench.requests();
    bench.failed("web");
    assert_eq!(bench.sleep().as_secs_f64(), 128.0, "it was reached and said no");
}

#[test]
fn success_resets_the_distance_of_retries() {
    let mut bench = Bench::new();
    bench.want("web");
    for _ in 0..5 {
        bench.requests();
        bench.failed("web");
        bench.sleep();
    }
    bench.requests();
    bench.arrived("web", DAY);
    bench.pass(DAY / 2);
    bench.requests();
    bench.failed("web");
    assert_eq!(bench.sleep(), MIN_BACKOFF);
}

#[test]
fn nobody_can_hurry_a_back_off() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.requests();
    bench.failed("web");
    let mut asked = 0;
    for _ in 0..400 {
        bench.machine.demand(&id("web"), bench.now);
        bench.machine.forget(&id("web"));
        bench.want("web");
        asked += bench.requests().len();
        bench.pass(Duration::from_millis(1));
    }
    assert_eq!(asked, 0, "asked before the back-off was over");
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.requests(), ["web"]);
}

#[test]
fn a_back_off_without_users_is_remembered_to_its_end_only() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.requests();
    bench.failed("web");
    bench.machine.forget(&id("web"));
    assert!(bench.machine.status(bench.now).is_empty());
    bench.sleep();
    assert_eq!(bench.requests(), [""; 0]);
    assert!(bench.machine.entries.is_empty());
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut bench = Bench::new();
    for i in 0..MAX_REMEMBERED + 50 {
        let name = format!("pod-{i}");
        bench.want(&name);
        assert_eq!(bench.requests(), [name.as_str()]);
        bench.failed(&name);
        bench.machine.forget(&id(&name));
    }
    assert_eq!(bench.machine.entries.len(), MAX_REMEMBERED);
}

#[test]
fn an_answer_for_a_forgotten_identity_is_dropped_and_gives_its_place_back() {
    let mut bench = Bench::new();
    for i in 0..9 {
        bench.want(&format!("pod-{i}"));
    }
    assert_eq!(bench.requests().len(), MAX_CONCURRENT);
    bench.machine.forget(&id("pod-0"));
    assert_eq!(bench.requests(), [""; 0], "nine at once");
    assert!(!bench.arrived("pod-0", DAY));
    assert_eq!(bench.requests(), ["pod-8"]);
    assert!(!bench.machine.is_wanted(&id("pod-0")));
}

#[test]
fn an_identity_wanted_again_takes_the_answer_under_way() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.requests();
    bench.machine.forget(&id("web"));
    bench.want("web");
    assert_eq!(bench.requests(), [""; 0], "asked twice at once");
    assert!(bench.arrived("web", DAY));
}

#[test]
fn a_certificate_stays_in_use_while_renewals_fail_until_it_expires() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.requests();
    bench.arrived("web", Duration::from_secs(1000));
    let end = bench.now.wall + Duration::from_secs(1000);
    loop {
        bench.sleep();
        let actions = bench.machine.poll(bench.now);
        if actions.contains(&Action::Expire(id("web"))) {
            break;
        }
        for _ in actions {
            bench.failed("web");
        }
    }
    assert_eq!(bench.now.wall, end);
}

#[test]
fn a_clock_that_is_set_forward_is_noticed_within_a_minute() {
    let mut bench = Bench::new();
    bench.want("web");
    bench.requests();
    bench.arrived("web", DAY);
    bench.now.wall += 2 * DAY;
    bench.now.instant += MAX_SLEEP;
    let actions = bench.machine.poll(bench.now);
    assert_eq!(actions, [Action::Expire(id("web")), Action::Request(id("web"))]);
}

#[test]
fn a_ca_that_signs_for_moments_is_not_asked_without_pause() {
    let mut bench = Bench::new();
    bench.want("web");
    let began = bench.now.instant;
    let mut asked = 0;
    while bench.now.instant < began + Duration::from_secs(10) {
        for _ in bench.requests() {
            asked += 1;
            bench.arrived("web", Duration::from_millis(1));
        }
        bench.sleep();
    }
    assert!(asked <= 2 * 10 + 1, "asked {asked} times in ten seconds");
}

#[test]
fn demand_names_the_pause_and_its_cause() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.demand(&id("web"), bench.now), None);
    bench.want("web");
    assert_eq!(bench.machine.demand(&id("web"), bench.now), Some((Duration::ZERO, None)));
    bench.requests();
    bench.failed("web");
    assert_eq!(bench.machine.demand(&id("web"), bench.now), Some((MIN_BACKOFF, Some("the CA says no"))));
}
