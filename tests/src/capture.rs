//! The plaintext oracle: a capture of everything that passes a node's end of its pods' links.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::process::Process;
use crate::report::Captured;
use crate::topology::Node;

/// A running capture on one node.
#[derive(Debug)]
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Starts to look at every packet of the node's namespace, and returns when it does.
    pub fn start(node: &Node) -> Result<Self> {
        let process = node.tool(&["capture"])?;
        process.wait_for_output("capturing", Duration::from_secs(10))?;
        Ok(Self { process })
    }

    /// Starts one on every node.
    pub fn on_all(nodes: &[Node]) -> Result<Vec<Self>> {
        nodes.iter().map(Self::start).collect()
    }

    /// Looks at what is still in the queue, and ends.
    pub fn finish(self) -> Result<Captured> {
        self.process.finish()
    }

    /// Ends several and joins what they saw.
    pub fn finish_all(captures: Vec<Self>) -> Result<Captured> {
        let mut all = Captured::default();
        for capture in captures {
            all.merge(capture.finish()?);
        }
        Ok(all)
    }
}

impl Captured {
    /// Adds what another one saw.
    pub fn merge(&mut self, other: Self) {
        self.packets += other.packets;
        self.dropped += other.dropped;
        for (port, bytes) in other.payload_bytes {
            *self.payload_bytes.entry(port).or_default() += bytes;
        }
        for (tag, marked) in other.markers {
            let mine = self.markers.entry(tag).or_default();
            mine.packets += marked.packets;
            mine.newest_us = mine.newest_us.max(marked.newest_us);
            mine.flows.extend(marked.flows);
        }
        self.http.extend(other.http);
        self.flows.extend(other.flows);
    }

    /// Packets of readable HTTP from one of `ends` to another, with the first such pair for the eyes.
    pub fn readable_between(&self, ends: &[IpAddr]) -> (u64, String) {
        let is_one = |from: &IpAddr, to: &IpAddr| ends.contains(from) && ends.contains(to);
        let mut found = self.http.iter().filter(|(from, to, _)| is_one(from, to)).peekable();
        let example = found.peek().map(|(from, to, _)| format!("{from} -> {to}")).unwrap_or_default();
        (found.map(|(.., packets)| packets).sum(), example)
    }

    /// Packets in which payload with this tag was readable.
    pub fn readable(&self, tag: &str) -> u64 {
        self.markers.get(tag).map_or(0, |m| m.packets)
    }

    /// Fails unless the capture was complete, saw a tunnel at work, and saw no marker but those of `allowed`.
    pub fn assert_no_plaintext_but(&self, allowed: &[&str]) -> Result<()> {
        ensure!(self.dropped == 0, "the capture lost {} packets and proves nothing", self.dropped);
        let tunnelled = self.payload_bytes.get(&15008).copied().unwrap_or_default();
        ensure!(tunnelled > 0, "the capture saw no tunnel at all: {:?}", self.payload_bytes);
        for (tag, marked) in &self.markers {
            let flows = marked.flows.join(", ");
            ensure!(allowed.contains(&tag.as_str()), "{} packets with the plaintext of {tag}: {flows}", marked.packets);
        }
        Ok(())
    }

    /// Fails when a connection with this tag was readable that began after `at_us`.
    pub fn assert_not_readable_since(&self, tag: &str, at_us: u64) -> Result<()> {
        if let Some(marked) = self.markers.get(tag) {
            let late = marked.newest_us.saturating_sub(at_us);
            ensure!(late == 0, "{tag} was readable on a connection first seen {late} us later: {:?}", marked.flows);
        }
        Ok(())
    }

    /// Fails unless the capture was complete, saw a tunnel at work, and saw no marker at all.
    pub fn assert_no_plaintext(&self) -> Result<()> {
        self.assert_no_plaintext_but(&[])
    }
}
