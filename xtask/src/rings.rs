//! Runs the rings of tests: `unit`, the crates' own; `net`, the whole in a private network, one lab per test; `e2e`, on
//! Kubernetes. And, as it is not ours, apart from these: the conformance suite of the Gateway API.

mod conformance;
mod e2e;

use std::collections::BTreeSet;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use loam_tests::testing::{MEASURED, SKIPPED};

use crate::build::{self, Executable};
use crate::setup;
use crate::term::{Term, seconds};

/// Longest run of one network test; the longest one replaces ztunnel twenty times under load.
const NET_TIMEOUT: Duration = Duration::from_secs(240);
/// Longest run of one crate's tests.
const UNIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Most network tests at a time without being asked: each lab is some hundred MB.
const MAX_JOBS: usize = 7;
/// The package of the network tests.
const NET_PACKAGE: &str = "loam-tests";

/// What looks like a network test and is a part of one.
const NOT_TESTS: [&str; 1] = ["a_lab_to_be_killed"];

/// What the names of tests say that take all that the machine can give.
const HEAVY: [&str; 4] = ["thousand_connections", "twenty_kills", "killed_and_started_again", "a_full_node"];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this ring
    #[arg(long, value_enum)]
    ring: Option<Ring>,
    /// The same as --ring e2e
    #[arg(long, conflicts_with = "ring")]
    e2e: bool,
    /// Also the end-to-end tests in which everything happens ten times: half an hour more
    #[arg(long)]
    soak: bool,
    /// The Gateway API's own tests of meshes, on a cluster that is made for them; reports go to target/conformance-reports
    #[arg(long, conflicts_with_all = ["ring", "e2e"])]
    conformance: bool,
    /// Every request of the suite must succeed twenty times in a row instead of three, and two seconds lie between tests
    #[arg(long, requires = "conformance")]
    strict: bool,
    /// Run the suite where there is no mesh: each test of a route must fail, else it proves nothing. Without --strict five
    /// of them succeed by luck
    #[arg(long, requires = "conformance")]
    without_mesh: bool,
    /// How often the network ring or the suite runs; the first round with a failure is the last
    #[arg(long, value_name = "TIMES", default_value_t = NonZeroU32::MIN)]
    repeat: NonZeroU32,
    /// How many network tests run at a time, each in a lab of its own [default: one more than there are processors]
    #[arg(long, value_name = "NUMBER", default_value_t = jobs(), hide_default_value = true)]
    jobs: NonZeroU32,
    /// Only tests whose name contains this
    filter: Option<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            ring: None,
            e2e: false,
            soak: false,
            conformance: false,
            strict: false,
            without_mesh: false,
            repeat: NonZeroU32::MIN,
            jobs: jobs(),
            filter: None,
        }
    }
}

/// A test waits much and works little, so one more than the processors keeps them busy.
fn jobs() -> NonZeroU32 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_JOBS));
    NonZeroU32::MIN.saturating_add(processors as u32)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ring {
    /// The crates' own tests, without root
    Unit,
    /// Everything together in network namespaces
    Net,
    /// On a Kubernetes cluster: the one that KUBECONFIG names, or one of our own. Runs only when it is named
    E2e,
}

/// A test program that cargo built.
#[derive(Debug)]
struct Program {
    /// Package and target, for the eyes.
    name: String,
    package: String,
    executable: PathBuf,
    directory: PathBuf,
    is_integration: bool,
}

impl Program {
    /// Which ring runs the tests that must be asked for.
    fn outer_ring(&self) -> Option<Ring> {
        let is_e2e = self.name.rsplit('/').next().is_some_and(|file| file.starts_with("e2e"));
        let is_ours = self.package == NET_PACKAGE && self.is_integration;
        is_ours.then_some(if is_e2e { Ring::E2e } else { Ring::Net })
    }
}

#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn add(&mut self, end: End) {
        match end {
            End::Passed => self.passed += 1,
            End::Failed => self.failed += 1,
            End::Skipped => self.skipped += 1,
        }
    }

    /// Prints the sum; an error when a test failed, or none is called like `filter`.
    fn sum_up(&self, term: Term, start: Instant, filter: &str) -> Result<()> {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        let summary = format!("{} passed, {} failed{skipped}", self.passed, self.failed);
        let paint = if self.failed == 0 { Term::good } else { Term::bad };
        println!("\n{}  {}", paint(term, &summary), term.dim(&seconds(start.elapsed())));
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if self.passed + self.skipped == 0 {
            bail!("no test is called {filter:?}");
        }
        Ok(())
    }
}

/// Runs what is asked for; an error when a test failed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let term = Term::new();
    let start = Instant::now();
    setup::ensure()?;
    if arguments.conformance {
        let mut tally = Tally::default();
        conformance::run(term, arguments, &mut tally)?;
        return tally.sum_up(term, start, arguments.filter.as_deref().unwrap_or_default());
    }
    let ring = if arguments.e2e { Some(Ring::E2e) } else { arguments.ring };
    let net = matches!(ring, None | Some(Ring::Net));
    let unit_too = matches!(ring, None | Some(Ring::Unit));
    if net {
        setup::ensure_lab("test")?;
        for path in loam_tests::sweep::sweep() {
            println!("removed what a killed lab left in {}", path.display());
        }
    }
    let programs = test_programs(build::programs_and_tests(term, unit_too)?)?;
    let mut tally = Tally::default();
    let filter = arguments.filter.as_deref().map(|f| f.replace(' ', "_")).unwrap_or_default();
    if unit_too {
        term.heading("Unit tests");
        for program in &programs {
            unit(term, program, &filter, &mut tally)?;
        }
    }
    let rounds = if net { arguments.repeat.get() } else { 0 };
    for round in 1..=rounds {
        let of = if rounds > 1 { format!(", round {round} of {rounds}") } else { String::new() };
        term.heading(&format!("Network tests{of}"));
        all_network(term, &programs, &filter, arguments.jobs, &mut tally)?;
        if tally.failed > 0 {
            break;
        }
    }
    if ring == Some(Ring::E2e) {
        e2e::run(term, &programs, &filter, arguments.soak, &mut tally)?;
    }
    tally.sum_up(term, start, &filter)
}

/// The test programs among what was built.
fn test_programs(built: Vec<Executable>) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for Executable { executable, manifest_path, target, .. } in built.into_iter().filter(|built| built.profile.test) {
        let directory = manifest_path.parent().map(Path::to_path_buf).unwrap_or_default();
        let package = package_name(&manifest_path)?;
        let is_integration = target.kind.iter().any(|k| k == "test");
        let name = match target.name.replace('-', "_") == package.replace('-', "_") {
            true => package.clone(),
            false => format!("{package}/{}", target.name),
        };
        programs.push(Program { name, package, executable, directory, is_integration });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// The first `name` of a manifest is the package's.
fn package_name(manifest: &Path) -> Result<String> {
    let text = std::fs::read_to_string(manifest)?;
    let line = text.lines().find(|l| l.starts_with("name")).context("a manifest without a name")?;
    Ok(line.split('"').nth(1).unwrap_or_default().to_owned())
}

fn command(program: &Program, arguments: &[&str]) -> Command {
    let mut command = Command::new(&program.executable);
    command.args(arguments);
    at_home(command, program)
}

/// Gives a command that runs a test program what cargo would give it.
fn at_home(mut command: Command, program: &Program) -> Command {
    command
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Names of a program's tests: those that run by default, or those that must be asked for.
fn list(program: &Program, ignored: bool) -> Result<BTreeSet<String>> {
    let names = |flags: &[&str]| -> Result<BTreeSet<String>> {
        let output = command(program, flags).output().with_context(|| format!("list {}", program.name))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect())
    };
    let all_ignored = names(&["--list", "--format", "terse", "--ignored"])?;
    if ignored {
        return Ok(all_ignored);
    }
    Ok(names(&["--list", "--format", "terse"])?.difference(&all_ignored).cloned().collect())
}

/// Runs the tests of one program that need nothing special.
fn unit(term: Term, program: &Program, filter: &str, tally: &mut Tally) -> Result<()> {
    let tests = list(program, false)?.iter().filter(|t| t.contains(filter)).count();
    if tests == 0 {
        return Ok(());
    }
    let start = Instant::now();
    let mut run = command(program, &[filter]);
    if loam_tests::host::is_root() {
        run.env("LOAM_ROOT_TESTS", "1");
    }
    let (ended_well, output) = finish(&mut run, UNIT_TIMEOUT)?;
    // A program that dies half-way has no summary: then every test of it counts as failed.
    let (passed, failed) = counts(&output).unwrap_or((0, tests));
    let failed = if ended_well { failed } else { failed.max(1) };
    tally.passed += passed;
    tally.failed += failed;
    let text = format!("{:<32} {passed:>4} passed", program.name);
    println!("{}", line(term, failed == 0, &text, start.elapsed()));
    if failed > 0 {
        println!("{output}");
    }
    Ok(())
}

/// The tests of a ring that are called like `filter`.
fn wanted<'a>(programs: &'a [Program], ring: Ring, filter: &str) -> Result<Vec<(&'a Program, String)>> {
    let mut tests = Vec::new();
    for program in programs.iter().filter(|p| p.outer_ring() == Some(ring)) {
        let is_named = |t: &String| t.contains(filter) || program.name.contains(filter);
        let wanted = list(program, true)?.into_iter().filter(|t| is_named(t) && !NOT_TESTS.contains(&t.as_str()));
        tests.extend(wanted.map(|test| (program, test)));
    }
    Ok(tests)
}

/// Runs every network test that is wanted, `jobs` at a time, and then the heavy ones, each alone: beside one that asks a
/// small machine for all it has, another would measure how it starves.
fn all_network(term: Term, programs: &[Program], filter: &str, jobs: NonZeroU32, tally: &mut Tally) -> Result<()> {
    let (heavy, light): (Vec<_>, Vec<_>) =
        wanted(programs, Ring::Net, filter)?.into_iter().partition(|(_, test)| is_heavy(test));
    side_by_side(term, light, jobs, tally)?;
    side_by_side(term, heavy, NonZeroU32::MIN, tally)
}

/// Runs network tests, `jobs` at a time.
fn side_by_side(term: Term, tests: Vec<(&Program, String)>, jobs: NonZeroU32, tally: &mut Tally) -> Result<()> {
    let (queue, tally) = (Mutex::new(tests.into_iter()), Mutex::new(tally));
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().expect("no worker panics").next();
            let Some((program, test)) = next else { return Ok(()) };
            let (end, text) = one(term, program, &test, command(program, &[]), NET_TIMEOUT)?;
            // The lock is also what keeps the lines of two tests apart.
            tally.lock().expect("no worker panics").add(end);
            println!("{text}");
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.get()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })
}

fn is_heavy(test: &str) -> bool {
    HEAVY.iter().any(|words| test.contains(words))
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Skipped,
}

/// Runs one test in a process of its own, `run`; how it ended, and what is to be printed of it.
fn one(term: Term, program: &Program, test: &str, mut run: Command, limit: Duration) -> Result<(End, String)> {
    let start = Instant::now();
    run.args(["--ignored", "--exact", test, "--nocapture", "--test-threads", "1"]);
    let (passed, output) = finish(run.env("RUST_BACKTRACE", "0"), limit)?;
    let file = program.name.rsplit('/').next().unwrap_or_default();
    let name = format!("{file}: {}", test.replace('_', " "));
    let why = output.lines().find_map(|l| l.split_once(SKIPPED)).map(|(_, why)| why);
    Ok(match (passed, why) {
        (true, Some(why)) => (End::Skipped, format!("  {} {name}  {}", term.dim("skipped"), term.dim(why))),
        (true, None) => {
            let figures = output.lines().filter_map(|l| l.split_once(MEASURED)).map(|(_, figure)| figure);
            let figures: String = figures.map(|figure| format!("\n{:19}{}", "", term.dim(figure))).collect();
            (End::Passed, format!("{}{figures}", line(term, true, &name, start.elapsed())))
        }
        (false, _) => (End::Failed, format!("{}\n{output}", line(term, false, &name, start.elapsed()))),
    })
}

fn line(term: Term, passed: bool, text: &str, time: Duration) -> String {
    let verdict = if passed { term.good("ok    ") } else { term.bad("FAILED") };
    format!("  {verdict} {:>8}  {text}", seconds(time))
}

/// Runs to the end or to the limit, and gives everything it said.
fn finish(command: &mut Command, limit: Duration) -> Result<(bool, String)> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn().context("start a test")?;
    // The command keeps our copies of the writing end, and the reader would wait for them.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let reading = std::thread::spawn(move || {
        let mut output = Vec::new();
        let _ = reader.read_to_end(&mut output);
        String::from_utf8_lossy(&output).into_owned()
    });
    let in_time = wait(&mut child, limit)?;
    let mut output = reading.join().unwrap_or_default();
    let passed = in_time.is_some_and(|success| success);
    if in_time.is_none() {
        output.push_str(&format!("killed after {limit:?}\n"));
    }
    Ok((passed, output))
}

/// Whether it ended well; nothing when it had to be killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<bool>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Passed and failed of libtest's summary.
fn counts(output: &str) -> Option<(usize, usize)> {
    let line = output.lines().rev().find(|l| l.starts_with("test result:"))?;
    let number = |what: &str| {
        let before = line.split(what).next()?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_a_test_program_is_read() {
        let text =
            "running 3 tests\n\ntest result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out\n";
        assert_eq!(counts(text), Some((12, 3)));
        assert_eq!(counts("killed"), None);
    }
}
