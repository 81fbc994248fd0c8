//! How a network test runs: a lab of its own, logs where a failure can be read, and never a silent skip.
#![expect(clippy::print_stdout, reason = "a test's output is read by the runner")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Kubectl, Seen};
use crate::{bin, host, lab::Lab, release};

/// Printed at the start of a line by a test that cannot run on this machine; the runner counts it.
pub const SKIPPED: &str = "SKIPPED: ";

/// Printed at the start of a line by a test that measured something; the runner shows the rest of the line.
pub const MEASURED: &str = "MEASURED: ";

/// Seconds for which the lab of a failed test is kept to be looked at.
pub const HOLD_VARIABLE: &str = "LOAM_LAB_HOLD_SECONDS";

/// Lines of each log shown when a test fails; all of them are kept in a directory that is named.
const SHOWN_LINES: usize = 25;

/// Runs `test` in a lab with two nodes.
///
/// Where a lab cannot run the test is skipped aloud, or fails when `CI` is set.
///
/// # Panics
/// When the test fails.
pub fn in_lab(test: impl FnOnce(&Lab) -> Result<()>) {
    let mut missing = host::missing_from_kernel();
    if !host::is_root() {
        missing.push("root".into());
    }
    if !missing.is_empty() {
        let missing = missing.join("; ");
        assert!(std::env::var_os("CI").is_none(), "this test cannot run here, it needs {missing}");
        println!("{SKIPPED}needs {missing}");
        return;
    }
    let lab = Lab::new().expect("a lab can be made on this machine");
    let result = catch_unwind(AssertUnwindSafe(|| test(&lab)));
    if !matches!(result, Ok(Ok(()))) {
        println!("{}", lab.logs(SHOWN_LINES));
        keep_logs(&lab);
        hold(&lab);
    }
    lab.close();
    match result {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{e:#}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs `test` on the Kubernetes cluster that `KUBECONFIG` names.
///
/// Without one the test is skipped aloud, or fails when `CI` is set.
///
/// # Panics
/// When the test fails.
pub fn on_cluster(test: impl FnOnce(&Kubectl) -> Result<()>) {
    let kubectl = match Kubectl::from_environment() {
        Ok(kubectl) => kubectl,
        Err(e) => return skip(&e),
    };
    let result = catch_unwind(AssertUnwindSafe(|| test(&kubectl)));
    if !matches!(result, Ok(Ok(()))) {
        let ours = ["--namespace", release::NAMESPACE, "--selector=app.kubernetes.io/part-of=loam"];
        let lines = format!("--tail={SHOWN_LINES}");
        for what in [
            vec!["get", "--all-namespaces", "pods", "--output=wide"],
            vec!["get", "--all-namespaces", "events", "--sort-by=.lastTimestamp"],
            [&ours[..], &["logs", "--all-containers", "--prefix", "--ignore-errors", &lines]].concat(),
        ] {
            println!("{}", kubectl.run(&what).unwrap_or_else(|e| format!("{e:#}")));
        }
    }
    match result {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{e:#}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs `test` on the cluster that `KUBECONFIG` names if it is one of ours, whose nodes can be looked at.
///
/// On another one, and without any, the test is skipped aloud, or fails when `CI` is set.
///
/// # Panics
/// When the test fails.
pub fn on_own_cluster(test: impl FnOnce(&Kubectl, &Seen) -> Result<()>) {
    match Seen::ours() {
        Ok(cluster) => on_cluster(|kubectl| test(kubectl, &cluster)),
        Err(e) => skip(&e),
    }
}

fn skip(why: &anyhow::Error) {
    assert!(std::env::var_os("CI").is_none(), "this test cannot run here: {why:#}");
    println!("{SKIPPED}{why:#}");
}

/// Leaves the lab of a failed test to whoever asked for it.
fn hold(lab: &Lab) {
    let Some(time) = std::env::var(HOLD_VARIABLE).ok().and_then(|v| v.parse().ok()) else { return };
    println!("the lab lives {time} s longer: nsenter -t {} -m -p, files in {}", lab.outer_pid(), lab.work().display());
    std::thread::sleep(Duration::from_secs(time));
}

fn keep_logs(lab: &Lab) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test").replace("::", ".");
    let Ok(target) = bin::dir() else { return };
    let to = target.join("loam-lab-logs").join(name);
    let _ = fs::remove_dir_all(&to);
    if copy(&lab.work().join("logs"), &to).is_ok() {
        println!("all logs: {}", to.display());
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.metadata()?.len() > 0 {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
