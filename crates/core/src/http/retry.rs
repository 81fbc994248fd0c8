//! Whether a request is tried again, after how long, and how long a try may take.

use std::time::Duration;

use http::StatusCode;

use super::failure::Failure;
use super::route::Timeouts;
use super::traffic::{Retry, RetryOn};

/// How one try at a backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With an answer.
    Answer {
        /// Its status.
        status: StatusCode,
        /// The status of gRPC in its headers, where it has no body.
        grpc: Option<u32>,
    },
    /// No connection came about.
    ConnectFailed,
    /// The upstream has not begun with it, and says so: `REFUSED_STREAM`, a `GOAWAY` below the stream, or the end of a
    /// kept connection before a byte of the request was sent.
    Unprocessed,
    /// The connection broke before an answer began.
    Reset,
    /// The time for one try is over.
    TimedOut,
}

/// A request that was tried.
#[derive(Debug, Clone, Copy)]
pub struct Tried<'a> {
    /// What the rule says of retries.
    pub retry: Option<&'a Retry>,
    /// How often it was tried.
    pub tries: u32,
    /// How the last try ended.
    pub end: End,
    /// Whether it can be sent again as it was: its body was kept, or none of it was sent.
    pub replayable: bool,
    /// What is left of the time for the whole request.
    pub left: Option<Duration>,
}

/// Tries that a request gets without a word in the rule, when the one before never reached a program.
const UNPROCESSED_TRIES: u32 = 3;

impl Tried<'_> {
    /// After what wait it is to be tried again; `None` if not. A budget may still forbid it. `draw` decides within the
    /// bounds of the wait.
    pub fn again(&self, draw: u64) -> Option<Duration> {
        if !self.replayable {
            return None;
        }
        let wait = match self.retry.filter(|retry| retry.on.fits(self.end)) {
            Some(retry) if self.tries <= retry.attempts => retry.wait(self.tries, draw),
            // Nothing was served, so another endpoint may well take it (RFC 9110 9.2.2, RFC 9113 8.7).
            _ if self.end.is_unserved() && self.tries < UNPROCESSED_TRIES => Duration::ZERO,
            _ => return None,
        };
        self.left.is_none_or(|left| wait < left).then_some(wait)
    }
}

impl End {
    /// Whether certainly no program has seen the request.
    pub fn is_unserved(self) -> bool {
        match self {
            End::ConnectFailed | End::Unprocessed => true,
            End::Answer { .. } | End::Reset | End::TimedOut => false,
        }
    }

    /// The failure that it is when it is not tried again. An answer is passed on.
    pub fn failure(self) -> Option<Failure> {
        match self {
            End::Answer { .. } => None,
            End::ConnectFailed => Some(Failure::ConnectFailed),
            End::Unprocessed | End::Reset => Some(Failure::UpstreamReset),
            End::TimedOut => Some(Failure::TryTimeout),
        }
    }
}

impl RetryOn {
    /// Whether it names such an end.
    pub fn fits(&self, end: End) -> bool {
        match end {
            End::Answer { status, grpc } => {
                self.statuses.contains(&status)
                    || (self.any_5xx && status.is_server_error())
                    || grpc.is_some_and(|code| self.grpc.contains(&code))
            }
            End::ConnectFailed => self.connect_failure || self.any_5xx,
            End::Unprocessed => self.refused_stream || self.reset || self.any_5xx,
            End::Reset => self.reset || self.any_5xx,
            End::TimedOut => self.timeout || self.any_5xx,
        }
    }
}

impl Retry {
    /// The wait after `tries` tries: the least, doubled with each, and by chance up to half as long again, so that
    /// those who failed together do not come back together.
    fn wait(&self, tries: u32, draw: u64) -> Duration {
        let doublings = tries.saturating_sub(1).min(16);
        let least = self.backoff.saturating_mul(1 << doublings).min(self.max_backoff.max(self.backoff));
        least + least.mul_f64(draw as f64 / u64::MAX as f64 / 2.0)
    }
}

impl Timeouts {
    /// How long the next try may take when `elapsed` of the request's time is over, and which failure it is when that
    /// runs out. `None` if there is no limit.
    pub fn next_try(&self, elapsed: Duration) -> Option<(Duration, Failure)> {
        let left = self.request.map(|limit| limit.saturating_sub(elapsed));
        match (left, self.backend_request) {
            (Some(left), Some(one)) if one < left => Some((one, Failure::TryTimeout)),
            (Some(left), _) => Some((left, Failure::Timeout)),
            (None, Some(one)) => Some((one, Failure::TryTimeout)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(attempts: u32, on: RetryOn) -> Retry {
        let (backoff, max_backoff) = (Duration::from_millis(100), Duration::from_millis(500));
        Retry { attempts, on, backoff, max_backoff }
    }

    fn answer(status: u16) -> End {
        End::Answer { status: StatusCode::from_u16(status).unwrap(), grpc: None }
    }

    fn tried(retry: Option<&Retry>, tries: u32, end: End) -> Tried<'_> {
        Tried { retry, tries, end, replayable: true, left: None }
    }

    #[test]
    fn a_request_is_tried_again_after_the_ends_that_are_named() {
        let statuses = RetryOn { statuses: vec![StatusCode::SERVICE_UNAVAILABLE], ..RetryOn::default() };
        let any = RetryOn { any_5xx: true, ..RetryOn::default() };
        let reset = RetryOn { reset: true, ..RetryOn::default() };
        let timeout = RetryOn { timeout: true, ..RetryOn::default() };
        let grpc = RetryOn { grpc: vec![14], ..RetryOn::default() };
        let unavailable = End::Answer { status: StatusCode::OK, grpc: Some(14) };
        for (on, end, again) in [
            (&statuses, answer(503), true),
            (&statuses, answer(500), false),
            (&statuses, End::Reset, false),
            (&any, answer(500), true),
            (&any, answer(404), false),
            (&any, End::Reset, true),
            (&any, End::TimedOut, true),
            (&reset, End::Reset, true),
            (&reset, End::TimedOut, false),
            (&timeout, End::TimedOut, true),
            (&grpc, unavailable, true),
            (&grpc, End::Answer { status: StatusCode::OK, grpc: Some(13) }, false),
            (&statuses, unavailable, false),
        ] {
            let retry = retry(1, on.clone());
            assert_eq!(tried(Some(&retry), 1, end).again(0).is_some(), again, "{on:?} {end:?}");
            assert_eq!(tried(Some(&retry), 2, end).again(0), None, "{end:?} was tried too often");
            assert_eq!(tried(None, 1, end).again(0), None, "{end:?} without a word");
            let spent = Tried { replayable: false, ..tried(Some(&retry), 1, end) };
            assert_eq!(spent.again(0), None, "{end:?} without its body");
        }
    }

    #[test]
    fn what_nobody_served_is_tried_elsewhere_without_a_word() {
        for end in [End::ConnectFailed, End::Unprocessed] {
            assert_eq!(tried(None, 1, end).again(0), Some(Duration::ZERO));
            assert_eq!(tried(None, 2, end).again(0), Some(Duration::ZERO));
            assert_eq!(tried(None, 3, end).again(0), None);
            assert_eq!(Tried { replayable: false, ..tried(None, 1, end) }.again(0), None);
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end_before_the_time_of_the_request() {
        let retry = retry(9, RetryOn { any_5xx: true, ..RetryOn::default() });
        let wait = |tries, draw| tried(Some(&retry), tries, answer(500)).again(draw).unwrap().as_millis();
        let least = [1, 2, 3, 4, 9].map(|tries| wait(tries, 0));
        assert_eq!(least, [100, 200, 400, 500, 500]);
        assert_eq!((wait(1, u64::MAX), wait(9, u64::MAX)), (150, 750));
        let with_left = |ms| Tried { left: Some(Duration::from_millis(ms)), ..tried(Some(&retry), 1, answer(500)) };
        assert_eq!(with_left(100).again(0), None);
        assert_eq!(with_left(101).again(0), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_try_ends_with_its_own_time_or_with_that_of_the_request() {
        let seconds = |n: u64| Some(Duration::from_secs(n));
        for (request, one, elapsed, limit) in [
            (None, None, 5, None),
            (seconds(10), None, 4, Some((6, Failure::Timeout))),
            (seconds(10), seconds(3), 4, Some((3, Failure::TryTimeout))),
            (seconds(10), seconds(3), 8, Some((2, Failure::Timeout))),
            (seconds(10), seconds(3), 11, Some((0, Failure::Timeout))),
            (None, seconds(3), 11, Some((3, Failure::TryTimeout))),
        ] {
            let timeouts = Timeouts { request, backend_request: one };
            let limit = limit.map(|(left, failure)| (Duration::from_secs(left), failure));
            assert_eq!(timeouts.next_try(Duration::from_secs(elapsed)), limit, "{timeouts:?} after {elapsed} s");
        }
    }
}
