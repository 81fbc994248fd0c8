//! Where the names lead to by which some endpoints are known: found out by the pod's own name servers when a connection
//! needs it, and remembered as long as they say.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use loam_core::ids::Hostname;
use loam_core::outbound::Resolved;
use loam_core::workload::Workload;
use loam_dns::{Family, Found, Lookup, Transport};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::dns::Inside;
use crate::dns::metrics::DnsMetrics;
use crate::dns::upstream::Upstream;

/// How long an answer is used at least, so that a server that allows no time is not asked for each connection.
const MIN_TTL: Duration = Duration::from_secs(1);

/// How long it is used at most: some servers know numbers that nobody means.
const MAX_TTL: Duration = Duration::from_secs(60 * 60);

/// How long it is believed that a name has no address (RFC 2308 allows what the zone says; this is short, since what is
/// declared is expected to come).
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// How long no server is asked again after one that was no help.
const PAUSE: Duration = Duration::from_secs(1);

/// The same while an old answer is used instead.
const PAUSE_WHILE_STALE: Duration = Duration::from_secs(5);

/// How long an answer outlives its time while no server is any help (RFC 8767 4: days).
const MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the addresses of one family wait for those of the other (RFC 8305 3 has 50 ms, for less than an hour's use).
const OTHER_FAMILY: Duration = Duration::from_millis(200);

/// Most names of one pod that are remembered. They come from the configuration, and a pod uses few of them.
const MAX_NAMES: usize = 1024;

/// The names that one pod's connections need.
pub struct Names<I> {
    upstream: Arc<Upstream<I>>,
    families: Vec<Family>,
    known: Mutex<HashMap<Hostname, Arc<Name>>>,
    metrics: DnsMetrics,
}

/// One name.
struct Name {
    /// Whoever has it asks the servers; the others wait for what it learns.
    turn: Semaphore,
    memory: Mutex<Memory>,
}

/// What was learned about a name.
#[derive(Debug, Clone)]
struct Memory {
    addresses: Result<Arc<[IpAddr]>, Arc<str>>,
    /// Until when nobody is asked.
    good_until: Instant,
    /// Until when addresses are used for want of better ones.
    usable_until: Instant,
}

/// What asking led to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Learned {
    Addresses(Vec<IpAddr>, Duration),
    /// The servers know that there is none.
    Nothing(&'static str),
    /// The servers were no help.
    Unhelped(String),
}

impl<I: Inside> Names<I> {
    /// Names for a pod with the addresses `own`.
    pub fn new(upstream: Arc<Upstream<I>>, own: &[IpAddr], metrics: DnsMetrics) -> Self {
        let mut families = Vec::new();
        if own.iter().any(IpAddr::is_ipv4) {
            families.push(Family::V4);
        }
        if own.iter().any(IpAddr::is_ipv6) {
            families.push(Family::V6);
        }
        Self { upstream, families, known: Mutex::default(), metrics }
    }

    /// Where `host` leads to, for a connection of `source`. Takes no longer than asking the servers once by UDP and
    /// once by TCP, each of which is bounded.
    pub async fn resolve(&self, host: &Hostname, source: &Workload) -> Resolved {
        self.metrics.on_demand(source);
        let name = self.name(host);
        Resolved { host: host.clone(), addresses: name.addresses(|| self.ask(host)).await }
    }

    fn name(&self, host: &Hostname) -> Arc<Name> {
        let mut known = lock(&self.known);
        if let Some(name) = known.get(host) {
            return name.clone();
        }
        if known.len() >= MAX_NAMES {
            // One that nobody waits for, and that is of least use.
            let idle = known.iter().filter(|(_, name)| Arc::strong_count(name) == 1);
            let last = idle.min_by_key(|(_, name)| lock(&name.memory).good_until).map(|(host, _)| host.clone());
            if let Some(host) = last {
                known.remove(&host);
            }
        }
        let name = Arc::new(Name::new());
        known.insert(host.clone(), name.clone());
        name
    }

    /// Asks for both families at once. What comes first does not wait long for what may not come.
    async fn ask(&self, host: &Hostname) -> Learned {
        let mut asked: FuturesUnordered<_> = self.families.iter().map(|family| self.ask_for(host, *family)).collect();
        let mut learned = Learned::Nothing("has no address of a family that the pod has");
        let mut until = None;
        loop {
            let next = match until {
                None => asked.next().await,
                Some(until) => timeout_at(until, asked.next()).await.ok().flatten(),
            };
            let Some(next) = next else { return learned };
            learned = learned.and(next);
            if matches!(learned, Learned::Addresses(..)) {
                until.get_or_insert_with(|| Instant::now() + OTHER_FAMILY);
            }
        }
    }

    async fn ask_for(&self, host: &Hostname, family: Family) -> Learned {
        let Some(lookup) = Lookup::new(host, family) else { return Learned::Nothing("is longer than a name can be") };
        let mut transport = Transport::Udp;
        loop {
            let reply = match self.upstream.ask(&lookup.forward(transport)).await {
                Ok(reply) => reply,
                Err(error) => return Learned::Unhelped(error.to_string()),
            };
            match lookup.read(&reply) {
                Found::Addresses(addresses, ttl) => {
                    return Learned::Addresses(addresses, Duration::from_secs(ttl.into()));
                }
                Found::NoAddress => return Learned::Nothing("has no address of a family that the pod has"),
                Found::NoName => return Learned::Nothing("there is no such name"),
                Found::Cut if transport == Transport::Udp => transport = Transport::Tcp,
                Found::Cut => return Learned::Unhelped("the reply is cut, even by TCP".to_owned()),
                Found::Useless(why) => return Learned::Unhelped(why),
            }
        }
    }
}

impl Learned {
    /// What is known about a name whose families were asked for one by one.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Addresses(mut all, ttl), Self::Addresses(more, other)) => {
                all.extend(more);
                Self::Addresses(all, ttl.min(other))
            }
            (found @ Self::Addresses(..), _) | (_, found @ Self::Addresses(..)) => found,
            // It may have addresses of which nobody could tell.
            (unhelped @ Self::Unhelped(_), _) | (_, unhelped @ Self::Unhelped(_)) => unhelped,
            (Self::Nothing(_), nothing @ Self::Nothing(_)) => nothing,
        }
    }
}

impl Name {
    fn new() -> Self {
        let now = Instant::now();
        let nothing = Memory { addresses: Err("was not asked for".into()), good_until: now, usable_until: now };
        Self { turn: Semaphore::new(1), memory: Mutex::new(nothing) }
    }

    /// What is known, after asking by `ask` if that is out of date. Only one asks at a time; others take an old answer
    /// meanwhile, if there is one.
    async fn addresses<F: Future<Output = Learned>>(&self, ask: impl FnOnce() -> F) -> Result<Arc<[IpAddr]>, Arc<str>> {
        let good = || Some(self.memory()).filter(|memory| Instant::now() < memory.good_until);
        if let Some(memory) = good() {
            return memory.addresses;
        }
        let turn = match self.turn.try_acquire() {
            Ok(turn) => Ok(turn),
            Err(_) => match self.memory() {
                old if old.addresses.is_ok() && Instant::now() < old.usable_until => return old.addresses,
                _ => self.turn.acquire().await,
            },
        };
        // Whoever had the turn before may have learned it.
        match good() {
            Some(memory) => memory.addresses,
            None => {
                let addresses = self.learn(ask().await);
                drop(turn);
                addresses
            }
        }
    }

    fn memory(&self) -> Memory {
        lock(&self.memory).clone()
    }

    fn learn(&self, learned: Learned) -> Result<Arc<[IpAddr]>, Arc<str>> {
        let now = Instant::now();
        let mut memory = lock(&self.memory);
        *memory = match learned {
            Learned::Addresses(addresses, ttl) => {
                let good_until = now + ttl.clamp(MIN_TTL, MAX_TTL);
                Memory { addresses: Ok(addresses.into()), good_until, usable_until: good_until + MAX_STALE }
            }
            Learned::Unhelped(why) if memory.addresses.is_ok() && now < memory.usable_until => {
                tracing::debug!(why, "an old address is used");
                Memory { good_until: now + PAUSE_WHILE_STALE, ..memory.clone() }
            }
            Learned::Unhelped(why) => Memory { addresses: Err(why.into()), good_until: now + PAUSE, usable_until: now },
            Learned::Nothing(why) => {
                Memory { addresses: Err(why.into()), good_until: now + NEGATIVE_TTL, usable_until: now }
            }
        };
        memory.addresses.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a map whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
