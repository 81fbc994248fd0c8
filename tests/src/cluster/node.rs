//! A node of the cluster: what it is called, its files, its part of the network.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::address::{self, NodeAddresses};
use super::certificates;
use crate::cgroup::{self, Legacy};
use crate::lab::FABRIC_V4;
use crate::{host, lab};

/// Where a node sees the programs of Kubernetes.
const PROGRAMS: &str = "/kubernetes";
/// Where it sees the images it brings along.
const IMAGES: &str = "/images";
/// containerd's socket.
const RUNTIME: &str = "/run/containerd/containerd.sock";
/// Appears in a node's files when the API server answers.
const GATE: &str = "/var/api-server-answers";
/// Where containerd gets the image of the pods' first process.
pub const PAUSE_IMAGE: &str = "loam.test/pause:1";

/// What the first process of a node needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Boot {
    /// Its name.
    pub name: String,
    /// Directory with its own files.
    pub dir: PathBuf,
    /// Directories of the machine and where the node sees them.
    pub shown: Vec<(PathBuf, String)>,
    /// The machine's hierarchies of cgroup v1: a directory for each, and what to mount there.
    pub legacy: Vec<(String, String)>,
    /// Values of kernel parameters that the node sees; the machine's stay as they are.
    pub parameters: Vec<(String, String)>,
    /// What it does, in this order.
    pub steps: Vec<Step>,
}

/// One step of a node's start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// Start a service, now and whenever it has ended.
    Serve {
        /// Its name, that of its cgroup and of its log.
        name: String,
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Wait until a file is there.
    Await(PathBuf),
    /// Give the images of a directory to containerd.
    Import(PathBuf),
}

/// The services of a node, by their names.
pub const SERVICES: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// A node's name and addresses.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) addresses: NodeAddresses,
    /// Its files in the machine's file system.
    pub(super) dir: PathBuf,
}

impl Node {
    /// The node number `index`, from 1.
    pub(super) fn new(index: usize, work: &Path) -> Self {
        let name = format!("node-{}", char::from(b'a' + (index as u8 - 1) % 26));
        Self { dir: work.join(&name), name, addresses: NodeAddresses::of(index) }
    }

    /// Writes its files, once.
    pub(super) fn write_files(&self, pki: &Path) -> Result<()> {
        for dir in ["etc-work", "etc/cni/net.d", "etc/containerd", "etc/kubernetes/pki", "opt/cni/bin", "parameters"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        for dir in ["cache", "lib/cni", "lib/containerd", "lib/kubelet", "log", "tmp"] {
            fs::create_dir_all(self.dir.join("var").join(dir))?;
        }
        symlink("/run", self.dir.join("var/run"))?;
        symlink("/run/lock", self.dir.join("var/lock"))?;
        for entry in fs::read_dir(cni_programs()?)?.flatten() {
            fs::copy(entry.path(), self.dir.join("opt/cni/bin").join(entry.file_name()))?;
        }
        let etc = self.dir.join("etc");
        let inside = Path::new("/etc/kubernetes/pki");
        for (from, to) in [
            ("ca.crt".to_owned(), "ca.crt"),
            (format!("{}.crt", self.name), "node.crt"),
            (format!("{}.key", self.name), "node.key"),
            (format!("{}-serving.crt", self.name), "serving.crt"),
            (format!("{}-serving.key", self.name), "serving.key"),
            ("kube-proxy.crt".into(), "kube-proxy.crt"),
            ("kube-proxy.key".into(), "kube-proxy.key"),
        ] {
            fs::copy(pki.join(&from), etc.join("kubernetes/pki").join(to)).with_context(|| format!("copy {from}"))?;
        }
        certificates::kubeconfig(&etc.join("kubernetes/kubelet.kubeconfig"), inside, "node")?;
        certificates::kubeconfig(&etc.join("kubernetes/kube-proxy.kubeconfig"), inside, "kube-proxy")?;
        let v4 = &self.addresses.v4;
        fs::write(etc.join("hostname"), format!("{}\n", self.name))?;
        fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n::1 localhost\n{v4} {}\n", self.name))?;
        // Nobody is there: what is outside of the cluster has no name in it.
        fs::write(etc.join("resolv.conf"), format!("nameserver {FABRIC_V4}\n"))?;
        fs::write(etc.join("machine-id"), fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', ""))?;
        fs::write(etc.join("containerd/config.toml"), containerd())?;
        let json = |file: &str, value| fs::write(etc.join(file), serde_json::to_vec_pretty(&value).unwrap_or_default());
        json("cni/net.d/10-cluster.conflist", self.network())?;
        json("kubernetes/kubelet.json", kubelet())?;
        json("kubernetes/kube-proxy.json", self.proxy())?;
        Ok(())
    }

    /// Tells it that the API server answers.
    pub(super) fn open_gate(&self) -> Result<()> {
        let gate = self.dir.join(GATE.trim_start_matches('/'));
        fs::write(&gate, "").with_context(|| format!("write {}", gate.display()))
    }

    /// What its first process does.
    pub(super) fn boot(&self, programs: &Path, images: &Path) -> Result<Boot> {
        let program = |name: &str| format!("{PROGRAMS}/{name}");
        let serve = |name: &str, argv: Vec<String>| Step::Serve { name: name.to_owned(), argv };
        let steps = vec![
            serve("containerd", vec!["containerd".into(), "--config=/etc/containerd/config.toml".into()]),
            Step::Await(RUNTIME.into()),
            Step::Import(IMAGES.into()),
            Step::Await(GATE.into()),
            serve(
                "kubelet",
                vec![
                    program("kubelet"),
                    "--config=/etc/kubernetes/kubelet.json".into(),
                    "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".into(),
                    format!("--hostname-override={}", self.name),
                    format!("--node-ip={}", self.addresses.listed()),
                ],
            ),
            serve("kube-proxy", vec![program("kube-proxy"), "--config=/etc/kubernetes/kube-proxy.json".into()]),
        ];
        let named = |l: Legacy| {
            let name = l.mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, l.options)
        };
        Ok(Boot {
            name: self.name.clone(),
            dir: self.dir.clone(),
            shown: vec![(programs.into(), PROGRAMS.into()), (images.into(), IMAGES.into())],
            legacy: cgroup::legacy()?.into_iter().map(named).collect(),
            parameters: KUBELET_WANTS.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
            steps,
        })
    }

    /// Lines for `ip -batch` on the fabric that join the node to it.
    pub(super) fn joining(&self) -> Vec<String> {
        let name = &self.name;
        let mut lines = vec![
            format!("netns add {name}"),
            format!("link add up-{name} type veth peer name eth0 netns {name}"),
            format!("link set up-{name} master fabric up"),
        ];
        // The API server calls webhooks at their pods.
        lines.extend(self.addresses.routes("fabric"));
        lines
    }

    /// Lines for `ip -batch` on the fabric that take it away.
    pub(super) fn leaving(&self) -> Vec<String> {
        vec![format!("link del up-{}", self.name), format!("netns del {}", self.name)]
    }

    /// Lines for `ip -batch` inside the node.
    pub(super) fn links<'a>(&self, others: impl Iterator<Item = &'a Node>) -> Vec<String> {
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link set eth0 up".into(),
            format!("addr add {}/24 dev eth0", self.addresses.v4),
            format!("route add default via {FABRIC_V4}"),
        ];
        if let Some(v6) = &self.addresses.v6 {
            lines.push(format!("addr add {v6}/64 dev eth0 nodad"));
            lines.push(format!("route add ::/0 via {}", lab::FABRIC_V6));
        }
        lines.extend(others.filter(|o| o.name != self.name).flat_map(|o| o.addresses.routes("eth0")));
        lines
    }

    /// How pods are connected. Through a pair of devices and routes, as on most clouds: with a bridge, a pod's answer to
    /// a neighbour that called it by its service would need br_netfilter to find its way.
    fn network(&self) -> serde_json::Value {
        let ranges: Vec<_> = std::iter::once(&self.addresses.pods_v4).chain(&self.addresses.pods_v6).collect();
        let routes: Vec<_> = ["0.0.0.0/0", "::/0"].iter().take(ranges.len()).map(|dst| json!({"dst": dst})).collect();
        let ranges: Vec<_> = ranges.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        json!({
            "cniVersion": "0.4.0",
            "name": "cluster",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "mtu": 1500,
                    // Below /run, so that a node that was switched off has all addresses again.
                    "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": "/run/cni-addresses"},
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        })
    }

    fn proxy(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
            "clusterCIDR": address::pods(),
            "hostnameOverride": self.name,
            // These would be set for the whole machine.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
            // With the default of 1 s the first request after a rollout often goes to a pod that is gone.
            "nftables": {"minSyncPeriod": "100ms"},
        })
    }
}

/// Directory of the CNI plugins that Debian or another distribution installed.
pub fn cni_programs() -> Result<&'static Path> {
    let dirs = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"].map(Path::new);
    dirs.into_iter().find(|dir| dir.join("ptp").exists()).context("no CNI plugins are installed")
}

/// What kubelet would set on the machine; a node shows it these values, so it has nothing to set.
const KUBELET_WANTS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn kubelet() -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/pki/serving.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/pki/serving.key",
        "containerRuntimeEndpoint": format!("unix://{RUNTIME}"),
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "failCgroupV1": false,
        "protectKernelDefaults": true,
        // Root in a container may lack CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "clusterDNS": [address::DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        // The default is below /usr, which is the machine's.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%"},
        // Nobody could fetch an image again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 16,
        "maxPods": 100,
    })
}

fn containerd() -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{RUNTIME}"
[debug]
level = "warn"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
[{cri}.cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#
    )
}

/// What every node's network namespace gets.
pub(super) fn sysctls() -> std::collections::BTreeMap<&'static str, String> {
    let mut settings = lab::common_sysctls();
    settings.insert("net/ipv4/ip_forward", "1".into());
    if host::has_ipv6() {
        settings.insert("net/ipv6/conf/all/forwarding", "1".into());
    }
    settings
}
