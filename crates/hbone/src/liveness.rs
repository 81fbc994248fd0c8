//! Finds a tunnel whose peer is gone without a word.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a tunnel may be silent before it is asked.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long it may stay silent after that.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Pings a silent tunnel. Any byte is a sign of life: a peer that is busy sending may answer late.
pub(crate) struct Liveness {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    /// Bytes that had arrived at `heard_at`.
    arrived: u64,
    heard_at: Instant,
    /// A PING waits for its answer; HTTP/2 here allows one at a time.
    owed: bool,
    /// The silence counts towards the end of the tunnel.
    asked: bool,
}

/// What the timer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// All is well; a moment for whoever looks at idle tunnels.
    Beat,
    /// Nothing came within the time limit.
    Dead,
}

impl Liveness {
    pub(crate) fn new(pings: PingPong) -> Self {
        let now = Instant::now();
        Self {
            pings,
            timer: Box::pin(sleep_until(now + PING_INTERVAL)),
            arrived: 0,
            heard_at: now,
            owed: false,
            asked: false,
        }
    }

    /// Takes the bytes of the tunnel so far; to be called at every turn.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, arrived: u64) -> Poll<Pulse> {
        if arrived != self.arrived {
            self.arrived = arrived;
            self.heard_at = Instant::now();
            if self.asked {
                self.asked = false;
                self.timer.as_mut().reset(self.heard_at + PING_INTERVAL);
            }
        }
        if self.owed && self.pings.poll_pong(cx).is_ready() {
            self.owed = false;
        }
        ready!(self.timer.as_mut().poll(cx));
        if self.asked {
            return Poll::Ready(Pulse::Dead);
        }
        let now = Instant::now();
        let ask_at = self.heard_at + PING_INTERVAL;
        if ask_at > now {
            self.timer.as_mut().reset(ask_at);
        } else {
            self.asked = true;
            // It fails only on a connection that is over, which then ends by itself.
            self.owed = self.owed || self.pings.send_ping(Ping::opaque()).is_ok();
            self.timer.as_mut().reset(now + PING_TIMEOUT);
            // A PING is sent, and its answer noticed, in the next turn.
            cx.waker().wake_by_ref();
        }
        // The fresh timer must know this task.
        let _ = self.timer.as_mut().poll(cx);
        Poll::Ready(Pulse::Beat)
    }
}
