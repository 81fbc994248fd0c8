use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;
use crate::ca::{Issued, SignError};
use crate::renew::{MAX_BACKOFF, MAX_CONCURRENT, MIN_BACKOFF};
use crate::testing::{Spec, TestCa};

/// A CA that answers when and as a test says.
struct ScriptedCa {
    ca: TestCa,
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    script: Mutex<Answer>,
    /// Permits to answer.
    gate: Semaphore,
    calls: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

/// Changes what was issued; knows the CA, the request and the time.
type Spoil = fn(&mut Issued, &TestCa, &str, SystemTime);

#[derive(Clone)]
enum Answer {
    For(Duration),
    Fail,
    Hang,
    Panic,
    Spoiled(Spoil),
}

#[derive(Clone)]
struct Scripted(Arc<ScriptedCa>);

impl SignCsr for Scripted {
    async fn sign(&self, identity: &Identity, csr_pem: &str) -> Result<Issued, SignError> {
        let ca = &self.0;
        ca.calls.fetch_add(1, Ordering::SeqCst);
        ca.most_at_once.fetch_max(ca.at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _under_way = UnderWay(&ca.at_once);
        ca.gate.acquire().await.unwrap().forget();
        let answer = ca.script.lock().unwrap().clone();
        let request = || rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let now = (ca.wall)();
        let spec = |life| spec(&identity.to_string(), now, life);
        match answer {
            Answer::For(life) => Ok(ca.ca.issue(&request().public_key, &spec(life))),
            Answer::Fail => Err(SignError::Failed("the CA is away".into())),
            Answer::Hang => std::future::pending().await,
            Answer::Panic => panic!("a bug in the client"),
            Answer::Spoiled(spoil) => {
                let mut issued = ca.ca.issue(&request().public_key, &spec(Duration::from_secs(3600)));
                spoil(&mut issued, &ca.ca, csr_pem, now);
                Ok(issued)
            }
        }
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running store whose wall clock follows the paused clock of tokio.
struct Bench {
    store: Store,
    ca: Arc<ScriptedCa>,
    driver: JoinHandle<()>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Bench {
    fn new(answer: Answer) -> Self {
        let (base, began) = (SystemTime::now(), Instant::now());
        let wall: Arc<dyn Fn() -> SystemTime + Send + Sync> = Arc::new(move || base + began.elapsed());
        let ca = Arc::new(ScriptedCa {
            ca: TestCa::new("cluster.local"),
            wall: wall.clone(),
            script: Mutex::new(answer),
            gate: Semaphore::new(1_000_000),
            calls: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        });
        let trust = Trust::new("cluster.local".parse().unwrap(), []);
        let settings = Settings { wall, ..Settings::default() };
        let (store, driver) = Store::new(Scripted(ca.clone()), trust, settings);
        Self { store, ca, driver: tokio::spawn(driver.run()) }
    }

    fn answer(&self, answer: Answer) {
        *self.ca.script.lock().unwrap() = answer;
    }

    fn calls(&self) -> usize {
        self.ca.calls.load(Ordering::SeqCst)
    }
}

fn spec(uri: &str, now: SystemTime, life: Duration) -> Spec {
    Spec { not_before: now - Duration::from_secs(300), not_after: now + life, ..Spec::of(uri) }
}

fn web() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_wanted_certificate_is_there_when_somebody_asks() {
    let bench = Bench::new(Answer::For(DAY));
    bench.store.want(&web());
    let mut follow = bench.store.subscribe(&web()).unwrap();
    follow.wait_for(Option::is_some).await.unwrap();
    let credentials = bench.store.current(&web()).unwrap();
    assert_eq!(credentials.identity(), &web());
    assert_eq!(bench.store.get(&web()).await.unwrap().serial(), credentials.serial());
    assert_eq!(bench.calls(), 1);
    assert_eq!(bench.store.trust().root_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_is_woken_by_one_answer() {
    let bench = Bench::new(Answer::For(DAY));
    bench.ca.gate.forget_permits(1_000_000);
    bench.store.want(&web());
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let store = bench.store.clone();
            tokio::spawn(async move { store.get(&web()).await })
        })
        .collect();
    sleep(Duration::from_secs(5)).await;
    bench.ca.gate.add_permits(1);
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    assert_eq!(bench.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end_and_names_the_cause() {
    let bench = Bench::new(Answer::Fail);
    bench.store.want(&web());
    let began = Instant::now();
    let error = bench.store.get(&web()).await.unwrap_err();
    assert_eq!(began.elapsed(), DEFAULT_WAIT);
    assert_eq!(error.to_string(), format!("no certificate for {}: the CA is away", web()));

    // Deep in back-off, just after a try that failed, there is nothing to wait for.
    sleep(Duration::from_secs(600)).await;
    let tries = bench.calls();
    while bench.calls() == tries {
        sleep(Duration::from_secs(1)).await;
    }
    let began = Instant::now();
    let error = bench.store.get(&web()).await.unwrap_err();
    assert!(began.elapsed().is_zero());
    assert!(error.to_string().contains("the next try is in"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_arrives_while_waiting_is_used() {
    let bench = Bench::new(Answer::Fail);
    bench.store.want(&web());
    sleep(Duration::from_secs(1)).await;
    bench.answer(Answer::For(DAY));
    bench.store.get(&web()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_does_not_run_here_has_no_certificate() {
    let bench = Bench::new(Answer::For(DAY));
    assert_eq!(bench.store.get(&web()).await.unwrap_err(), CertError::NotWanted(web()));
    assert_eq!(bench.calls(), 0);
    assert!(bench.store.subscribe(&web()).is_none());
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_learns_that_the_last_user_left() {
    let bench = Bench::new(Answer::Hang);
    bench.store.want(&web());
    let store = bench.store.clone();
    let waiting = tokio::spawn(async move { store.get(&web()).await });
    sleep(Duration::from_secs(1)).await;
    bench.store.forget(&web());
    assert_eq!(waiting.await.unwrap().unwrap_err(), CertError::NotWanted(web()));
    assert!(bench.store.state().is_empty());
}

#[tokio::test(start_paused = true)]
async fn renewal_replaces_the_certificate_at_half_life() {
    let bench = Bench::new(Answer::For(DAY));
    bench.store.want(&web());
    let first = bench.store.get(&web()).await.unwrap();
    let mut follow = bench.store.subscribe(&web()).unwrap();
    let began = Instant::now();
    follow.mark_unchanged();
    follow.changed().await.unwrap();
    let passed = began.elapsed().as_secs_f64() / DAY.as_secs_f64();
    assert!((0.4..=0.61).contains(&passed), "renewed after {passed} of its life");
    assert_ne!(bench.store.get(&web()).await.unwrap().serial(), first.serial());
    assert_eq!(bench.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_old_certificate_to_its_last_second_and_not_longer() {
    let bench = Bench::new(Answer::For(Duration::from_secs(1000)));
    bench.store.want(&web());
    let first = bench.store.get(&web()).await.unwrap();
    bench.answer(Answer::Fail);
    sleep(Duration::from_secs(998)).await;
    assert_eq!(bench.store.get(&web()).await.unwrap().serial(), first.serial());
    let calls = bench.calls();
    assert!((2..=14).contains(&calls), "{calls} requests in an outage of 500 s");
    sleep(Duration::from_secs(2)).await;
    assert!(bench.store.current(&web()).is_none());
    assert!(bench.store.get(&web()).await.is_err());

    bench.answer(Answer::For(DAY));
    let mut follow = bench.store.subscribe(&web()).unwrap();
    let back = timeout(MAX_BACKOFF.mul_f64(1.3), follow.wait_for(Option::is_some)).await;
    assert!(back.is_ok(), "did not recover");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_counts_as_failed_and_holds_up_nobody_for_ever() {
    let bench = Bench::new(Answer::Hang);
    for i in 0..MAX_CONCURRENT {
        bench.store.want(&format!("spiffe://cluster.local/ns/shop/sa/pod-{i}").parse().unwrap());
    }
    sleep(Duration::from_secs(1)).await;
    bench.answer(Answer::For(DAY));
    bench.store.want(&web());
    let began = Instant::now();
    bench.store.get(&web()).await.unwrap();
    assert!(began.elapsed() <= SIGN_TIMEOUT);
    assert_eq!(bench.ca.most_at_once.load(Ordering::SeqCst), MAX_CONCURRENT);
}

#[tokio::test(start_paused = true)]
async fn impatient_callers_do_not_make_requests() {
    let bench = Bench::new(Answer::Fail);
    bench.store.want(&web());
    for _ in 0..1000 {
        let store = bench.store.clone();
        let _ = timeout(Duration::from_millis(1), async move { store.get(&web()).await }).await;
        bench.store.forget(&web());
        bench.store.want(&web());
    }
    let most = 2 + (1.0 / (MIN_BACKOFF.as_secs_f64() * 0.8)) as usize;
    assert!(bench.calls() <= most, "{} requests in a second", bench.calls());
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_wrong_are_failures_and_change_nothing() {
    let bench = Bench::new(Answer::For(DAY));
    bench.store.want(&web());
    let first = bench.store.get(&web()).await.unwrap();
    let other_root = |issued: &mut Issued, _: &TestCa, _: &str, _: SystemTime| {
        issued.roots = vec![TestCa::new("cluster.local").root().clone()];
    };
    let other_identity = |issued: &mut Issued, ca: &TestCa, csr: &str, now: SystemTime| {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        *issued = ca.issue(&request.public_key, &spec("spiffe://cluster.local/ns/shop/sa/db", now, DAY));
    };
    let other_key = |issued: &mut Issued, ca: &TestCa, _: &str, now: SystemTime| {
        *issued = ca.issue(Key::generate().unwrap().pair(), &spec(&web().to_string(), now, DAY));
    };
    let expired = |issued: &mut Issued, ca: &TestCa, csr: &str, now: SystemTime| {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        let spec = spec(&web().to_string(), now, DAY);
        *issued = ca.issue(&request.public_key, &Spec { not_after: spec.not_before, ..spec });
    };
    let no_roots = |issued: &mut Issued, _: &TestCa, _: &str, _: SystemTime| issued.roots.clear();
    let no_chain = |issued: &mut Issued, _: &TestCa, _: &str, _: SystemTime| issued.chain.clear();
    let spoilers: [(Spoil, &str); 6] = [
        (other_root, "does not chain to our roots"),
        (other_identity, "instead of spiffe://cluster.local/ns/shop/sa/web"),
        (other_key, "for another key"),
        (expired, "expired at"),
        (no_roots, "the root bundle is empty"),
        (no_chain, "the chain is empty"),
    ];
    for (spoil, error) in spoilers {
        bench.answer(Answer::Spoiled(spoil));
        let calls = bench.calls();
        while bench.calls() == calls {
            sleep(Duration::from_secs(30)).await;
        }
        sleep(Duration::from_secs(1)).await;
        let state = &bench.store.state()[0];
        let seen = state.last_error.as_deref().unwrap();
        assert!(seen.contains(error), "{seen}");
        assert_eq!(bench.store.current(&web()).unwrap().serial(), first.serial());
        assert_eq!(bench.store.trust().root_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_panics_is_a_failure_like_others() {
    let bench = Bench::new(Answer::Panic);
    bench.store.want(&web());
    sleep(Duration::from_millis(100)).await;
    assert!(bench.store.state()[0].last_error.as_deref().unwrap().contains("panic"));
    bench.answer(Answer::For(DAY));
    bench.store.get(&web()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_state_tells_what_an_operator_asks() {
    let bench = Bench::new(Answer::Fail);
    bench.store.want(&web());
    bench.store.want(&web());
    assert_eq!(bench.store.state()[0].state, "Initializing");
    sleep(Duration::from_secs(60)).await;
    let state = &bench.store.state()[0];
    assert_eq!((state.state, state.phase, state.users), ("Unavailable", "back_off", 2));
    assert!(state.failures > 3 && state.retry_in_ms.is_some());
    bench.answer(Answer::For(DAY));
    sleep(Duration::from_secs(200)).await;
    let state = &bench.store.state()[0];
    assert_eq!((state.state, state.phase, state.failures), ("Available", "holding", 0));
    assert!(state.serial_number.is_some() && state.renewal_time.is_some() && state.last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_the_last_handle() {
    let bench = Bench::new(Answer::For(DAY));
    let other = bench.store.clone();
    drop(bench.store);
    sleep(Duration::from_secs(1)).await;
    assert!(!bench.driver.is_finished());
    drop(other);
    bench.driver.await.unwrap();
}
