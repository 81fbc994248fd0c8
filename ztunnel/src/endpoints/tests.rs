use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;

use loam_core::addr::OrigDst;
use loam_core::ids::{Hostname, Identity, ServiceKey, WorkloadUid};
use loam_core::outbound::{Plan, Query, Resolved, Unplanned, plan};
use loam_core::reason::Reason;
use loam_core::service::{AppProtocol, Port, Service, ServiceAddr};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::{ServicePorts, TunnelProtocol, Workload};
use tokio::time::{advance, sleep};

use super::tries::{MAX_TRIES, TRY_TIMEOUT, try_endpoints};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn addr(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 8080).into()
}

fn is_aside(endpoints: &Endpoints, last: u8) -> bool {
    endpoints.of(addr(last)).aside
}

fn fail(endpoints: &Arc<Endpoints>, last: u8, times: u32) {
    (0..times).for_each(|_| endpoints.join(addr(last)).failed(Fault::Endpoint));
}

fn is_empty(endpoints: &Endpoints) -> bool {
    endpoints.shards.iter().all(|shard| lock(shard).is_empty())
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_keeps_failing_is_set_aside_for_a_while() {
    let endpoints = Arc::new(Endpoints::default());
    fail(&endpoints, 1, MAX_FAILURES - 1);
    assert!(!is_aside(&endpoints, 1));
    fail(&endpoints, 1, 1);
    assert!(is_aside(&endpoints, 1) && !is_aside(&endpoints, 2));
    advance(FIRST_SPELL).await;
    assert!(!is_aside(&endpoints, 1));
}

#[tokio::test(start_paused = true)]
async fn a_try_that_works_clears_an_endpoint() {
    let endpoints = Arc::new(Endpoints::default());
    fail(&endpoints, 1, MAX_FAILURES - 1);
    endpoints.join(addr(1)).worked();
    fail(&endpoints, 1, MAX_FAILURES - 1);
    assert!(!is_aside(&endpoints, 1), "the failures were not in a row");
    fail(&endpoints, 1, 1);
    assert!(is_aside(&endpoints, 1));
    endpoints.join(addr(1)).worked();
    assert!(!is_aside(&endpoints, 1));
    assert!(is_empty(&endpoints));
}

#[tokio::test(start_paused = true)]
async fn silence_sets_aside_at_once_and_what_is_not_the_endpoints_fault_never() {
    let endpoints = Arc::new(Endpoints::default());
    endpoints.join(addr(1)).failed(Fault::Silence);
    assert!(is_aside(&endpoints, 1));
    for fault in [Fault::Way, Fault::Final] {
        (0..10).for_each(|_| endpoints.join(addr(2)).failed(fault));
    }
    assert!(!is_aside(&endpoints, 2));
}

#[tokio::test(start_paused = true)]
async fn after_a_spell_one_connection_finds_out_whether_the_endpoint_is_back() {
    let endpoints = Arc::new(Endpoints::default());
    let early = endpoints.join(addr(1));
    fail(&endpoints, 1, MAX_FAILURES);
    advance(FIRST_SPELL).await;
    let probe = endpoints.join(addr(1));
    assert!(is_aside(&endpoints, 1), "the others wait for what it finds");
    early.failed(Fault::Endpoint);
    probe.worked();
    assert!(!is_aside(&endpoints, 1));
}

#[tokio::test(start_paused = true)]
async fn each_spell_is_longer_up_to_a_bound() {
    let endpoints = Arc::new(Endpoints::default());
    fail(&endpoints, 1, MAX_FAILURES);
    let mut spells = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        while is_aside(&endpoints, 1) {
            advance(SECOND).await;
        }
        spells.push(began.elapsed().as_secs());
        // Connections that were under way before say nothing about a spell that they did not see begin.
        fail(&endpoints, 1, 2);
    }
    assert_eq!(spells, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ends_keeps_nobody_away_for_long() {
    let endpoints = Arc::new(Endpoints::default());
    fail(&endpoints, 1, MAX_FAILURES);
    advance(FIRST_SPELL).await;
    let _probe = endpoints.join(addr(1));
    assert!(is_aside(&endpoints, 1));
    advance(PROBE_TIMEOUT).await;
    assert!(!is_aside(&endpoints, 1));
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted_while_they_live_and_leave_nothing_behind() {
    let endpoints = Arc::new(Endpoints::default());
    let places: Vec<Place> = (0..1000).map(|i| endpoints.join(addr((i % 10) as u8))).collect();
    assert_eq!(endpoints.of(addr(3)).connections, 100);
    assert_eq!(endpoints.of(addr(33)).connections, 0);
    drop(places);
    assert!(is_empty(&endpoints));
}

#[tokio::test(start_paused = true)]
async fn failures_are_forgotten_with_time_and_with_the_address() {
    let endpoints = Arc::new(Endpoints::default());
    fail(&endpoints, 1, MAX_FAILURES - 1);
    advance(MEMORY + SECOND).await;
    assert!(endpoints.describe().is_empty());
    fail(&endpoints, 1, 1);
    assert!(!is_aside(&endpoints, 1));

    fail(&endpoints, 2, MAX_FAILURES);
    let place = endpoints.join(addr(2));
    endpoints.forget(&[addr(1).ip(), addr(2).ip()].into());
    assert_eq!(endpoints.of(addr(2)), Standing { connections: 1, ..Standing::default() });
    drop(place);
    assert!(is_empty(&endpoints));
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let endpoints = Arc::new(Endpoints::default());
    for i in 0..50_000u32 {
        let endpoint = SocketAddr::new(IpAddr::from(i.to_be_bytes()), 80);
        endpoints.join(endpoint).failed(Fault::Silence);
    }
    let remembered: usize = endpoints.shards.iter().map(|shard| lock(shard).len()).sum();
    assert!(remembered <= SHARDS * MAX_REMEMBERED, "{remembered}");
    assert_eq!(endpoints.describe().len(), MAX_LISTED);
    advance(MEMORY + LONGEST_SPELL).await;
    assert!(endpoints.describe().is_empty());
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_how_many_are_set_aside() {
    let registry = Registry::default();
    let endpoints = Endpoints::new(&registry);
    fail(&endpoints, 1, MAX_FAILURES);
    fail(&endpoints, 2, MAX_FAILURES);
    let text = || registry.encode(loam_rt::metrics::Exposition::Text, Instant::now().into_std());
    assert!(text().contains("loam_endpoints_aside 2\n"), "{}", text());
    advance(FIRST_SPELL).await;
    assert!(text().contains("loam_endpoints_aside 0\n") && text().contains("loam_endpoint_spells_total 2\n"));
}

/// What an endpoint does with a connection.
#[derive(Debug, Clone, Copy)]
enum Does {
    Takes,
    TakesAfter(Duration),
    NeverAnswers,
    Fails(Fault),
    FailsUnproven,
}

/// A connection of a scripted world: `10.0.0.100` calls a service of endpoints `10.0.0.N`.
struct Script {
    endpoints: Arc<Endpoints>,
    mesh: Snapshot,
    dialled: OrigDst,
    does: BTreeMap<u8, Does>,
    entropy: u64,
    /// Where names lead to: `10.0.0.N`, or nowhere.
    names: BTreeMap<&'static str, Vec<u8>>,
    /// Last bytes of the addresses that were tried.
    tried: Vec<u8>,
}

const VIP: [u8; 4] = [10, 1, 0, 1];

impl Script {
    fn new(does: &[(u8, Does)]) -> Self {
        let key: ServiceKey = "shop/api.shop.svc".parse().unwrap();
        let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Tcp };
        let service = Service {
            addresses: vec![ServiceAddr { network: "".into(), range: IpAddr::from(VIP).into() }],
            ports: vec![port],
            ..Service::new(key.clone(), "api")
        };
        let workload = |last: u8| {
            let identity: Identity = "spiffe://cluster.local/ns/shop/sa/api".parse().unwrap();
            let name = format!("api-{last}");
            Workload {
                addresses: vec![addr(last).ip()],
                protocol: if last % 2 == 1 { TunnelProtocol::Hbone } else { TunnelProtocol::None },
                ..Workload::new(WorkloadUid::of_pod("c", "shop", &name), name, identity)
            }
        };
        let mut changes = vec![Change::Service(service), Change::Workload(workload(100))];
        changes.extend(does.iter().map(|(last, _)| {
            let services = [ServicePorts { service: key.clone(), ports: Arc::new([]) }].into();
            Change::Workload(Workload { services, ..workload(*last) })
        }));
        Self {
            endpoints: Arc::default(),
            mesh: Snapshot::default().apply(changes),
            dialled: OrigDst::new((VIP, 80).into()),
            does: does.iter().copied().collect(),
            entropy: 0,
            names: BTreeMap::new(),
            tried: Vec::new(),
        }
    }

    /// Adds an endpoint that is known by this name only.
    fn name(&mut self, host: &'static str, leads_to: &[u8]) {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/api".parse().unwrap();
        let services = [ServicePorts { service: "shop/api.shop.svc".parse().unwrap(), ports: Arc::new([]) }].into();
        self.mesh = self.mesh.apply(vec![Change::Workload(Workload {
            hostname: Some(host.parse().unwrap()),
            services,
            ..Workload::new(WorkloadUid::of_pod("c", "shop", host), host, identity)
        })]);
        self.names.insert(host, leads_to.to_vec());
    }

    /// One connection: who took it, or why nobody did.
    async fn run(&mut self) -> Result<u8, (Reason, String)> {
        self.tried.clear();
        self.entropy = self.entropy.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        match try_endpoints(&self.endpoints.clone(), self).await {
            Ok((taken, _place)) => Ok(taken),
            Err(Unreached::Refused(refusal)) => Err((refusal.reason, refusal.detail)),
            Err(Unreached::Failed { reason, error }) => Err((reason, error)),
        }
    }
}

fn last_byte(plan: &Plan) -> u8 {
    let upstream = match plan {
        Plan::Direct { upstream, .. } => upstream,
        Plan::Tunnel { next_hop, .. } => next_hop,
    };
    match upstream.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!("this world has IPv4 only"),
    }
}

impl Connection for Script {
    type Upstream = u8;

    fn decide(&self, tries: &Tries) -> Result<Plan, Unplanned> {
        let source = self.mesh.workload(&WorkloadUid::of_pod("c", "shop", "api-100")).unwrap();
        let query = Query {
            standings: &*self.endpoints,
            tried: &tries.endpoints,
            tunnels_only: tries.tunnels_only,
            names: &tries.names,
            ..Query::new(source, self.dialled, self.entropy)
        };
        plan(&self.mesh, &query)
    }

    async fn resolve(&self, host: &Hostname) -> Resolved {
        let addresses = match &self.names[host.as_str()][..] {
            [] => Err("silent".into()),
            some => Ok(some.iter().map(|last| addr(*last).ip()).collect()),
        };
        Resolved { host: host.clone(), addresses }
    }

    fn describe(&mut self, plan: &Plan, number: usize) {
        self.tried.push(last_byte(plan));
        assert_eq!(self.tried.len(), number);
    }

    async fn open(&self, plan: &Plan) -> Result<u8, Failure> {
        let last = last_byte(plan);
        let failure = |fault, unproven| Failure {
            reason: Reason::ConnectRefused,
            error: format!("{last} refuses"),
            fault,
            unproven,
        };
        match self.does[&last] {
            Does::Takes => Ok(last),
            Does::TakesAfter(time) => {
                sleep(time).await;
                Ok(last)
            }
            Does::NeverAnswers => pending().await,
            Does::Fails(fault) => Err(failure(fault, false)),
            Does::FailsUnproven => Err(failure(Fault::Endpoint, true)),
        }
    }
}

use Does::{Fails, FailsUnproven, NeverAnswers, Takes, TakesAfter};

const DEAD: Does = Fails(Fault::Endpoint);

#[tokio::test(start_paused = true)]
async fn a_connection_that_an_endpoint_does_not_take_is_tried_on_another() {
    let mut script = Script::new(&[(1, DEAD), (3, Takes), (5, Fails(Fault::Way))]);
    let mut met = BTreeSet::new();
    for _ in 0..50 {
        assert_eq!(script.run().await, Ok(3));
        met.extend(script.tried.iter().copied());
    }
    assert_eq!(met, [1, 3, 5].into(), "each was tried at some time");
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_costs_many_callers_a_few_tries_and_none_an_error() {
    let mut script = Script::new(&[(1, DEAD), (3, Takes), (5, Takes)]);
    let mut on_dead = 0;
    for _ in 0..3000 {
        script.run().await.unwrap();
        on_dead += script.tried.iter().filter(|last| **last == 1).count();
        // 300 per second.
        advance(SECOND / 300).await;
    }
    // Three, and one after each spell of 1, 2 and 4 s.
    assert!((3..=7).contains(&on_dead), "{on_dead}");
}

#[tokio::test(start_paused = true)]
async fn tries_are_bounded_and_the_error_tells_all_of_them() {
    let mut script = Script::new(&[(1, DEAD), (3, DEAD), (5, DEAD), (7, DEAD), (9, DEAD)]);
    let (reason, error) = script.run().await.unwrap_err();
    assert_eq!((script.tried.len(), reason), (MAX_TRIES, Reason::ConnectRefused));
    let [a, b, c] = script.tried[..] else { panic!() };
    assert_eq!(error, format!("{c} refuses; before that: {a} refuses; {b} refuses"));
    let distinct: BTreeSet<_> = script.tried.iter().collect();
    assert_eq!(distinct.len(), MAX_TRIES);
}

#[tokio::test(start_paused = true)]
async fn when_all_endpoints_are_set_aside_they_are_still_tried() {
    let mut script = Script::new(&[(1, DEAD), (3, DEAD)]);
    for _ in 0..10 {
        script.run().await.unwrap_err();
    }
    assert!(is_aside(&script.endpoints, 1) && is_aside(&script.endpoints, 3));
    script.does.insert(3, Takes);
    assert_eq!(script.run().await, Ok(3));
    assert!(!is_aside(&script.endpoints, 3));
}

#[tokio::test(start_paused = true)]
async fn a_decision_of_the_peer_is_not_asked_of_another_endpoint() {
    let mut script = Script::new(&[(1, Fails(Fault::Final)), (3, Fails(Fault::Final))]);
    for _ in 0..20 {
        script.run().await.unwrap_err();
        assert_eq!(script.tried.len(), 1);
    }
    assert!(script.endpoints.describe().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_the_application_dialled_is_not_exchanged_for_another() {
    let mut script = Script::new(&[(1, DEAD), (3, Takes)]);
    script.dialled = OrigDst::new(addr(1));
    for _ in 0..20 {
        let (_, error) = script.run().await.unwrap_err();
        assert_eq!((&script.tried[..], &*error), (&[1][..], "1 refuses"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_endpoint_is_given_up_for_another_one_only() {
    let mut script = Script::new(&[(1, NeverAnswers), (3, Takes)]);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(script.run().await, Ok(3));
    }
    assert_eq!(began.elapsed(), TRY_TIMEOUT, "it is set aside after the first");

    let slow = TakesAfter(TRY_TIMEOUT * 2);
    let mut alone = Script::new(&[(1, slow)]);
    assert_eq!(alone.run().await, Ok(1));
    let mut no_better = Script::new(&[(1, slow), (3, DEAD)]);
    fail(&no_better.endpoints, 3, MAX_FAILURES);
    // The other one is set aside for longer than the slow one takes.
    (0..3).for_each(|_| no_better.endpoints.failed(addr(3), true, 1));
    assert_eq!(no_better.run().await, Ok(1));
    assert_eq!(no_better.tried, [1]);
}

#[tokio::test(start_paused = true)]
async fn who_did_not_prove_himself_is_never_replaced_by_plaintext() {
    // Odd ones are reached in tunnels.
    let mut script = Script::new(&[(1, FailsUnproven), (2, Takes)]);
    let mut refused = 0;
    for _ in 0..20 {
        match script.run().await {
            Ok(taken) => assert_eq!((taken, &script.tried[..]), (2, &[2][..])),
            Err(_) => refused += usize::from(script.tried == [1]),
        }
    }
    assert!(refused > 0);
    let mut script = Script::new(&[(1, FailsUnproven), (2, Takes), (3, Takes)]);
    for _ in 0..20 {
        script.run().await.unwrap();
        assert!(!script.tried.contains(&1) || *script.tried.last().unwrap() == 3, "{:?}", script.tried);
    }
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_name_is_an_endpoint_that_may_be_tried() {
    let mut script = Script::new(&[]);
    script.name("db.example", &[2, 4, 6]);
    script.does.extend([(2, DEAD), (4, DEAD), (6, Takes)]);
    for _ in 0..20 {
        assert_eq!(script.run().await, Ok(6));
    }
    assert!(is_aside(&script.endpoints, 2) && is_aside(&script.endpoints, 4), "they are set aside as others are");
    assert_eq!(script.tried, [6]);
}

#[tokio::test(start_paused = true)]
async fn names_that_lead_nowhere_are_passed_over_and_not_asked_for_without_end() {
    let mut script = Script::new(&[(1, Takes)]);
    ["a.example", "b.example"].into_iter().for_each(|host| script.name(host, &[]));
    for _ in 0..20 {
        assert_eq!(script.run().await, Ok(1));
    }
    let mut script = Script::new(&[]);
    ["a.example", "b.example", "c.example", "d.example", "e.example"]
        .into_iter()
        .for_each(|host| script.name(host, &[]));
    let (reason, detail) = script.run().await.unwrap_err();
    assert_eq!((reason, &script.tried[..]), (Reason::NameUnresolved, &[][..]));
    assert!(detail.contains("3 names"), "{detail}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_address_of_a_name_is_given_up_for_another_endpoint() {
    let mut script = Script::new(&[]);
    script.name("db.example", &[2]);
    script.name("other.example", &[4]);
    script.does.extend([(2, NeverAnswers), (4, Takes)]);
    for _ in 0..20 {
        assert_eq!(script.run().await, Ok(4));
    }
}
