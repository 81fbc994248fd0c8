//! A Kubernetes cluster of two nodes on this machine, to test on and to look at. It needs no container engine.

mod hold;
mod programs;
mod status;

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use loam_tests::cluster::{self, Kubectl, Parts, Seen};
use loam_tests::{eventually, sweep};

use crate::term::{Term, seconds};
use crate::{build, images, setup};

/// Longest time that a cluster whose holder was killed needs to take itself away.
const VANISH: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
    /// Name of the cluster; clusters with different names do not see each other
    #[arg(long, global = true, default_value = "default", value_parser = name)]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Starts one: control plane, two nodes, name servers
    Up,
    /// Takes it away with everything that it made
    Down,
    /// Shows its parts, its nodes, and the pods that are not ready
    Status,
    /// Gives our images, or those in the named archives, to each node
    Load {
        /// Archives, as `cargo xtask images` or another tool writes them
        archives: Vec<PathBuf>,
    },
    /// Runs a command in its network with KUBECONFIG set: cargo xtask cluster exec -- kubectl get pods -A
    Exec {
        /// Go into this node instead, with all its namespaces
        #[arg(long)]
        node: Option<String>,
        /// Program and arguments
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Stops a part of the control plane (kube-apiserver, etcd, ...) or switches a node off; neither is asked first
    Stop {
        /// Its name
        part: String,
    },
    /// Starts what was stopped
    Start {
        /// Its name
        part: String,
    },
    /// Holds a cluster; `up` starts this
    #[command(hide = true)]
    Hold(hold::Arguments),
}

/// A name becomes part of the names of directories and cgroups.
fn name(text: &str) -> Result<String, String> {
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match !text.is_empty() && text.len() <= 20 && text.chars().all(is_fine) {
        true => Ok(text.to_owned()),
        false => Err("a name has up to 20 lower-case letters, digits and dashes".into()),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let term = Term::new();
    let name = arguments.name;
    match arguments.task {
        Task::Up => up(term, &name),
        Task::Down => down(term, &name),
        Task::Status => status::run(term, &seen(&name)?, &kubectl(&name)?),
        Task::Load { archives } if archives.is_empty() => {
            build::programs(term)?;
            load_ours(term, &name)
        }
        Task::Load { archives } => load(term, &seen(&name)?, &archives),
        Task::Exec { node, argv } => exec(&name, node.as_deref(), &argv),
        Task::Stop { part } => order(&name, &format!("stop {part}")),
        Task::Start { part } => order(&name, &format!("start {part}")),
        Task::Hold(arguments) => hold::run(arguments),
    }
}

/// Gives an order to the holder of the cluster `name`.
fn order(name: &str, order: &str) -> Result<()> {
    cluster::order(&cluster::work(name), order).with_context(|| format!("the cluster {name} did not obey"))
}

fn up(term: Term, name: &str) -> Result<()> {
    build::programs(term)?;
    start(term, name)?.stay()?;
    let flag = if name == "default" { String::new() } else { format!(" --name {name}") };
    let work = cluster::work(name);
    println!("\n{}", term.bold("The cluster is up. It has no way out, and nothing gets in but through these:"));
    println!("  cargo xtask cluster{flag} exec -- kubectl get pods --all-namespaces");
    println!("  cargo xtask cluster{flag} exec -- bash            # in its network, with KUBECONFIG and PATH set");
    println!("  cargo xtask cluster{flag} exec --node node-a -- ctr --namespace k8s.io containers list");
    println!("  KUBECONFIG={}", cluster::kubeconfig(&work).display());
    println!("  cargo xtask cluster{flag} load | status | down");
    Ok(())
}

/// A started cluster, which lives as long as this.
#[derive(Debug)]
pub(crate) struct Started {
    holder: ChildStdin,
}

impl Started {
    /// Lets it live on.
    fn stay(mut self) -> Result<()> {
        writeln!(self.holder, "{}", hold::STAY).context("tell the holder of the cluster to stay")
    }
}

/// Starts the cluster `name` with programs that are built; what a killed one left is removed first.
pub(crate) fn start(term: Term, name: &str) -> Result<Started> {
    setup::ensure_cluster("cluster up")?;
    setup::ensure()?;
    ensure!(!hold::is_held(name), "the cluster {name} is up already: cargo xtask cluster down --name {name}");
    // One that lost its holder is on its way out.
    eventually(VANISH, || {
        for path in sweep::sweep() {
            println!("removed what a killed lab left in {}", path.display());
        }
        ensure!(!cluster::work(name).exists(), "{} is still in use", cluster::work(name).display());
        Ok(())
    })?;
    let parts = programs::ensure_built(term)?;
    programs::write_images(&parts)?;
    let begin = Instant::now();
    term.heading(&format!("Starting the cluster {name}"));
    let started = hold(term, name, &parts)?;
    println!("  {}", term.dim(&format!("up in {}", seconds(begin.elapsed()))));
    Ok(started)
}

/// Starts the process that holds it, and stays until it is up.
fn hold(term: Term, name: &str, parts: &Parts) -> Result<Started> {
    // In a session of its own it does not hear when our terminal goes.
    let mut holder = Command::new("setsid")
        // Not by its path: what is there may have been built anew since we started.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .args(["cluster", "hold"])
        .args(hold::Arguments::of(name, parts))
        .env(loam_tests::bin::DIR_VARIABLE, loam_tests::bin::dir()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start setsid")?;
    let stdin = holder.stdin.take().context("the holder has no input")?;
    let stdout = holder.stdout.take().context("the holder has no output")?;
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line?)? {
            hold::Report::Step { what, milliseconds } => {
                println!("  {} {what}  {}", term.good("✓"), term.dim(&seconds(Duration::from_millis(milliseconds))));
            }
            hold::Report::Ready => return Ok(Started { holder: stdin }),
            hold::Report::Failed(text) => {
                holder.wait()?;
                bail!("the cluster did not start: {text}");
            }
        }
    }
    bail!("the holder of the cluster ended: {}", holder.wait()?)
}

/// Takes the cluster `name` away.
pub(crate) fn down(term: Term, name: &str) -> Result<()> {
    let work = cluster::work(name);
    if !work.exists() {
        println!("there is no cluster {name}");
        return Ok(());
    }
    term.step(&format!("the cluster {name} is gone"), || {
        // One whose holder does not answer has lost it, and takes itself away.
        let told = order(name, "down");
        let gone = eventually(VANISH, || {
            sweep::sweep();
            ensure!(!work.exists(), "{} is still in use", work.display());
            Ok(())
        });
        gone.with_context(|| told.err().map_or_else(|| "it was told to go".into(), |e| format!("{e:#}")))
    })
}

/// The cluster `name`, which runs.
pub(crate) fn seen(name: &str) -> Result<Seen> {
    let seen = Seen::at(&cluster::work(name))?;
    ensure!(seen.exists(), "there is no cluster {name}: cargo xtask cluster up --name {name}");
    Ok(seen)
}

/// Calls of its API server.
pub(crate) fn kubectl(name: &str) -> Result<Kubectl> {
    let seen = seen(name)?;
    let program = programs::ensure_built(Term::new())?.programs.join("kubectl");
    Ok(Kubectl::within(seen.control_pid()?, &program, &cluster::kubeconfig(seen.work())))
}

/// A command that will run in the network of a cluster, with what it needs to call its API server.
pub(crate) fn within(name: &str, program: &Path) -> Result<Command> {
    let seen = seen(name)?;
    let programs = programs::ensure_built(Term::new())?.programs;
    let mut path = programs.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &seen.control_pid()?.to_string(), "--net", "--"])
        .arg(program)
        .env("PATH", path)
        .env("KUBECONFIG", cluster::kubeconfig(seen.work()))
        .env(cluster::NAME_VARIABLE, name);
    Ok(command)
}

/// Keeps the logs of the cluster `name`, and says where.
pub(crate) fn keep_logs(name: &str) -> Result<PathBuf> {
    let logs = programs::ensure_built(Term::new())?.logs.join(name);
    cluster::keep_logs(&cluster::work(name), &logs)?;
    Ok(logs)
}

fn exec(name: &str, node: Option<&str>, argv: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    let (program, arguments) = argv.split_first().context("no program is given")?;
    let mut command = match node {
        Some(node) => seen(name)?.inside(node, program)?,
        None => within(name, Path::new(program))?,
    };
    Err(command.args(arguments).exec()).context("start nsenter")
}

/// Makes our images of the built programs and gives them to each node.
pub(crate) fn load_ours(term: Term, name: &str) -> Result<()> {
    term.heading("Images");
    let archives = images::write(term, &images::directory("images"), images::REGISTRY, env!("CARGO_PKG_VERSION"))?;
    load(term, &seen(name)?, &archives)
}

/// Makes the images that only tests use, and gives them to each node.
pub(crate) fn load_for_tests(term: Term, name: &str) -> Result<()> {
    let archives = images::write_for_tests(term, &images::directory("images"))?;
    load(term, &seen(name)?, &archives)
}

fn load(term: Term, seen: &Seen, archives: &[PathBuf]) -> Result<()> {
    for node in seen.nodes() {
        for archive in archives {
            let shown = archive.file_name().unwrap_or_default().display();
            term.step(&format!("{shown} on {node}"), || {
                let mut import = seen.inside(&node, "ctr")?;
                import.args(["--namespace", "k8s.io", "images", "import", "-"]);
                // A node has a root directory of its own: the archive comes through a pipe.
                import.stdin(File::open(archive).with_context(|| format!("open {}", archive.display()))?);
                let output = import.output().context("start nsenter")?;
                ensure!(output.status.success(), "ctr: {}", String::from_utf8_lossy(&output.stderr).trim());
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        assert!(name("default").is_ok() && name("ring-2").is_ok());
        assert!(name("../x").is_err() && name("").is_err() && name("a b").is_err() && name(&"x".repeat(21)).is_err());
    }
}
