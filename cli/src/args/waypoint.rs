//! `waypoint`, with the flags of `istioctl waypoint`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::duration;

/// Name of a waypoint where none is given.
const NAME: &str = "waypoint";

/// As the value of `istio.io/use-waypoint` it means that there is none.
const RESERVED: &str = "none";

/// `waypoint`.
#[derive(Debug, Args)]
pub struct Waypoint {
    /// Namespace of the waypoints; that of the kubeconfig when left out
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with waypoints.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the Gateway that a waypoint is, without asking a cluster
    #[command(before_help = "\
Examples:
  loam waypoint generate -n shop                  as YAML
  loam waypoint generate -n shop --for workload   for connections to pods instead of services
  loam waypoint generate -o json                  as JSON, for the namespace in which it is applied")]
    Generate(Wanted),
    /// Make a waypoint, or make it what is asked for
    #[command(before_help = "\
Examples:
  loam waypoint apply -n shop                             make it; nobody passes it yet
  loam waypoint apply -n shop --enroll-namespace --wait   put it in front of the services of the namespace
  loam waypoint apply -n shop --name two --enroll-namespace --overwrite   instead of another one")]
    Apply(Apply),
    /// The waypoints of a namespace or of the cluster
    #[command(before_help = "\
Examples:
  loam waypoint list           of the kubeconfig's namespace
  loam waypoint list -n shop   of another one
  loam waypoint list -A        of all")]
    List(List),
    /// How waypoints fare, without waiting for anything
    #[command(before_help = "\
Examples:
  loam waypoint status -n shop            all of a namespace
  loam waypoint status -n shop waypoint   one of them
  loam waypoint status -o json            the same for programs; the exit status is 3 when one is not programmed")]
    Status(Status),
    /// Take waypoints away
    #[command(before_help = "\
Examples:
  loam waypoint delete -n shop waypoint        by name
  loam waypoint delete -n shop --all           all of a namespace
  loam waypoint delete -n shop --revision v1   those of a revision")]
    Delete(Delete),
}

/// `waypoint generate`, and what `waypoint apply` has in common with it.
#[derive(Debug, Clone, Args)]
pub struct Wanted {
    /// Name of the waypoint
    #[arg(long, value_name = "NAME", default_value = NAME, value_parser = name)]
    pub name: String,
    /// Whose traffic it takes; what its class says when left out, which is that of services
    #[arg(long = "for", value_enum, value_name = "TRAFFIC")]
    pub traffic: Option<Traffic>,
    /// Revision of the control plane that makes it
    #[arg(short, long, value_name = "REVISION", default_value = "", hide_default_value = true)]
    pub revision: String,
}

/// Whose traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Traffic {
    /// That of services
    Service,
    /// That of pods and machines that are reached by their own addresses
    Workload,
    /// Both
    All,
    /// Nobody's
    None,
}

impl Traffic {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Traffic::Service => "service",
            Traffic::Workload => "workload",
            Traffic::All => "all",
            Traffic::None => "none",
        }
    }
}

/// `waypoint apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// What is made.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Put it in front of the services of its namespace
    #[arg(long)]
    pub enroll_namespace: bool,
    /// Also where the namespace has another waypoint
    #[arg(long, requires = "enroll_namespace")]
    pub overwrite: bool,
    /// Return when it is programmed, or when it is clear that it will not be
    #[arg(short, long)]
    pub wait: bool,
    /// How long to wait, as 90s or 2m
    #[arg(
        long,
        visible_alias = "waypoint-timeout",
        value_name = "TIME",
        default_value = "90s",
        value_parser = duration,
        requires = "wait"
    )]
    pub timeout: Duration,
}

/// `waypoint list`.
#[derive(Debug, Args)]
pub struct List {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// `waypoint status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The waypoints; all of the namespace when left out
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// `waypoint delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// The waypoints
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "revision"], conflicts_with_all = ["all", "revision"])]
    pub names: Vec<String>,
    /// All of the namespace
    #[arg(long)]
    pub all: bool,
    /// Those of this revision
    #[arg(short, long, value_name = "REVISION", value_parser = some)]
    pub revision: Option<String>,
}

fn name(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(NAME.to_owned()),
        RESERVED => Err("is reserved: as the waypoint of a namespace it means that there is none".to_owned()),
        name => Ok(name.to_owned()),
    }
}

fn some(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}
