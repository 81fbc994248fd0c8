//! The ring on Kubernetes: one cluster for all its tests, one after the other.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Program, Ring, Tally, at_home, command, one, wanted};
use crate::cluster;
use crate::term::Term;

/// Longest run of one test.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Longest run of one in which everything happens ten times.
const SOAK_TIMEOUT: Duration = Duration::from_secs(2400);
/// The file of these.
const SOAK: &str = "e2e_soak";

fn is_soak(program: &Program) -> bool {
    program.name.ends_with(SOAK)
}

/// Name of the ring's own cluster, which is not in the way of one that somebody works with.
const CLUSTER: &str = "e2e";
/// Names the cluster to run on.
const KUBECONFIG: &str = "KUBECONFIG";

/// Runs the tests on the cluster that `KUBECONFIG` names, where our images must be; or else on one of our own, which is
/// taken away again.
pub(super) fn run(term: Term, programs: &[Program], filter: &str, soak: bool, tally: &mut Tally) -> Result<()> {
    let mut tests = wanted(programs, Ring::E2e, filter)?;
    tests.retain(|(program, _)| soak || !is_soak(program));
    if tests.is_empty() {
        return Ok(());
    }
    if let Some(kubeconfig) = std::env::var_os(KUBECONFIG).filter(|v| !v.is_empty()) {
        term.heading(&format!("Tests on the cluster of {}", Path::new(&kubeconfig).display()));
        return all(term, &tests, tally, |program| Ok(command(program, &[])));
    }
    // It ends when we do, however that may be.
    let started = cluster::start(term, CLUSTER)?;
    let failed_before = tally.failed;
    let result = cluster::load_ours(term, CLUSTER).and_then(|()| {
        term.heading("Tests on Kubernetes");
        all(term, &tests, tally, |program| Ok(at_home(cluster::within(CLUSTER, &program.executable)?, program)))
    });
    if result.is_err() || tally.failed > failed_before {
        println!("all logs: {}", cluster::keep_logs(CLUSTER)?.display());
    }
    // Both may fail, and the first says more.
    let gone = cluster::down(term, CLUSTER);
    drop(started);
    result.and(gone.context("take the cluster away"))
}

fn all(
    term: Term,
    tests: &[(&Program, String)],
    tally: &mut Tally,
    run: impl Fn(&Program) -> Result<Command>,
) -> Result<()> {
    for (program, test) in tests {
        let limit = if is_soak(program) { SOAK_TIMEOUT } else { TIMEOUT };
        let (end, text) = one(term, program, test, run(program)?, limit)?;
        tally.add(end);
        println!("{text}");
    }
    Ok(())
}
