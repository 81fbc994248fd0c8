//! `kubectl loam`: the same program, under the name by which kubectl finds it.

use std::process::ExitCode;

fn main() -> ExitCode {
    loam_cli::main("kubectl loam")
}
