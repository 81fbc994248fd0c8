//! Ending politely: no new connections, time for the living ones, then force.
//!
//! One [`Trigger`] starts it, any number of [`Drain`] values watch it. A [`Guard`] stands for one connection of a user
//! and delays the end. Our own connections (configuration, certificates, tunnels without streams) take no guard: they
//! would keep the drain from ever finishing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// A drain that has not started. A process has one; so may a part of it that ends alone, such as one pod.
pub fn channel() -> (Trigger, Drain) {
    let (phase, _) = watch::channel(Phase::Serving);
    let shared = Arc::new(Shared { phase, guards: AtomicUsize::new(0), idle: Notify::new() });
    (Trigger { shared: Arc::clone(&shared) }, Drain { shared })
}

/// Starts the drain. Dropped unused, it starts and ends the drain at once: nobody would be left to end it later.
#[derive(Debug)]
pub struct Trigger {
    shared: Arc<Shared>,
}

/// Watches the drain; clones are cheap and watch the same one.
#[derive(Debug, Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// One connection of a user: while it lives the drain does not end before its deadline.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every guard was gone.
    Drained,
    /// The deadline passed while guards were left.
    DeadlinePassed {
        /// How many were left.
        left: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Over,
}

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    guards: AtomicUsize,
    idle: Notify,
}

impl Trigger {
    /// Starts the drain and waits until no guard is left or `deadline` has passed since the start. Afterwards
    /// [`Drain::forced`] is true for everyone. Dropping the future before it is ready also ends the drain.
    pub async fn drain(self, deadline: Duration) -> Ending {
        self.start();
        match tokio::time::timeout(deadline, self.shared.no_guards()).await {
            Ok(()) => Ending::Drained,
            Err(_) => match self.shared.guards.load(Ordering::Acquire) {
                0 => Ending::Drained,
                left => Ending::DeadlinePassed { left },
            },
        }
    }

    /// Starts the drain and returns; [`Trigger::drain`] then waits for its end.
    pub fn start(&self) {
        self.shared.advance(Phase::Draining);
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.shared.advance(Phase::Over);
    }
}

impl Drain {
    /// Ready once the drain has started: stop accepting, say goodbye.
    pub async fn started(&self) {
        self.shared.reached(Phase::Draining).await;
    }

    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        *self.shared.phase.borrow() >= Phase::Draining
    }

    /// Ready once the drain is over, in time or by its deadline: what still runs must stop where it is.
    pub async fn forced(&self) {
        self.shared.reached(Phase::Over).await;
    }

    /// Whether the drain is over.
    pub fn is_forced(&self) -> bool {
        *self.shared.phase.borrow() >= Phase::Over
    }

    /// A guard for one connection of a user.
    pub fn guard(&self) -> Guard {
        self.shared.guards.fetch_add(1, Ordering::Relaxed);
        Guard { shared: Arc::clone(&self.shared) }
    }

    /// How many guards live.
    pub fn guards(&self) -> usize {
        self.shared.guards.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.shared.guards.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

impl Shared {
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = *phase < to;
            *phase = (*phase).max(to);
            later
        });
    }

    async fn reached(&self, wanted: Phase) {
        // The sender is in `self`, so the channel cannot close while this waits.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }

    async fn no_guards(&self) {
        loop {
            // Registered before the count is read: a guard dropped in between is not missed.
            let idle = self.idle.notified();
            if self.guards.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_guards_ends_at_once() {
        let (trigger, drain) = channel();
        let began = tokio::time::Instant::now();
        assert_eq!(trigger.drain(DEADLINE).await, Ending::Drained);
        assert_eq!(began.elapsed(), Duration::ZERO);
        drain.forced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_guard() {
        let (trigger, drain) = channel();
        let (first, second) = (drain.guard(), drain.guard());
        let ending = tokio::spawn(trigger.drain(DEADLINE));
        drain.started().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!ending.is_finished());
        drop(second);
        assert_eq!(ending.await.unwrap(), Ending::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_that_stays_is_forced_at_the_deadline() {
        let (trigger, drain) = channel();
        let guard = drain.guard();
        let began = tokio::time::Instant::now();
        let forced = tokio::spawn({
            let drain = drain.clone();
            async move { drain.forced().await }
        });
        assert_eq!(trigger.drain(DEADLINE).await, Ending::DeadlinePassed { left: 1 });
        assert_eq!(began.elapsed(), DEADLINE);
        forced.await.unwrap();
        drop(guard);
        assert_eq!(drain.guards(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_taken_while_draining_still_counts() {
        let (trigger, drain) = channel();
        let first = drain.guard();
        trigger.start();
        let late = drain.guard();
        drop(first);
        let ending = tokio::spawn(trigger.drain(DEADLINE));
        tokio::task::yield_now().await;
        assert!(!ending.is_finished());
        drop(late);
        assert_eq!(ending.await.unwrap(), Ending::Drained);
    }

    #[tokio::test]
    async fn a_dropped_trigger_ends_the_drain() {
        let (trigger, drain) = channel();
        assert!(!drain.has_started());
        drop(trigger);
        drain.started().await;
        drain.forced().await;
        assert!(drain.is_forced());
    }
}
