//! A Kubernetes cluster of two nodes in a lab: a control plane on the fabric, and nodes that have namespaces of every
//! kind of their own, with containerd, kubelet and kube-proxy. It has no way out.

mod address;
mod api;
mod capture;
mod certificates;
mod client;
mod control_plane;
mod forward;
mod helm;
mod node;
mod orders;
mod pod;
mod seen;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use api::{Api, Watch, get_json};
pub use capture::NodeCaptures;
pub use certificates::{Order, Wanted};
pub use client::Kubectl;
pub use forward::Forward;
pub use helm::{CHART, Helm};
pub use node::{Boot, PAUSE_IMAGE, SERVICES, Step, cni_programs};
pub use orders::{DONE, order, socket};
pub use pod::PodState;
pub use seen::{Component, Seen, keep_logs};

use crate::cgroup;
use crate::eventually;
use crate::lab::{COMMAND_TIMEOUT, Lab, Place, named_work};
use crate::process::Process;
use control_plane::Part;
use node::Node;

/// How many nodes a cluster has.
const NODES: usize = 2;
/// Longest start of one part; a busy machine is slow, not broken.
const START: Duration = Duration::from_secs(120);
/// Lines of a log that are shown when its owner failed.
const SHOWN_LINES: usize = 20;

/// Names the cluster that a test runs on, when it is one of ours.
pub const NAME_VARIABLE: &str = "LOAM_CLUSTER";

/// What a cluster is made from.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Directory of the programs of Kubernetes.
    pub programs: PathBuf,
    /// Directory of the images that every node has from the start.
    pub images: PathBuf,
    /// Manifests that are applied at the start.
    pub manifests: PathBuf,
    /// Where the logs go, each cluster's in a directory of its own, when it does not start.
    pub logs: PathBuf,
}

/// A running cluster. Dropping it takes everything away.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    parts: Parts,
    nodes: Vec<Node>,
    running: Mutex<Vec<Process>>,
}

/// The directory of the cluster `name`.
pub fn work(name: &str) -> PathBuf {
    named_work(&format!("cluster-{name}"))
}

/// The kubeconfig of whoever may do everything in the cluster in `work`.
pub fn kubeconfig(work: &Path) -> PathBuf {
    work.join("kubeconfig")
}

impl Cluster {
    /// Starts one. `tell` hears about each step when it is done. When one fails, all logs are kept.
    pub fn start(name: &str, parts: Parts, tell: impl FnMut(&str)) -> Result<Self> {
        let lab = Lab::with_controllers(&format!("cluster-{name}"))?;
        let work = lab.work().to_owned();
        let nodes = (1..=NODES).map(|index| Node::new(index, &work)).collect();
        let cluster = Self { lab, parts, nodes, running: Mutex::default() };
        if let Err(e) = cluster.start_all(tell) {
            let logs = cluster.parts.logs.join(name);
            keep_logs(cluster.work(), &logs)?;
            return Err(e.context(format!("all logs are in {}", logs.display())));
        }
        Ok(cluster)
    }

    fn start_all(&self, mut tell: impl FnMut(&str)) -> Result<()> {
        self.prepare().context("prepare the cluster")?;
        tell("certificates and networks");
        self.start_part(Part::Etcd)?;
        self.start_part(Part::ApiServer)?;
        for node in &self.nodes {
            self.start_node(node)?;
        }
        self.until("the API server", || self.kubectl().run(&["get", "--raw", "/readyz"]).map(drop))?;
        tell("API server");
        for node in &self.nodes {
            node.open_gate()?;
        }
        self.start_part(Part::ControllerManager)?;
        self.start_part(Part::Scheduler)?;
        let manifests = self.parts.manifests.display().to_string();
        self.until("the cluster's own objects", || {
            self.kubectl().run(&["apply", "--server-side", "--filename", &manifests]).map(drop)
        })?;
        self.until("the nodes", || self.nodes_are_ready())?;
        tell("nodes");
        let available = ["wait", "--for=condition=Available", "--timeout=0s", "--namespace=kube-system"];
        self.until("the name servers", || {
            self.kubectl().run(&[&available[..], &["deployment/coredns"]].concat()).map(drop)
        })?;
        self.until("the default service account", || {
            self.kubectl().run(&["get", "serviceaccount", "default"]).map(drop)
        })?;
        tell("name servers");
        Ok(())
    }

    /// Its directory.
    pub fn work(&self) -> &Path {
        self.lab.work()
    }

    /// Calls its API server.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::within(self.lab.outer_pid(), &self.parts.programs.join("kubectl"), &kubeconfig(self.work()))
    }

    /// Stops a part of the control plane, or switches a node off; neither is asked first.
    pub fn stop(&self, name: &str) -> Result<()> {
        if let Some(node) = self.nodes.iter().find(|n| n.name == name) {
            self.kill(name)?;
            // What hung on the node's cgroups and network goes with them, as it does when a machine goes.
            for cgroup in self.lab.cgroups() {
                cgroup::remove(&cgroup.join(name))?;
            }
            return self.lab.ip(None, &node.leaving());
        }
        self.part(name)?;
        self.kill(name)
    }

    /// Starts what was stopped.
    pub fn restart(&self, name: &str) -> Result<()> {
        ensure!(!self.is_running(name), "{name} runs");
        match self.nodes.iter().find(|n| n.name == name) {
            Some(node) => self.start_node(node),
            None => self.start_part(self.part(name)?),
        }
    }

    /// Ends everything and waits until it is gone.
    pub fn close(&self) {
        self.lab.close();
    }

    fn part(&self, name: &str) -> Result<Part> {
        let found = Part::ALL.into_iter().find(|part| part.name() == name);
        found.with_context(|| {
            let parts = Part::ALL.map(Part::name).join(", ");
            let nodes: Vec<_> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            format!("{name} is no part of this cluster; its parts are {parts}, {}", nodes.join(", "))
        })
    }

    fn prepare(&self) -> Result<()> {
        let work = self.work();
        let pki = work.join("pki");
        fs::create_dir(&pki)?;
        let mut named = Vec::new();
        for node in &self.nodes {
            let addresses = [Some(node.addresses.v4.clone()), node.addresses.v6.clone()];
            named.push((node.name.as_str(), addresses.into_iter().flatten().collect()));
        }
        let order = work.join("certificates.json");
        fs::write(&order, serde_json::to_vec(&certificates::order(&named))?)?;
        let path = |path: &Path| path.display().to_string();
        let made = self.lab.run(&[self.lab.tool()?, "certificates", "--order", &path(&order), "--dir", &path(&pki)])?;
        made.success().context("make the certificates")?;
        for user in ["controller-manager", "scheduler"] {
            certificates::kubeconfig(&work.join(format!("{user}.kubeconfig")), &pki, user)?;
        }
        certificates::kubeconfig(&kubeconfig(work), &pki, "admin")?;

        self.lab.sysctl(None, &node::sysctls())?;
        // What leaves the cluster fails at once instead of hanging. Services can be asked from the fabric too, which only
        // a node can translate.
        let mut lines = vec!["route add unreachable default".to_owned()];
        lines.push(format!("route add {} via {}", address::services_v4(), self.nodes[0].addresses.v4));
        if crate::host::has_ipv6() {
            lines.push("route add unreachable ::/0".into());
        }
        for node in &self.nodes {
            node.write_files(&pki).with_context(|| format!("write the files of {}", node.name))?;
        }
        self.lab.ip(None, &lines)
    }

    fn start_part(&self, part: Part) -> Result<()> {
        let program = self.parts.programs.join(part.name()).display().to_string();
        let arguments = part.arguments(self.work());
        let argv: Vec<&str> = std::iter::once(&program).chain(&arguments).map(String::as_str).collect();
        let place = Place { netns: None, cgroup: seen::control_group(part.name()) };
        self.spawn(&place, part.name(), &argv)
    }

    fn start_node(&self, node: &Node) -> Result<()> {
        self.lab.ip(None, &node.joining())?;
        self.lab.sysctl(Some(&node.name), &node::sysctls())?;
        self.lab.ip(Some(&node.name), &node.links(self.nodes.iter()))?;
        let boot = node.dir.join("boot.json");
        fs::write(&boot, serde_json::to_vec(&node.boot(&self.parts.programs, &self.parts.images)?)?)?;
        let boot = boot.display().to_string();
        let tool = self.lab.tool()?;
        // The node's cgroups begin where it unshares; its first process then goes one deeper, because a group of v2 that
        // hands controllers down has no processes of its own.
        let mut argv = vec!["unshare".to_owned(), "--cgroup".into(), "--".into(), tool.to_owned(), "exec".into()];
        for cgroup in self.lab.cgroups() {
            let group = cgroup.join(&node.name).join(seen::FIRST_GROUP);
            fs::create_dir_all(&group).with_context(|| format!("make the cgroup {}", group.display()))?;
            argv.extend(["--cgroup".into(), group.display().to_string()]);
        }
        argv.extend(["--", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"].map(Into::into));
        argv.extend(["--propagation", "private", "--", tool, "node", "--boot", &boot].map(Into::into));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let place = Place { netns: Some(node.name.clone()), cgroup: node.name.clone() };
        self.spawn(&place, &node.name, &argv)
    }

    fn spawn(&self, place: &Place, name: &str, argv: &[&str]) -> Result<()> {
        let process = self.lab.spawn_at(place, name, argv, &[])?;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        Ok(())
    }

    fn kill(&self, name: &str) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = running.iter().position(|p| p.name() == name && p.is_running()) else {
            bail!("{name} does not run");
        };
        running.remove(index).kill()
    }

    fn is_running(&self, name: &str) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().any(|p| p.name() == name && p.is_running())
    }

    fn nodes_are_ready(&self) -> Result<()> {
        let path =
            r#"jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
        let text = self.kubectl().run(&["get", "nodes", "--output", path])?;
        for node in &self.nodes {
            let is_ready = text.lines().any(|l| l == format!("{} True", node.name));
            ensure!(is_ready, "{} is not ready: {:?}", node.name, text.trim());
        }
        Ok(())
    }

    /// Waits for `attempt`, as long as everything runs that was started. An error shows who is to blame.
    fn until(&self, what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let mut ended = None;
        let waited = eventually(START, || {
            ended = self.first_that_ended();
            if ended.is_some() { Ok(()) } else { attempt() }
        });
        let (cause, culprit) = match (ended, waited) {
            (None, Ok(())) => return Ok(()),
            (Some((name, end)), _) => (format!("{name} ended ({end})"), name),
            (None, Err(error)) => (format!("{error:#}"), String::new()),
        };
        bail!("{what}: {cause}{}", self.last_words(&culprit));
    }

    fn first_that_ended(&self) -> Option<(String, crate::init::End)> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().find_map(|p| p.ended().map(|end| (p.name().to_owned(), end)))
    }

    /// The ends of the logs whose names contain `culprit`.
    fn last_words(&self, culprit: &str) -> String {
        let mut text = String::new();
        for path in seen::logs(self.work()) {
            let shown = path.strip_prefix(self.work()).unwrap_or(&path).display().to_string();
            if !shown.contains(culprit) {
                continue;
            }
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("\n--- {shown}"));
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                text.push_str(&format!("\n{line}"));
            }
        }
        text
    }
}

/// Longest call of the API server.
const CALL: Duration = COMMAND_TIMEOUT;
