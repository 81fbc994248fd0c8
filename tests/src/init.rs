//! The first process of a lab, seen from outside: it starts and signals processes for us inside its namespaces.
//!
//! One JSON request per line to its input, one reply per line from its output. When its input ends, by our own end of
//! whatever kind, it kills everything, removes the cgroups and files of the lab, and goes.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

/// Longest wait for an answer of the init process: it only forks and writes small files.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A request with the number its reply will carry.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Number of the request.
    pub id: u64,
    /// What to do.
    pub ask: Ask,
}

/// What the init process does for us.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Start a process.
    Spawn(Spawn),
    /// Send `signal` to process `pid`.
    Signal {
        /// Process number inside the lab.
        pid: i32,
        /// Signal number.
        signal: i32,
    },
    /// Set kernel parameters of a network namespace.
    Sysctl {
        /// File of the network namespace; none is the lab's own.
        netns: Option<PathBuf>,
        /// Name with slashes, and value.
        settings: Vec<(String, String)>,
    },
}

/// A process to start.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Spawn {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// File of the network namespace to be in; none is the lab's own.
    pub netns: Option<PathBuf>,
    /// Cgroup directories to be in, at most one of each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// File to append standard output to.
    pub stdout: PathBuf,
    /// File to append standard error to.
    pub stderr: PathBuf,
    /// Additional environment.
    pub env: Vec<(String, String)>,
}

/// What the init process tells us.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The namespaces are ready.
    Ready,
    /// A request was done; for a started process, its number.
    Done {
        /// Number of the request.
        id: u64,
        /// Process number inside the lab.
        pid: Option<i32>,
    },
    /// A request could not be done.
    Failed {
        /// Number of the request.
        id: u64,
        /// Why.
        error: String,
    },
    /// A process ended.
    Exited {
        /// Process number inside the lab.
        pid: i32,
        /// How.
        end: End,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// Ended by itself and content.
    pub fn is_success(self) -> bool {
        self == End::Status(0)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Status(n) => write!(f, "exit status {n}"),
            End::Signal(n) => write!(f, "signal {n}"),
        }
    }
}

/// The running init process of a lab.
#[derive(Debug)]
pub struct Init {
    unshare: Mutex<Child>,
    stdin: Mutex<Option<ChildStdin>>,
    shared: Arc<Shared>,
    /// Its process number as we see it, outside.
    outer_pid: i32,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    ready: bool,
    gone: bool,
    replies: HashMap<u64, Result<Option<i32>, String>>,
    ends: HashMap<i32, End>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something.
    fn wait<T>(&self, timeout: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if state.gone {
                bail!("the first process of the lab is gone");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nothing after {timeout:?}");
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take(&self, reply: Reply) {
        let mut state = self.lock();
        match reply {
            Reply::Ready => state.ready = true,
            Reply::Done { id, pid } => drop(state.replies.insert(id, Ok(pid))),
            Reply::Failed { id, error } => drop(state.replies.insert(id, Err(error))),
            Reply::Exited { pid, end } => drop(state.ends.insert(pid, end)),
        }
        self.changed.notify_all();
    }
}

impl Init {
    /// Makes the namespaces. `work` and `cgroups` are removed by the init process at its end.
    pub fn start(tool: &Path, work: &Path, cgroups: &[PathBuf]) -> Result<Self> {
        let log = fs::File::create(work.join("init.log")).context("create init.log")?;
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--mount-proc"])
            .args(["--propagation", "private", "--"])
            .arg(tool)
            .arg("init")
            .arg("--work")
            .arg(work)
            .args(cgroups.iter().flat_map(|cgroup| [Path::new("--cgroup"), cgroup]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C ends us; the end of our pipe then ends the lab in good order.
            .process_group(0)
            .spawn()
            .context("start unshare")?;
        let stdin = unshare.stdin.take().context("unshare has no input")?;
        let stdout = unshare.stdout.take().context("unshare has no output")?;
        let shared = Arc::new(Shared::default());
        std::thread::spawn({
            let shared = shared.clone();
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(reply) = serde_json::from_str(&line) {
                        shared.take(reply);
                    }
                }
                shared.lock().gone = true;
                shared.changed.notify_all();
            }
        });
        let failure = || {
            let text = fs::read_to_string(work.join("init.log")).unwrap_or_default();
            anyhow!("make the namespaces of the lab: {}", text.trim())
        };
        shared.wait(ANSWER_TIMEOUT, |s| s.ready.then_some(())).map_err(|e| e.context(failure()))?;
        let outer_pid = child_of(unshare.id()).context("find the first process of the lab")?;
        Ok(Self { unshare: Mutex::new(unshare), stdin: Mutex::new(Some(stdin)), shared, outer_pid })
    }

    /// Its process number outside the lab.
    pub fn outer_pid(&self) -> i32 {
        self.outer_pid
    }

    /// The lab's root directory as seen from outside: its own mounts, its own `/proc`.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.outer_pid).into()
    }

    /// Asks and waits for the answer.
    pub fn ask(&self, ask: Ask) -> Result<Option<i32>> {
        let id = {
            let mut state = self.shared.lock();
            state.next_id += 1;
            state.next_id
        };
        let mut line = serde_json::to_vec(&Request { id, ask })?;
        line.push(b'\n');
        match self.stdin.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(stdin) => stdin.write_all(&line).context("the first process of the lab is gone")?,
            None => bail!("the lab is closed"),
        }
        self.shared.wait(ANSWER_TIMEOUT, |s| s.replies.remove(&id))?.map_err(|e| anyhow!(e))
    }

    /// Waits for the end of a process.
    pub fn wait(&self, pid: i32, timeout: Duration) -> Result<End> {
        self.shared.wait(timeout, |s| s.ends.get(&pid).copied())
    }

    /// How a process ended, if it did.
    pub fn ended(&self, pid: i32) -> Option<End> {
        self.shared.lock().ends.get(&pid).copied()
    }

    /// Ends everything and waits until it is gone.
    pub fn close(&self) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut unshare = self.unshare.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + ANSWER_TIMEOUT;
        while matches!(unshare.try_wait(), Ok(None)) {
            if Instant::now() > end {
                // --kill-child takes the namespaces with it; the next lab sweeps up the rest.
                let _ = unshare.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.close();
    }
}

/// The only child of a process.
fn child_of(parent: u32) -> Option<i32> {
    let wanted = format!("PPid:\t{parent}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().any(|l| l == wanted).then_some(pid)
    })
}
