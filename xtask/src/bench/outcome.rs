//! Everything that was measured, as a table and as JSON.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::decide::Decided;
use super::goal::{Goal, Judged, Metric};
use super::idle::{self, Idle};
use super::learn::{self, Learned};
use super::other::{ISTIO, Other};
use super::stage::{OURS, PLAIN};
use super::statistics::Spread;
use super::versus::{self, Versus};
use super::workload::{Sample, Samples, Series};
use crate::term::Term;

/// Steal above this share makes a sample doubtful.
const MAX_STEAL: f64 = 0.02;

/// How it is measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) runs: u32,
    #[serde(serialize_with = "in_seconds")]
    pub(crate) sample: Duration,
    pub(crate) quick: bool,
    pub(crate) other: Option<Other>,
}

fn in_seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// What everything is measured on.
#[derive(Debug, Serialize)]
struct Machine {
    processors: usize,
    kernel: String,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    machine: Machine,
    settings: Settings,
    pub(crate) traffic: Vec<Series>,
    pub(crate) idle: Vec<Idle>,
    pub(crate) learned: Vec<Learned>,
    pub(crate) decided: Vec<Decided>,
}

/// The figures with what follows from them.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    of_plain: Vec<OfPlain>,
    versus: Vec<Versus>,
    goals: Vec<Judged>,
}

/// A variant's throughput as a share of plain TCP's.
#[derive(Debug, Serialize)]
struct OfPlain {
    workload: &'static str,
    variant: &'static str,
    #[serde(flatten)]
    ratio: Option<Spread>,
}

impl Series {
    fn plain(&self) -> Option<&Samples> {
        self.variants.iter().find(|v| v.variant == PLAIN)
    }

    /// Everybody who is compared with plain TCP.
    fn meshed(&self) -> impl Iterator<Item = &Samples> {
        self.variants.iter().filter(|v| v.variant != PLAIN)
    }

    fn of_plain(&self, samples: &Samples) -> Option<Spread> {
        let figure = |s: &Sample| Some(s.figure);
        Spread::of_pairs(&samples.each(figure), &self.plain()?.each(figure))
    }

    fn measured(&self, metric: Metric, samples: &Samples) -> Option<f64> {
        match metric {
            Metric::OfPlain => self.of_plain(samples).map(|ratio| ratio.median),
            Metric::OwnPerGigabyte | Metric::OwnPerRequest => median(samples, |s| Some(s.own_cost)),
            Metric::MedianMs => median(samples, |s| s.p50_ms),
            Metric::PerConnectionKb | Metric::Megabytes | Metric::Nanoseconds => None,
        }
    }

    fn judge(&self, goal: Goal, samples: &Samples) -> Judged {
        let judged = goal.judge(self.workload.name, samples.variant, self.measured(goal.metric, samples));
        let istio = self.variants.iter().find(|v| v.variant == ISTIO && samples.variant == OURS);
        match (istio, Versus::of(self)) {
            (Some(istio), Some(versus)) => {
                judged.beside_istio(self.measured(goal.metric, istio), versus.is_as_good(goal.metric))
            }
            _ => judged,
        }
    }
}

fn median(samples: &Samples, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    Spread::of(samples.each(value).into_iter().flatten()).map(|spread| spread.median)
}

impl Outcome {
    /// Nothing measured yet.
    pub(crate) fn new(settings: Settings) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = Machine { processors, kernel: kernel.trim().to_owned() };
        let (traffic, idle, learned, decided) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { machine, settings, traffic, idle, learned, decided }
    }

    /// What is written as JSON.
    pub(crate) fn document(&self) -> Document<'_> {
        let of_plain = self.traffic.iter().flat_map(|series| {
            series.meshed().map(|samples| OfPlain {
                workload: series.workload.name,
                variant: samples.variant,
                ratio: series.of_plain(samples),
            })
        });
        Document { outcome: self, of_plain: of_plain.collect(), versus: self.versus(), goals: self.goals() }
    }

    fn versus(&self) -> Vec<Versus> {
        self.traffic.iter().filter_map(Versus::of).collect()
    }

    fn goals(&self) -> Vec<Judged> {
        let traffic = self.traffic.iter().flat_map(|series| {
            series.meshed().flat_map(|samples| series.workload.goals.iter().map(|&goal| series.judge(goal, samples)))
        });
        let idle = self.idle.iter().flat_map(Idle::goals);
        let learned = self.learned.iter().filter_map(Learned::goal);
        traffic.chain(idle).chain(learned).chain(self.decided.iter().map(Decided::goal)).collect()
    }

    /// Prints it.
    pub(crate) fn show(&self, term: Term) {
        if !self.traffic.is_empty() {
            term.heading("Traffic: medians; the ratio is that of neighbours in time, with its smallest and largest");
            term.table(&self.traffic_table(term));
            let note =
                "machine: processor time of everything; own: of both ztunnels and keepers; each per GB or request";
            println!("  {}", term.dim(note));
        }
        if !self.idle.is_empty() {
            term.heading("Memory of a ztunnel with connections that do nothing (RSS, at the client and at the server)");
            term.table(&self.idle_table(term));
        }
        if !self.learned.is_empty() {
            term.heading("A ztunnel learns a mesh");
            term.table(&self.learned_table(term));
        }
        if !self.decided.is_empty() {
            term.heading("Decisions, without a network");
            term.table(&self.decided_table(term));
        }
        for note in self.notes() {
            println!("  {} {note}", term.bad("!"));
        }
        if let Some((is_good, text)) = versus::summary(&self.versus()) {
            println!("\n{}", if is_good { term.good(&text) } else { term.bad(&text) });
        }
        // What another reaches is no goal of ours.
        let goals: Vec<Judged> = self.goals().into_iter().filter(|judged| judged.variant == OURS).collect();
        if goals.is_empty() {
            return;
        }
        let reached = goals.iter().filter(|goal| goal.reached).count();
        let paint = if reached == goals.len() { Term::good } else { Term::bad };
        println!("\n{}", paint(term, &format!("{reached} of {} goals reached", goals.len())));
    }

    fn traffic_table(&self, term: Term) -> Vec<Vec<String>> {
        let against =
            self.settings.other.as_ref().map_or_else(String::new, |other| format!("against {}", other.name()));
        let heading =
            ["measurement", "variant", "figure", "of plain", "p50", "p99", "machine", "own", &against, "goal"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for series in &self.traffic {
            for (i, samples) in series.variants.iter().enumerate() {
                let workload = series.workload;
                let figure = median(samples, |s| Some(s.figure)).map_or_else(
                    || "failed".to_owned(),
                    |figure| format!("{figure:.*} {}", if figure < 100.0 { 2 } else { 0 }, workload.unit()),
                );
                let is_plain = samples.variant == PLAIN;
                let ratio = if is_plain { None } else { series.of_plain(samples) };
                let cost = |value: fn(&Sample) -> f64| {
                    text(median(samples, |s| Some(value(s))), |v| format!("{v:.2} {}", workload.cost_unit()))
                };
                let is_ours = samples.variant == OURS;
                let versus = if is_ours { Versus::of(series) } else { None };
                let goals = if is_ours { workload.goals } else { &[] };
                let goals = goals.iter().map(|&goal| series.judge(goal, samples));
                rows.push(vec![
                    if i == 0 { workload.what.to_owned() } else { String::new() },
                    samples.variant.to_owned(),
                    figure,
                    text(ratio, |r| format!("{:.3} ({:.3}..{:.3})", r.median, r.min, r.max)),
                    text(median(samples, |s| s.p50_ms), |v| format!("{v:.3} ms")),
                    text(median(samples, |s| s.p99_ms), |v| format!("{v:.3} ms")),
                    cost(|s| s.machine_cost),
                    if is_plain { String::new() } else { cost(|s| s.own_cost) },
                    text(versus, |versus| versus.text()),
                    verdicts(term, goals),
                ]);
            }
        }
        rows
    }

    fn idle_table(&self, term: Term) -> Vec<Vec<String>> {
        let mut rows = vec![["variant", "connections", "client", "server", "goal"].map(str::to_owned).to_vec()];
        for idle in &self.idle {
            for (i, level) in idle.levels.iter().enumerate() {
                // The first line shows the base, the last one what each connection added.
                let goals = idle.goals().into_iter().filter(|judged| match judged.goal.metric {
                    Metric::Megabytes => i == 0,
                    _ => i + 1 == idle.levels.len(),
                });
                rows.push(vec![
                    if i == 0 { idle.variant.to_owned() } else { String::new() },
                    level.connections.to_string(),
                    format!("{:.1} MB", level.client.rss_mb),
                    format!("{:.1} MB", level.server.rss_mb),
                    verdicts(term, goals),
                ]);
            }
        }
        rows
    }

    fn learned_table(&self, term: Term) -> Vec<Vec<String>> {
        let heading = ["variant", "workloads", "configuration", "time", "processor time", "memory (RSS)", "goal"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for learned in &self.learned {
            rows.push(vec![
                learned.variant.to_owned(),
                learned.workloads.to_string(),
                format!("{:.1} MB", learned.megabytes),
                format!("{:.2} s", learned.seconds),
                format!("{:.2} s", learned.cpu_seconds),
                format!("{:.0} MB", learned.memory.rss_mb),
                verdicts(term, learned.goal()),
            ]);
        }
        rows
    }

    fn decided_table(&self, term: Term) -> Vec<Vec<String>> {
        let mut rows = vec![["decision", "slowest case", "time", "goal"].map(str::to_owned).to_vec()];
        for decided in &self.decided {
            let slowest = decided.slowest();
            rows.push(vec![
                decided.what().to_owned(),
                text(slowest, |case| case.name.clone()),
                text(slowest, |case| format!("{:.0} ns", case.nanoseconds)),
                verdicts(term, [decided.goal()]),
            ]);
        }
        rows
    }

    /// What makes figures doubtful.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for series in &self.traffic {
            for samples in &series.variants {
                let who = format!("{}, {}", series.workload.what, samples.variant);
                notes.extend(samples.errors.iter().map(|error| format!("{who}: {error}")));
                let done = samples.samples.iter().flatten();
                let failures: u64 = done.clone().map(|s| s.failures).sum();
                if failures > 0 {
                    notes.push(format!("{who}: {failures} requests failed"));
                }
                let steal = done.map(|s| s.steal).fold(0.0, f64::max);
                if steal > MAX_STEAL {
                    notes.push(format!("{who}: the host took up to {:.0} % of the machine away", steal * 100.0));
                }
            }
        }
        notes
    }
}

impl Idle {
    fn goals(&self) -> Vec<Judged> {
        vec![
            idle::BASE.judge(idle::NAME, self.variant, self.base_mb()),
            idle::PER_CONNECTION.judge(idle::NAME, self.variant, self.per_connection_kb()),
        ]
    }
}

impl Learned {
    fn goal(&self) -> Option<Judged> {
        let memory = Some(self.memory.rss_mb);
        self.is_largest().then(|| learn::HELD.judge(learn::NAME, self.variant, memory))
    }
}

impl Decided {
    fn goal(&self) -> Judged {
        self.decision.goal.judge(self.decision.name, OURS, self.slowest().map(|case| case.nanoseconds))
    }
}

fn text<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(String::new, show)
}

/// Goals with a mark each.
fn verdicts(term: Term, goals: impl IntoIterator<Item = Judged>) -> String {
    let mark = |reached| if reached { term.good("✓") } else { term.bad("✗") };
    let one = |judged: Judged| format!("{} {}", mark(judged.reached), judged.text());
    goals.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
