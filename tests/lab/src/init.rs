//! The first process of a lab: starts and signals processes for the harness, reaps, and cleans up at the end.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use loam_tests::init::{Ask, End, Reply, Request, Spawn};
use loam_tests::{cgroup, sweep};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, wait, waitid};

/// Serves until standard input ends, then removes the lab.
pub(crate) fn run(work: &Path, cgroups: &[PathBuf]) -> Result<()> {
    let _lock = sweep::hold(work)?;
    rustix::mount::mount("lab", "/run", "tmpfs", rustix::mount::MountFlags::empty(), None).context("mount /run")?;

    let children = Arc::new(Children::default());
    std::thread::spawn({
        let children = children.clone();
        move || children.reap()
    });
    say(&Reply::Ready)?;
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(Request { id, ask }) = serde_json::from_str(&line) else { continue };
        let reply = match answer(&children, ask) {
            Ok(pid) => Reply::Done { id, pid },
            Err(e) => Reply::Failed { id, error: format!("{e:#}") },
        };
        if say(&reply).is_err() {
            break;
        }
    }
    for cgroup in cgroups {
        cgroup::remove(cgroup).context("remove the cgroups")?;
    }
    fs::remove_dir_all(work).context("remove the files")
}

/// One line per reply; the reaper and the main loop share the pipe.
fn say(reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn answer(children: &Children, ask: Ask) -> Result<Option<i32>> {
    match ask {
        Ask::Spawn(spawn) => children.spawn(&spawn).map(Some),
        Ask::Signal { pid, signal } => send(pid, signal).map(|()| None),
        Ask::Sysctl { netns, settings } => set(netns, settings).map(|()| None),
    }
}

fn send(pid: i32, signal: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).context("not a process number")?;
    let signal = Signal::from_named_raw(signal).context("not a signal")?;
    match rustix::process::kill_process(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// `/proc/sys/net` shows the namespace of the thread that looks: a thread goes there and does not come back.
fn set(netns: Option<PathBuf>, settings: Vec<(String, String)>) -> Result<()> {
    let write = move || {
        if let Some(netns) = netns {
            crate::exec::enter(&netns)?;
        }
        for (name, value) in settings {
            let path = Path::new("/proc/sys").join(&name);
            match fs::write(&path, &value) {
                // Some parameters exist once per machine; a namespace of ours then has nothing to set.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.with_context(|| format!("set {name} to {value}"))?,
            }
        }
        Ok(())
    };
    std::thread::spawn(write).join().map_err(|_| anyhow!("the thread that sets kernel parameters panicked"))?
}

/// Our children, and the orphans the kernel gives us.
#[derive(Default)]
struct Children {
    /// Held while a child is being made: its maker, not the reaper, collects one that could not start.
    making: Mutex<bool>,
    made: Condvar,
}

impl Children {
    fn spawn(&self, spawn: &Spawn) -> Result<i32> {
        let log = |path| File::options().create(true).append(true).open(path);
        // This program, also after a build has replaced its file.
        let mut command = Command::new("/proc/self/exe");
        command.arg("exec");
        if let Some(netns) = &spawn.netns {
            command.arg("--netns").arg(netns);
        }
        command.args(spawn.cgroups.iter().flat_map(|cgroup| [Path::new("--cgroup"), cgroup]));
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .arg("--")
            .args(&spawn.argv)
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
            .envs(spawn.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log(&spawn.stdout)?)
            .stderr(log(&spawn.stderr)?)
            .process_group(0);
        let mut any = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        *any = true;
        self.made.notify_all();
        Ok(i32::try_from(child.id())?)
    }

    fn reap(&self) {
        loop {
            // Look without taking: see `making`.
            let _ = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let mut any = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            // Asked again under the lock: one may have been made since.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            if matches!(waitid(WaitId::All, look), Err(Errno::CHILD)) {
                *any = false;
                while !*any {
                    any = self.made.wait(any).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                let end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Status(code),
                    (None, Some(signal)) => End::Signal(signal),
                    (None, None) => continue,
                };
                let _ = say(&Reply::Exited { pid: pid.as_raw_nonzero().get(), end });
            }
        }
    }
}
