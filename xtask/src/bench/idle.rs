//! What connections cost that do nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::report::Held;
use serde::Serialize;

use super::cost::Memory;
use super::goal::{Goal, Metric};
use super::stage::{Stage, TALK, Variant};

pub(crate) const NAME: &str = "idle";

/// How many are held, one number after the other.
const COUNTS: [u64; 3] = [0, 1_000, 10_000];
/// Time to open all of them.
const OPEN_TIMEOUT: Duration = Duration::from_secs(90);
/// Until what was only needed to open them is given back.
const SETTLE: Duration = Duration::from_secs(2);

/// A ztunnel without connections.
pub(crate) const BASE: Goal = Goal::new(Metric::Megabytes, 19.0);
/// Each connection that is held, at each end.
pub(crate) const PER_CONNECTION: Goal = Goal::new(Metric::PerConnectionKb, 4.0);

/// Memory with a number of connections.
#[derive(Debug, Serialize)]
pub(crate) struct Level {
    /// Connections that really live.
    pub(crate) connections: u64,
    /// Ztunnel of the client's node.
    pub(crate) client: Memory,
    /// Ztunnel of the server's node.
    pub(crate) server: Memory,
}

/// All levels of one variant.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) variant: &'static str,
    pub(crate) levels: Vec<Level>,
}

/// Measures every variant that has ztunnels.
pub(crate) fn measure(stage: &Stage) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for variant in &stage.variants {
        if stage.ztunnels(variant)?.is_empty() {
            continue;
        }
        let levels = COUNTS.iter().map(|&count| level(stage, variant, count));
        let levels = levels.collect::<Result<_>>().with_context(|| variant.name)?;
        all.push(Idle { variant: variant.name, levels });
    }
    Ok(all)
}

fn level(stage: &Stage, variant: &Variant, count: u64) -> Result<Level> {
    let ztunnels = stage.ztunnels(variant)?;
    let memory = |at: usize| Memory::of(&ztunnels[at]);
    if count == 0 {
        return Ok(Level { connections: 0, client: memory(0)?, server: memory(1)? });
    }
    let (to, wanted) = (variant.server.at(TALK).to_string(), count.to_string());
    let holder = variant.client.tool(&["hold", &to, "--count", &wanted])?;
    holder.wait_for_output("held", OPEN_TIMEOUT)?;
    std::thread::sleep(SETTLE);
    let (client, server) = (memory(0)?, memory(1)?);
    let held: Held = holder.finish()?;
    let connections = held.ok - held.lost;
    ensure!(connections > count / 2, "only {connections} of {count} connections live: {:?}", held.failures);
    Ok(Level { connections, client, server })
}

impl Idle {
    /// Kilobytes per connection of the end that needs more, between no connections and the most.
    pub(crate) fn per_connection_kb(&self) -> Option<f64> {
        let (first, last) = (self.levels.first()?, self.levels.last()?);
        let more = |from: Memory, to: Memory| (to.rss_mb - from.rss_mb) * 1e3 / last.connections as f64;
        (last.connections > 0).then(|| more(first.client, last.client).max(more(first.server, last.server)))
    }

    /// Megabytes without connections, of the end that needs more.
    pub(crate) fn base_mb(&self) -> Option<f64> {
        self.levels.first().map(|level| level.client.rss_mb.max(level.server.rss_mb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_that_needs_more_is_judged() {
        let memory = |rss_mb| Memory { rss_mb, pss_mb: 0.0 };
        let level = |connections, client, server| Level { connections, client: memory(client), server: memory(server) };
        let idle = Idle { variant: "ours", levels: vec![level(0, 12.0, 10.0), level(10_000, 32.0, 40.0)] };
        assert_eq!((idle.base_mb(), idle.per_connection_kb()), (Some(12.0), Some(3.0)));
    }
}
