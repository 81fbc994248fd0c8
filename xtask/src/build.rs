//! Builds the programs that demo, tests and bench run.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use loam_tests::bin;
use serde::Deserialize;

use crate::term::{Term, seconds};
use crate::{cargo, succeed};

/// Builds them; cargo shows its own progress.
pub(crate) fn programs(term: Term) -> Result<()> {
    let start = Instant::now();
    println!("{}", term.dim("Building (the first time takes some minutes) ..."));
    let mut command = cargo();
    command.args(["build", "--locked", "--bins"]);
    for package in bin::PACKAGES {
        command.args(["--package", package]);
    }
    succeed(&mut command)?;
    println!("{}", term.dim(&format!("Built in {}", seconds(start.elapsed()))));
    Ok(())
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds them as they are shipped; gives the directory they are in.
pub(crate) fn released_programs(term: Term) -> Result<PathBuf> {
    let start = Instant::now();
    println!("{}", term.dim("Building for release (the first time takes many minutes) ..."));
    let mut command = cargo();
    command.args(["build", "--locked", "--release", "--bins", "--message-format", "json-render-diagnostics"]);
    for package in bin::PACKAGES {
        command.args(["--package", package]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("run cargo build")?;
    if !output.status.success() {
        bail!("the programs do not compile");
    }
    let messages = output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    let program = messages.filter_map(|m| m.executable).next().context("cargo built no program")?;
    println!("{}", term.dim(&format!("Built in {}", seconds(start.elapsed()))));
    program.parent().map(PathBuf::from).context("a program without a directory")
}
