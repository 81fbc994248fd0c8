//! Steady traffic between pods of a tenant: new connections at a rate, and one that lives as long as all of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Seen;
use crate::eventually;
use crate::report::{PingPong, Rate};
use crate::tenant::{SETTLE, Tenant, tool};

/// New connections of each caller in a second.
const PER_SECOND: &str = "20";
/// Longer than any test: it ends when it is told to.
const SECONDS: &str = "86400";
/// The longest wait for an answer that counts as one.
const PATIENCE_MS: &str = "10000";
/// How the tool's process begins in a pod.
const PROGRAM: &str = "^/usr/local/bin/loam-lab (rate|pingpong) ";

/// Callers under way, one on each of some nodes.
#[derive(Debug)]
pub struct Load<'a> {
    tenant: Tenant<'a>,
    cluster: &'a Seen,
    nodes: Vec<String>,
}

/// What became of all of it.
#[derive(Debug)]
pub struct Carried {
    /// New connections of each caller, by its node.
    pub new: Vec<(String, Rate)>,
    /// The connection that lived long, by its node.
    pub old: Vec<(String, PingPong)>,
}

impl<'a> Load<'a> {
    /// Starts callers on `nodes` that connect to all of `to` in turn, and holds a connection to the first of them. Returns
    /// when all are captured and under way.
    pub fn start(tenant: Tenant<'a>, cluster: &'a Seen, nodes: &[String], to: &[SocketAddr]) -> Result<Self> {
        let first = to.first().context("a load without a server")?.to_string();
        let to: Vec<String> = to.iter().map(SocketAddr::to_string).collect();
        let mut rate = vec!["rate", "--per-second", PER_SECOND, "--seconds", SECONDS, "--timeout-ms", PATIENCE_MS];
        rate.extend(["--tag", "load"]);
        rate.extend(to.iter().map(String::as_str));
        let long = ["pingpong", &first, "--every-ms", "100", "--timeout-ms", PATIENCE_MS, "--tag", "long"];
        for node in nodes {
            tenant.pod(&caller(node), node, &[tool("new", &rate), tool("old", &long)])?;
        }
        for node in nodes {
            tenant.captured(&caller(node))?;
            eventually(SETTLE, || {
                let said = tenant.run(&["logs", &caller(node), "--container", "old"])?;
                ensure!(said.contains("connected"), "the caller on {node} has no connection: {:?}", said.trim());
                Ok(())
            })?;
        }
        Ok(Self { tenant, cluster, nodes: nodes.to_vec() })
    }

    /// Ends it.
    pub fn end(self) -> Result<Carried> {
        let mut carried = Carried { new: Vec::new(), old: Vec::new() };
        for node in &self.nodes {
            self.cluster.run_inside(node, &["pkill", "-TERM", "-f", PROGRAM])?;
            let limit = SETTLE + Duration::from_secs(10);
            carried.new.push((node.clone(), self.tenant.report(&caller(node), "new", limit)?));
            carried.old.push((node.clone(), self.tenant.report(&caller(node), "old", limit)?));
        }
        Ok(carried)
    }
}

impl Carried {
    /// An error unless every new connection was answered and none of the old ones ended.
    pub fn success(&self) -> Result<()> {
        for (node, rate) in &self.new {
            let failed = rate.attempts - rate.ok;
            ensure!(rate.attempts > 0, "the caller on {node} did nothing");
            ensure!(failed == 0, "{failed} of {} connections from {node} failed: {:?}", rate.attempts, rate.failures);
        }
        for (node, long) in &self.old {
            ensure!(long.error.is_none(), "the long connection from {node} ended after {}: {long:?}", long.messages);
        }
        Ok(())
    }
}

fn caller(node: &str) -> String {
    format!("caller-{node}")
}
