//! What was written, and when it is to be looked at again. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loam_manifest::{Key, Kind};
use tokio::time::Instant;

use crate::index::{Wish, Wishes};
use crate::resource::Name;
use crate::status::gateway::Waypoint;

/// A waypoint is looked at again after this: its parts may have been changed, and what they are made with.
const WAYPOINT_AGAIN: Duration = Duration::from_secs(30);
/// So is whatever was told: somebody may have written over it.
const TOLD_AGAIN: Duration = Duration::from_secs(600);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Something to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Task {
    /// The class of waypoints.
    Class,
    /// A waypoint and its status.
    Waypoint(Name, Arc<Waypoint>),
    /// The status of another object.
    Told(Key, Arc<Wish>),
    /// Of somebody who has no waypoint any more.
    Unbound(Key),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Class => f.write_str("class of waypoints"),
            Task::Waypoint(name, _) => write!(f, "waypoint {name}"),
            Task::Told(key, _) | Task::Unbound(key) => write!(f, "status of {key}"),
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    waypoints: BTreeMap<Name, Past<Arc<Waypoint>>>,
    told: BTreeMap<Key, Past<Arc<Wish>>>,
    class: Option<Instant>,
}

#[derive(Debug)]
struct Past<T> {
    what: T,
    again: Instant,
}

impl Done {
    /// What is due, most urgent first.
    pub(super) fn due(&mut self, wishes: &Wishes, now: Instant, most: usize) -> Vec<Task> {
        self.waypoints.retain(|name, _| wishes.waypoints.contains_key(name));
        let class = (!wishes.has_class && self.class.is_none_or(|again| again <= now)).then_some(Task::Class);
        let waypoints = wishes.waypoints.iter().filter(|(name, wish)| is_due(self.waypoints.get(name), wish, now));
        let waypoints = waypoints.map(|(name, wish)| Task::Waypoint(name.clone(), Arc::clone(wish)));
        let told = wishes.told.iter().filter(|(key, wish)| is_due(self.told.get(key), wish, now));
        let told = told.map(|(key, wish)| Task::Told(key.clone(), Arc::clone(wish)));
        let gone = self.told.iter().filter(|(key, past)| !wishes.told.contains_key(key) && past.again <= now);
        let gone = gone.map(|(key, _)| Task::Unbound(key.clone()));
        let due: Vec<Task> = class.into_iter().chain(waypoints).chain(told).take(most).collect();
        let rest = most - due.len();
        let gone: Vec<Task> = gone.take(rest).collect();
        due.into_iter().chain(gone).collect()
    }

    /// Notes that something was tried.
    pub(super) fn note(&mut self, task: Task, well: bool, now: Instant) {
        let again = |pause: Duration| now + if well { pause } else { RETRY };
        match task {
            // It may be that the server does not know the kind.
            Task::Class => self.class = Some(now + WAYPOINT_AGAIN),
            Task::Waypoint(name, what) => {
                self.waypoints.insert(name, Past { what, again: again(WAYPOINT_AGAIN) });
            }
            Task::Told(key, what) => {
                self.told.insert(key, Past { what, again: again(TOLD_AGAIN) });
            }
            Task::Unbound(key) if well => drop(self.told.remove(&key)),
            Task::Unbound(key) => {
                if let Some(past) = self.told.get_mut(&key) {
                    past.again = again(RETRY);
                }
            }
        }
    }

    /// Notes whom nothing is told any more, so that it is taken back at once.
    pub(super) fn forget(&mut self, wishes: &Wishes, now: Instant) {
        // Routes, policies and classes went with what was told about them.
        let stays = |kind: Kind| matches!(kind, Kind::Service | Kind::ServiceEntry);
        self.told.retain(|key, _| wishes.told.contains_key(key) || stays(key.kind));
        for (_, past) in self.told.iter_mut().filter(|(key, _)| !wishes.told.contains_key(key)) {
            past.again = past.again.min(now);
        }
    }
}

fn is_due<T: PartialEq>(past: Option<&Past<T>>, wish: &T, now: Instant) -> bool {
    past.is_none_or(|past| past.again <= now || past.what != *wish)
}
