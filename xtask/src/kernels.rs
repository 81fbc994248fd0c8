//! Runs the tests of the redirect on the kernels of distributions, each started in an emulator: which kernel can carry
//! the mesh, and why another one cannot. The machine's own kernel and packages are left alone.

mod archive;
mod console;
mod emulator;
mod guest;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use loam_tests::{bin, host};

use crate::images::directory;
use crate::term::{Term, seconds};
use crate::{build, setup};
use archive::{Apt, Origin};
use console::{Ran, Verdict};
use guest::Kernel;

/// What is run: the column that it has in the table, its program, its name. Nothing else makes sense where the first
/// one fails, so then nothing else is run.
const TESTS: [Test; 6] = [
    Test {
        shows: "capture",
        program: "traffic",
        name: "an_enrolled_pod_reaches_pods_of_its_node_and_of_others_itself_and_pods_outside",
    },
    Test {
        shows: "tunnel",
        program: "traffic",
        name: "every_connection_has_one_line_at_each_end_with_both_identities_and_the_same_bytes",
    },
    Test {
        shows: "names",
        program: "dns_capture",
        name: "every_shape_of_socket_is_answered_and_sees_the_server_it_asked",
    },
    Test {
        shows: "refusal",
        program: "death",
        name: "a_ztunnel_that_stays_dead_means_refusal_within_100_ms_after_the_grace_and_never_plaintext",
    },
    Test {
        shows: "names refused",
        program: "dns_capture",
        name: "a_dead_ztunnel_refuses_at_once_and_the_next_one_answers",
    },
    Test {
        shows: "probes",
        program: "probes",
        name: "under_strict_the_kubelet_alone_reaches_what_it_probes_with_or_without_a_ztunnel",
    },
];

/// The newest kernel of each line that one of the archives has, oldest first.
const LINES: [Line; 8] = [
    Line { shipped: "Debian 11", origin: Origin::Debian, start: "linux-image-5.10.0-", flavour: "-amd64" },
    Line { shipped: "Ubuntu 22.04", origin: Origin::Ubuntu, start: "linux-image-5.15.0-", flavour: "-generic" },
    Line { shipped: "Ubuntu 22.04, OEM", origin: Origin::Ubuntu, start: "linux-image-5.17.0-", flavour: "-oem" },
    Line { shipped: "Ubuntu 22.10", origin: Origin::Ubuntu, start: "linux-image-5.19.0-", flavour: "-generic" },
    Line { shipped: "Debian 12", origin: Origin::Debian, start: "linux-image-6.1.0-", flavour: "-amd64" },
    Line { shipped: "Ubuntu 24.04", origin: Origin::Ubuntu, start: "linux-image-6.8.0-", flavour: "-generic" },
    Line { shipped: "Debian 13", origin: Origin::Debian, start: "linux-image-6.12.", flavour: "-amd64" },
    Line { shipped: "Debian 13, backports", origin: Origin::Debian, start: "linux-image-7.", flavour: "-amd64" },
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only kernels whose version or distribution contains this, such as 6.1 or "Ubuntu 24.04"
    filter: Vec<String>,
    /// An archive of Debian [default: the one that this machine's apt knows]
    #[arg(long, value_name = "URI")]
    debian: Option<String>,
    /// An archive of Ubuntu [default: the one that this machine's apt knows]
    #[arg(long, value_name = "URI")]
    ubuntu: Option<String>,
    /// Longest run of one kernel, in seconds: emulation is twenty times slower than the machine
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    limit: u64,
}

/// A test of the network ring.
#[derive(Debug, Clone, Copy)]
struct Test {
    shows: &'static str,
    program: &'static str,
    name: &'static str,
}

/// Kernels that differ in their last numbers alone.
#[derive(Debug)]
struct Line {
    shipped: &'static str,
    origin: Origin,
    /// How the names of its packages begin and end.
    start: &'static str,
    flavour: &'static str,
}

/// What became of a line.
struct Row {
    kernel: String,
    shipped: &'static str,
    ran: Result<Ran>,
}

/// Fetches, starts and tests each kernel, and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let term = Term::new();
    setup::ensure_kernels()?;
    let programs = programs(term)?;
    let dir = directory("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let apt = Apt::at(&dir.join("apt"))?;
    let uris = [(Origin::Debian, &arguments.debian), (Origin::Ubuntu, &arguments.ubuntu)];
    let uris = uris.map(|(origin, given)| given.clone().or_else(|| origin.of_machine()).map(|uri| (origin, uri)));
    let uris: Vec<_> = uris.into_iter().flatten().collect();
    term.step("lists of packages", || apt.update(&uris))?;
    let initramfs = dir.join("programs.cpio");
    term.step("programs for the guest", || {
        fs::write(&initramfs, guest::programs(&programs, &TESTS)?).map_err(Into::into)
    })?;

    let limit = Duration::from_secs(arguments.limit);
    let mut rows = Vec::new();
    for line in LINES.iter().filter(|line| line.is_wanted(&arguments.filter)) {
        let package = match line.newest(&apt, &uris) {
            Ok(package) => package,
            Err(e) => {
                rows.push(Row { kernel: line.version().into(), shipped: line.shipped, ran: Err(e) });
                continue;
            }
        };
        let ran = one(term, &apt, &dir, &initramfs, &package, limit);
        rows.push(Row { kernel: release(&package).into(), shipped: line.shipped, ran });
    }
    show(term, &dir, &rows)
}

/// The programs of the mesh and of the tests, by their names.
fn programs(term: Term) -> Result<Vec<(String, PathBuf)>> {
    let mut names: Vec<&str> = TESTS.iter().map(|test| test.program).collect();
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    if let Some(dir) = std::env::var_os(bin::DIR_VARIABLE) {
        for name in names {
            let dir = Path::new(&dir).join("deps");
            let program = newest_program(&dir, name)?;
            found.push((name.to_owned(), program.with_context(|| format!("no test {name} in {}", dir.display()))?));
        }
    } else {
        let built = build::programs_and_tests(term, false)?;
        let wanted =
            built.into_iter().filter(|built| built.profile.test && names.contains(&built.target.name.as_str()));
        found.extend(wanted.map(|built| (built.target.name, built.executable)));
    }
    for package in bin::PACKAGES {
        found.push((package.to_owned(), bin::path(package)?));
    }
    Ok(found)
}

/// What cargo built last for the test program `name`, to whose name it adds a hash.
fn newest_program(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?.flatten();
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        path.extension().is_none() && file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
    };
    Ok(entries.map(|entry| entry.path()).filter(is_it).max_by_key(age))
}

impl Line {
    fn version(&self) -> &'static str {
        self.start.trim_start_matches("linux-image-").trim_end_matches(['-', '.'])
    }

    fn is_wanted(&self, filter: &[String]) -> bool {
        filter.is_empty()
            || filter.iter().any(|f| self.version().contains(f.as_str()) || self.shipped.contains(f.as_str()))
    }

    /// The package of its newest kernel.
    fn newest(&self, apt: &Apt, uris: &[(Origin, String)]) -> Result<String> {
        if !uris.iter().any(|(origin, _)| *origin == self.origin) {
            bail!("no archive of {0} is known: name one with --{1}", self.origin.name(), self.origin.flag());
        }
        let names = apt.names(self.start)?;
        let newest = newest(&names, self.start, self.flavour);
        newest.map(str::to_owned).with_context(|| format!("the archives have no {}*{}", self.start, self.flavour))
    }
}

/// Of the names that begin and end like this, the one with the highest numbers. Between them there is a number only:
/// what else is there (`cloud`, `rt`) is another flavour.
fn newest<'a>(names: &'a [String], start: &str, flavour: &str) -> Option<&'a str> {
    let between = |name: &'a str| name.strip_prefix(start)?.strip_suffix(flavour).filter(|rest| !rest.contains('-'));
    let numbers = |rest: &str| -> Vec<u32> {
        rest.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    names.iter().filter_map(|name| Some((numbers(between(name.as_str())?), name.as_str()))).max().map(|(_, name)| name)
}

fn release(package: &str) -> &str {
    package.trim_start_matches("linux-image-")
}

fn one(term: Term, apt: &Apt, dir: &Path, programs: &Path, package: &str, limit: Duration) -> Result<Ran> {
    let release = release(package);
    let kernel = Kernel::at(&dir.join(release));
    if !kernel.is_there() {
        term.step(&format!("{release}: fetched"), || kernel.fetch(apt, package, release))?;
    }
    let log = dir.join(format!("{release}.log"));
    let begin = Instant::now();
    let text = emulator::run(&kernel, programs, &log, limit)?;
    let ran = console::read(&text, TESTS.len());
    println!("  {}", term.dim(&format!("{release}: ran for {}, see {}", seconds(begin.elapsed()), log.display())));
    Ok(ran)
}

/// Prints the table, and fails where a kernel that is new enough could not do something.
fn show(term: Term, dir: &Path, rows: &[Row]) -> Result<()> {
    term.heading("What each kernel can");
    let mut table = vec![vec!["kernel".to_owned(), "shipped by".into()]];
    table[0].extend(TESTS.iter().map(|test| test.shows.to_owned()));
    for row in rows {
        let mut cells = vec![row.kernel.clone(), row.shipped.to_owned()];
        match &row.ran {
            Ok(ran) => cells.extend(ran.verdicts.iter().map(|verdict| verdict.to_string())),
            Err(_) => cells.extend(TESTS.iter().map(|_| "?".to_owned())),
        }
        table.push(cells);
    }
    term.table(&table);
    let mut wrong = Vec::new();
    for row in rows {
        match &row.ran {
            Err(e) => println!("  {}: {e:#}", row.kernel),
            Ok(ran) => {
                if let Some(why) = &ran.why {
                    println!("  {}: {why}", row.kernel);
                }
                let is_new = host::kernel_version(&row.kernel).is_some_and(|version| version >= host::MIN_KERNEL);
                if is_new && ran.verdicts.iter().any(|verdict| *verdict != Verdict::Passed) {
                    wrong.push(row.kernel.as_str());
                }
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} should carry the mesh and cannot: the logs are in {}", wrong.join(", "), dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_its_numbers_and_other_flavours_are_passed_over() {
        let names =
            ["6.1.0-9-amd64", "6.1.0-50-amd64", "6.1.0-51-cloud-amd64", "6.1.0-52-rt-amd64", "6.1.0-60-generic"]
                .map(|name| format!("linux-image-{name}"));
        assert_eq!(newest(&names, "linux-image-6.1.0-", "-amd64"), Some("linux-image-6.1.0-50-amd64"));
        let names = ["linux-image-6.12.9+deb13-amd64".to_owned(), "linux-image-6.12.117+deb13-amd64".to_owned()];
        assert_eq!(newest(&names, "linux-image-6.12.", "-amd64"), Some(names[1].as_str()));
        assert_eq!(newest(&names, "linux-image-6.8.0-", "-generic"), None);
    }
}
