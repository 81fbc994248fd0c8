//! What continuous integration runs, with the time each stage took.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::term::{Term, seconds};
use crate::{cargo, codegen, ebpf, rings, root, setup, succeed};

/// Files listed at the end, so that growth is seen.
const LARGEST: usize = 10;

/// Runs every stage, stops at the first that fails, and says how long each took.
pub(crate) fn run() -> Result<()> {
    let term = Term::new();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut stage = |name: &'static str, work: &dyn Fn() -> Result<()>| {
        term.heading(name);
        let start = Instant::now();
        let result = work();
        times.push((name, start.elapsed()));
        result
    };
    let result = (|| {
        stage("setup", &setup::ensure)?;
        stage("format", &format)?;
        stage("clippy", &|| {
            succeed(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        })?;
        stage("dependencies", &dependencies)?;
        stage("generated code is fresh", &|| codegen(true))?;
        stage("kernel programs are fresh", &|| ebpf::build(&root(), true))?;
        stage("test", &|| rings::run(&rings::Arguments::default()))
    })();
    term.heading("Time per stage");
    for (name, time) in times {
        println!("  {:>12}  {name}", seconds(time));
    }
    largest_files(term);
    result
}

/// The kernel programs are a workspace of their own, which `--all` does not reach.
fn format() -> Result<()> {
    succeed(cargo().args(["fmt", "--all", "--check"]))?;
    let programs = root().join("ebpf/programs/src/main.rs");
    succeed(std::process::Command::new("rustfmt").args(["--edition", "2024", "--check"]).arg(programs))
}

/// The version of cargo-deny that is installed where there is none.
const DENY_VERSION: &str = "0.20.2";

/// What may come into the tree, as far as that can be told without the network; advisories need it and are asked
/// elsewhere.
fn dependencies() -> Result<()> {
    if !loam_tests::host::finds_program("cargo-deny") {
        println!("installing cargo-deny {DENY_VERSION}");
        let install =
            ["install", "cargo-deny", "--version", DENY_VERSION, "--locked", "--no-default-features", "--quiet"];
        // It reads some hundred manifests once: optimizing it takes minutes more than that.
        let quick = [("OPT_LEVEL", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "256"), ("DEBUG", "false")];
        let quick = quick.map(|(what, value)| (format!("CARGO_PROFILE_RELEASE_{what}"), value));
        succeed(cargo().args(install).envs(quick))?;
    }
    // Also what only other systems need: it is in the lock file and is judged, but nothing here has fetched it.
    succeed(cargo().args(["fetch", "--locked", "--quiet"]))?;
    succeed(cargo().args(["deny", "--offline", "--log-level", "error", "check", "bans", "licenses", "sources"]))
}

fn largest_files(term: Term) {
    let output = std::process::Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()).output();
    let listed = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let mut sizes: Vec<(usize, &str)> = listed
        .lines()
        .filter(|path| !path.contains("/gen/"))
        .filter_map(|path| Some((std::fs::read_to_string(root().join(path)).ok()?.lines().count(), path)))
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    term.heading("Largest files");
    for (lines, path) in sizes.iter().take(LARGEST) {
        println!("  {lines:>12}  {path}");
    }
}
