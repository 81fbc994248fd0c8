//! The commands of the book that need no cluster do what the book says.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use loam_tests::pages::{self, Block};
use loam_tests::{bin, in_lab};

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn the_commands_for_one_machine_work_as_they_are_written() {
    // Where no lab can be made, no demonstration can.
    in_lab(|_| {
        let blocks = pages::blocks(pages::ON_ONE_MACHINE)?;
        let run: Vec<&Block> = blocks.iter().filter(|block| block.not_run.is_none()).collect();
        ensure!(!run.is_empty(), "no command is run");
        run.into_iter().try_for_each(typed)
    });
}

fn typed(block: &Block) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", &block.script]).current_dir(pages::repository());
    // The programs are built, and with other features than the command would ask for.
    let output = shell.env(bin::DIR_VARIABLE, bin::dir()?).output().context("start sh")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}:{}: {}\n{said}", block.page, block.line, block.script);
    Ok(())
}
