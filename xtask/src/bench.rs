//! Measures the mesh beside plain TCP, interleaved in one run on one machine, and compares with what we hold ourselves
//! to. Ratios mean something on any machine; absolute figures are this machine's alone.

mod cost;
mod decide;
mod goal;
mod idle;
mod istio;
mod learn;
mod load;
mod other;
mod outcome;
mod stage;
mod statistics;
mod versus;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loam_tests::{Lab, bin, sweep};

use crate::term::{Term, seconds};
use crate::{build, root, setup};
use other::{Kind, Other};
use outcome::{Document, Outcome, Settings};
use stage::Stage;

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
    // Programs that somebody points at are measured as they are.
    if std::env::var_os(bin::DIR_VARIABLE).is_none() {
        bin::choose_dir(build::released_programs(term)?)?;
    }

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
    let decisions = decide::ALL.iter().map(|d| d.name);
    [idle::NAME].into_iter().chain(traffic).chain([learn::NAME]).chain(decisions).collect()
}

fn measure(term: Term, lab: &Lab, arguments: &Arguments) -> Result<Outcome> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|n| n == name);
    let settings = Settings {
        runs: arguments.runs.unwrap_or(if arguments.quick { QUICK_RUNS } else { RUNS }),
        sample: if arguments.quick { QUICK_SAMPLE } else { SAMPLE },
        quick: arguments.quick,
        other: Other::find(lab)?,
    };
    if settings.other.as_ref().is_some_and(|other| matches!(other.kind, Kind::Istio { .. })) {
        setup::ensure_nft()?;
    }
    term.heading("Two nodes in a network of their own, a client and a server");
    let what = match &settings.other {
        None => "plain pair, and a pair in the mesh".to_owned(),
        Some(other) => format!("plain pair, a pair in the mesh, and a pair of {}", other.name()),
    };
    let stage = term.step(&what, || Stage::set(lab, settings.other.as_ref()))?;
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
    for decision in decide::ALL.iter().filter(|d| wanted(d.name)) {
        outcome.decided.push(decide::measure(term, decision)?);
    }
    Ok(outcome)
}

fn write(file: &Path, document: &Document<'_>) -> Result<()> {
    if let Some(directory) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(file, serde_json::to_string_pretty(document)? + "\n").with_context(|| format!("write {}", file.display()))
}
