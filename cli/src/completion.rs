//! `loam completion`: the command line, for a shell that completes it.

use clap_complete::{Shell as Known, generate};

use crate::args::{Shell, command};

/// The script for a shell.
pub fn script(shell: Shell) -> String {
    let known = match shell {
        Shell::Bash => Known::Bash,
        Shell::Zsh => Known::Zsh,
        Shell::Fish => Known::Fish,
    };
    let mut script = Vec::new();
    // kubectl completes its plugins by other means.
    generate(known, &mut command("loam"), "loam", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
