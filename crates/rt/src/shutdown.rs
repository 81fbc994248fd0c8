//! From the first request to end to the end of the process.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::drain::{self, Trigger};

/// Requests waiting to be seen. One starts the drain and one more signal ends it; further ones change nothing.
const MAX_WAITING: usize = 4;

/// Who asked the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// The admin server or the process itself.
    Request,
    /// Another process has taken its place. Nobody has asked for its end.
    Replaced,
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The drain came to its own end.
    Drain(drain::Ending),
    /// A signal during the drain cut it short.
    Cut,
}

/// Waits for requests to end.
#[derive(Debug)]
pub struct Shutdown {
    asks: mpsc::Receiver<Cause>,
    asker: Asker,
    /// Whether somebody asked for the end of the process.
    told: bool,
}

/// Asks the process to end.
#[derive(Debug, Clone)]
pub struct Asker {
    asks: mpsc::Sender<Cause>,
}

impl Asker {
    /// Starts the drain. Asking again changes nothing, and so does a signal afterwards being the first: orchestrators
    /// send one after their own request.
    pub fn ask(&self) {
        self.send(Cause::Request);
    }

    /// Starts the drain, after which the process may stay: see [`Shutdown::told`].
    pub fn replaced(&self) {
        self.send(Cause::Replaced);
    }

    fn send(&self, cause: Cause) {
        // Full means that the end was already asked for more than once.
        let _ = self.asks.try_send(cause);
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        let (sender, asks) = mpsc::channel(MAX_WAITING);
        Self { asks, asker: Asker { asks: sender }, told: false }
    }
}

impl Shutdown {
    /// One that also hears SIGTERM and SIGINT, which no longer kill the process from here on.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asker = shutdown.asker();
        tokio::spawn(async move {
            loop {
                let cause = tokio::select! {
                    Some(()) = terminate.recv() => Cause::Terminate,
                    Some(()) = interrupt.recv() => Cause::Interrupt,
                    () = asker.asks.closed() => return,
                };
                asker.send(cause);
            }
        });
        Ok(shutdown)
    }

    /// A handle for the admin server.
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Waits for the first request.
    pub async fn asked(&mut self) -> Cause {
        let cause = self.asks.recv().await.expect("this value holds a sender");
        self.told |= cause != Cause::Replaced;
        cause
    }

    /// Waits until somebody has asked for the end of the process, which may be so already.
    pub async fn told(&mut self) {
        while !self.told {
            self.asked().await;
        }
    }

    /// Drains after `first`. A second signal ends it at once.
    pub async fn drain(&mut self, first: Cause, trigger: Trigger, deadline: Duration) -> Ending {
        let mut signalled = matches!(first, Cause::Terminate | Cause::Interrupt);
        let draining = trigger.drain(deadline);
        tokio::pin!(draining);
        loop {
            tokio::select! {
                ending = &mut draining => return Ending::Drain(ending),
                cause = self.asked() => match cause {
                    Cause::Request | Cause::Replaced => {}
                    Cause::Terminate | Cause::Interrupt if signalled => return Ending::Cut,
                    Cause::Terminate | Cause::Interrupt => signalled = true,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_drains_and_the_second_cuts() {
        let mut shutdown = Shutdown::default();
        let asker = shutdown.asker();
        let (trigger, drain) = drain::channel();
        let _guard = drain.guard();
        asker.send(Cause::Terminate);
        let first = shutdown.asked().await;
        let ending = tokio::spawn(async move { shutdown.drain(first, trigger, DEADLINE).await });
        drain.started().await;
        asker.send(Cause::Interrupt);
        assert_eq!(ending.await.unwrap(), Ending::Cut);
        drain.forced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_after_a_request_does_not_cut_but_the_next_does() {
        let mut shutdown = Shutdown::default();
        let asker = shutdown.asker();
        let (trigger, drain) = drain::channel();
        let _guard = drain.guard();
        asker.ask();
        let first = shutdown.asked().await;
        let ending = tokio::spawn(async move { shutdown.drain(first, trigger, DEADLINE).await });
        drain.started().await;
        asker.ask();
        asker.send(Cause::Terminate);
        tokio::task::yield_now().await;
        assert!(!drain.is_forced());
        asker.send(Cause::Terminate);
        assert_eq!(ending.await.unwrap(), Ending::Cut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_connections_ends_by_itself() {
        let mut shutdown = Shutdown::default();
        let (trigger, _drain) = drain::channel();
        shutdown.asker().ask();
        let first = shutdown.asked().await;
        let ending = shutdown.drain(first, trigger, DEADLINE).await;
        assert_eq!(ending, Ending::Drain(drain::Ending::Drained));
    }
    #[tokio::test(start_paused = true)]
    async fn who_was_replaced_stays_until_somebody_asks_for_its_end() {
        let mut shutdown = Shutdown::default();
        let (trigger, _drain) = drain::channel();
        let asker = shutdown.asker();
        asker.replaced();
        let first = shutdown.asked().await;
        assert_eq!(shutdown.drain(first, trigger, DEADLINE).await, Ending::Drain(drain::Ending::Drained));
        assert!(tokio::time::timeout(DEADLINE, shutdown.told()).await.is_err());
        asker.replaced();
        asker.send(Cause::Terminate);
        shutdown.told().await;
        shutdown.told().await;
    }
}
