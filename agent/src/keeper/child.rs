//! The agent as the keeper's child: started, started again when it ends, and never left behind.

use crate::sys::process::die_with_parent;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

/// First wait before the agent is started again.
const MIN_WAIT: Duration = Duration::from_millis(100);

/// Longest wait: an operator who has mended the cause should not wait long.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// An agent that lived this long did not fail at its start.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// How long the agent may take to end when it is told to, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<OsString>,
}

/// Keeps the program running until `stop` turns true; then ends it. Call it on a thread that lives as long as the
/// process: the kernel kills the program when that thread ends.
pub(super) async fn supervise(program: Program, mut stop: watch::Receiver<bool>) {
    let mut back_off = BackOff::default();
    loop {
        let started = Instant::now();
        match start(&program) {
            Ok(mut child) => {
                tracing::info!(pid = child.id(), "agent started");
                tokio::select! {
                    status = child.wait() => match status {
                        Ok(status) => tracing::warn!(%status, "agent ended"),
                        Err(error) => tracing::error!(%error, "agent cannot be waited for"),
                    },
                    () = stopped(&mut stop) => return end(child).await,
                }
            }
            Err(error) => tracing::error!(%error, path = %program.path.display(), "agent cannot be started"),
        }
        let wait = back_off.next(started.elapsed());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// Returns when it is time to stop, which a keeper that is gone means too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn start(program: &Program) -> std::io::Result<Child> {
    let mut command = std::process::Command::new(&program.path);
    command.args(&program.args).stdin(std::process::Stdio::null());
    die_with_parent(&mut command);
    Command::from(command).kill_on_drop(true).spawn()
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        // It may have ended in this moment.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!("agent does not end and is killed");
        // Fails only if it has ended.
        let _ = child.kill().await;
    }
}

/// Waits that double, until the program has lived for a while.
#[derive(Debug, Default)]
struct BackOff {
    last: Option<Duration>,
}

impl BackOff {
    fn next(&mut self, lived: Duration) -> Duration {
        let wait = match self.last {
            Some(last) if lived < HEALTHY_AFTER => (last * 2).min(MAX_WAIT),
            Some(_) | None => MIN_WAIT,
        };
        self.last = Some(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn waits_double_to_ten_seconds_and_begin_anew_after_a_long_life() {
        let mut back_off = BackOff::default();
        let waits: Vec<u128> = (0..9).map(|_| back_off.next(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(back_off.next(HEALTHY_AFTER), MIN_WAIT);
    }

    fn shell(script: &str) -> Program {
        Program { path: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[tokio::test]
    async fn a_program_that_ends_is_started_again() {
        let file = std::env::temp_dir().join(format!("loam-child-{}", std::process::id()));
        let (stop, stopped) = watch::channel(false);
        let script = format!("echo x >> {}", file.display());
        let supervised = tokio::spawn(supervise(shell(&script), stopped));
        while fs::read_to_string(&file).unwrap_or_default().lines().count() < 3 {
            tokio::task::yield_now().await;
        }
        stop.send(true).unwrap();
        supervised.await.unwrap();
        fs::remove_file(&file).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_told_to_end_when_the_keeper_stops() {
        let file = std::env::temp_dir().join(format!("loam-child-end-{}", std::process::id()));
        let (stop, stopped) = watch::channel(false);
        let script = format!(
            "trap 'echo ended > {0}; exit' TERM; echo started > {0}; while :; do sleep 0.01; done",
            file.display()
        );
        let supervised = tokio::spawn(supervise(shell(&script), stopped));
        while fs::read_to_string(&file).unwrap_or_default() != "started\n" {
            tokio::task::yield_now().await;
        }
        stop.send(true).unwrap();
        supervised.await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "ended\n");
        fs::remove_file(&file).unwrap();
    }
}
