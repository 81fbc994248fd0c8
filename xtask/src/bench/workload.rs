//! Traffic that is measured through every variant in turn.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::cost::Meter;
use super::goal::{Goal, Metric};
use super::load;
use super::outcome::Settings;
use super::stage::{PLAIN, Stage, Variant};

/// Requests per second beside a stream of bytes: few enough to cost nothing themselves.
const BESIDE_PER_SECOND: u32 = 100;
/// How much longer the stream is than the requests beside it.
const BESIDE_MARGIN: Duration = Duration::from_secs(1);
/// What of that comes first.
const BESIDE_HEAD: Duration = Duration::from_millis(500);
/// Comes before the samples and is not counted: tunnels, windows and caches are what they are in a long life.
const WARM_UP: Duration = Duration::from_secs(1);

/// A kind of traffic.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    load: Load,
    pub(crate) goals: &'static [Goal],
    /// Whether `--quick` does without it.
    pub(crate) is_long: bool,
}

#[derive(Debug, Clone, Copy)]
enum Load {
    /// Streams of bytes from the client, or `back` to it.
    Bulk { streams: u32, back: bool },
    /// Requests over connections that stay, or each over its own.
    Requests { connections: u32, close: bool },
    /// A stream of bytes, and beside it small requests at a steady pace.
    Beside,
    /// Questions for the name of a service, so many at a time. The network alone has nobody who answers.
    Names { parallel: usize },
}

const fn goal(metric: Metric, bound: f64) -> Goal {
    Goal::new(metric, bound)
}

const BULK_1: &[Goal] = &[goal(Metric::OfPlain, 0.20), goal(Metric::OwnPerGigabyte, 1.0)];
const BULK_4: &[Goal] = &[goal(Metric::OfPlain, 0.22), goal(Metric::OwnPerGigabyte, 1.2)];

const fn bulk(name: &'static str, what: &'static str, streams: u32, back: bool, goals: &'static [Goal]) -> Workload {
    Workload { name, what, load: Load::Bulk { streams, back }, goals, is_long: streams > 4 }
}

/// All of them, in the order in which they are measured. New connections come last, since they leave the most behind.
pub(crate) static ALL: [Workload; 11] = [
    bulk("bulk-1", "bulk, 1 stream", 1, false, BULK_1),
    bulk("bulk-1-back", "bulk, 1 stream back", 1, true, BULK_1),
    bulk("bulk-4", "bulk, 4 streams", 4, false, BULK_4),
    bulk("bulk-4-back", "bulk, 4 streams back", 4, true, BULK_4),
    bulk("bulk-16", "bulk, 16 streams", 16, false, &[]),
    bulk("bulk-16-back", "bulk, 16 streams back", 16, true, &[]),
    Workload {
        name: "requests-1",
        what: "requests, 1 connection",
        load: Load::Requests { connections: 1, close: false },
        goals: &[goal(Metric::OfPlain, 0.70)],
        is_long: false,
    },
    Workload {
        name: "requests-64",
        what: "requests, 64 connections",
        load: Load::Requests { connections: 64, close: false },
        goals: &[goal(Metric::OfPlain, 0.235), goal(Metric::OwnPerRequest, 32.0)],
        is_long: false,
    },
    Workload {
        name: "beside",
        what: "small requests beside bulk",
        load: Load::Beside,
        goals: &[goal(Metric::MedianMs, 5.0)],
        is_long: false,
    },
    Workload { name: "names", what: "DNS answers", load: Load::Names { parallel: 16 }, goals: &[], is_long: false },
    Workload {
        name: "connections",
        what: "new connections",
        load: Load::Requests { connections: 16, close: true },
        goals: &[goal(Metric::OfPlain, 0.23), goal(Metric::OwnPerRequest, 190.0)],
        is_long: false,
    },
];

impl Workload {
    /// Unit of its figure.
    pub(crate) fn unit(&self) -> &'static str {
        match self.load {
            Load::Bulk { .. } | Load::Beside => "Gb/s",
            Load::Requests { .. } | Load::Names { .. } => "/s",
        }
    }

    /// Whether it is about the time that requests take, and not about how much goes through.
    pub(crate) fn is_about_latency(&self) -> bool {
        matches!(self.load, Load::Beside)
    }

    /// Unit of processor time per piece of its work.
    pub(crate) fn cost_unit(&self) -> &'static str {
        match self.load {
            Load::Bulk { .. } | Load::Beside => "s/GB",
            Load::Requests { .. } | Load::Names { .. } => "us",
        }
    }
}

/// One measurement of one variant.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Throughput.
    pub(crate) figure: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// Processor time of the machine per gigabyte (core-seconds) or per request (microseconds).
    pub(crate) machine_cost: f64,
    /// The same of what carries the traffic.
    pub(crate) own_cost: f64,
    /// Share of the machine's time that its host gave to others.
    pub(crate) steal: f64,
    /// Requests that failed.
    pub(crate) failures: u64,
}

/// All samples of one variant, in the order of the runs.
#[derive(Debug, Serialize)]
pub(crate) struct Samples {
    pub(crate) variant: &'static str,
    pub(crate) samples: Vec<Option<Sample>>,
    /// Why samples are missing.
    pub(crate) errors: Vec<String>,
}

impl Samples {
    /// One value of each sample.
    pub(crate) fn each(&self, value: impl Fn(&Sample) -> Option<f64>) -> Vec<Option<f64>> {
        self.samples.iter().map(|sample| sample.as_ref().and_then(&value)).collect()
    }
}

/// All samples of a workload.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    #[serde(serialize_with = "by_name")]
    pub(crate) workload: &'static Workload,
    pub(crate) variants: Vec<Samples>,
}

fn by_name<S: serde::Serializer>(workload: &&'static Workload, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(workload.name)
}

/// Measures `workload` through every variant, one after the other in each run. What fails is part of the result.
pub(crate) fn measure(workload: &'static Workload, stage: &Stage, settings: &Settings) -> Series {
    let carriers = || stage.variants.iter().filter(|v| v.name != PLAIN || !matches!(workload.load, Load::Names { .. }));
    let mut variants: Vec<Samples> =
        carriers().map(|v| Samples { variant: v.name, samples: Vec::new(), errors: Vec::new() }).collect();
    for (variant, into) in carriers().zip(&mut variants) {
        if let Err(e) = sample(workload.load, stage, variant, WARM_UP) {
            into.errors.push(format!("warm-up: {e:#}"));
        }
    }
    for run in 1..=settings.runs {
        for (variant, into) in carriers().zip(&mut variants) {
            let sample = sample(workload.load, stage, variant, settings.sample);
            into.errors.extend(sample.as_ref().err().map(|e| format!("run {run}: {e:#}")));
            into.samples.push(sample.ok());
        }
    }
    Series { workload, variants }
}

fn sample(load: Load, stage: &Stage, variant: &Variant, time: Duration) -> Result<Sample> {
    let meter = Meter::start(stage.processes(variant)?)?;
    match load {
        Load::Bulk { streams, back } => {
            let process = load::start_bulk(variant, streams, back, time)?;
            let transfer = load::finish_bulk(&process, time)?;
            let spent = meter.stop()?;
            Ok(Sample {
                figure: transfer.gbps,
                p50_ms: None,
                p99_ms: None,
                machine_cost: spent.machine / transfer.gigabytes,
                own_cost: spent.own / transfer.gigabytes,
                steal: spent.steal,
                failures: 0,
            })
        }
        Load::Requests { connections, close } => {
            let requests = load::requests(variant, connections, close, time)?;
            let spent = meter.stop()?;
            Ok(Sample {
                figure: requests.per_second,
                p50_ms: Some(requests.p50_ms),
                p99_ms: Some(requests.p99_ms),
                machine_cost: spent.machine / requests.count * 1e6,
                own_cost: spent.own / requests.count * 1e6,
                steal: spent.steal,
                failures: requests.failures,
            })
        }
        Load::Beside => {
            let bulk = load::start_bulk(variant, 1, false, time + BESIDE_MARGIN)?;
            std::thread::sleep(BESIDE_HEAD);
            let paced = load::paced(&variant.client, &variant.server, BESIDE_PER_SECOND, time);
            let transfer = load::finish_bulk(&bulk, time + BESIDE_MARGIN)?;
            let (paced, spent) = (paced?, meter.stop()?);
            Ok(Sample {
                figure: transfer.gbps,
                p50_ms: Some(paced.latency_us.p50 as f64 / 1e3),
                p99_ms: Some(paced.latency_us.p99 as f64 / 1e3),
                machine_cost: spent.machine / transfer.gigabytes,
                own_cost: spent.own / transfer.gigabytes,
                steal: spent.steal,
                failures: 0,
            })
        }
        Load::Names { parallel } => {
            let lookups = load::lookups(variant, parallel, time)?;
            let spent = meter.stop()?;
            Ok(Sample {
                figure: lookups.per_second,
                p50_ms: Some(lookups.latency_us.p50 as f64 / 1e3),
                p99_ms: Some(lookups.latency_us.p99 as f64 / 1e3),
                machine_cost: spent.machine / lookups.answered as f64 * 1e6,
                own_cost: spent.own / lookups.answered as f64 * 1e6,
                steal: spent.steal,
                failures: lookups.failures.values().sum(),
            })
        }
    }
}
