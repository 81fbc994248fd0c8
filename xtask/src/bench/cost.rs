//! What work costs the machine and the mesh: processor time and memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use loam_tests::Process;
use serde::Serialize;

/// Ticks of /proc/stat per second: USER_HZ, which is 100 on every Linux architecture we build for.
const TICKS: f64 = 100.0;

/// Processor time of everything on the machine, whoever it is charged to. The kernel charges the work of arriving
/// packets to whoever happens to run, so no process's own time tells the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    busy: f64,
    steal: f64,
    all: f64,
}

impl Machine {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line of all processors")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|l| l.strip_prefix("cpu "))?;
        let ticks: Vec<f64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let [user, nice, system, idle, wait, irq, softirq, steal, ..] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        let all = busy + idle + wait + steal;
        Some(Self { busy: busy / TICKS, steal: steal / TICKS, all: all / TICKS })
    }
}

/// Measures what happens between its start and its end.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Vec<Process>,
    machine: Machine,
    own: Duration,
}

/// Processor time spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// Core-seconds of the whole machine.
    pub(crate) machine: f64,
    /// Core-seconds of the processes watched.
    pub(crate) own: f64,
    /// Share of the machine's time that its host gave to others.
    pub(crate) steal: f64,
}

fn own_time(processes: &[Process]) -> Result<Duration> {
    processes.iter().map(Process::cpu_time).sum()
}

impl Meter {
    /// Watches the machine and `processes`.
    pub(crate) fn start(processes: Vec<Process>) -> Result<Self> {
        Ok(Self { machine: Machine::now()?, own: own_time(&processes)?, processes })
    }

    /// What was spent since the start.
    pub(crate) fn stop(self) -> Result<Spent> {
        let own = own_time(&self.processes)?.saturating_sub(self.own);
        let (before, after) = (self.machine, Machine::now()?);
        let all = after.all - before.all;
        Ok(Spent {
            machine: after.busy - before.busy,
            own: own.as_secs_f64(),
            steal: if all > 0.0 { (after.steal - before.steal) / all } else { 0.0 },
        })
    }
}

/// Memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Pages it has, in megabytes of a million bytes.
    pub(crate) rss_mb: f64,
    /// The same with each page divided among those who share it.
    pub(crate) pss_mb: f64,
}

impl Memory {
    /// What `process` has.
    pub(crate) fn of(process: &Process) -> Result<Self> {
        let text = process.proc_file("smaps_rollup")?;
        Self::parse(&text).with_context(|| format!("smaps_rollup of {} says {text:?}", process.name()))
    }

    fn parse(text: &str) -> Option<Self> {
        let megabytes = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0 / 1e6)
        };
        Some(Self { rss_mb: megabytes("Rss:")?, pss_mb: megabytes("Pss:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_and_idle_time_is_not_spent() {
        let text = "cpu  100 20 300 4000 50 6 70 800 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(Machine::parse(text), Some(Machine { busy: 4.96, steal: 8.0, all: 53.46 }));
        assert_eq!(Machine::parse("cpu0 1 2\n"), None);
    }

    #[test]
    fn memory_is_read_in_megabytes() {
        let text = "55e0-7ffd ---p 00000000 00:00 0   [rollup]\nRss:               10000 kB\nPss:                8000 kB\n\
                    Pss_Dirty:             1 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { rss_mb: 10.24, pss_mb: 8.192 }));
        assert_eq!(Memory::parse("Rss: 1 kB\n"), None);
    }
}
