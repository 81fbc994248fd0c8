//! The plaintext oracle on the nodes of a cluster of ours: it looks at every packet that passes a node.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Seen;
use crate::bin;
use crate::report::Captured;

/// Running captures, one on each node.
#[derive(Debug)]
pub struct NodeCaptures(Vec<Running>);

#[derive(Debug)]
struct Running {
    node: String,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl NodeCaptures {
    /// Starts them, and returns when they look.
    pub fn start(cluster: &Seen) -> Result<Self> {
        cluster.nodes().into_iter().map(|node| Running::start(cluster, node)).collect::<Result<_>>().map(Self)
    }

    /// Ends them; what all of them saw.
    pub fn finish(self) -> Result<Captured> {
        let mut all = Captured::default();
        for running in self.0 {
            let node = running.node.clone();
            all.merge(running.finish().with_context(|| format!("the capture on {node}"))?);
        }
        Ok(all)
    }
}

impl Running {
    fn start(cluster: &Seen, node: String) -> Result<Self> {
        let mut capture = cluster.beside(&node, &bin::path("loam-lab")?)?;
        let mut child = capture.arg("capture").stdout(Stdio::piped()).spawn().context("start nsenter")?;
        let output = BufReader::new(child.stdout.take().context("a capture without output")?);
        let mut running = Self { node, child, output };
        let mut line = String::new();
        running.output.read_line(&mut line)?;
        ensure!(line.trim() == "capturing", "the capture on {} said {line:?}", running.node);
        Ok(running)
    }

    fn finish(mut self) -> Result<Captured> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status().context("start kill")?;
        ensure!(told.success(), "it has ended by itself");
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let line = text.lines().rfind(|line| line.starts_with('{')).with_context(|| format!("it said {text:?}"))?;
        Ok(serde_json::from_str(line)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After its end neither does anything.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
