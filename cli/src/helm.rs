//! Helm, as it is found on PATH.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Command;

use crate::code::Code;
use crate::fault::Fault;

/// Lines of what Helm says that are shown when it fails.
const MAX_LINES: usize = 12;

/// Where Helm is had from.
const GET: &str = "curl -fsSL https://raw.githubusercontent.com/helm/helm/main/scripts/get-helm-3 | bash";

/// Runs it on a release in a namespace; gives what it wrote.
pub fn run(args: &[OsString], release: &str, namespace: &str) -> Result<String, Fault> {
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
            let remedy = remedy(&said, release, namespace);
            Err(Fault::new(Code::Helm, what(), why, remedy))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Fault::new(Code::NoHelm, what(), "there is no program helm on PATH", GET))
        }
        Err(error) => Err(Fault::new(Code::NoHelm, what(), error.to_string(), "helm version")),
    }
}

/// What helps against what Helm says.
fn remedy(said: &str, release: &str, namespace: &str) -> String {
    let says = |text: &str| said.contains(text);
    if says("another operation") {
        // A run of Helm was killed. What was being upgraded goes back; what was being installed goes away.
        return format!(
            "helm rollback {release} --namespace {namespace} --wait\n\
             helm uninstall {release} --namespace {namespace} --wait    # if there is no revision to go back to"
        );
    }
    if says("cannot re-use a name") || says("has no deployed releases") {
        return format!("helm uninstall {release} --namespace {namespace} --wait\nloam install");
    }
    if says("invalid ownership metadata") || says("release: not found") {
        return format!("helm list --all-namespaces --all --filter {release}");
    }
    if says("unknown flag") {
        return GET.to_owned();
    }
    if says("values don't meet the specifications") || says("failed parsing --set") {
        return "loam help install".to_owned();
    }
    if says("timed out") || says("context deadline exceeded") {
        return "loam check".to_owned();
    }
    "loam check --pre\nhelm list --all-namespaces --all".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helm_says_has_its_remedy() {
        for (said, expected) in [
            (
                "Error: another operation (install/upgrade/rollback) is in progress",
                "helm rollback loam --namespace mesh --wait",
            ),
            ("Error: cannot re-use a name that is still in use", "helm uninstall loam --namespace mesh --wait"),
            ("Error: UPGRADE FAILED: \"loam\" has no deployed releases", "helm uninstall loam --namespace mesh --wait"),
            (
                "Error: uninstall: Release not loaded: loam: release: not found",
                "helm list --all-namespaces --all --filter loam",
            ),
            ("Error: unknown flag: --reset-then-reuse-values", GET),
            ("Error: INSTALLATION FAILED: context deadline exceeded", "loam check"),
            ("Error: something else", "loam check --pre"),
        ] {
            let remedy = remedy(said, "loam", "mesh");
            assert_eq!(remedy.lines().next(), Some(expected), "{said}");
        }
    }
}
