//! When to ask for which certificate: a pure machine. Facts and the time go in, actions come out.
//!
//! An identity has users (pods). While it has any, its certificate is fetched before somebody needs it and renewed at
//! half its life. A failure is retried with growing distance and never sooner, whoever asks and however often: the
//! back-off belongs to the identity and outlives its users, so neither impatient callers nor a pod in a crash loop
//! can storm a CA that is in trouble. The certificate in hand stays in use until it expires.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use loam_core::ids::Identity;

/// Requests under way at once: enough to fill a node of pods quickly, few enough for a small CA with many nodes.
pub const MAX_CONCURRENT: usize = 8;
/// Distance of the first retry.
pub const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// Longest distance of retries.
pub const MAX_BACKOFF: Duration = Duration::from_secs(150);
/// Longest distance of retries while requests do not even get to the CA. They cost it nothing, and pods wait for it: it
/// may be starting, or the root file may still be that of an authority before it.
pub const MAX_UNHEARD_BACKOFF: Duration = Duration::from_secs(15);
/// Back-offs are spread by this part of themselves, so that nodes that failed together do not return together.
const BACKOFF_JITTER: f64 = 0.2;
/// Part of the remaining life after which a certificate is renewed.
const RENEW_AT: f64 = 0.5;
/// Renewals are spread by this part of the remaining life: pods that start together do not renew together for ever.
const RENEW_JITTER: f64 = 0.1;
/// Longest sleep while a certificate is held. The wall clock can be set, and monotonic time stands still while a
/// machine is suspended: looking once a minute notices both.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// Most identities without users whose back-off is remembered. A node that forgets more within one back-off
/// remembers only these.
pub const MAX_REMEMBERED: usize = 1024;

/// Both clocks: one that only goes forward, for distances, and one that certificates are written in.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For back-off.
    pub instant: Instant,
    /// For validity.
    pub wall: SystemTime,
}

/// Why a request brought no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In words.
    pub error: String,
    /// The request did not get to the CA.
    pub unheard: bool,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a key and ask the CA. Answer with [`Machine::arrived`] or [`Machine::failed`].
    Request(Identity),
    /// The certificate in hand is worth nothing any more.
    Expire(Identity),
}

/// Which request goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Priority {
    /// A valid certificate is in hand.
    Renewal,
    /// There is none, and nobody waits yet.
    Prefetch,
    /// A connection waits.
    Demand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Waits for one of the places; lower numbers came first.
    Queued { ticket: u64 },
    /// The CA was asked.
    Requested,
    /// The last request failed.
    BackOff { until: Instant },
    /// All is well until then.
    Holding { renew_at: SystemTime },
}

#[derive(Debug)]
struct Entry {
    users: usize,
    step: Step,
    demanded: bool,
    not_after: Option<SystemTime>,
    failures: u32,
    last_error: Option<String>,
}

impl Entry {
    fn priority(&self) -> Priority {
        match self {
            Entry { not_after: Some(_), .. } => Priority::Renewal,
            Entry { demanded: true, .. } => Priority::Demand,
            Entry { demanded: false, .. } => Priority::Prefetch,
        }
    }
}

/// How an identity fares, for dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whose.
    pub identity: Identity,
    /// How many pods use it.
    pub users: usize,
    /// What happens.
    pub phase: Phase,
    /// Failures since the last success.
    pub failures: u32,
    /// What the last of them was.
    pub last_error: Option<String>,
}

/// What happens with an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its request waits for a place.
    Queued,
    /// The CA was asked.
    Requested,
    /// The CA will be asked again after this time.
    BackOff(Duration),
    /// It has a certificate, to be renewed at this time.
    Holding(SystemTime),
}

/// The state of every identity.
#[derive(Debug, Default)]
pub struct Machine {
    entries: HashMap<Identity, Entry>,
    requested: usize,
    next_ticket: u64,
}

impl Machine {
    /// One more user of an identity.
    pub fn want(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.users += 1;
            return;
        }
        let step = Step::Queued { ticket: self.ticket() };
        let entry = Entry { users: 1, step, demanded: false, not_after: None, failures: 0, last_error: None };
        self.entries.insert(identity.clone(), entry);
    }

    /// One user less. True when it was the last: its certificate must not be used any more.
    pub fn forget(&mut self, identity: &Identity) -> bool {
        let remembered = self.entries.values().filter(|e| e.users == 0).count();
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        match entry.users {
            0 => return false,
            1 => {}
            _ => {
                entry.users -= 1;
                return false;
            }
        }
        entry.users = 0;
        entry.not_after = None;
        entry.demanded = false;
        match entry.step {
            // Its place must be given back when the answer comes.
            Step::Requested => {}
            Step::BackOff { .. } if remembered < MAX_REMEMBERED => {}
            Step::BackOff { .. } | Step::Queued { .. } | Step::Holding { .. } => {
                self.entries.remove(identity);
            }
        }
        true
    }

    /// A connection waits for this identity. Answers how long the CA will not be asked because of a failure, and
    /// which; `None` when nobody uses the identity.
    pub fn demand(&mut self, identity: &Identity, now: Now) -> Option<(Duration, Option<&str>)> {
        let entry = self.entries.get_mut(identity).filter(|e| e.users > 0)?;
        entry.demanded = true;
        let pause = match entry.step {
            Step::BackOff { until } => until.saturating_duration_since(now.instant),
            Step::Queued { .. } | Step::Requested | Step::Holding { .. } => Duration::ZERO,
        };
        Some((pause, entry.last_error.as_deref()))
    }

    /// The CA gave a certificate. False when nobody wants it any more. `random` is in 0..1.
    pub fn arrived(&mut self, identity: &Identity, not_after: SystemTime, now: Now, random: f64) -> bool {
        self.requested -= 1;
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        if entry.users == 0 {
            self.entries.remove(identity);
            return false;
        }
        let remaining = not_after.duration_since(now.wall).unwrap_or(Duration::ZERO);
        let part = RENEW_AT + RENEW_JITTER * (2.0 * random - 1.0);
        // A CA that gives certificates for moments must not be asked without pause.
        let renew_at = now.wall + remaining.mul_f64(part).max(MIN_BACKOFF);
        entry.step = Step::Holding { renew_at };
        entry.not_after = Some(not_after);
        entry.demanded = false;
        entry.failures = 0;
        entry.last_error = None;
        true
    }

    /// The CA gave none. `random` is in 0..1.
    pub fn failed(&mut self, identity: &Identity, failure: Failure, now: Now, random: f64) {
        self.requested -= 1;
        let Some(entry) = self.entries.get_mut(identity) else { return };
        entry.failures = entry.failures.saturating_add(1);
        entry.last_error = Some(failure.error);
        let longest = if failure.unheard { MAX_UNHEARD_BACKOFF } else { MAX_BACKOFF };
        entry.step = Step::BackOff { until: now.instant + backoff(entry.failures, longest, random) };
    }

    /// What is due.
    pub fn poll(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        let next_ticket = &mut self.next_ticket;
        self.entries.retain(|identity, entry| {
            if entry.not_after.is_some_and(|not_after| not_after <= now.wall) {
                entry.not_after = None;
                actions.push(Action::Expire(identity.clone()));
            }
            let due = match entry.step {
                Step::BackOff { until } => until <= now.instant,
                Step::Holding { renew_at } => renew_at <= now.wall,
                Step::Queued { .. } | Step::Requested => false,
            };
            if due {
                entry.step = Step::Queued { ticket: *next_ticket };
                *next_ticket += 1;
            }
            !(due && entry.users == 0)
        });

        let mut queued: Vec<_> = self
            .entries
            .iter_mut()
            .filter_map(|(identity, entry)| match entry.step {
                Step::Queued { ticket } => Some((std::cmp::Reverse(entry.priority()), ticket, identity, entry)),
                Step::Requested | Step::BackOff { .. } | Step::Holding { .. } => None,
            })
            .collect();
        queued.sort_by_key(|(priority, ticket, ..)| (*priority, *ticket));
        for (_, _, identity, entry) in queued.into_iter().take(MAX_CONCURRENT.saturating_sub(self.requested)) {
            entry.step = Step::Requested;
            self.requested += 1;
            actions.push(Action::Request(identity.clone()));
        }
        actions
    }

    /// How long nothing will be due unless something happens.
    pub fn wakeup(&self, now: Now) -> Option<Duration> {
        let until_wall = |at: SystemTime| at.duration_since(now.wall).unwrap_or(Duration::ZERO).min(MAX_SLEEP);
        self.entries
            .values()
            .flat_map(|entry| {
                let step = match entry.step {
                    Step::BackOff { until } => Some(until.saturating_duration_since(now.instant)),
                    Step::Holding { renew_at } => Some(until_wall(renew_at)),
                    // A place becomes free with an answer.
                    Step::Queued { .. } | Step::Requested => None,
                };
                [step, entry.not_after.map(until_wall)]
            })
            .flatten()
            .min()
    }

    /// Whether anybody uses the identity.
    pub fn is_wanted(&self, identity: &Identity) -> bool {
        self.entries.get(identity).is_some_and(|e| e.users > 0)
    }

    /// What the last failure of an identity was.
    pub fn last_error(&self, identity: &Identity) -> Option<&str> {
        self.entries.get(identity).and_then(|e| e.last_error.as_deref())
    }

    /// How every used identity fares, in the order of their names.
    pub fn status(&self, now: Now) -> Vec<Status> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.users > 0)
            .map(|(identity, entry)| Status {
                identity: identity.clone(),
                users: entry.users,
                phase: match entry.step {
                    Step::Queued { .. } => Phase::Queued,
                    Step::Requested => Phase::Requested,
                    Step::BackOff { until } => Phase::BackOff(until.saturating_duration_since(now.instant)),
                    Step::Holding { renew_at } => Phase::Holding(renew_at),
                },
                failures: entry.failures,
                last_error: entry.last_error.clone(),
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }
}

/// Distance after the nth failure in a row.
fn backoff(failures: u32, longest: Duration, random: f64) -> Duration {
    // 2^9 half seconds are beyond the maximum; the bound keeps the power finite.
    let doubled = MIN_BACKOFF * 2u32.pow(failures.saturating_sub(1).min(9));
    doubled.min(longest).mul_f64(1.0 + BACKOFF_JITTER * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests;
