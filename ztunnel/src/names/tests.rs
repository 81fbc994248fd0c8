use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use loam_core::ids::WorkloadUid;
use loam_rt::metrics::{Exposition, Registry};
use tokio::sync::Notify;
use tokio::time::advance;

use super::*;
use crate::dns::testing::{Here, NO_ERROR, SERVER_FAILURE, Server, failure, nobody, reply};
use crate::dns::upstream::PATIENCE;

const SECOND: Duration = Duration::from_secs(1);
const HOST: &str = "db.example";

/// A name, and what asking for it leads to.
struct Asked {
    name: Name,
    learns: Mutex<Learned>,
    times: AtomicUsize,
}

impl Asked {
    fn new() -> Self {
        Self { name: Name::new(), learns: Mutex::new(addresses(1, 10)), times: AtomicUsize::new(0) }
    }

    fn will_learn(&self, learned: Learned) {
        *self.learns.lock().unwrap() = learned;
    }

    /// The last byte of the address, or why there is none.
    async fn resolve(&self) -> Result<u8, String> {
        let ask = || async {
            self.times.fetch_add(1, Ordering::Relaxed);
            self.learns.lock().unwrap().clone()
        };
        shown(self.name.addresses(ask).await)
    }

    fn times(&self) -> usize {
        self.times.swap(0, Ordering::Relaxed)
    }
}

fn shown(addresses: Result<Arc<[IpAddr]>, Arc<str>>) -> Result<u8, String> {
    match addresses.map_err(|why| why.to_string())?[..] {
        [IpAddr::V4(v4)] => Ok(v4.octets()[3]),
        ref other => panic!("{other:?}"),
    }
}

fn addresses(last: u8, seconds: u64) -> Learned {
    Learned::Addresses(vec![[192, 0, 2, last].into()], Duration::from_secs(seconds))
}

fn unhelped() -> Learned {
    Learned::Unhelped("silent".into())
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_used_for_its_time_and_then_asked_for_again() {
    let asked = Asked::new();
    assert_eq!(asked.resolve().await, Ok(1));
    asked.will_learn(addresses(2, 10));
    advance(10 * SECOND - Duration::from_millis(1)).await;
    assert_eq!((asked.resolve().await, asked.times()), (Ok(1), 1));
    advance(Duration::from_millis(1)).await;
    assert_eq!((asked.resolve().await, asked.times()), (Ok(2), 1));
}

#[tokio::test(start_paused = true)]
async fn no_time_is_a_second_and_a_very_long_time_is_an_hour() {
    for (seconds, used) in [(0, MIN_TTL), (2_147_483_647, MAX_TTL)] {
        let asked = Asked::new();
        asked.will_learn(addresses(1, seconds));
        asked.resolve().await.unwrap();
        asked.times();
        advance(used - Duration::from_millis(1)).await;
        asked.resolve().await.unwrap();
        assert_eq!(asked.times(), 0, "{seconds}");
        advance(Duration::from_millis(1)).await;
        asked.resolve().await.unwrap();
        assert_eq!(asked.times(), 1, "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_kept_while_the_servers_are_no_help_and_not_for_ever() {
    let asked = Asked::new();
    asked.resolve().await.unwrap();
    asked.will_learn(unhelped());
    advance(10 * SECOND).await;
    asked.times();
    for _ in 0..100 {
        assert_eq!(asked.resolve().await, Ok(1));
    }
    assert_eq!(asked.times(), 1, "servers in trouble are left alone");
    advance(PAUSE_WHILE_STALE).await;
    assert_eq!((asked.resolve().await, asked.times()), (Ok(1), 1));
    advance(MAX_STALE).await;
    assert_eq!(asked.resolve().await, Err("silent".into()));
    asked.will_learn(addresses(3, 10));
    advance(PAUSE).await;
    assert_eq!(asked.resolve().await, Ok(3));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_gone_at_once_and_believed_for_a_while() {
    let asked = Asked::new();
    asked.resolve().await.unwrap();
    asked.will_learn(Learned::Nothing("gone"));
    advance(10 * SECOND).await;
    asked.times();
    assert_eq!(asked.resolve().await, Err("gone".into()));
    advance(NEGATIVE_TTL - Duration::from_millis(1)).await;
    assert_eq!((asked.resolve().await, asked.times()), (Err("gone".into()), 1));
    asked.will_learn(addresses(2, 10));
    advance(Duration::from_millis(1)).await;
    assert_eq!(asked.resolve().await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn one_question_at_a_time_is_asked_and_serves_all_who_wait() {
    let (name, go, times) = (Arc::new(Name::new()), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let ask = |last: u8| {
        let (name, go, times) = (name.clone(), go.clone(), times.clone());
        tokio::spawn(async move {
            let ask = || async {
                times.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                addresses(last, 10)
            };
            shown(name.addresses(ask).await)
        })
    };
    let settle = || async {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    };
    let first = ask(1);
    settle().await;
    let others: Vec<_> = (2..20).map(ask).collect();
    settle().await;
    go.notify_one();
    assert_eq!(first.await.unwrap(), Ok(1));
    for other in others {
        assert_eq!(other.await.unwrap(), Ok(1));
    }
    assert_eq!(times.load(Ordering::Relaxed), 1);
    // Whoever comes while an answer is renewed does not wait for it.
    advance(10 * SECOND).await;
    let renewing = ask(2);
    settle().await;
    assert_eq!(ask(3).await.unwrap(), Ok(1));
    // And whoever gives up asking leaves the turn to the next.
    renewing.abort();
    settle().await;
    go.notify_one();
    assert_eq!(ask(4).await.unwrap(), Ok(4));
}

fn source() -> Workload {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    Workload::new(WorkloadUid::of_pod("c", "shop", "web-1"), "web-1", identity)
}

fn names(servers: &[SocketAddr], own: &[&str], registry: &Registry) -> Names<Here> {
    let metrics = DnsMetrics::new(registry);
    let own: Vec<IpAddr> = own.iter().map(|ip| ip.parse().unwrap()).collect();
    Names::new(Arc::new(Upstream::new(Here, servers.to_vec(), metrics.clone())), &own, metrics)
}

async fn resolve(servers: &[SocketAddr], own: &[&str]) -> Result<Vec<String>, String> {
    let names = names(servers, own, &Registry::default());
    let resolved = names.resolve(&HOST.parse().unwrap(), &source()).await;
    let addresses = resolved.addresses.map_err(|why| why.to_string())?;
    Ok(addresses.iter().map(ToString::to_string).collect())
}

/// Whether a question is for IPv6 addresses; behind it there is EDNS.
fn is_aaaa(question: &[u8]) -> bool {
    question[question.len() - 11 - 4..][..2] == [0, 28]
}

/// A question without the EDNS that stands behind it.
fn bare(question: &[u8]) -> Vec<u8> {
    let mut bytes = question[..question.len() - 11].to_vec();
    bytes[11] = 0;
    bytes
}

/// The reply that the name has this address, and none for IPv6.
fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    match is_aaaa(question) {
        true => failure(&bare(question), NO_ERROR),
        false => reply(&bare(question), address),
    }
}

#[tokio::test]
async fn a_name_is_resolved_by_the_pods_own_servers_for_the_families_it_has() {
    let mut server = Server::start(|_, question| vec![answer(question, [192, 0, 2, 1])]).await;
    assert_eq!(resolve(&[server.addr], &["10.0.0.1"]).await.unwrap(), ["192.0.2.1"]);
    assert!(!is_aaaa(&server.asked().await.0));
    assert!(server.asked.try_recv().is_err(), "the pod has no IPv6");
    assert_eq!(resolve(&[server.addr], &["10.0.0.1", "fd00::1"]).await.unwrap(), ["192.0.2.1"]);
    let why = resolve(&[server.addr], &["fd00::1"]).await.unwrap_err();
    assert!(why.contains("has no address"), "{why}");
}

#[tokio::test]
async fn one_family_does_not_wait_long_for_the_other() {
    let server = Server::start(|_, question| match is_aaaa(question) {
        true => vec![],
        false => vec![answer(question, [192, 0, 2, 1])],
    })
    .await;
    let began = std::time::Instant::now();
    assert_eq!(resolve(&[server.addr], &["10.0.0.1", "fd00::1"]).await.unwrap(), ["192.0.2.1"]);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_cut_answer_is_asked_for_by_tcp_and_one_that_is_cut_again_is_no_help() {
    let always = Server::start(|_, question| {
        let mut bytes = answer(question, [192, 0, 2, 1]);
        bytes[2] |= 2;
        vec![bytes]
    })
    .await;
    let why = resolve(&[always.addr], &["10.0.0.1"]).await.unwrap_err();
    assert!(why.contains("even by TCP"), "{why}");
    let by_number = AtomicUsize::new(0);
    let once = Server::start(move |_, question| {
        let mut bytes = answer(question, [192, 0, 2, 1]);
        if by_number.fetch_add(1, Ordering::Relaxed) == 0 {
            bytes[2] |= 2;
        }
        vec![bytes]
    })
    .await;
    assert_eq!(resolve(&[once.addr], &["10.0.0.1"]).await.unwrap(), ["192.0.2.1"]);
}

#[tokio::test]
async fn what_leads_nowhere_says_why_within_a_bounded_time() {
    let code = |code| Server::start(move |_, question| vec![failure(&bare(question), code)]);
    let (no_name, failing, silent) = (code(3).await, code(SERVER_FAILURE).await, Server::silent().await);
    for (servers, expected) in [
        (vec![no_name.addr], "there is no such name"),
        (vec![failing.addr], "Server Failure"),
        (vec![silent.addr], "no answer within"),
        (vec![nobody().await], "no answer within"),
        (vec![], "no name server"),
    ] {
        let began = std::time::Instant::now();
        let why = resolve(&servers, &["10.0.0.1"]).await.unwrap_err();
        assert!(why.contains(expected), "{why}");
        assert!(began.elapsed() < 2 * PATIENCE, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn names_are_bounded_and_counted() {
    let registry = Registry::default();
    let names = names(&[], &["10.0.0.1"], &registry);
    for n in 0..MAX_NAMES + 10 {
        names.resolve(&format!("n{n}.example").parse().unwrap(), &source()).await.addresses.unwrap_err();
    }
    assert_eq!(lock(&names.known).len(), MAX_NAMES);
    let text = registry.encode(Exposition::Text, std::time::Instant::now());
    let line = format!("source_workload_namespace=\"shop\"}} {}\n", MAX_NAMES + 10);
    assert!(text.contains("istio_on_demand_dns_total{") && text.contains(&line), "{text}");
}
