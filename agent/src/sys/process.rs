//! Children that cannot outlive their parent.
#![expect(unsafe_code, reason = "what a child does between fork and exec is outside the language's guarantees")]

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::process::Command;

/// Has the child killed when the thread that spawns it ends, however that happens. Spawn it from a thread that lives as
/// long as the process.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;
    let parent = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        match getppid() == Some(parent) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: the closure makes two system calls and no more: it neither allocates nor takes a lock, so it is sound
    // between fork and exec even if other threads held locks at the fork.
    unsafe { command.pre_exec(prepare) }
}
