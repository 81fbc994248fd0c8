//! `loam`: the mesh from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    loam_cli::main("loam")
}
