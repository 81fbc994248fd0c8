//! The Gateway API's own tests of meshes, on a cluster with the mesh as the chart installs it, or without for comparison.

mod outcome;
mod suite;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use loam_tests::cluster::Kubectl;
use loam_tests::eventually;
use loam_tests::release::Release;

use super::{Arguments, Tally};
use crate::term::Term;
use crate::{build, cluster, images};
use outcome::{Outcome, Told};
use suite::Suite;

/// Name of the cluster, which is not in the way of one that somebody works with.
const CLUSTER: &str = "conformance";
/// Longest run of the suite, as Go reads it. Without a mesh most requests are tried for thirty seconds.
const LIMIT: &str = "90m";
/// Longest start of a waypoint, and longest end of the suite's namespaces.
const PATIENCE: Duration = Duration::from_secs(180);
/// What `--strict` asks of the suite.
const STRICT: &str = "RequiredConsecutiveSuccesses:20;TestIsolation:2";
/// Which definitions of the API the cluster has, and the claim's version and mode: together the name of a report.
const CHANNEL: &str = "experimental";
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const MODE: &str = "ambient";

/// Runs the suite as often as is asked for.
pub(super) fn run(term: Term, arguments: &Arguments, tally: &mut Tally) -> Result<()> {
    let suite = suite::ensure_built(term)?;
    build::programs(term)?;
    // It ends when we do, however that may be.
    let started = cluster::start(term, CLUSTER)?;
    let result = prepare(term, &suite, arguments).and_then(|kubectl| rounds(term, &suite, arguments, &kubectl, tally));
    if result.is_err() || tally.failed > 0 {
        println!("all logs: {}", cluster::keep_logs(CLUSTER)?.display());
    }
    // Both may fail, and the first says more.
    let gone = cluster::down(term, CLUSTER);
    drop(started);
    result.and(gone.context("take the cluster away"))
}

/// Gives the cluster what the suite needs, and the mesh unless it is to be without.
fn prepare(term: Term, suite: &Suite, arguments: &Arguments) -> Result<Kubectl> {
    cluster::load_ours(term, CLUSTER)?;
    cluster::load_for_tests(term, CLUSTER)?;
    let kubectl = cluster::kubectl(CLUSTER)?;
    term.heading("The cluster of the suite");
    term.step("definitions of the Gateway API", || {
        kubectl.run(&["apply", "--server-side", "--filename", &suite.definitions().display().to_string()])?;
        let wait = ["wait", "--for=condition=Established", "--all", "customresourcedefinitions", "--timeout=0s"];
        eventually(PATIENCE, || kubectl.run(&wait).map(drop))
    })?;
    if !arguments.without_mesh {
        term.step("the mesh, by its chart", || Release::install(&kubectl).map(drop))?;
        term.step("the waypoint", || {
            kubectl.apply(&fs::read_to_string(suite.waypoint()).context("read the manifests of the waypoint")?)?;
            let which = "--namespace=conformance-waypoint";
            let wait = ["wait", "--for=condition=Programmed", "--timeout=0s", which, "gateway/waypoint"];
            eventually(PATIENCE, || kubectl.run(&wait).map(drop))
        })?;
    }
    Ok(kubectl)
}

fn rounds(term: Term, suite: &Suite, arguments: &Arguments, kubectl: &Kubectl, tally: &mut Tally) -> Result<()> {
    for round in 1..=arguments.repeat.get() {
        let of =
            if arguments.repeat.get() > 1 { format!(", round {round} of {}", arguments.repeat) } else { String::new() };
        term.heading(&format!("Conformance of meshes{of}"));
        // The suite asks for the end of its namespaces and does not wait for it.
        eventually(PATIENCE, || {
            let left = kubectl.run(&["get", "namespaces", "--selector=gateway-conformance", "--output=name"])?;
            ensure!(left.trim().is_empty(), "{} of the last round are still there", left.trim());
            Ok(())
        })?;
        once(term, suite, arguments, tally)?;
        if tally.failed > 0 {
            break;
        }
    }
    Ok(())
}

/// Runs the suite and tells of each test when it is done.
fn once(term: Term, suite: &Suite, arguments: &Arguments, tally: &mut Tally) -> Result<()> {
    let kept = images::directory("conformance-reports").join(kind(arguments));
    fs::create_dir_all(&kept).with_context(|| format!("make {}", kept.display()))?;
    let log = kept.join("conformance.log");
    let report = report(arguments).map(|name| kept.join(name));
    let (reader, writer) = std::io::pipe()?;
    let mut command = cluster::within(CLUSTER, &suite.program())?;
    command.current_dir(&suite.source).args(flags(arguments, report.as_deref())).stdin(Stdio::null());
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn().context("start the suite")?;
    // The command keeps our copies of the writing end, and the reader would wait for them.
    drop(command);
    let mut file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let (mut is_finished, mut failed_cases) = (false, Vec::new());
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).replace(outcome::MARK, "");
        writeln!(file, "{line}")?;
        match outcome::read(&line) {
            None => {}
            Some(Told::Finished) => is_finished = true,
            Some(Told::FailedCase(case)) => failed_cases.push(case),
            Some(Told::Test(outcome)) => tell(term, arguments, outcome, &mut failed_cases, tally),
        }
    }
    let status = child.wait().context("wait for the suite")?;
    println!("  {}", term.dim(&format!("what the suite said: {}", log.display())));
    if !is_finished {
        bail!("the suite did not get to its end: {status}; {} says why", log.display());
    }
    if let Some(report) = report {
        println!("  {}", term.dim(&format!("report: {}", report.display())));
    }
    // Where no test failed, or none was reached, what failed is what the suite does around its tests.
    let tests_fail_well = arguments.without_mesh && tally.passed > 0;
    if !status.success() && tally.failed == 0 && !tests_fail_well {
        bail!("the suite failed beside its tests; {} says why", log.display());
    }
    Ok(())
}

fn tell(term: Term, arguments: &Arguments, outcome: Outcome, failed_cases: &mut Vec<String>, tally: &mut Tally) {
    let cases = std::mem::take(failed_cases);
    let (end, remark) = outcome.judge(arguments.without_mesh);
    tally.add(end);
    let passed = end != super::End::Failed;
    println!("{}{}", super::line(term, passed, &outcome.name, outcome.time), term.dim(remark));
    for case in cases.iter().filter(|_| !passed) {
        println!("                     {case}");
    }
}

/// The directory of what a run leaves, by what was asked of it.
fn kind(arguments: &Arguments) -> PathBuf {
    let severity = if arguments.strict { "strict" } else { "default" };
    match arguments.without_mesh {
        true => Path::new("without-mesh").join(severity),
        false => severity.into(),
    }
}

/// The name of the report, as the Gateway API's collection of reports wants it; none when only some tests run.
fn report(arguments: &Arguments) -> Option<String> {
    arguments.filter.is_none().then(|| format!("{CHANNEL}-{VERSION}-{MODE}-report.yaml"))
}

/// The flags of the suite.
fn flags(arguments: &Arguments, report: Option<&Path>) -> Vec<String> {
    let tests = arguments.filter.as_deref().map(|filter| format!("/{filter}")).unwrap_or_default();
    let mut flags = vec![
        // Says how each test ended when it did.
        "-test.v=test2json".to_owned(),
        format!("-test.timeout={LIMIT}"),
        format!("-test.run=^TestConformance${tests}"),
        format!("-conformance-options-file={}", suite::OPTIONS),
        format!("-version={VERSION}"),
        format!("-mode={MODE}"),
    ];
    flags.extend(arguments.strict.then(|| format!("-timeout-config-overrides={STRICT}")));
    // The labels that bring a namespace into the mesh.
    flags.extend(arguments.without_mesh.then(|| "-namespace-labels=".to_owned()));
    flags.extend(report.map(|path| format!("-report-output={}", path.display())));
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_suite_has_no_report_and_a_run_without_the_mesh_no_labels() {
        let all = Arguments { conformance: true, ..Arguments::default() };
        assert_eq!(
            report(&all).as_deref(),
            Some(concat!("experimental-v", env!("CARGO_PKG_VERSION"), "-ambient-report.yaml"))
        );
        let some = Arguments { filter: Some("Weight".into()), strict: true, without_mesh: true, ..all };
        assert_eq!((report(&some), kind(&some)), (None, "without-mesh/strict".into()));
        let flags = flags(&some, None);
        for flag in [
            "-test.run=^TestConformance$/Weight",
            "-namespace-labels=",
            "-timeout-config-overrides=RequiredConsecutiveSuccesses:20;TestIsolation:2",
        ] {
            assert!(flags.iter().any(|given| given == flag), "{flag} is not among {flags:?}");
        }
        assert!(!flags.iter().any(|flag| flag.starts_with("-report-output")), "{flags:?}");
    }
}
