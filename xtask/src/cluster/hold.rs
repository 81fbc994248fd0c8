//! The process that holds a cluster between `up` and `down`. It tells `up` what it does, and then obeys one-line orders
//! on a socket in the cluster's directory.
//!
//! Until it is told to stay, the end of whoever started it is the end of the cluster; its own end always is.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use loam_tests::cluster::{Cluster, DONE, Parts, socket, work};
use serde::{Deserialize, Serialize};

/// What `up` says when it has seen that the cluster is ready.
pub(crate) const STAY: &str = "stay";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    name: String,
    #[arg(long)]
    programs: PathBuf,
    #[arg(long)]
    images: PathBuf,
    #[arg(long)]
    manifests: PathBuf,
    #[arg(long)]
    logs: PathBuf,
}

impl Arguments {
    /// The arguments for a process of its own.
    pub(crate) fn of(name: &str, parts: &Parts) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let pairs = [
            ("--name", name.to_owned()),
            ("--programs", path(&parts.programs)),
            ("--images", path(&parts.images)),
            ("--manifests", path(&parts.manifests)),
            ("--logs", path(&parts.logs)),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

/// What it tells `up`, one per line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// A step is done.
    Step {
        what: String,
        milliseconds: u64,
    },
    Failed(String),
    Ready,
}

/// Starts a cluster and stays until it is told to go.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    std::thread::spawn(|| {
        let mut said = String::new();
        let _ = std::io::stdin().read_to_string(&mut said);
        if said.trim() != STAY {
            // The lab's first process sees that we are gone, and takes everything away.
            std::process::exit(1);
        }
    });
    let Arguments { name, programs, images, manifests, logs } = arguments;
    let mut begin = Instant::now();
    let step = |what: &str| {
        let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        begin = Instant::now();
        report(&Report::Step { what: what.to_owned(), milliseconds });
    };
    let started = Cluster::start(&name, Parts { programs, images, manifests, logs }, step).and_then(|cluster| {
        let socket = socket(cluster.work());
        let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        Ok((cluster, listener))
    });
    match started {
        Ok((cluster, listener)) => {
            report(&Report::Ready);
            obey(&cluster, &listener);
            Ok(())
        }
        Err(error) => {
            report(&Report::Failed(format!("{error:#}")));
            Ok(())
        }
    }
}

fn report(report: &Report) {
    let Ok(line) = serde_json::to_string(report) else { return };
    // Nobody is left to tell when this fails, and the reader of our input ends us then.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Carries out orders, the last of which is to go.
fn obey(cluster: &Cluster, listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let mut answer = &stream;
        let done = match line.trim().split_once(' ') {
            None if line.trim() == "down" => {
                cluster.close();
                let _ = writeln!(answer, "{DONE}");
                return;
            }
            Some(("stop", name)) => cluster.stop(name),
            Some(("start", name)) => cluster.restart(name),
            _ => Err(anyhow::anyhow!("{:?} is no order", line.trim())),
        };
        let text = done.map_or_else(|e| format!("{e:#}").replace('\n', " "), |()| DONE.to_owned());
        let _ = writeln!(answer, "{text}");
    }
}

/// Whether the holder of the cluster `name` answers.
pub(crate) fn is_held(name: &str) -> bool {
    let socket = socket(&work(name));
    fs::exists(&socket).is_ok_and(|found| found) && UnixStream::connect(&socket).is_ok()
}
