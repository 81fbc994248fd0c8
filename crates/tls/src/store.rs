//! The certificates of everything that runs here, kept fresh.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use loam_core::ids::Identity;
use loam_core::reason::Reason;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::ca::SignCsr;
use crate::credentials::Credentials;
use crate::key::Key;
use crate::renew::{Action, Failure, Machine, Now, Phase, Status};
use crate::trust::Trust;
use crate::verify::timestamp;

/// How long a connection waits for a certificate that is not there yet, before it is refused.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// How long the CA may take for one answer: a CA that hangs must not keep the places of others.
pub const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be set about a [`Store`].
#[derive(Clone)]
pub struct Settings {
    /// How long [`Store::get`] waits.
    pub wait: Duration,
    /// Time as certificates have it.
    pub wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { wait: DEFAULT_WAIT, wall: Arc::new(SystemTime::now) }
    }
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CertError {
    #[error("no workload here is {0}")]
    NotWanted(Identity),
    #[error("no certificate for {identity}: {cause}")]
    Unavailable { identity: Identity, cause: String },
}

impl CertError {
    /// How a connection that needed the credentials ends.
    pub fn reason(&self) -> Reason {
        Reason::CertificateUnavailable
    }
}

/// One certificate per identity that runs here. Clones are handles to the same store.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

/// Does the store's work while it runs. It ends when the last [`Store`] is gone.
pub struct Driver<C> {
    ca: Arc<C>,
    shared: Arc<Shared>,
}

/// How one identity fares, for dumps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityState {
    /// The SPIFFE ID.
    pub identity: String,
    /// `Available`, `Initializing` (never had one), or `Unavailable` (the last request failed).
    pub state: &'static str,
    /// `queued`, `requested`, `back_off` or `holding`.
    pub phase: &'static str,
    /// How many pods use it.
    pub users: usize,
    /// Serial number of the certificate in use.
    pub serial_number: Option<String>,
    /// Beginning of its validity.
    pub valid_from: Option<String>,
    /// End of its validity.
    pub expiration_time: Option<String>,
    /// When it will be renewed.
    pub renewal_time: Option<String>,
    /// Milliseconds to the next try after a failure.
    pub retry_in_ms: Option<u64>,
    /// Failures since the last success.
    pub failures: u32,
    /// What the last of them was.
    pub last_error: Option<String>,
}

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Something changed that the driver should look at.
    wake: Notify,
    settings: Settings,
    trust: Arc<Trust>,
}

#[derive(Default)]
struct Inner {
    machine: Machine,
    /// One per identity with users.
    slots: HashMap<Identity, watch::Sender<Option<Arc<Credentials>>>>,
    closed: bool,
}

impl Store {
    /// A store that asks `ca`, and the driver that somebody has to run.
    pub fn new<C: SignCsr>(ca: C, trust: Arc<Trust>, settings: Settings) -> (Self, Driver<C>) {
        let shared = Arc::new(Shared { inner: Mutex::default(), wake: Notify::new(), settings, trust });
        (Self(Arc::new(Handle { shared: shared.clone() })), Driver { ca: Arc::new(ca), shared })
    }

    /// Whom the certificates are measured against.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.0.shared.trust
    }

    /// A pod with this identity is here: its certificate is fetched and kept fresh. Every call needs its
    /// [`forget`](Self::forget). There are as many identities as pods at most, whose number the caller bounds.
    pub fn want(&self, identity: &Identity) {
        let mut inner = self.0.shared.lock();
        inner.machine.want(identity);
        inner.slots.entry(identity.clone()).or_insert_with(|| watch::Sender::new(None));
        drop(inner);
        self.0.shared.wake.notify_one();
    }

    /// A pod with this identity left. After the last one the certificate and its key are dropped.
    pub fn forget(&self, identity: &Identity) {
        let mut inner = self.0.shared.lock();
        if inner.machine.forget(identity) {
            inner.slots.remove(identity);
        }
        drop(inner);
        self.0.shared.wake.notify_one();
    }

    /// Credentials that are valid now, waiting for them up to the bound.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Credentials>, CertError> {
        let shared = &self.0.shared;
        let mut slot = {
            let mut inner = shared.lock();
            let slot = inner.slots.get(identity).ok_or_else(|| CertError::NotWanted(identity.clone()))?;
            if let Some(credentials) = shared.usable(slot) {
                return Ok(credentials);
            }
            let slot = slot.subscribe();
            let (pause, cause) =
                inner.machine.demand(identity, shared.now()).ok_or_else(|| CertError::NotWanted(identity.clone()))?;
            if pause > shared.settings.wait {
                let cause = format!("{}; the next try is in {} s", cause.unwrap_or("unknown"), pause.as_secs());
                return Err(CertError::Unavailable { identity: identity.clone(), cause });
            }
            slot
        };
        shared.wake.notify_one();
        let arrival = slot.wait_for(|credentials| credentials.as_ref().is_some_and(|c| shared.is_valid(c)));
        match timeout(shared.settings.wait, arrival).await {
            Ok(Ok(credentials)) => Ok(credentials.clone().expect("waited for some")),
            // The sender is gone with the last user.
            Ok(Err(_)) => Err(CertError::NotWanted(identity.clone())),
            Err(_) => {
                let inner = shared.lock();
                let cause = inner.machine.last_error(identity).unwrap_or("the CA has not answered yet").to_owned();
                Err(CertError::Unavailable { identity: identity.clone(), cause })
            }
        }
    }

    /// Credentials that are valid now, without waiting.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Credentials>> {
        let shared = &self.0.shared;
        shared.lock().slots.get(identity).and_then(|slot| shared.usable(slot))
    }

    /// Follows the credentials of an identity: arrival, renewal, expiry (`None`). It closes when the last user left.
    pub fn subscribe(&self, identity: &Identity) -> Option<watch::Receiver<Option<Arc<Credentials>>>> {
        self.0.shared.lock().slots.get(identity).map(watch::Sender::subscribe)
    }

    /// How every identity fares, in the order of their names.
    pub fn state(&self) -> Vec<IdentityState> {
        let shared = &self.0.shared;
        let inner = shared.lock();
        let describe = |status: Status| {
            let credentials = inner.slots.get(&status.identity).and_then(|slot| shared.usable(slot));
            let time = |t: Option<SystemTime>| t.map(|t| timestamp(&t));
            IdentityState {
                identity: status.identity.to_string(),
                state: match (&credentials, &status.last_error) {
                    (Some(_), _) => "Available",
                    (None, Some(_)) => "Unavailable",
                    (None, None) => "Initializing",
                },
                phase: match status.phase {
                    Phase::Queued => "queued",
                    Phase::Requested => "requested",
                    Phase::BackOff(_) => "back_off",
                    Phase::Holding(_) => "holding",
                },
                users: status.users,
                serial_number: credentials.as_ref().map(|c| c.serial().to_owned()),
                valid_from: time(credentials.as_ref().map(|c| c.not_before())),
                expiration_time: time(credentials.as_ref().map(|c| c.not_after())),
                renewal_time: match status.phase {
                    Phase::Holding(at) => time(Some(at)),
                    Phase::Queued | Phase::Requested | Phase::BackOff(_) => None,
                },
                retry_in_ms: match status.phase {
                    Phase::BackOff(left) => Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
                    Phase::Queued | Phase::Requested | Phase::Holding(_) => None,
                },
                failures: status.failures,
                last_error: status.last_error,
            }
        };
        inner.machine.status(shared.now()).into_iter().map(describe).collect()
    }
}

impl<C: SignCsr> Driver<C> {
    /// Fetches and renews until the last [`Store`] is dropped.
    pub async fn run(self) {
        let mut calls = JoinSet::new();
        let mut asked: HashMap<Id, Identity> = HashMap::new();
        loop {
            let (due, idle) = {
                let mut inner = self.shared.lock();
                if inner.closed {
                    return;
                }
                let now = self.shared.now();
                (inner.poll(now), inner.machine.wakeup(now))
            };
            for identity in due {
                let call = calls.spawn(fetch(self.ca.clone(), self.shared.clone(), identity.clone()));
                asked.insert(call.id(), identity);
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = sleep(idle.unwrap_or_default()), if idle.is_some() => {}
                Some(ended) = calls.join_next_with_id() => {
                    let (id, outcome) = match ended {
                        Ok((id, outcome)) => (id, outcome),
                        Err(error) => (error.id(), Err(said(format_args!("the request broke: {error}")))),
                    };
                    let identity = asked.remove(&id).expect("every call is noted when it begins");
                    self.shared.ended(&identity, outcome);
                }
            }
        }
    }
}

/// Makes a key, has it certified, and checks the answer.
async fn fetch<C: SignCsr>(ca: Arc<C>, shared: Arc<Shared>, identity: Identity) -> Result<Credentials, Failure> {
    let key = Key::generate().map_err(said)?;
    let request = key.request(&identity).map_err(said)?;
    let issued = timeout(SIGN_TIMEOUT, ca.sign(&identity, &request))
        .await
        .map_err(|_| said(format_args!("the CA did not answer within {SIGN_TIMEOUT:?}")))?
        .map_err(|e| Failure { unheard: e.is_unheard(), error: e.to_string() })?;
    Credentials::new(&identity, key, issued, &shared.trust, (shared.settings.wall)()).map_err(said)
}

/// A failure that is not the way to the CA.
fn said(error: impl fmt::Display) -> Failure {
    Failure { error: error.to_string(), unheard: false }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock leaves the state half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { instant: Instant::now().into_std(), wall: (self.settings.wall)() }
    }

    fn is_valid(&self, credentials: &Credentials) -> bool {
        (self.settings.wall)() < credentials.not_after()
    }

    fn usable(&self, slot: &watch::Sender<Option<Arc<Credentials>>>) -> Option<Arc<Credentials>> {
        slot.borrow().as_ref().filter(|c| self.is_valid(c)).cloned()
    }

    /// Notes what became of a request.
    fn ended(&self, identity: &Identity, outcome: Result<Credentials, Failure>) {
        let now = self.now();
        let mut inner = self.lock();
        match outcome {
            Ok(credentials) => {
                if inner.machine.arrived(identity, credentials.not_after(), now, rand::random()) {
                    tracing::info!(%identity, serial = credentials.serial(), expires = timestamp(&credentials.not_after()), "certificate ready");
                    let slot = inner.slots.get(identity).expect("a wanted identity has a slot");
                    slot.send_replace(Some(Arc::new(credentials)));
                }
            }
            Err(failure) => {
                tracing::warn!(%identity, error = failure.error, "certificate not renewed");
                inner.machine.failed(identity, failure, now, rand::random());
            }
        }
    }
}

impl Inner {
    /// Carries out what is due; answers which identities to ask for.
    fn poll(&mut self, now: Now) -> Vec<Identity> {
        let mut requests = Vec::new();
        for action in self.machine.poll(now) {
            match action {
                Action::Request(identity) => requests.push(identity),
                Action::Expire(identity) => {
                    tracing::warn!(%identity, "certificate expired");
                    if let Some(slot) = self.slots.get(&identity) {
                        slot.send_replace(None);
                    }
                }
            }
        }
        requests
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("identities", &self.0.shared.lock().slots.len()).finish()
    }
}

#[cfg(test)]
mod tests;
