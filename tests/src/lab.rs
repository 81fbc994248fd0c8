//! A lab: private namespaces with a fabric that joins nodes, and a place for files and logs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::init::{Ask, Init, Spawn};
use crate::process::{Output, Process};
use crate::topology::Node;
use crate::{bin, cgroup, host, sweep};

/// Longest run of a command whose end is awaited, where the caller has no better bound.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The lab's own address on the fabric, where the controller listens.
pub const FABRIC_V4: &str = "172.30.0.254";
/// Its IPv6 twin.
pub const FABRIC_V6: &str = "fd00:30::fe";

/// A running lab. Clones share it; the last one to go takes everything with it.
#[derive(Debug, Clone)]
pub struct Lab {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    // Before the lock: what it holds must be gone when the lock is.
    pub(crate) init: Arc<Init>,
    work: PathBuf,
    /// One of each hierarchy that the lab needs; the first is of v2.
    cgroups: Vec<PathBuf>,
    tool: PathBuf,
    serial: AtomicUsize,
    nodes: Mutex<Vec<Node>>,
    processes: Mutex<Vec<Process>>,
    _lock: File,
}

/// Where a process runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// Name of the network namespace; none is the fabric.
    pub(crate) netns: Option<String>,
    /// Cgroup below the lab's.
    pub(crate) cgroup: String,
}

/// The file of a network namespace inside the lab.
pub fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// The directory of a lab with a name of its own.
pub fn named_work(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{}{name}", sweep::PREFIX))
}

impl Lab {
    /// A lab with two nodes.
    pub fn new() -> Result<Self> {
        let lab = Self::without_nodes()?;
        lab.add_node()?;
        lab.add_node()?;
        Ok(lab)
    }

    /// A lab with nothing but its fabric.
    pub fn without_nodes() -> Result<Self> {
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}{}.{}", sweep::PREFIX, std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup::mount()?.join(&name);
        Self::create(&name, vec![cgroup], |cgroup| Ok(fs::create_dir(cgroup)?))
    }

    /// A lab with nothing but its fabric, whose processes have cgroups with every controller, and whose directory is
    /// always the same: [`named_work`].
    pub fn with_controllers(name: &str) -> Result<Self> {
        let legacy = cgroup::legacy()?.into_iter().map(|l| l.mount);
        let mounts = std::iter::once(cgroup::mount()?).chain(legacy);
        let name = format!("{}{name}", sweep::PREFIX);
        Self::create(&name, mounts.map(|m| m.join(&name)).collect(), cgroup::make_parent)
    }

    fn create(name: &str, cgroups: Vec<PathBuf>, make_cgroup: fn(&Path) -> Result<()>) -> Result<Self> {
        if !host::is_root() {
            bail!("a lab needs root: it makes network namespaces and loads BPF programs");
        }
        let missing = host::missing_from_kernel();
        if !missing.is_empty() {
            bail!("this machine lacks {}", missing.join("; "));
        }
        sweep::sweep();

        let work = std::env::temp_dir().join(name);
        fs::create_dir(&work).with_context(|| format!("make {}", work.display()))?;
        let lock = sweep::hold(&work)?;
        let lines: Vec<_> = cgroups.iter().map(|cgroup| cgroup.to_string_lossy()).collect();
        fs::write(work.join(sweep::CGROUP), lines.join("\n"))?;
        for cgroup in &cgroups {
            make_cgroup(cgroup).with_context(|| format!("make the cgroup {}", cgroup.display()))?;
        }
        fs::create_dir(work.join("logs"))?;

        let tool = bin::path("loam-lab")?;
        let init = Arc::new(Init::start(&tool, &work, &cgroups)?);
        let lab = Self {
            inner: Arc::new(Inner {
                init,
                work,
                cgroups,
                tool,
                serial: AtomicUsize::new(0),
                nodes: Mutex::default(),
                processes: Mutex::default(),
                _lock: lock,
            }),
        };
        lab.sysctl(None, &common_sysctls())?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add fabric address 02:6c:6f:61:6d:00 type bridge mcast_snooping 0".into(),
            format!("addr add {FABRIC_V4}/24 dev fabric"),
            "link set fabric up".into(),
        ];
        if host::has_ipv6() {
            lines.push(format!("addr add {FABRIC_V6}/64 dev fabric nodad"));
        }
        lab.ip(None, &lines)?;
        Ok(lab)
    }

    /// Adds a node: its namespace, its bridge, its link to the fabric.
    pub fn add_node(&self) -> Result<Node> {
        let mut nodes = self.inner.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Node::create(self, nodes.len() + 1)?;
        nodes.push(node.clone());
        Ok(node)
    }

    /// The node number `index`, from 0.
    pub fn node(&self, index: usize) -> Node {
        self.nodes()[index].clone()
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.inner.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lab's directory, the same inside and outside.
    pub fn work(&self) -> &Path {
        &self.inner.work
    }

    /// The lab's cgroup of v2.
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroups[0]
    }

    /// The lab's cgroups, one of each hierarchy that it needs.
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.inner.cgroups
    }

    /// A path inside the lab as it is seen from outside.
    pub fn outside(&self, inside: &Path) -> PathBuf {
        self.inner.init.root().join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Number of the lab's first process outside the lab, for `nsenter --target`.
    pub fn outer_pid(&self) -> i32 {
        self.inner.init.outer_pid()
    }

    /// Starts a process on the fabric.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        self.spawn_at(&Place { netns: None, cgroup: "control".into() }, name, argv, &[])
    }

    /// Runs a command on the fabric to its end.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.spawn(argv.first().copied().unwrap_or("command"), argv)?.output(COMMAND_TIMEOUT)
    }

    /// Path of our own tool.
    pub(crate) fn tool(&self) -> Result<&str> {
        self.inner.tool.to_str().context("the path of loam-lab is not text")
    }

    pub(crate) fn spawn_at(&self, place: &Place, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let stem = Path::new(name).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let log = |kind: &str| self.inner.work.join("logs").join(format!("{serial:04}-{stem}.{kind}"));
        let cgroups: Vec<_> = self.inner.cgroups.iter().map(|cgroup| cgroup.join(&place.cgroup)).collect();
        for cgroup in &cgroups {
            fs::create_dir_all(cgroup).with_context(|| format!("make the cgroup {}", cgroup.display()))?;
        }
        let spawn = Spawn {
            argv: argv.iter().map(|&s| s.to_owned()).collect(),
            netns: place.netns.as_deref().map(netns_path),
            cgroups,
            stdout: log("out"),
            stderr: log("err"),
            env: env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        };
        let (stdout, stderr) = (spawn.stdout.clone(), spawn.stderr.clone());
        let pid = self.inner.init.ask(Ask::Spawn(spawn)).with_context(|| format!("start {argv:?}"))?;
        let pid = pid.context("the first process of the lab gave no process number")?;
        let process = Process { init: self.inner.init.clone(), name: stem, pid, stdout, stderr };
        self.inner.processes.lock().unwrap_or_else(PoisonError::into_inner).push(process.clone());
        Ok(process)
    }

    /// Runs `ip` commands in a namespace, one per line, all or error.
    pub(crate) fn ip(&self, netns: Option<&str>, lines: &[String]) -> Result<()> {
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let file = self.inner.work.join(format!("ip-{serial}"));
        fs::write(&file, lines.join("\n"))?;
        let file_name = file.to_str().context("the lab's directory is not text")?;
        let place = Place { netns: netns.map(str::to_owned), cgroup: "control".into() };
        let run = self.spawn_at(&place, "ip", &["ip", "-batch", file_name], &[])?.output(COMMAND_TIMEOUT)?;
        run.success().with_context(|| format!("ip: {}", lines.join("; ")))?;
        fs::remove_file(&file).map_err(Into::into)
    }

    pub(crate) fn sysctl(&self, netns: Option<&str>, settings: &BTreeMap<&str, String>) -> Result<()> {
        let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        self.inner.init.ask(Ask::Sysctl { netns: netns.map(netns_path), settings }).map(drop)
    }

    /// A script that runs a command as a process of a pod or a node: `in NAME COMMAND ...`. Being in the pod's network
    /// namespace is not enough, the connect hooks look at cgroups.
    pub fn entrance(&self) -> Result<PathBuf> {
        let path = self.inner.work.join("in");
        let (cgroup, tool, init) = (self.cgroup().display(), self.tool()?, self.outer_pid());
        let script = format!(
            "#!/bin/sh\n# in NAME COMMAND ...: runs a command in the pod or node NAME of this lab.\n\
             name=$1; shift\n\
             for cgroup in {cgroup}/*/pods/*.\"$name\" {cgroup}/\"$name\"/system; do\n  \
             [ -d \"$cgroup\" ] && break\ndone\n\
             case $cgroup in */pods/*) netns=${{cgroup##*/}};; *) netns=$name;; esac\n\
             exec nsenter -t {init} -m -p -- {tool} exec --netns /run/netns/\"$netns\" --cgroup \"$cgroup\" -- \"$@\"\n"
        );
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// What every process said, for the eyes of whoever looks at a failure: the ends of what is not empty.
    pub fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        for process in self.inner.processes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let end = self.inner.init.ended(process.pid);
            for (kind, content) in [("out", process.stdout()), ("err", process.stderr())] {
                if content.trim().is_empty() || (end.is_some_and(|e| e.is_success()) && kind == "out") {
                    continue;
                }
                let state = end.map_or_else(|| "running".into(), |e| e.to_string());
                text.push_str(&format!("--- {} ({state}), std{kind}\n", process.name));
                let all: Vec<&str> = content.lines().collect();
                for line in &all[all.len().saturating_sub(lines)..] {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }

    /// Ends everything and waits until it is gone.
    pub fn close(&self) {
        self.inner.init.close();
    }
}

/// What every namespace of a lab gets: the machine's own choices must not decide a test.
pub(crate) fn common_sysctls() -> BTreeMap<&'static str, String> {
    let mut settings = BTreeMap::from([
        // BBR costs plain TCP over veth three quarters of its speed.
        ("net/ipv4/tcp_congestion_control", "reno".to_owned()),
        ("net/ipv4/ip_local_port_range", "32768 60999".into()),
        // A thousand connections a second must not run out of ports for their TIME_WAIT.
        ("net/ipv4/tcp_max_tw_buckets", "2000".into()),
        ("net/ipv4/conf/all/rp_filter", "0".into()),
        ("net/ipv4/conf/default/rp_filter", "0".into()),
        ("net/core/somaxconn", "4096".into()),
    ]);
    if host::has_ipv6() {
        settings.extend([
            ("net/ipv6/conf/all/disable_ipv6", "0".to_owned()),
            ("net/ipv6/conf/default/disable_ipv6", "0".into()),
            ("net/ipv6/conf/all/accept_dad", "0".into()),
            ("net/ipv6/conf/default/accept_dad", "0".into()),
            // Made in another namespace, the device brought that one's default along.
            ("net/ipv6/conf/eth0/accept_dad", "0".into()),
        ]);
    }
    settings
}
