//! How far each pod is: a pure machine that takes what is wanted and what became of each step, and says what to do.
//!
//! A pod that is wanted is enrolled, again after a failure with growing delays; one that is not wanted any more is
//! withdrawn. Whatever is wrong with one pod stays its own trouble. A pod that is captured stays captured until it is
//! withdrawn: no failure afterwards opens it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use loam_ebpf_common::layout::MAX_PODS;

use super::source::Wanted;
use super::spec::{PodSpec, SpecError, Uid};
use crate::sys::netns::NetnsId;

/// Steps that run at the same time. Most of a step is waiting for a ztunnel.
pub const MAX_BUSY: usize = 32;

/// Delay after a first failure; it doubles with each one that follows.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay between two attempts.
const LAST_DELAY: Duration = Duration::from_secs(10);

/// A pod with its number on this node: what may be in the kernel for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The pod as it was last told to the kernel.
    pub spec: PodSpec,
    /// Its number.
    pub index: u32,
    /// Its network namespace, once it was opened.
    pub netns: Option<NetnsId>,
    /// The cookie of that, once it is known.
    pub cookie: Option<u64>,
}

/// A step that the caller takes and reports on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the pod be enrolled; whatever is as it should be is left alone.
    Enrol(Place),
    /// Make the pod be not enrolled.
    Withdraw(Place),
}

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On its way in.
    Pending,
    /// Captured.
    Enrolled,
    /// Not captured, because something is wrong.
    Failed,
    /// On its way out.
    Removing,
}

/// What there is to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View<'a> {
    /// Its uid.
    pub uid: &'a Uid,
    /// `<namespace>/<name>`.
    pub title: &'a str,
    /// Where it stands.
    pub state: State,
    /// What is wrong or waited for; empty if nothing is.
    pub reason: &'a str,
    /// What is in the kernel for it.
    pub place: Option<&'a Place>,
}

#[derive(Debug)]
struct Entry {
    title: String,
    /// None: it is not wanted any more.
    wanted: Option<Result<PodSpec, SpecError>>,
    place: Option<Place>,
    busy: bool,
    captured: bool,
    /// Something in the kernel differs from `place`, or may.
    stale: bool,
    /// What is in the kernel belongs to a network namespace that is gone: withdraw it before anything else.
    obsolete: bool,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    text: String,
    /// It is only waited for.
    waiting: bool,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Entry {
    fn new(title: String) -> Self {
        Self {
            title,
            wanted: None,
            place: None,
            busy: false,
            captured: false,
            stale: false,
            obsolete: false,
            trouble: None,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.trouble.as_ref().and_then(|trouble| trouble.retry_at).is_none_or(|at| at <= now)
    }

    fn fail(&mut self, text: String, waiting: bool, now: Instant) {
        let failures = self.trouble.as_ref().map_or(0, |trouble| trouble.failures);
        let delay = match waiting {
            // The keeper has waited already.
            true => FIRST_DELAY,
            false => FIRST_DELAY.saturating_mul(1 << failures.min(16)).min(LAST_DELAY),
        };
        let failures = if waiting { 0 } else { failures.saturating_add(1) };
        self.trouble = Some(Trouble { text, waiting, failures, retry_at: Some(now + delay) });
    }

    /// A trouble that ends when something else changes, not with time.
    fn object(&mut self, text: String) {
        self.trouble = Some(Trouble { text, waiting: false, failures: 0, retry_at: None });
    }

    /// What the pod lacks, if it lacks anything, is its trouble.
    fn object_to_wanted(&mut self) {
        if let Some(Err(error)) = &self.wanted {
            let (text, waiting) = (error.to_string(), error.is_waiting());
            self.trouble = Some(Trouble { text, waiting, failures: 0, retry_at: None });
        }
    }

    /// What to do for this pod by itself.
    fn step(&self) -> Step {
        match (&self.wanted, &self.place) {
            (_, Some(_)) if self.obsolete => Step::Withdraw,
            (None, Some(_)) => Step::Withdraw,
            (None, None) => Step::Forget,
            (Some(Ok(wanted)), Some(place)) if self.captured && !self.stale && *wanted == place.spec => Step::Rest,
            (Some(Ok(wanted)), _) => Step::Enrol(Box::new(wanted.clone())),
            // What it was before it became unreadable stays in force.
            (Some(Err(_)), Some(place)) if self.stale || !self.captured => Step::Enrol(Box::new(place.spec.clone())),
            (Some(Err(_)), _) => Step::Rest,
        }
    }
}

enum Step {
    Rest,
    Forget,
    Enrol(Box<PodSpec>),
    Withdraw,
}

/// All pods of the node that are in the mesh, or were.
#[derive(Debug, Default)]
pub struct Registry {
    pods: BTreeMap<Uid, Entry>,
}

impl Registry {
    /// Takes in what is wanted.
    pub fn want(&mut self, wanted: Wanted) {
        for (uid, entry) in &mut self.pods {
            if !wanted.contains_key(uid) && entry.wanted.take().is_some() {
                entry.trouble = None;
            }
        }
        for (uid, pod) in wanted {
            let entry = self.pods.entry(uid).or_insert_with(|| Entry::new(pod.title.clone()));
            let mut spec = pod.spec;
            if let (Ok(spec), Some(place)) = (&mut spec, &entry.place) {
                // How it was found does not change by what becomes of it.
                spec.starting = place.spec.starting;
            }
            if entry.wanted.as_ref() == Some(&spec) {
                continue;
            }
            entry.title = pod.title;
            entry.trouble = None;
            entry.wanted = Some(spec);
            entry.object_to_wanted();
        }
    }

    /// Takes over a pod that a predecessor left in the kernel. Comes before [`Self::want`], until which it is wanted as it
    /// is.
    pub fn adopt(&mut self, place: Place, captured: bool) {
        let entry = self.pods.entry(place.spec.uid.clone()).or_insert_with(|| Entry::new(place.spec.to_string()));
        entry.captured = captured;
        entry.wanted = Some(Ok(place.spec.clone()));
        entry.place = Some(place);
    }

    /// The steps to take at this moment. Each is to be reported on.
    pub fn next(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut busy = self.pods.values().filter(|entry| entry.busy).count();
        let uids: Vec<Uid> = self.pods.keys().cloned().collect();
        for uid in uids {
            let entry = self.pods.get(&uid).expect("the key was just listed");
            if entry.busy || busy >= MAX_BUSY || !entry.is_due(now) {
                continue;
            }
            let action = match entry.step() {
                Step::Rest => continue,
                Step::Forget => {
                    self.pods.remove(&uid);
                    continue;
                }
                Step::Withdraw => entry.place.clone().map(Action::Withdraw),
                Step::Enrol(spec) => self.place(&uid, *spec).map(Action::Enrol),
            };
            let Some(action) = action else { continue };
            self.pods.get_mut(&uid).expect("the key was just listed").busy = true;
            busy += 1;
            actions.push(action);
        }
        actions
    }

    /// Gives a pod its place; none if it cannot have one at this moment.
    fn place(&mut self, uid: &Uid, spec: PodSpec) -> Option<Place> {
        let conflict = self.conflict(uid, &spec.addresses);
        let free = self.free_index();
        let entry = self.pods.get_mut(uid)?;
        let former = entry.place.as_ref();
        let index = match (conflict, former.map(|place| place.index).or(free)) {
            (Some(conflict), _) => {
                entry.object(conflict);
                return None;
            }
            (None, None) => {
                entry.object(format!("this node has {MAX_PODS} pods in the mesh already, and the maps hold no more"));
                return None;
            }
            (None, Some(index)) => index,
        };
        let (netns, cookie) = former.map_or((None, None), |place| (place.netns, place.cookie));
        let place = Place { spec, index, netns, cookie };
        entry.place = Some(place.clone());
        Some(place)
    }

    /// An address belongs to whoever has it first.
    fn conflict(&self, uid: &Uid, addresses: &[IpAddr]) -> Option<String> {
        self.others(uid).find_map(|(other, place)| {
            let address = place.spec.addresses.iter().find(|address| addresses.contains(address))?;
            Some(format!("address {address} belongs to pod {other} already"))
        })
    }

    fn others(&self, uid: &Uid) -> impl Iterator<Item = (&str, &Place)> {
        let others = self.pods.iter().filter(move |(other, _)| *other != uid);
        others.filter_map(|(_, entry)| Some((entry.title.as_str(), entry.place.as_ref()?)))
    }

    fn free_index(&self) -> Option<u32> {
        let mut taken = vec![false; MAX_PODS as usize];
        for place in self.pods.values().filter_map(|entry| entry.place.as_ref()) {
            if let Some(taken) = taken.get_mut(place.index as usize) {
                *taken = true;
            }
        }
        (0..MAX_PODS).zip(taken).find(|(_, taken)| !taken).map(|(index, _)| index)
    }

    /// Whether a pod that is being enrolled may have the network namespace that was found at its path. If not, the
    /// step is over.
    pub fn claim(&mut self, uid: &Uid, netns: NetnsId, now: Instant) -> bool {
        let holder = self.others(uid).find(|(_, place)| place.netns == Some(netns)).map(|(other, _)| other.to_owned());
        let Some(entry) = self.pods.get_mut(uid) else { return false };
        if let Some(holder) = holder {
            entry.busy = false;
            entry.fail(format!("its network namespace belongs to pod {holder} already"), false, now);
            match entry.place.as_ref().is_some_and(|place| place.netns.is_some()) {
                true => entry.obsolete = true,
                false => entry.place = None,
            }
            return false;
        }
        let Some(place) = &mut entry.place else { return false };
        if place.netns.is_some_and(|former| former != netns) {
            entry.busy = false;
            entry.obsolete = true;
            return false;
        }
        place.netns = Some(netns);
        true
    }

    /// A pod is captured.
    pub fn enrolled(&mut self, uid: &Uid, cookie: u64) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.busy = false;
        entry.captured = true;
        entry.stale = false;
        entry.trouble = None;
        if let Some(place) = &mut entry.place {
            place.cookie = Some(cookie);
        }
        entry.object_to_wanted();
    }

    /// A step failed, or it has to wait. It will be taken again.
    pub fn failed(&mut self, uid: &Uid, text: String, waiting: bool, now: Instant) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.busy = false;
            entry.stale = entry.captured;
            entry.fail(text, waiting, now);
        }
    }

    /// The network namespace of a pod is gone. What is in the kernel for it is withdrawn.
    pub fn vanished(&mut self, uid: &Uid, text: String, now: Instant) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.busy = false;
            entry.fail(text, false, now);
            if entry.place.as_ref().is_some_and(|place| place.netns.is_some() || place.cookie.is_some()) {
                entry.obsolete = true;
                if let Some(trouble) = &mut entry.trouble {
                    trouble.retry_at = None;
                }
            } else {
                // Nothing was done for it.
                entry.place = None;
            }
        }
    }

    /// Nothing of a pod is left in the kernel but its rules.
    pub fn withdrawn(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.busy = false;
            entry.captured = false;
            entry.stale = false;
            entry.obsolete = false;
            entry.place = None;
            entry.object_to_wanted();
        }
    }

    /// Something about a captured pod is not as it should be: it is enrolled again, and what is right is left alone.
    pub fn repair(&mut self, uid: &Uid) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.stale = entry.captured;
        }
    }

    /// Pods that are captured and at rest, to be looked at.
    pub fn at_rest(&self) -> impl Iterator<Item = &Place> {
        let at_rest = self.pods.values().filter(|entry| entry.captured && !entry.busy && !entry.obsolete);
        at_rest.filter_map(|entry| entry.place.as_ref())
    }

    /// Whether this pod is captured.
    pub fn is_captured(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|entry| entry.captured)
    }

    /// What may be in the kernel for this pod.
    pub fn place_of(&self, uid: &str) -> Option<&Place> {
        self.pods.get(uid)?.place.as_ref()
    }

    /// When the next attempt is due.
    pub fn due_at(&self) -> Option<Instant> {
        let waiting = self.pods.values().filter(|entry| !entry.busy && !matches!(entry.step(), Step::Rest));
        waiting.filter_map(|entry| entry.trouble.as_ref()?.retry_at).min()
    }

    /// Every pod.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.pods.iter().map(|(uid, entry)| {
            let reason = entry.trouble.as_ref();
            let state = match &entry.wanted {
                None => State::Removing,
                Some(_) if entry.captured => State::Enrolled,
                Some(_) if reason.is_some_and(|trouble| !trouble.waiting) => State::Failed,
                Some(_) => State::Pending,
            };
            let nothing = if state == State::Pending { "being enrolled" } else { "" };
            let reason = reason.map_or(nothing, |trouble| trouble.text.as_str());
            View { uid, title: &entry.title, state, reason, place: entry.place.as_ref() }
        })
    }
}

#[cfg(test)]
mod tests;
