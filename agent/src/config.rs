//! The command line: what every setting is called, its default, and why.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use loam_manifest::Source;
use loam_rt::telemetry::LogFormat;

/// Where keeper, agent and ztunnel meet.
const RUN_DIR: &str = "/run/loam";
/// Where a bpf file system is mounted by systemd.
const BPFFS: &str = "/sys/fs/bpf";
/// Where cgroup v2 is mounted by systemd.
const CGROUP: &str = "/sys/fs/cgroup";

/// The node agent of the Loam service mesh.
#[derive(Debug, Parser)]
#[command(name = "loam-agent", version, about)]
pub struct Cli {
    /// How log lines look: plain or json.
    #[arg(long, global = true, env = "LOAM_LOG_FORMAT", default_value = "plain")]
    pub log_format: LogFormat,
    /// What is logged, such as `info` or `info,loam_agent=debug`.
    #[arg(long, global = true, env = "LOAM_LOG", default_value = "info")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Brings the pods of this node into the mesh and keeps them there.
    Run(Run),
    /// Owns the pods' listeners and outlives the agent and the ztunnel.
    Keeper(crate::keeper::KeeperConfig),
    /// Shows how each pod is.
    Status(Status),
    /// Takes everything back that the agent changed on this node. Stop agent and keeper first.
    Cleanup(Cleanup),
    /// Waits until a DaemonSet that runs `cleanup` on every node is done, and takes back what pods' objects say.
    AwaitCleanup(AwaitCleanup),
    /// Does nothing until it is told to end: by running it shows that what came before it in its pod is done.
    Rest,
}

/// Settings of `run`.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// Name of this node; only its pods are enrolled.
    #[arg(long, env = "LOAM_NODE")]
    pub node: String,
    /// Where pods are described: kubernetes, or dir:PATH for a directory of manifests.
    #[arg(long, env = "LOAM_PODS", value_name = "SOURCE")]
    pub pods: Source,
    /// Directory of the keeper's sockets, the status and the records.
    #[arg(long, env = "LOAM_RUN_DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// The bpf file system that keeps programs while the agent is gone.
    #[arg(long, env = "LOAM_BPFFS", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// The cgroup v2 directory whose processes are seen: the root, or the node's own part.
    #[arg(long, env = "LOAM_CGROUP", default_value = CGROUP)]
    pub cgroup: PathBuf,
    /// The kubelet's own cgroup, as a directory below the mount of cgroup v2: connections of its processes reach the ports
    /// that are probed past the mesh. Found by the process's name when left out.
    #[arg(long, env = "LOAM_KUBELET_CGROUP", value_name = "PATH")]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Directory of the node's CNI plugins, such as /opt/cni/bin: with it and --cni-conf-dir the plugin loam-cni is
    /// installed, so that no pod of the mesh starts before it is captured.
    #[arg(long, env = "LOAM_CNI_BIN_DIR", value_name = "PATH", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Directory of the node's network configurations, such as /etc/cni/net.d.
    #[arg(long, env = "LOAM_CNI_CONF_DIR", value_name = "PATH", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The socket on which the plugin asks, as the node names it: in another place than the run directory if that is
    /// mounted elsewhere there.
    #[arg(long, env = "LOAM_CNI_SOCKET", value_name = "PATH", default_value = "/run/loam/cni.sock")]
    pub cni_socket: PathBuf,
    /// The agent's own DaemonSet, as namespace/name: its pods start without being asked about.
    #[arg(long, env = "LOAM_DAEMON_SET", value_name = "NAMESPACE/NAME", default_value = "istio-system/ztunnel")]
    pub daemon_set: DaemonSetName,
    /// Whether what pods ask name servers goes to the ztunnel, which answers for the mesh; a pod's annotation
    /// `ambient.istio.io/dns-capture` counts for more.
    #[arg(long, env = "LOAM_DNS_CAPTURE", value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub dns_capture: bool,
}

/// A DaemonSet, as namespace/name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonSetName(pub loam_cni::plugin::DaemonSet);

impl std::str::FromStr for DaemonSetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(loam_cni::plugin::DaemonSet { namespace: namespace.into(), name: name.into() }))
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
        }
    }
}

/// Settings of `status`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// The agent's run directory.
    #[arg(long, env = "LOAM_RUN_DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// A table for people or the file itself.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How `status` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// One line per pod.
    Table,
    /// As it was written.
    Json,
}

/// Settings of `cleanup`.
#[derive(Debug, Clone, Args)]
pub struct Cleanup {
    /// The agent's run directory.
    #[arg(long, env = "LOAM_RUN_DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// The bpf file system with the pins.
    #[arg(long, env = "LOAM_BPFFS", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// The cgroup v2 directory that `run` was given; links know where they are attached, so nothing is read from it.
    #[arg(long, env = "LOAM_CGROUP", default_value = CGROUP)]
    pub cgroup: PathBuf,
    /// Directory of the node's CNI plugins that `run` was given; the plugin is taken away from there.
    #[arg(long, env = "LOAM_CNI_BIN_DIR", value_name = "PATH", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Directory of the node's network configurations that `run` was given; the plugin is taken out of the chain there.
    #[arg(long, env = "LOAM_CNI_CONF_DIR", value_name = "PATH", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Seconds to wait for connections through the mesh to end before they are reset.
    #[arg(long, default_value_t = 5)]
    pub wait: u64,
    /// Seconds to wait for an agent and a keeper that are about to end.
    #[arg(long, default_value_t = 0)]
    pub patience: u64,
}

/// Settings of `await-cleanup`.
#[derive(Debug, Clone, Args)]
pub struct AwaitCleanup {
    /// Namespace of the DaemonSet.
    #[arg(long)]
    pub namespace: String,
    /// Name of the DaemonSet.
    #[arg(long)]
    pub daemon_set: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_source_of_pods_says_what_it_is() {
        let parse = |pods: &str| Cli::try_parse_from(["loam-agent", "run", "--node", "n1", "--pods", pods]);
        assert!(parse("dir:/etc/pods").is_ok() && parse("kubernetes").is_ok());
        assert!(parse("/etc/pods").unwrap_err().to_string().contains("dir:PATH"));
    }
}
