//! What a ztunnel takes to learn a large mesh, and to hold it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loam_tests::lab::FABRIC_V4;
use loam_tests::{Lab, Node, Process, bin, metrics};
use serde::Serialize;

use super::cost::Memory;
use super::goal::{Goal, Metric};
use super::istio;
use super::other::{Kind, path_text as text};
use super::outcome::Settings;
use super::stage::OURS;
use crate::term::Term;

pub(crate) const NAME: &str = "learn";

/// Workloads of the mesh; the last is left out by `--quick`.
const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];

/// With the largest mesh.
pub(crate) const HELD: Goal = Goal::new(Metric::Megabytes, 1000.0);

/// Time to make the configuration, and then to learn it.
const FEED_TIMEOUT: Duration = Duration::from_secs(120);
const LEARN_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at what was learnt: each costs some milliseconds of a processor.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Until what was only needed to learn is given back.
const SETTLE: Duration = Duration::from_secs(2);

const PORT: u16 = 15112;
const BYTES_METRIC: &str = "istio_xds_message_bytes_total";

/// A mesh that was learnt.
#[derive(Debug, Serialize)]
pub(crate) struct Learned {
    pub(crate) variant: &'static str,
    pub(crate) workloads: u32,
    /// Size of its configuration.
    pub(crate) megabytes: f64,
    /// From the start of the ztunnel until it knows everything.
    pub(crate) seconds: f64,
    /// Processor time of the ztunnel until then.
    pub(crate) cpu_seconds: f64,
    pub(crate) memory: Memory,
}

impl Learned {
    /// Whether it is the mesh that the goal speaks of.
    pub(crate) fn is_largest(&self) -> bool {
        Some(&self.workloads) == SIZES.last()
    }
}

/// A ztunnel that shall learn.
struct Learner<'a> {
    variant: &'static str,
    program: &'a Path,
    kind: &'a Kind,
}

/// Measures every size with every ztunnel, each with a fresh one on a node of its own.
pub(crate) fn measure(term: Term, lab: &Lab, settings: &Settings) -> Result<Vec<Learned>> {
    let node = lab.add_node()?;
    let run_dir = node.dir().join("run");
    fs::create_dir_all(&run_dir)?;
    // The feeder asks nobody who they are, but a ztunnel does not start to speak without a token.
    fs::write(node.dir().join("token"), "bench")?;
    let ours = bin::path("loam-ztunnel")?;
    let ours = Learner { variant: OURS, program: &ours, kind: &Kind::LikeOurs };
    let other = settings.other.as_ref();
    let other = other.map(|o| Learner { variant: o.name(), program: &o.program, kind: &o.kind });
    let sizes = &SIZES[..SIZES.len() - usize::from(settings.quick)];
    let mut all = Vec::new();
    for &workloads in sizes {
        for learner in std::iter::once(&ours).chain(&other) {
            let what = format!("{} learns a mesh of {workloads} workloads", learner.variant);
            all.push(term.step(&what, || learn(lab, &node, learner, workloads))?);
        }
    }
    Ok(all)
}

fn learn(lab: &Lab, node: &Node, learner: &Learner<'_>, workloads: u32) -> Result<Learned> {
    let data = lab.work().join("feed");
    let (listen, count) = (format!("{FABRIC_V4}:{PORT}"), workloads.to_string());
    let tool = bin::path("loam-lab")?;
    let feed = [text(&tool)?, "feed", "--listen", &listen, "--data-dir", text(&data)?, "--workloads", &count];
    let feeder = lab.spawn("feed", &feed)?;
    feeder.wait_for_output("serving", FEED_TIMEOUT)?;
    let bytes = parse_served(&feeder.stdout()).context("the feeder does not say how much it serves")?;

    let command = command(learner, node, &listen, &data.join("root-cert.pem"))?;
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let start = Instant::now();
    let ztunnel = node.spawn("ztunnel", &command)?;
    let learned = wait_until_learned(node, &ztunnel, bytes, start);
    let seconds = start.elapsed().as_secs_f64();
    let result = learned.and_then(|()| {
        let cpu_seconds = ztunnel.cpu_time()?.as_secs_f64();
        std::thread::sleep(SETTLE);
        let memory = Memory::of(&ztunnel)?;
        Ok(Learned { variant: learner.variant, workloads, megabytes: bytes / 1e6, seconds, cpu_seconds, memory })
    });
    ztunnel.kill()?;
    feeder.kill()?;
    result
}

/// How a ztunnel that carries nothing is told where its configuration comes from.
fn command(learner: &Learner<'_>, node: &Node, from: &str, root: &Path) -> Result<Vec<String>> {
    let program = learner.program;
    match learner.kind {
        Kind::LikeOurs => {
            let (run_dir, token) = (node.dir().join("run"), node.dir().join("token"));
            let mut command = vec![text(program)?, "--node", node.name(), "--run-dir", text(&run_dir)?];
            command.extend(["--xds-address", from, "--ca-root", text(root)?, "--token", text(&token)?]);
            Ok(command.into_iter().map(str::to_owned).collect())
        }
        Kind::Istio { .. } => {
            let (from, root) = (format!("https://{from}"), text(root)?);
            let settings = [
                // Nobody has pods for it, for which it would wait in its usual mode.
                ("PROXY_MODE", "dedicated"),
                ("PROXY_WORKLOAD_INFO", "bench/nobody/nobody"),
                ("NODE_NAME", node.name()),
                ("XDS_ADDRESS", &from),
                ("XDS_ROOT_CA", root),
                ("CA_ADDRESS", &from),
                ("CA_ROOT_CA", root),
                ("AUTH_TOKEN", "bench"),
            ];
            istio::command(program, &settings)
        }
    }
}

fn wait_until_learned(node: &Node, ztunnel: &Process, bytes: f64, start: Instant) -> Result<()> {
    loop {
        // It answers between two pieces of the configuration, from the thread that applies them.
        let known = node.http_get("http://127.0.0.1:15020/metrics").ok();
        let known = known.and_then(|page| metrics::sum(&page, BYTES_METRIC, &["workload.Address"])).unwrap_or(0.0);
        if known >= bytes {
            return Ok(());
        }
        ensure!(ztunnel.is_running(), "{} ended: {}{}", ztunnel.name(), ztunnel.stdout(), ztunnel.stderr());
        if start.elapsed() > LEARN_TIMEOUT {
            bail!("{known} of {bytes} bytes after {LEARN_TIMEOUT:?}");
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn parse_served(said: &str) -> Option<f64> {
    said.lines().find_map(|l| l.strip_prefix("serving ")?.strip_suffix(" bytes"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feeder_says_how_much_it_serves() {
        assert_eq!(parse_served("serving 1234 bytes\n"), Some(1234.0));
        assert_eq!(parse_served(""), None);
    }
}
