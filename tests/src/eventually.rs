//! Waiting for something to become true, with its last refusal as the error.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time between two tries: far below what a person or a deadline notices.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `attempt` until it succeeds; after `deadline` its last error is the answer.
pub fn eventually<T>(deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() >= end => return Err(e).context(format!("still so after {deadline:?}")),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
