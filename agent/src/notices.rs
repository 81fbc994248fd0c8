//! What the objects of this node's pods say about their enrolment, for people and programs that ask the API server: the
//! annotation `ambient.istio.io/redirection`, the condition `loam.dev/Enrolled`, and events.
//!
//! What an object should say is compared with what it says, so nothing is written twice, and what a predecessor wrote is
//! taken back when it is not true any more. Nobody waits for any of it.

mod notice;
mod teller;
mod writing;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use crate::pods::Uid;
use crate::pods::registry::State;
use crate::pods::spec::{has_ended, uid};

pub use notice::{CONDITION, Difference, Notice, REDIRECTION, Reason};
pub use teller::Teller;
pub use writing::Writing;

/// Objects that are written at a time.
const MAX_BUSY: usize = 8;

/// How long a pod must have been outside before its object says so: most are on their way in.
const HESITATION: Duration = Duration::from_secs(3);

/// How long only other words wait: what is wrong with a pod may be worded differently every time it is tried.
const WORDS_DELAY: Duration = Duration::from_secs(30);

/// Shortest time between two writes of one object.
const PAUSE: Duration = Duration::from_secs(1);

/// How long an object that was written may take to come back as it was written, before that is done again: longer than
/// a watch that nothing comes through any more stays unnoticed.
const ECHO_TIMEOUT: Duration = Duration::from_secs(90);

/// Wait after a first failure; it doubles with each one that follows.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// Longest wait between two attempts.
const LAST_DELAY: Duration = Duration::from_secs(300);

/// What is known of a pod that an object is about.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// Why it does not belong to the mesh; empty if it does.
    pub outside: &'a str,
    /// Where it stands and what is wrong; none if the agent has nothing of it.
    pub view: Option<(State, &'a str)>,
    /// Which policies of the network keep tunnels from it; empty if none does.
    pub blocked: &'a str,
}

/// What each object should say, and when it is written: a plain machine.
#[derive(Debug, Default)]
pub struct Notices {
    pods: HashMap<Uid, Entry>,
    due_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    difference: Difference,
    /// Since when the object differs in this way.
    since: Instant,
    is_busy: bool,
    failures: u32,
    quiet_until: Instant,
    /// What was written last, and until when that is expected to be seen.
    written: Option<(Notice, Instant)>,
}

impl Notices {
    /// What is to be written at this moment. Each is to be reported on by [`Self::written`].
    pub fn next<'a>(&mut self, pods: impl IntoIterator<Item = (&'a Pod, Standing<'a>)>, now: Instant) -> Vec<Writing> {
        let mut busy = self.pods.values().filter(|entry| entry.is_busy).count();
        let mut former = std::mem::take(&mut self.pods);
        let mut writings = Vec::new();
        self.due_at = None;
        for (pod, standing) in pods {
            let uid = uid(pod);
            let entry = former.remove(&uid);
            let wish = notice(pod, standing).and_then(|notice| Some((notice.difference(pod)?, notice)));
            let Some((difference, notice)) = wish else {
                // An object that says what it should is left alone for a moment all the same.
                let kept = entry.filter(|entry| entry.is_busy || entry.quiet_until > now);
                self.pods.extend(kept.map(|entry| (uid, entry)));
                continue;
            };
            let mut entry = entry.unwrap_or_else(|| Entry::new(difference, now));
            if entry.difference != difference {
                (entry.difference, entry.since) = (difference, now);
            }
            let due_at = entry.due_at(&notice);
            if due_at <= now && !entry.is_busy && busy < MAX_BUSY {
                entry.is_busy = true;
                busy += 1;
                writings.push(Writing::new(pod, notice));
            } else if !entry.is_busy && due_at > now {
                self.due_at = self.due_at.into_iter().chain([due_at]).min();
            }
            self.pods.insert(uid, entry);
        }
        writings
    }

    /// A write has ended.
    pub fn written(&mut self, writing: Writing, is_done: bool, now: Instant) {
        let Some(entry) = self.pods.get_mut(&writing.uid) else { return };
        entry.is_busy = false;
        if is_done {
            entry.failures = 0;
            entry.quiet_until = now + PAUSE;
            entry.written = Some((writing.notice, now + ECHO_TIMEOUT));
        } else {
            entry.quiet_until = now + FIRST_DELAY.saturating_mul(1 << entry.failures.min(16)).min(LAST_DELAY);
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// When the next write is due.
    pub fn due_at(&self) -> Option<Instant> {
        self.due_at
    }
}

impl Entry {
    fn new(difference: Difference, now: Instant) -> Self {
        Self { difference, since: now, is_busy: false, failures: 0, quiet_until: now, written: None }
    }

    fn due_at(&self, notice: &Notice) -> Instant {
        let patience = match self.difference {
            Difference::Capture => Duration::ZERO,
            Difference::Outside => HESITATION,
            Difference::Words => WORDS_DELAY,
        };
        let echo = self.written.as_ref().filter(|(written, _)| written == notice).map(|(_, until)| *until);
        (self.since + patience).max(self.quiet_until).max(echo.unwrap_or(self.quiet_until))
    }
}

/// What the object of a pod should say; none if it may say what it says.
fn notice(pod: &Pod, standing: Standing<'_>) -> Option<Notice> {
    // It has other things to tell, or nobody will look any more.
    if pod.metadata.deletion_timestamp.is_some() || has_ended(pod) {
        return None;
    }
    match (standing.outside, standing.view) {
        ("", Some((State::Enrolled, words))) => Some(match (standing.blocked, words) {
            ("", words) => Notice::new(Reason::Captured, words),
            (blocked, "") => Notice::new(Reason::TunnelsBlocked, blocked),
            (blocked, words) => Notice::new(Reason::TunnelsBlocked, &format!("{blocked}; {words}")),
        }),
        ("", Some((State::Pending, words))) => Some(Notice::new(Reason::Waiting, words)),
        ("", Some((State::Failed, words))) => Some(Notice::new(Reason::Failed, words)),
        // It is on its way out, or only just heard of.
        ("", Some((State::Removing, _)) | None) | (_, Some(_)) => None,
        (why, None) => Notice::is_on(pod).then(|| Notice::new(Reason::NotInMesh, why)),
    }
}

#[cfg(test)]
mod tests;
