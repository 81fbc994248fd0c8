//! Helm, as it is found on PATH.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Command;

use crate::code::Code;
use crate::fault::Fault;

/// Lines of what Helm says that are shown when it fails.
const MAX_LINES: usize = 12;

/// Runs it; gives what it wrote.
pub fn run(args: &[OsString]) -> Result<String, Fault> {
    let what = || {
        let words: Vec<_> = args.iter().take(2).map(|word| word.to_string_lossy()).collect();
        format!("run helm {}", words.join(" "))
    };
    match Command::new("helm").args(args).output() {
        Ok(done) if done.status.success() => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
            let last = lines[lines.len().saturating_sub(MAX_LINES)..].join("\n");
            let why = if last.is_empty() { format!("it ends with {}", done.status) } else { last };
            Err(Fault::new(Code::Helm, what(), why, "loam check --pre\nhelm list --all-namespaces --all"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Fault::new(
            Code::NoHelm,
            what(),
            "there is no program helm on PATH",
            "curl -fsSL https://raw.githubusercontent.com/helm/helm/main/scripts/get-helm-3 | bash",
        )),
        Err(error) => Err(Fault::new(Code::NoHelm, what(), error.to_string(), "helm version")),
    }
}
