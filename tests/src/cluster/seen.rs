//! What runs in a cluster, as it is seen from outside by whoever knows its directory: the cgroups tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::control_plane::Part;
use super::node::SERVICES;
use super::orders::order;
use crate::cgroup;
use crate::sweep;

/// Cgroup, below the node's, of the first process of a node.
pub(super) const FIRST_GROUP: &str = "init";

/// Cgroup, below the lab's, of a part of the control plane.
pub(super) fn control_group(name: &str) -> String {
    format!("control/{name}")
}

/// A cluster that runs, or what is left of it.
#[derive(Debug, Clone)]
pub struct Seen {
    work: PathBuf,
    cgroup: PathBuf,
}

/// A part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name, with its node's before it.
    pub name: String,
    /// Number of its process outside the lab, when it runs.
    pub pid: Option<i32>,
}

impl Seen {
    /// The cluster whose directory is `work`.
    pub fn at(work: &Path) -> Result<Self> {
        let name = work.file_name().context("a cluster without a directory")?;
        Ok(Self { work: work.to_owned(), cgroup: cgroup::mount()?.join(name) })
    }

    /// The cluster that a test runs on, when it is one of ours.
    pub fn ours() -> Result<Self> {
        let name = std::env::var(super::NAME_VARIABLE);
        Self::at(&super::work(&name.context("the nodes of a cluster that is not ours cannot be looked at")?))
    }

    /// Its directory.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Whether there is one; it may be on its way up or down.
    pub fn exists(&self) -> bool {
        self.work.join(sweep::LOCK).exists()
    }

    /// A process of the fabric outside the lab, whose network namespace is the control plane's.
    pub fn control_pid(&self) -> Result<i32> {
        let parts = Part::ALL.map(|part| first(&self.cgroup.join(control_group(part.name()))));
        parts.into_iter().flatten().next().context("no part of the control plane runs")
    }

    /// The first process of a node, by its number outside the lab.
    pub fn node_pid(&self, node: &str) -> Result<i32> {
        let group = self.cgroup.join(node).join(FIRST_GROUP);
        let pids = members(&group);
        // Its parent, which made the namespaces, is there too.
        let is_first = |pid: &&i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default().to_owned();
            numbers.split_whitespace().last() == Some("1")
        };
        let found = pids.iter().find(is_first).copied();
        found.with_context(|| format!("{node} does not run; the nodes are {}", self.nodes().join(", ")))
    }

    /// Switches a node off, as when its power fails.
    pub fn switch_off(&self, node: &str) -> Result<()> {
        order(&self.work, &format!("stop {node}"))
    }

    /// Boots a node that is off.
    pub fn switch_on(&self, node: &str) -> Result<()> {
        order(&self.work, &format!("start {node}"))
    }

    /// A command that will run in the network of a node, with everything else as it is here: another process of the node.
    pub fn beside(&self, node: &str, program: &Path) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.node_pid(node)?.to_string(), "--net", "--"]).arg(program);
        Ok(command)
    }

    /// A command that will run in all namespaces of a node.
    pub fn inside(&self, node: &str, program: &str) -> Result<Command> {
        let pid = self.node_pid(node)?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--", program]);
        Ok(command)
    }

    /// Runs a command in all namespaces of a node, and gives its standard output.
    pub fn run_inside(&self, node: &str, argv: &[&str]) -> Result<String> {
        let (program, arguments) = argv.split_first().context("no program is given")?;
        let output = self.inside(node, program)?.args(arguments).output().context("start nsenter")?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "{} on {node}: {}", argv.join(" "), said(&output.stderr).trim());
        Ok(said(&output.stdout))
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        nodes(&self.work)
    }

    /// All parts and their processes.
    pub fn components(&self) -> Vec<Component> {
        let control = Part::ALL.iter().map(|part| Component {
            name: part.name().to_owned(),
            pid: first(&self.cgroup.join(control_group(part.name()))),
        });
        let nodes = self.nodes();
        let services = nodes.iter().flat_map(|node| {
            SERVICES.map(|service| Component {
                name: format!("{node} {service}"),
                pid: first(&self.cgroup.join(node).join(service)),
            })
        });
        control.chain(services).collect()
    }
}

/// The logs of the cluster in `work` that say something: of its parts, of its nodes and of their pods.
pub(super) fn logs(work: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![work.join("logs")];
    dirs.extend(nodes(work).iter().map(|node| work.join(node).join("var/log")));
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(m) if m.is_dir() => dirs.push(entry.path()),
                Ok(m) if m.is_file() && m.len() > 0 => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Copies the logs of the cluster in `work` to the directory `to`, in place of those that were there.
pub fn keep_logs(work: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("remove {}", to.display()))?;
    }
    for path in logs(work) {
        let target = to.join(path.strip_prefix(work)?);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
    }
    Ok(())
}

fn nodes(work: &Path) -> Vec<String> {
    let entries = fs::read_dir(work).into_iter().flatten().flatten();
    let named = entries.filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> = named.filter(|n| n.starts_with("node-")).collect();
    names.sort();
    names
}

fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

fn first(group: &Path) -> Option<i32> {
    members(group).into_iter().next()
}
