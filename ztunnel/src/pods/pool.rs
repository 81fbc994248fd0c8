//! Sockets in stock: one kind, one pod. Asking the keeper for each would cost a round trip on every connection.

use super::SocketError;
use loam_node::Kind;
use loam_node::message::MAX_DESCRIPTORS;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// First batch, and the stock of a pod that is idle: most pods dial little.
const FIRST_BATCH: usize = 16;

/// Batch of a pod that has used up its first one.
const BUSY_BATCH: usize = 64;

/// A batch that is used up within this time is followed by one of twice the size.
const FAST: Duration = Duration::from_millis(500);

/// A pod that has taken nothing for so long is idle.
const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Most connections that wait for a socket. At the keeper's pace of some 50,000 sockets per second they wait a tenth of a
/// second; more would only wait to time out.
const MAX_WAITERS: usize = 4096;

/// What a taker gets.
#[derive(Debug)]
pub(super) enum Take {
    /// A socket.
    Ready(OwnedFd),
    /// A place in the queue.
    Wait(oneshot::Receiver<Result<OwnedFd, SocketError>>),
}

/// The stock. Where a method answers with a count, the caller has to ask the keeper for as many.
#[derive(Debug)]
pub(super) struct Pool {
    kind: Kind,
    stock: Mutex<Stock>,
}

#[derive(Debug, Default)]
struct Stock {
    ready: Vec<OwnedFd>,
    waiters: VecDeque<oneshot::Sender<Result<OwnedFd, SocketError>>>,
    /// Whether the keeper has been asked and has not answered.
    asked: bool,
    /// Size of the last batch asked for; 0 before the first.
    batch: usize,
    asked_at: Option<Instant>,
    taken_at: Option<Instant>,
}

impl Pool {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, stock: Mutex::default() }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes a socket or a place in the queue.
    pub(super) fn take(&self, now: Instant) -> Result<(Take, Option<usize>), SocketError> {
        let mut stock = self.stock();
        stock.taken_at = Some(now);
        let taken = match stock.ready.pop() {
            Some(fd) => Take::Ready(fd),
            None => {
                // Those who gave up need no place.
                if stock.waiters.len() >= MAX_WAITERS {
                    stock.waiters.retain(|waiter| !waiter.is_closed());
                }
                if stock.waiters.len() >= MAX_WAITERS {
                    return Err(SocketError::Busy);
                }
                let (sender, receiver) = oneshot::channel();
                stock.waiters.push_back(sender);
                Take::Wait(receiver)
            }
        };
        Ok((taken, stock.need(now)))
    }

    /// Puts what the keeper sent into the hands that wait, in their order, and the rest in stock.
    pub(super) fn supply(&self, now: Instant, fds: Vec<OwnedFd>) -> Option<usize> {
        let mut stock = self.stock();
        stock.asked = false;
        for fd in fds {
            let mut left = Some(fd);
            while let Some(fd) = left.take() {
                match stock.waiters.pop_front() {
                    // One that has given up hands it back.
                    Some(waiter) => left = waiter.send(Ok(fd)).err().and_then(Result::ok),
                    None => stock.ready.push(fd),
                }
            }
        }
        stock.need(now)
    }

    /// The keeper could not supply: who waits is told why.
    pub(super) fn refuse(&self, why: &str) {
        let mut stock = self.stock();
        stock.asked = false;
        for waiter in stock.waiters.drain(..) {
            // It may have given up.
            let _ = waiter.send(Err(SocketError::Refused(why.into())));
        }
    }

    /// The keeper was lost with our request; who waits goes on waiting.
    pub(super) fn lost(&self) {
        self.stock().asked = false;
    }

    /// A keeper is there (again).
    pub(super) fn resume(&self, now: Instant) -> Option<usize> {
        let mut stock = self.stock();
        // A kind that was never used is not stocked.
        if stock.batch == 0 && stock.waiters.is_empty() { None } else { stock.need(now) }
    }

    /// Gives back what an idle pod does not need.
    pub(super) fn trim(&self, now: Instant) {
        let mut stock = self.stock();
        if stock.taken_at.is_some_and(|taken_at| now.duration_since(taken_at) >= IDLE_AFTER) {
            stock.ready.truncate(FIRST_BATCH);
            stock.ready.shrink_to_fit();
            stock.batch = stock.batch.min(FIRST_BATCH);
        }
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stock {
    /// How many to ask for, if it is time: when somebody waits or half a batch is gone.
    fn need(&mut self, now: Instant) -> Option<usize> {
        let low = self.ready.len() < (self.batch / 2).max(1);
        if self.asked || !low {
            return None;
        }
        let fast = self.asked_at.is_some_and(|asked_at| now.duration_since(asked_at) < FAST);
        self.batch = match self.batch {
            0 => FIRST_BATCH,
            batch if fast => (batch * 2).clamp(BUSY_BATCH, MAX_DESCRIPTORS),
            batch => batch,
        };
        self.batch = self.batch.max(self.waiters.len().min(MAX_DESCRIPTORS));
        self.asked = true;
        self.asked_at = Some(now);
        Some(self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd as _, AsRawFd as _};

    fn fds(count: usize) -> Vec<OwnedFd> {
        let null = std::fs::File::open("/dev/null").unwrap();
        (0..count).map(|_| null.as_fd().try_clone_to_owned().unwrap()).collect()
    }

    fn wait(pool: &Pool, now: Instant) -> (oneshot::Receiver<Result<OwnedFd, SocketError>>, Option<usize>) {
        match pool.take(now).unwrap() {
            (Take::Wait(waiting), need) => (waiting, need),
            (Take::Ready(_), _) => panic!("the pool was not empty"),
        }
    }

    /// Takes `count` from stock; the needs that arose.
    fn drain(pool: &Pool, now: Instant, count: usize) -> Vec<usize> {
        let take = |_| match pool.take(now).unwrap() {
            (Take::Ready(_), need) => need,
            (Take::Wait(_), _) => panic!("the pool ran dry"),
        };
        (0..count).filter_map(take).collect()
    }

    #[test]
    fn the_first_need_is_small_and_a_pod_in_haste_gets_larger_batches() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let (_waiting, need) = wait(&pool, now);
        assert_eq!(need, Some(16));
        assert_eq!(pool.supply(now, fds(16)), None);
        // Fifteen are left; below eight the next batch is due, once.
        assert_eq!(drain(&pool, now, 7), [0_usize; 0]);
        assert_eq!(drain(&pool, now, 8), [64]);
        assert_eq!(pool.supply(now, fds(64)), None);
        assert_eq!(drain(&pool, now, 33), [128]);
        pool.supply(now, fds(128));
        assert_eq!(drain(&pool, now, 150), [253]);
    }

    #[test]
    fn a_pod_that_dials_now_and_then_keeps_its_small_batch() {
        let (pool, mut now) = (Pool::new(Kind::Out4), Instant::now());
        let (_waiting, _) = wait(&pool, now);
        pool.supply(now, fds(16));
        now += Duration::from_secs(10);
        assert_eq!(drain(&pool, now, 8), [16]);
    }

    #[test]
    fn waiters_are_served_in_order_and_those_who_gave_up_are_passed_over() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let (mut first, _) = wait(&pool, now);
        let (second, need) = wait(&pool, now);
        assert_eq!(need, None, "asked once only");
        let (mut third, _) = wait(&pool, now);
        drop(second);
        let sent = fds(2);
        let numbers: Vec<i32> = sent.iter().map(|fd| fd.as_raw_fd()).collect();
        pool.supply(now, sent);
        let number = |waiting: &mut oneshot::Receiver<Result<OwnedFd, SocketError>>| {
            waiting.try_recv().unwrap().unwrap().as_raw_fd()
        };
        assert_eq!([number(&mut first), number(&mut third)], numbers[..]);
    }

    #[test]
    fn more_waiters_than_came_sockets_ask_again() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let waiting: Vec<_> = (0..40).map(|_| wait(&pool, now).0).collect();
        assert_eq!(pool.supply(now, fds(16)), Some(64));
        assert_eq!(pool.supply(now, fds(64)), None);
        drop(waiting);
    }

    #[test]
    fn a_refusal_reaches_who_waits_and_the_next_need_asks_again() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let (mut waiting, _) = wait(&pool, now);
        pool.refuse("the pod is not there");
        let refused = SocketError::Refused("the pod is not there".into());
        assert_eq!(waiting.try_recv().unwrap().unwrap_err(), refused);
        assert!(wait(&pool, now).1.is_some());
    }

    #[test]
    fn a_lost_keeper_costs_nobody_the_place() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let (mut waiting, _) = wait(&pool, now);
        pool.lost();
        assert!(pool.resume(now).is_some());
        pool.supply(now, fds(1));
        assert!(waiting.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_kind_that_was_never_used_is_not_stocked() {
        assert_eq!(Pool::new(Kind::In6).resume(Instant::now()), None);
    }

    #[test]
    fn the_queue_is_bounded() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let mut waiting: Vec<_> = (0..MAX_WAITERS).map(|_| wait(&pool, now).0).collect();
        assert_eq!(pool.take(now).unwrap_err(), SocketError::Busy);
        waiting.pop();
        assert!(pool.take(now).is_ok(), "who gave up makes room");
    }

    #[test]
    fn an_idle_pod_gives_sockets_back() {
        let (pool, now) = (Pool::new(Kind::Out4), Instant::now());
        let _waiting = wait(&pool, now);
        pool.supply(now, fds(253));
        pool.trim(now + IDLE_AFTER - Duration::from_millis(1));
        assert!(pool.stock().ready.len() > FIRST_BATCH);
        pool.trim(now + IDLE_AFTER);
        assert_eq!(pool.stock().ready.len(), FIRST_BATCH);
    }
}
