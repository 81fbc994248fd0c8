//! Builds the programs that demo, tests and bench run.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use loam_tests::bin;
use serde::Deserialize;

use crate::term::{Term, seconds};
use crate::{cargo, succeed};

/// Builds them, unless a directory says where they are; cargo shows its own progress.
pub(crate) fn programs(term: Term) -> Result<()> {
    if std::env::var_os(bin::DIR_VARIABLE).is_some() {
        return Ok(());
    }
    timed(term, "some minutes", || succeed(in_packages(cargo().args(["build", "--locked", "--bins"]))))
}

/// Builds them as they are shipped; gives the directory they are in.
pub(crate) fn released_programs(term: Term) -> Result<PathBuf> {
    let built = timed(term, "many minutes", || {
        executables(in_packages(cargo().args(["build", "--locked", "--release", "--bins"])))
    })?;
    let program = built.into_iter().next().context("cargo built no program")?.executable;
    program.parent().map(PathBuf::from).context("a program without a directory")
}

/// Builds the programs, and with them the tests of every kind or only those of everything together.
pub(crate) fn programs_and_tests(term: Term, unit: bool) -> Result<Vec<Executable>> {
    // At once, and always the whole workspace: which features a dependency has follows from what is built together, and
    // with another set of them the largest ones would be compiled again.
    let mut command = cargo();
    command.args(["build", "--locked", "--workspace", "--bins"]);
    match unit {
        true => command.arg("--tests"),
        false => command.args(["--test", "*"]),
    };
    timed(term, "some minutes", || executables(&mut command))
}

fn in_packages(command: &mut Command) -> &mut Command {
    command.args(bin::PACKAGES.iter().flat_map(|package| ["--package", package]))
}

fn timed<T>(term: Term, first_time: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    println!("{}", term.dim(&format!("Building (the first time takes {first_time}) ...")));
    let built = work()?;
    println!("{}", term.dim(&format!("Built in {}", seconds(start.elapsed()))));
    Ok(built)
}

/// What cargo built and can be run, as cargo describes it.
#[derive(Debug, Deserialize)]
pub(crate) struct Executable {
    /// Where it is.
    pub(crate) executable: PathBuf,
    /// The manifest of its package.
    pub(crate) manifest_path: PathBuf,
    pub(crate) target: Target,
    pub(crate) profile: Profile,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Profile {
    /// Whether it is a test program.
    pub(crate) test: bool,
}

/// Runs a cargo command that builds, and gives what came out of it.
fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("run cargo build")?;
    if !output.status.success() {
        bail!("it does not compile");
    }
    // Messages about anything else lack one of the fields.
    Ok(output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_run_is_taken_from_the_messages_of_cargo() {
        let read = |text: &str| serde_json::from_str::<Executable>(text).ok();
        let test = r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","target":{"kind":["test"],"name":"t"},
            "profile":{"opt_level":"1","test":true},"executable":"/t/deps/t-1"}"#;
        assert!(read(test).is_some_and(|built| built.profile.test && built.target.kind == ["test"]));
        assert!(read(&test.replace("\"/t/deps/t-1\"", "null")).is_none());
        assert!(read(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
