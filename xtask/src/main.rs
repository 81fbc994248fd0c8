//! The repository's tasks: `cargo xtask demo`, `cargo xtask test`, and what continuous integration runs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to the person who started it")]

mod bench;
mod build;
mod cached;
mod ci;
mod cluster;
mod demo;
mod ebpf;
mod images;
mod kernels;
mod rings;
mod setup;
mod term;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// EX_UNAVAILABLE of sysexits.h: this machine lacks something, and we said what.
const EXIT_UNAVAILABLE: u8 = 69;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of this repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows the mesh at work on this machine: two nodes, four services, real traffic
    Demo(demo::Arguments),
    /// Runs the tests: of each crate, and of everything together in a private network
    Test(rings::Arguments),
    /// Measures the mesh beside plain TCP, and says which targets it reaches
    Bench(bench::Arguments),
    /// A Kubernetes cluster of two nodes on this machine, without a container engine
    Cluster(cluster::Arguments),
    /// Builds our container images, without a container engine
    Images(images::Arguments),
    /// Tests the redirect on kernels of distributions, in an emulator
    Kernels(kernels::Arguments),
    /// Checks what demo and tests need of the system, and installs it where it can
    Setup,
    /// Builds the kernel programs into ebpf/prebuilt
    Ebpf {
        /// Compare with what is committed instead of writing it
        #[arg(long)]
        check: bool,
    },
    /// Generates code from the .proto files
    Codegen {
        /// Compare with what is committed instead of writing it
        #[arg(long)]
        check: bool,
    },
    /// Everything continuous integration runs, with the time of each stage
    Ci,
}

/// A task cannot run on this machine. The text says what is missing and what to do.
#[derive(Debug)]
pub(crate) struct Unavailable(pub(crate) String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => rings::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Cluster(arguments) => cluster::run(arguments),
        Task::Images(arguments) => images::run(&arguments),
        Task::Kernels(arguments) => kernels::run(&arguments),
        Task::Setup => setup::run(),
        Task::Ebpf { check } => ebpf::build(&root(), check),
        Task::Codegen { check } => codegen(check),
        Task::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is::<Unavailable>() => {
            eprintln!("{e}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The cargo that runs us, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end; it has already told what went wrong.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {}", command.get_program().display()))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

fn codegen(check: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "xtask-codegen", "--"]).args(check.then_some("--check"));
    succeed(&mut command)
}
