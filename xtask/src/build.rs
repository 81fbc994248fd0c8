//! Builds the programs that demo and tests run.

use std::time::Instant;

use anyhow::Result;
use loam_tests::bin;

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
