//! Measures the mesh beside plain TCP, interleaved in one run on one machine, and compares with what we hold ourselves
//! to. Ratios mean something on any machine; absolute figures are this machine's alone.

mod cost;
mod goal;
mod idle;
mod learn;
mod load;
mod outcome;
mod stage;
mod statistics;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loam_tests::{Lab, bin, sweep};

use crate::term::{Term, seconds};
use crate::{build, root, setup};
use outcome::{Document, Outcome, Settings};
use stage::Stage;

/// Names the program of another ztunnel, to be measured in the same run.
const OTHER_VARIABLE: &str = "LOAM_BENCH_ZTUNNEL";

/// Samples of each variant.
const RUNS: u32 = 3;
const QUICK_RUNS: u32 = 2;
/// Length of a sample: long against its start, short enough that neighbours in time see the same machine.
const SAMPLE: Duration = Duration::from_secs(3);
const QUICK_SAMPLE: Duration = Duration::from_secs(1);

/// Lines of each log shown when something goes wrong.
const SHOWN_LINES: usize = 12;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Shorter samples, fewer of them, and no mesh of a million workloads: rough figures
    #[arg(long)]
    quick: bool,
    /// Samples of each variant [default: 3, quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Only these measurements, by name
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Where the figures go [default: target/bench.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds, measures, prints and writes.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let term = Term::new();
    let names = names();
    if let Some(unknown) = arguments.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("nothing is called {unknown:?}; there are {}", names.join(", "));
    }
    setup::ensure_lab("bench")?;
    setup::ensure()?;
    setup::ensure_load()?;
    for path in sweep::sweep() {
        println!("removed what a killed lab left in {}", path.display());
    }
    bin::choose_dir(build::released_programs(term)?)?;

    let start = Instant::now();
    let lab = Lab::new()?;
    let result = measure(term, &lab, arguments);
    if result.is_err() {
        eprintln!("\n{}", lab.logs(SHOWN_LINES));
    }
    lab.close();
    let outcome = result?;
    outcome.show(term);
    let file = arguments.json.clone().unwrap_or_else(|| root().join("target/bench.json"));
    write(&file, &outcome.document())?;
    println!("\n{}", term.dim(&format!("Done in {}; all figures: {}", seconds(start.elapsed()), file.display())));
    Ok(())
}

/// Everything that can be measured.
fn names() -> Vec<&'static str> {
    let traffic = workload::ALL.iter().map(|w| w.name);
    [idle::NAME].into_iter().chain(traffic).chain([learn::NAME]).collect()
}

fn measure(term: Term, lab: &Lab, arguments: &Arguments) -> Result<Outcome> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|n| n == name);
    let settings = Settings {
        runs: arguments.runs.unwrap_or(if arguments.quick { QUICK_RUNS } else { RUNS }),
        sample: if arguments.quick { QUICK_SAMPLE } else { SAMPLE },
        quick: arguments.quick,
        other: other(term, lab)?,
    };
    term.heading("Two nodes in a network of their own, a client and a server");
    let stage = term.step("plain pair, and a pair in the mesh", || Stage::set(lab, settings.other.as_deref()))?;
    let mut outcome = Outcome::new(settings.clone());

    term.heading(&format!(
        "Measuring: {} of {} each, one variant after the other",
        match settings.runs {
            1 => "one sample".to_owned(),
            runs => format!("{runs} samples"),
        },
        seconds(settings.sample)
    ));
    // First, while the ztunnels are fresh: memory that was used once is not all given back.
    if wanted(idle::NAME) {
        outcome.idle = term.step("memory of idle connections", || idle::measure(&stage))?;
    }
    let is_left_out = |w: &workload::Workload| arguments.quick && arguments.only.is_empty() && w.is_long;
    for workload in workload::ALL.iter().filter(|w| wanted(w.name) && !is_left_out(w)) {
        let series = term.step(workload.what, || Ok(workload::measure(workload, &stage, &settings)))?;
        outcome.traffic.push(series);
    }
    if wanted(learn::NAME) {
        outcome.learned = learn::measure(term, lab, &settings)?;
    }
    Ok(outcome)
}

/// The other ztunnel, when there is one and our keeper can drive it.
fn other(term: Term, lab: &Lab) -> Result<Option<PathBuf>> {
    let Some(program) = std::env::var_os(OTHER_VARIABLE).map(PathBuf::from) else { return Ok(None) };
    let program = fs::canonicalize(&program).with_context(|| format!("{OTHER_VARIABLE}={}", program.display()))?;
    let path = program.to_str().context("the path of the other ztunnel is not text")?;
    let help = lab.run(&[path, "--help"])?;
    if stage::is_driven_like_ours(&help.stdout) {
        return Ok(Some(program));
    }
    let why = "it does not take its pods from this keeper (its --help knows no --run-dir and --xds-address)";
    println!("{}", term.bad(&format!("{path} is left out: {why}.")));
    println!("Istio's ztunnel makes its own sockets in the pods, for which this lab has no stage.");
    Ok(None)
}

fn write(file: &Path, document: &Document<'_>) -> Result<()> {
    if let Some(directory) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(file, serde_json::to_string_pretty(document)? + "\n").with_context(|| format!("write {}", file.display()))
}
