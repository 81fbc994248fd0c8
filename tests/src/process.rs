//! A process inside a lab.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::init::{Ask, End, Init};

/// SIGTERM, SIGKILL and SIGSTOP have the same numbers on every Linux architecture.
pub const SIGTERM: i32 = 15;
/// See [`SIGTERM`].
pub const SIGKILL: i32 = 9;

/// A started process; dropping the handle does not end it, the end of the lab does.
#[derive(Debug, Clone)]
pub struct Process {
    pub(crate) init: Arc<Init>,
    pub(crate) name: String,
    pub(crate) pid: i32,
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
}

/// What a finished process left.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub end: End,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number inside the lab.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends a signal. A process that is gone is fine.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.init.ask(Ask::Signal { pid: self.pid, signal }).map(drop).with_context(|| format!("signal {}", self.name))
    }

    /// Kills it and waits until it is dead.
    pub fn kill(&self) -> Result<()> {
        self.signal(SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// Waits for its end.
    pub fn wait(&self, timeout: Duration) -> Result<End> {
        self.init.wait(self.pid, timeout).with_context(|| format!("wait for the end of {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.ended().is_none()
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.init.ended(self.pid)
    }

    /// Waits until its standard output contains `text`.
    pub fn wait_for_output(&self, text: &str, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        loop {
            let ended = self.init.ended(self.pid);
            if self.stdout().contains(text) {
                return Ok(());
            }
            if let Some(ended) = ended {
                bail!("{} ended ({ended}) before it said {text:?}: {}", self.name, self.stderr().trim());
            }
            if Instant::now() > end {
                bail!("{} did not say {text:?} within {timeout:?}: {}", self.name, self.stderr().trim());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end and gives what it left.
    pub fn output(&self, timeout: Duration) -> Result<Output> {
        let end = self.wait(timeout)?;
        Ok(Output { end, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Waits for its successful end and reads the last line of its output as JSON.
    pub fn report<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T> {
        self.output(timeout)?.report().with_context(|| self.name.clone())
    }

    /// Asks it to end, then reads its report.
    pub fn finish<T: DeserializeOwned>(&self) -> Result<T> {
        self.signal(SIGTERM)?;
        self.report(Duration::from_secs(30))
    }

    /// A file of its `/proc` directory, read.
    pub fn proc_file(&self, name: &str) -> Result<String> {
        let path = self.proc_dir().join(name);
        fs::read_to_string(&path).with_context(|| format!("read {name} of {}", self.name))
    }

    /// Time on a processor of its living threads. Threads that ended are missing, so it is for programs that keep theirs.
    pub fn cpu_time(&self) -> Result<Duration> {
        let tasks = fs::read_dir(self.proc_dir().join("task")).with_context(|| format!("threads of {}", self.name))?;
        let mut nanoseconds = 0;
        for task in tasks.flatten() {
            // A thread may have ended since it was listed.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let running = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            nanoseconds += running.with_context(|| format!("schedstat says {text:?}"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Number of descriptors it has open.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(self.proc_dir().join("fd")).with_context(|| format!("descriptors of {}", self.name))?.count())
    }

    /// Its children, and their command lines.
    pub fn children(&self) -> Result<Vec<(i32, String)>> {
        let wanted = format!("PPid:\t{}", self.pid);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.init.root().join("proc"))?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else { continue };
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            if status.lines().any(|l| l == wanted) && !status.contains("State:\tZ") {
                let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, command.replace('\0', " ").trim().to_owned()));
            }
        }
        Ok(found)
    }

    fn proc_dir(&self) -> PathBuf {
        self.init.root().join("proc").join(self.pid.to_string())
    }
}

impl Output {
    /// The output, when the process was content.
    pub fn success(self) -> Result<String> {
        if !self.end.is_success() {
            bail!("{}: {}{}", self.end, self.stderr.trim(), self.stdout.trim());
        }
        Ok(self.stdout)
    }

    /// The last line of the output, read as JSON.
    pub fn report<T: DeserializeOwned>(self) -> Result<T> {
        let text = self.success()?;
        let line = text.trim().lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("read the report {line:?}"))
    }
}
