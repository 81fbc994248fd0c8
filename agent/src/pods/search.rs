//! When the node's processes are looked through for pods: at once for a pod that is new, then at growing intervals, and
//! never for more than a small share of the time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::spec::Uid;

/// Wait after a first search that did not find everything. A sandbox comes up within some tens of milliseconds.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Longest wait between two searches.
const LAST_DELAY: Duration = Duration::from_secs(5);

/// A search is followed by a pause of so many times its length: on a node with many processes, one takes a while.
const REST: u32 = 10;

/// A plain machine: it is told what is missing and when a search has ended, and says when the next one begins.
#[derive(Debug)]
pub struct Search {
    missing: BTreeSet<Uid>,
    /// What the last search was for.
    searched: BTreeSet<Uid>,
    is_running: bool,
    next_at: Option<Instant>,
    rested_at: Option<Instant>,
    delay: Duration,
}

impl Default for Search {
    fn default() -> Self {
        let (missing, searched) = Default::default();
        Self { missing, searched, is_running: false, next_at: None, rested_at: None, delay: FIRST_DELAY }
    }
}

impl Search {
    /// These are missing at this moment, and no others.
    pub fn want(&mut self, missing: BTreeSet<Uid>, now: Instant) {
        // One that was found a moment ago and is missing again is no reason to hurry.
        let is_fresh = |uid: &Uid| !self.missing.contains(uid) && !self.searched.contains(uid);
        let is_long_ago = self.missing.is_empty() && self.next_at.is_none_or(|next| next + LAST_DELAY < now);
        if missing.iter().any(is_fresh) || is_long_ago && !self.is_running {
            self.delay = FIRST_DELAY;
            self.next_at = Some(now);
        }
        self.missing = missing;
    }

    /// What to search for, if it is time. [`Self::ended`] is to follow.
    pub fn begin(&mut self, now: Instant) -> Option<BTreeSet<Uid>> {
        self.due_at().filter(|due| *due <= now)?;
        self.is_running = true;
        self.next_at = None;
        self.searched.clone_from(&self.missing);
        Some(self.missing.clone())
    }

    /// A search has ended that took so long.
    pub fn ended(&mut self, took: Duration, now: Instant) {
        self.is_running = false;
        self.rested_at = Some(now + took.saturating_mul(REST));
        // For a pod that came meanwhile it is time already.
        if self.next_at.is_none() {
            self.next_at = Some(now + self.delay);
            self.delay = (self.delay * 2).min(LAST_DELAY);
        }
    }

    /// When the next search is due.
    pub fn due_at(&self) -> Option<Instant> {
        match self.is_running || self.missing.is_empty() {
            true => None,
            false => self.next_at.max(self.rested_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[&str]) -> BTreeSet<Uid> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_missing_pod_is_searched_for_at_once_and_then_ever_more_rarely() {
        let (mut search, mut now) = (Search::default(), Instant::now());
        assert_eq!(search.due_at(), None);
        search.want(pods(&["a"]), now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(search.begin(now), Some(pods(&["a"])));
            assert_eq!(search.begin(now), None, "it is under way");
            search.ended(Duration::ZERO, now);
            search.want(pods(&["a"]), now);
            let due = search.due_at().unwrap();
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        search.want(pods(&[]), now);
        assert_eq!(search.due_at(), None);
    }

    #[test]
    fn a_pod_that_comes_later_is_searched_for_at_once() {
        let (mut search, now) = (Search::default(), Instant::now());
        search.want(pods(&["a"]), now);
        search.begin(now).unwrap();
        search.ended(Duration::ZERO, now);
        assert_eq!(search.begin(now), None);
        search.want(pods(&["a", "b"]), now);
        assert_eq!(search.begin(now), Some(pods(&["a", "b"])));
        search.want(pods(&["a", "b", "c"]), now);
        search.ended(Duration::ZERO, now);
        assert_eq!(search.begin(now), Some(pods(&["a", "b", "c"])), "it came while the search was under way");
    }

    #[test]
    fn a_pod_that_is_found_and_lost_over_and_over_is_searched_for_no_more_often_than_one_that_is_not_found() {
        let (mut search, mut now) = (Search::default(), Instant::now());
        search.want(pods(&["a"]), now);
        for _ in 0..8 {
            search.begin(now).unwrap();
            search.ended(Duration::ZERO, now);
            search.want(pods(&[]), now);
            search.want(pods(&["a"]), now);
            now = search.due_at().unwrap();
        }
        search.begin(now).unwrap();
        search.ended(Duration::ZERO, now);
        assert_eq!(search.due_at(), Some(now + LAST_DELAY));
        search.want(pods(&[]), now);
        let later = now + 3 * LAST_DELAY;
        search.want(pods(&["a"]), later);
        assert_eq!(search.due_at(), Some(later));
    }

    #[test]
    fn long_searches_are_followed_by_longer_pauses_whatever_comes() {
        let (mut search, now) = (Search::default(), Instant::now());
        search.want(pods(&["a"]), now);
        search.begin(now).unwrap();
        search.ended(Duration::from_millis(80), now);
        search.want(pods(&["a", "b"]), now);
        assert_eq!(search.due_at(), Some(now + Duration::from_millis(800)));
    }
}
