//! The last words of a process that cannot go on.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// The command line is wrong (EX_USAGE).
const USAGE: u8 = 64;

/// Prints every mistake in the configuration of `program`; exit code 64.
pub fn usage(program: &str, mistakes: impl IntoIterator<Item = impl Display>) -> ExitCode {
    for mistake in mistakes {
        print(program, &mistake);
    }
    ExitCode::from(USAGE)
}

/// Prints why `program` ended, with all causes; exit code 1.
pub fn failure(program: &str, error: &anyhow::Error) -> ExitCode {
    print(program, &format_args!("{error:#}"));
    ExitCode::FAILURE
}

fn print(program: &str, text: &dyn Display) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{program}: {text}");
}
