//! The mesh in a lab: a controller on the fabric; on each node a keeper with its agent, and a ztunnel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{FABRIC_V4, Lab};
use crate::manifests::Manifests;
use crate::process::{Process, SIGTERM};
use crate::topology::{Node, Pod};
use crate::{bin, eventually};

/// Longest start of any of the mesh's processes; a busy machine is slow, not broken.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The user that ztunnel becomes.
pub const ZTUNNEL_UID: u32 = 1337;

/// Port of the controller's service.
pub const CONTROL_PORT: u16 = 15012;
/// Port of what stands between the controller and the ztunnels.
const TAMPERED_PORT: u16 = 15112;

/// What a test may want otherwise.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Additional arguments of the keeper, before the agent's.
    pub keeper: Vec<String>,
    /// Additional arguments of every ztunnel.
    pub ztunnel: Vec<String>,
    /// Whether ztunnels get their configuration through `loam-lab tamper`, which breaks some of it.
    pub tampered: bool,
    /// Nodes, by name, whose ztunnel is another program than the one built here.
    pub ztunnel_programs: BTreeMap<String, PathBuf>,
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    lab: Lab,
    manifests: Manifests,
    controller: Mutex<Process>,
    tamperer: Option<Process>,
    nodes: Vec<MeshNode>,
}

/// The mesh's processes on one node.
#[derive(Debug)]
pub struct MeshNode {
    node: Node,
    manifests: PathBuf,
    options: Options,
    keeper: Mutex<Process>,
    ztunnels: Mutex<Vec<Ztunnel>>,
    generations: AtomicUsize,
}

/// A ztunnel process.
#[derive(Debug, Clone)]
pub struct Ztunnel {
    process: Process,
    node: Node,
    /// Base of its own ports: two of them share the node's namespace while one replaces the other.
    admin_port: u16,
}

impl Mesh {
    /// Starts everything and waits until each part says that it is ready.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_with(lab, &Options::default())
    }

    /// Starts everything with other arguments.
    pub fn start_with(lab: &Lab, options: &Options) -> Result<Self> {
        let manifests = Manifests::create(&lab.work().join("manifests"))?;
        let controller = start_controller(lab, manifests.dir())?;
        let tamperer = options.tampered.then(|| start_tamperer(lab)).transpose()?;
        let mut nodes = Vec::new();
        for node in lab.nodes() {
            let run_dir = node.dir().join("run");
            fs::create_dir_all(&run_dir)?;
            write_token(lab, &node)?;
            // bpffs is mounted below /run, which is the lab's own: nothing of it is seen outside.
            let bpffs = bpffs(&node);
            let mkdir = format!("mkdir -p {0} && mount -t bpf bpf {0}", bpffs.display());
            lab.run(&["sh", "-c", &mkdir])?.success().context("mount bpffs")?;
            let keeper = start_keeper(&node, manifests.dir(), options)?;
            nodes.push(MeshNode {
                node,
                manifests: manifests.dir().to_owned(),
                options: options.clone(),
                keeper: Mutex::new(keeper),
                ztunnels: Mutex::default(),
                generations: AtomicUsize::new(0),
            });
        }
        let mesh = Self { lab: lab.clone(), manifests, controller: Mutex::new(controller), tamperer, nodes };
        for node in &mesh.nodes {
            node.start_ztunnel()?;
        }
        for node in &mesh.nodes {
            node.ztunnel().wait_ready(START_TIMEOUT)?;
        }
        Ok(mesh)
    }

    /// The manifests everything is made from.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The controller.
    pub fn controller(&self) -> Process {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the controller again, after it was killed.
    pub fn restart_controller(&self) -> Result<()> {
        let process = start_controller(&self.lab, self.manifests.dir())?;
        *self.controller.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }

    /// Who stands between the controller and the ztunnels, where the options ask for it.
    pub fn tamperer(&self) -> Option<&Process> {
        self.tamperer.as_ref()
    }

    /// Directory of the controller's certificate authority.
    pub fn authority(&self) -> PathBuf {
        authority(&self.lab)
    }

    /// The mesh on the node number `index`, from 0.
    pub fn node(&self, index: usize) -> &MeshNode {
        &self.nodes[index]
    }

    /// The mesh on every node.
    pub fn nodes(&self) -> &[MeshNode] {
        &self.nodes
    }

    /// The mesh on the node of `pod`.
    pub fn node_of(&self, pod: &Pod) -> Result<&MeshNode> {
        self.nodes.iter().find(|n| n.node.name() == pod.node()).with_context(|| format!("no node {}", pod.node()))
    }

    /// What the agent says of `pod`: the entry of its status file.
    pub fn pod_status(&self, pod: &Pod) -> Result<Value> {
        let status = self.node_of(pod)?.status()?;
        let is_it = |entry: &&Value| entry["name"] == pod.name() && entry["namespace"] == pod.namespace();
        let entry = status["pods"].as_array().and_then(|pods| pods.iter().find(is_it));
        entry.cloned().with_context(|| format!("the agent of {} does not list {}: {status}", pod.node(), pod.name()))
    }

    /// Waits until the agent says that `pods` are in `state`.
    pub fn wait_for_state(&self, pods: &[&Pod], state: &str) -> Result<()> {
        for pod in pods {
            eventually(START_TIMEOUT, || {
                let status = self.pod_status(pod)?;
                ensure!(status["state"] == state, "{}: {status}", pod.name());
                Ok(())
            })
            .with_context(|| format!("{} is not {state}", pod.name()))?;
        }
        Ok(())
    }

    /// Writes `pods` and their enrolled namespaces, and waits until each is captured.
    pub fn enrol(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            self.manifests.pod(pod)?;
            self.manifests.namespace(pod.namespace(), true)?;
        }
        self.wait_for_state(pods, "enrolled")
    }

    /// Waits until the agent lists none of `pods` any more.
    pub fn wait_until_forgotten(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            eventually(START_TIMEOUT, || match self.pod_status(pod) {
                Ok(status) => bail!("{} is still listed: {status}", pod.name()),
                Err(_) => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Waits until the agent has let go of `pods`: it lists them in no state that captures, or not at all.
    pub fn wait_until_not_enrolled(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            eventually(START_TIMEOUT, || match self.pod_status(pod) {
                Ok(status) => {
                    ensure!(status["state"] != "enrolled", "{} is still enrolled: {status}", pod.name());
                    Ok(())
                }
                Err(_) => Ok(()),
            })?;
        }
        Ok(())
    }

    /// What all ztunnels wrote, line by line, with the name of the node.
    pub fn ztunnel_logs(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for node in &self.nodes {
            for ztunnel in node.ztunnels() {
                for text in [ztunnel.process.stdout(), ztunnel.process.stderr()] {
                    lines.extend(text.lines().map(|l| (node.node.name().to_owned(), l.to_owned())));
                }
            }
        }
        lines
    }
}

/// The node's BPF file system inside the lab.
fn bpffs(node: &Node) -> PathBuf {
    Path::new("/run/loam").join(node.name()).join("bpffs")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

fn start_controller(lab: &Lab, manifests: &Path) -> Result<Process> {
    let program = bin::path("loam-controller")?;
    let data = authority(lab);
    let source = format!("dir:{}", manifests.display());
    let listen = format!("0.0.0.0:{CONTROL_PORT}");
    let arguments = [
        text(&program)?,
        "--source",
        &source,
        "--listen",
        &listen,
        "--data-dir",
        text(&data)?,
        "--serving-name",
        FABRIC_V4,
    ];
    let process = lab.spawn("controller", &arguments)?;
    eventually(START_TIMEOUT, || {
        ensure!(process.is_running(), "the controller ended: {}{}", process.stdout(), process.stderr());
        ensure!(data.join("root-cert.pem").exists(), "the controller has written no root certificate");
        Ok(())
    })?;
    Ok(process)
}

/// Directory of the controller's data.
fn authority(lab: &Lab) -> PathBuf {
    lab.work().join("controller")
}

fn start_tamperer(lab: &Lab) -> Result<Process> {
    let (listen, upstream) = (format!("{FABRIC_V4}:{TAMPERED_PORT}"), format!("{FABRIC_V4}:{CONTROL_PORT}"));
    let data = authority(lab);
    let arguments = ["tamper", "--listen", &listen, "--upstream", &upstream, "--data-dir", text(&data)?];
    let process = lab.spawn("tamperer", &[&[lab.tool()?][..], &arguments].concat())?;
    process.wait_for_output("serving", START_TIMEOUT)?;
    Ok(process)
}

/// A token for the node, readable by its ztunnel alone.
fn write_token(lab: &Lab, node: &Node) -> Result<()> {
    let program = bin::path("loam-controller")?;
    let data = authority(lab);
    let arguments = [text(&program)?, "token", "--data-dir", text(&data)?, "--node", node.name()];
    let token = lab.run(&arguments)?.success().context("make a token")?;
    let file = node.dir().join("token");
    fs::write(&file, token.trim())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&file, Some(ZTUNNEL_UID), Some(ZTUNNEL_UID)).map_err(Into::into)
}

fn start_keeper(node: &Node, manifests: &Path, options: &Options) -> Result<Process> {
    let process = spawn_keeper(node, manifests, options)?;
    wait_for_keeper(&process, "keeper ready")?;
    Ok(process)
}

/// Waits until a keeper says so.
fn wait_for_keeper(process: &Process, words: &str) -> Result<()> {
    eventually(START_TIMEOUT, || {
        let said = format!("{}{}", process.stdout(), process.stderr());
        ensure!(process.is_running(), "the keeper ended: {said}");
        // A killed one leaves the files of its sockets.
        ensure!(said.contains(words), "the keeper does not say {words:?}");
        Ok(())
    })
}

fn spawn_keeper(node: &Node, manifests: &Path, options: &Options) -> Result<Process> {
    let program = bin::path("loam-agent")?;
    let run_dir = node.dir().join("run");
    let uid = ZTUNNEL_UID.to_string();
    let mut arguments = vec![text(&program)?, "keeper", "--run-dir", text(&run_dir)?, "--ztunnel-uid", &uid];
    arguments.extend(options.keeper.iter().map(String::as_str));
    let agent = agent_arguments(node, manifests);
    arguments.push("--");
    arguments.extend(agent.iter().map(String::as_str));
    node.spawn("keeper", &arguments)
}

fn agent_arguments(node: &Node, manifests: &Path) -> Vec<String> {
    let mut arguments = vec!["--node".into(), node.name().to_owned()];
    arguments.extend(["--pods".into(), format!("dir:{}", manifests.display())]);
    arguments.extend(["--kubelet-cgroup".into(), node.kubelet_cgroup().display().to_string()]);
    arguments.extend(place_arguments(node));
    arguments
}

/// The arguments that the agent's commands share.
fn place_arguments(node: &Node) -> Vec<String> {
    [("--run-dir", node.dir().join("run")), ("--bpffs", bpffs(node)), ("--cgroup", node.cgroup())]
        .into_iter()
        .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
        .collect()
}

impl MeshNode {
    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// File with its token for the controller.
    pub fn token(&self) -> PathBuf {
        self.node.dir().join("token")
    }

    /// Its keeper.
    pub fn keeper(&self) -> Process {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its newest ztunnel.
    pub fn ztunnel(&self) -> Ztunnel {
        self.ztunnels().pop().expect("a mesh starts a ztunnel on every node")
    }

    /// Every ztunnel it ever had, oldest first.
    pub fn ztunnels(&self) -> Vec<Ztunnel> {
        self.ztunnels.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a ztunnel beside what runs.
    pub fn start_ztunnel(&self) -> Result<Ztunnel> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let admin_port = 15000 + 100 * u16::try_from(generation % 100)?;
        let program = match self.options.ztunnel_programs.get(self.node.name()) {
            Some(program) => program.clone(),
            None => bin::path("loam-ztunnel")?,
        };
        let lab = self.node.lab();
        let arguments = [
            text(&program)?.to_owned(),
            "--node".into(),
            self.node.name().to_owned(),
            "--run-dir".into(),
            self.node.dir().join("run").display().to_string(),
            "--xds-address".into(),
            format!("{FABRIC_V4}:{}", if self.options.tampered { TAMPERED_PORT } else { CONTROL_PORT }),
            "--ca-address".into(),
            format!("{FABRIC_V4}:{CONTROL_PORT}"),
            "--ca-root".into(),
            authority(lab).join("root-cert.pem").display().to_string(),
            "--token".into(),
            self.token().display().to_string(),
            "--admin-address".into(),
            format!("127.0.0.1:{admin_port}"),
            "--metrics-address".into(),
            format!("127.0.0.1:{}", admin_port + 20),
            "--readiness-address".into(),
            format!("127.0.0.1:{}", admin_port + 21),
        ];
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(self.options.ztunnel.iter().map(String::as_str));
        let process = self.node.spawn(&format!("ztunnel-{generation}"), &arguments)?;
        let ztunnel = Ztunnel { process, node: self.node.clone(), admin_port };
        self.ztunnels.lock().unwrap_or_else(PoisonError::into_inner).push(ztunnel.clone());
        Ok(ztunnel)
    }

    /// Replaces the ztunnel as a rolling update does: the next one serves before the old one is asked to end.
    pub fn replace_ztunnel(&self) -> Result<Ztunnel> {
        let old = self.ztunnel();
        let new = self.start_ztunnel()?;
        new.wait_ready(START_TIMEOUT)?;
        old.process.signal(SIGTERM)?;
        Ok(new)
    }

    /// Kills the keeper and with it the agent, which dies with its parent, and starts both again.
    pub fn restart_keeper(&self) -> Result<()> {
        self.keeper().kill()?;
        let process = start_keeper(&self.node, &self.manifests, &self.options)?;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }

    /// Replaces keeper, agent and ztunnel as a DaemonSet does that surges: the next pod runs beside the former one until
    /// it serves, and then all programs of the former one are told to end at once.
    pub fn roll(&self) -> Result<()> {
        let (keeper, ztunnel) = (self.keeper(), self.ztunnel());
        let next = spawn_keeper(&self.node, &self.manifests, &self.options)?;
        wait_for_keeper(&next, "waiting for the other keeper to end")?;
        self.start_ztunnel()?.wait_ready(START_TIMEOUT)?;
        keeper.signal(SIGTERM)?;
        ztunnel.process.signal(SIGTERM)?;
        wait_for_keeper(&next, "keeper ready")?;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The agent, a child of the keeper.
    pub fn agent_pid(&self) -> Result<i32> {
        let children = self.keeper().children()?;
        let agent = children.iter().find(|(_, command)| command.contains(" run "));
        agent.map(|&(pid, _)| pid).with_context(|| format!("the keeper has no agent among {children:?}"))
    }

    /// Waits until the agent that runs now has all its pods and says that nothing is wrong with any.
    pub fn wait_for_agent(&self, limit: Duration) -> Result<()> {
        eventually(limit, || {
            let (status, pid) = (self.status()?, self.agent_pid()?);
            ensure!(status["pid"] == pid, "the agent {pid} has not said how its pods are");
            let pods = status["pods"].as_array().context("no pods")?;
            ensure!(pods.iter().all(|pod| pod["state"] == "enrolled" && pod["reason"] == ""), "{status}");
            Ok(())
        })
    }

    /// Kills the agent; the keeper starts another.
    pub fn kill_agent(&self) -> Result<()> {
        let pid = self.agent_pid()?;
        Process { pid, ..self.keeper() }.signal(crate::process::SIGKILL)
    }

    /// What the agent says of its pods.
    pub fn status(&self) -> Result<Value> {
        let path = self.node.dir().join("run/status.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The same as the agent's own command prints it.
    pub fn status_table(&self) -> Result<String> {
        let program = bin::path("loam-agent")?;
        let run_dir = self.node.dir().join("run");
        self.node.run(&[text(&program)?, "status", "--run-dir", text(&run_dir)?])?.success()
    }

    /// Runs `loam-agent cleanup`, after the keeper has ended.
    pub fn clean_up(&self) -> Result<String> {
        let program = bin::path("loam-agent")?;
        let place = place_arguments(&self.node);
        let mut arguments = vec![text(&program)?, "cleanup"];
        arguments.extend(place.iter().map(String::as_str));
        self.node.run(&arguments)?.success()
    }

    /// The node's BPF file system, seen from outside.
    pub fn bpffs(&self) -> PathBuf {
        self.node.lab().outside(&bpffs(&self.node))
    }

    /// The arguments of the node's agent, for one beside it.
    pub fn agent_command(&self, manifests: &Path) -> Result<Vec<String>> {
        let mut command = vec![text(&bin::path("loam-agent")?)?.to_owned(), "run".into()];
        command.extend(agent_arguments(&self.node, manifests));
        Ok(command)
    }
}

impl Ztunnel {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/healthz/ready", self.admin_port + 21);
        eventually(timeout, || {
            let process = &self.process;
            ensure!(process.is_running(), "{} ended: {}{}", process.name(), process.stdout(), process.stderr());
            self.node.http_get(&url)
        })
        .map(drop)
        .with_context(|| format!("{} is not ready", self.process.name()))
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<String> {
        self.node.http_get(&format!("http://127.0.0.1:{}/metrics", self.admin_port + 20))
    }

    /// A page of its administration interface.
    pub fn admin(&self, path: &str) -> Result<String> {
        self.node.http_get(&format!("http://127.0.0.1:{}{path}", self.admin_port))
    }

    /// Port of its administration interface.
    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }
}
