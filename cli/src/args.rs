//! The command line.

pub mod waypoint;

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::chart;
use crate::output::Format;
use waypoint::Waypoint;

/// Installs the Loam service mesh, enrols namespaces, and shows what is going on.
#[derive(Debug, Parser)]
#[command(
    name = "loam",
    version,
    disable_help_subcommand = false,
    max_term_width = 100,
    before_help = "\
Examples:
  loam check --pre          whether this cluster can have the mesh
  loam enroll shop --wait   take the pods of a namespace into the mesh
  loam status               what is captured, what is not, and why"
)]
pub struct Cli {
    /// How to reach the cluster, and what to print.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub struct Common {
    /// File that says how to reach the cluster
    #[arg(long, global = true, value_name = "PATH", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Which of the clusters in it
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// Namespace of the mesh itself
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        env = "LOAM_SYSTEM_NAMESPACE",
        default_value = "istio-system",
        help_heading = "Cluster"
    )]
    pub system_namespace: String,
    /// Form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: Format,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Whether a cluster can have the mesh, or whether the mesh in it is well
    #[command(before_help = "\
Examples:
  loam check --pre      before the mesh is installed
  loam check            after that, and whenever something seems wrong
  loam check -o json    the same for programs; the exit status is 3 when a check failed")]
    Check(Check),
    /// Install the mesh with Helm, from the chart in this program
    #[command(before_help = "\
Examples:
  loam install --wait                   with the chart's own values
  loam install --profile ha --wait      for a cluster that others depend on
  loam install --set mesh.trustDomain=example.org --dry-run   what would be applied")]
    Install(Install),
    /// Bring the mesh to the version of this program, with the values that it has
    #[command(before_help = "\
Examples:
  loam upgrade --wait                       with the values that were set before
  loam upgrade --set controller.replicas=3  and one that is set now
  loam upgrade --dry-run                    what would be applied")]
    Upgrade(Chart),
    /// Take the mesh away
    #[command(before_help = "\
Examples:
  loam uninstall               when no namespace is enrolled any more
  loam uninstall --unenroll    let all namespaces leave first, one after another
  loam uninstall --timeout 20m   on a cluster with many nodes")]
    Uninstall(Uninstall),
    /// Take the pods of a namespace into the mesh
    #[command(before_help = "\
Examples:
  loam enroll shop --dry-run          which pods would be captured, which not, and why
  loam enroll shop                    label the namespace
  loam enroll shop --wait --timeout 2m   and wait until its pods are captured")]
    Enroll(Enroll),
    /// Let the pods of a namespace leave the mesh
    #[command(before_help = "\
Examples:
  loam unenroll shop --dry-run   what would change
  loam unenroll shop             take the label away
  loam unenroll shop --wait      and wait until no pod is captured any more")]
    Unenroll(Enroll),
    /// What is installed, which namespaces are enrolled, which pods are captured and why not
    #[command(before_help = "\
Examples:
  loam status                the mesh at a glance
  loam status shop           one namespace, pod by pod
  loam status -o json        all of it for programs")]
    Status(Status),
    /// Proxies for requests in front of services
    #[command(before_help = "\
Examples:
  loam waypoint apply -n shop --enroll-namespace --wait   one in front of every service of a namespace
  loam waypoint list -A                                   those of the cluster
  loam waypoint status -n shop                            how they fare, and what to do about it")]
    Waypoint(Waypoint),
    /// What a node's proxy knows, and whether it is what the controller serves
    #[command(before_help = "\
Examples:
  loam config get workload --node node-a      the workloads that the proxy of a node knows
  loam config get connection shop/web         connections from or to a workload
  loam config diff                            what nodes know otherwise than the controller")]
    #[command(subcommand)]
    Config(Config),
    /// Versions of this program and of what runs in the cluster
    #[command(before_help = "\
Examples:
  loam version            of every part
  loam version --client   of this program, without asking a cluster
  loam version -o json    the same for programs")]
    Version(Version),
    /// Print the completion of this command line for a shell
    #[command(before_help = "\
Examples:
  source <(loam completion bash)                              in this shell
  loam completion zsh > \"${fpath[1]}/_loam\"                   for every zsh
  loam completion fish > ~/.config/fish/completions/loam.fish  for every fish")]
    Completion(Completion),
}

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Check what an installation needs instead of the installation
    #[arg(long)]
    pub pre: bool,
}

/// `install`.
#[derive(Debug, Args)]
pub struct Install {
    /// What is installed.
    #[command(flatten)]
    pub chart: Chart,
    /// Install although `loam check --pre` fails
    #[arg(long)]
    pub skip_checks: bool,
}

/// `upgrade`, and what `install` has in common with it.
#[derive(Debug, Args)]
pub struct Chart {
    /// Values for a kind of cluster; may be repeated
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(chart::profiles()))]
    pub profile: Vec<String>,
    /// File with values of yours; may be repeated, and the last counts most
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One value, as Helm takes it; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Change nothing; print what would be applied
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Return when all of it is ready
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration, requires = "wait")]
    pub timeout: std::time::Duration,
}

/// `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Let every namespace leave the mesh first
    #[arg(long)]
    pub unenroll: bool,
    /// How long each step may take, as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub timeout: std::time::Duration,
}

/// `enroll` and `unenroll`.
#[derive(Debug, Args)]
pub struct Enroll {
    /// The namespace
    #[arg(value_name = "NAMESPACE")]
    pub namespace: String,
    /// Change nothing; say what would happen
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Return when it has happened to every pod
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, as 90s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, requires = "wait")]
    pub timeout: std::time::Duration,
}

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show the pods of this namespace
    #[arg(value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// What the proxy of a node knows
    #[command(before_help = "\
Examples:
  loam config get service --node node-a    the services that the proxy of a node knows
  loam config get cert -o wide             certificates, and when they are renewed
  loam config get workload shop/web -o yaml   all that is known of one workload")]
    Get(Get),
    /// What nodes know otherwise than the controller serves it
    #[command(before_help = "\
Examples:
  loam config diff                 of every node
  loam config diff --node node-a   of one node
  loam config diff -o json         the same for programs; the exit status is 3 when there are differences")]
    Diff(Diff),
}

/// `config get`.
#[derive(Debug, Args)]
pub struct Get {
    /// What
    #[arg(value_enum)]
    pub what: What,
    /// Only these: NAME, NAMESPACE/NAME, or a SPIFFE ID; the beginning of a name is enough
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// The node; may be left out where the mesh runs on one
    #[arg(short, long, value_name = "NODE")]
    pub node: Option<String>,
}

/// What a proxy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Instances with an address
    #[value(alias = "workloads")]
    Workload,
    /// Names with ports, and how many of their endpoints are healthy
    #[value(alias = "services")]
    Service,
    /// Authorization policies of L4
    #[value(alias = "policies")]
    Policy,
    /// Certificates of the workloads on the node
    #[value(aliases = ["certs", "certificate", "certificates"])]
    Cert,
    /// Connections that are carried
    #[value(alias = "connections")]
    Connection,
}

/// `config diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The node; all when left out
    #[arg(short, long, value_name = "NODE")]
    pub node: Option<String>,
}

/// `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Ask no cluster
    #[arg(long, action = ArgAction::SetTrue)]
    pub client: bool,
}

/// `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells that can be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A time with its unit: `90s`, `2m` or `1h`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    let seconds = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    match seconds {
        Some(seconds) if seconds <= 24 * 3600 => Ok(std::time::Duration::from_secs(seconds)),
        Some(_) => Err("is longer than a day".to_owned()),
        None => Err("is no time: write it as 90s, 2m or 1h".to_owned()),
    }
}

/// The command line of this program where it is called `program`, with examples that can be typed.
pub fn command(program: &str) -> clap::Command {
    rename(Cli::command(), program)
}

fn rename(mut command: clap::Command, program: &str) -> clap::Command {
    if let Some(examples) = command.get_before_help().map(ToString::to_string) {
        command = command.before_help(examples.replace("  loam ", &format!("  {program} ")));
    }
    command.mut_subcommands(|sub| rename(sub, program))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(command: clap::Command) -> Vec<clap::Command> {
        let below: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
        [command].into_iter().chain(below.into_iter().flat_map(all)).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        command("loam").debug_assert();
    }

    #[test]
    fn every_help_begins_with_three_examples() {
        for mut command in all(command("loam")) {
            let help = command.render_long_help().to_string();
            let lines: Vec<&str> = help.lines().take(5).collect();
            assert_eq!(lines[0], "Examples:", "{}", command.get_name());
            assert!(lines[1..4].iter().all(|line| line.contains("loam ")), "{help}");
            assert_eq!(lines[4], "", "{help}");
        }
    }

    #[test]
    fn times_have_a_unit_and_a_bound() {
        assert_eq!(duration("90s"), Ok(std::time::Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(std::time::Duration::from_secs(120)));
        for wrong in ["", "5", "s", "1d", "-1s", "25h", "99999999999999999999h", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
