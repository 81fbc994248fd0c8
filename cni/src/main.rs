//! `loam-cni`: the runtime runs it for each sandbox, with the command in the environment.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use loam_cni::ask::{ANSWER_TIMEOUT, ask};
use loam_cni::plugin::{Environment, call};

/// Largest network configuration; a result of many addresses is in it.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let environment =
        Environment { command: variable("CNI_COMMAND"), netns: variable("CNI_NETNS"), args: variable("CNI_ARGS") };
    let mut config = Vec::new();
    // What cannot be read is reported as a configuration that is none.
    let _ = std::io::stdin().take(MAX_CONFIG_BYTES).read_to_end(&mut config);
    match call(&environment, &config, |socket, question| ask(socket, question, ANSWER_TIMEOUT)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => write(&result, ExitCode::SUCCESS),
        Err(failure) => write(&failure, ExitCode::FAILURE),
    }
}

fn write(value: &impl serde::Serialize, code: ExitCode) -> ExitCode {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    match std::io::stdout().write_all(&text) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
