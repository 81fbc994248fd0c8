//! The cast that most network tests need: enrolled pods on both nodes, one pod outside the mesh, a service.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::manifests::Service;
use crate::mesh::{Mesh, Options};
use crate::process::Process;
use crate::report::{Failure, Probe, Rate, Transfers};
use crate::topology::Pod;

/// Port of every pod's echo server.
pub const ECHO: u16 = 7000;
/// Port of every pod's server that does what it is asked.
pub const TALK: u16 = 7001;
/// A port on which nobody listens.
pub const CLOSED: u16 = 7999;
/// Port of the service's addresses, which leads to [`TALK`].
pub const SERVICE: u16 = 80;

/// Time for one short step, with room for a busy machine.
pub const SHORT: Duration = Duration::from_secs(30);
/// Time for a long transfer or a long series.
pub const LONG: Duration = Duration::from_secs(150);

/// A mesh with its cast. Everything serves; nothing is enrolled before [`Scene::enrol`].
#[derive(Debug)]
pub struct Scene {
    /// The mesh.
    pub mesh: Mesh,
    /// On the first node.
    pub client: Pod,
    /// On the first node.
    pub near: Pod,
    /// On the second node.
    pub far: Pod,
    /// On the second node, in a namespace that is not in the mesh.
    pub outside: Pod,
    /// Over `near` and `far`.
    pub service: Service,
    /// Over `client` alone.
    pub own_service: Service,
}

/// Starts the usual servers in a pod.
pub fn serve(pod: &Pod) -> Result<Process> {
    let (echo, talk) = (ECHO.to_string(), TALK.to_string());
    let server = pod.tool(&["serve", "--echo", &echo, "--talk", &talk])?;
    server.wait_for_output("serving", SHORT)?;
    Ok(server)
}

impl Scene {
    /// Builds it with nothing enrolled.
    pub fn plain(lab: &Lab) -> Result<Self> {
        Self::plain_with(lab, &Options::default())
    }

    /// Builds it with other arguments for the mesh's processes.
    pub fn plain_with(lab: &Lab, options: &Options) -> Result<Self> {
        let client = lab.node(0).pod("client", "demo", "client")?;
        let near = lab.node(0).pod("near", "demo", "server")?;
        let far = lab.node(1).pod("far", "demo", "server")?;
        let outside = lab.node(1).pod("outside", "plain", "outside")?;
        for pod in [&client, &near, &far, &outside] {
            serve(pod)?;
        }
        let mesh = Mesh::start_with(lab, options)?;
        let manifests = mesh.manifests();
        manifests.namespace("demo", false)?;
        manifests.namespace("plain", false)?;
        for pod in [&client, &near, &far, &outside] {
            manifests.pod(pod)?;
        }
        let service = manifests.service("demo", "talk", &[(SERVICE, TALK)], &[&near, &far])?;
        let own_service = manifests.service("demo", "own", &[(SERVICE, TALK)], &[&client])?;
        Ok(Self { mesh, client, near, far, outside, service, own_service })
    }

    /// Builds it and enrols the cast.
    pub fn enrolled(lab: &Lab) -> Result<Self> {
        let scene = Self::plain(lab)?;
        scene.enrol()?;
        Ok(scene)
    }

    /// Enrols the namespace and waits until its pods are captured and reach each other.
    pub fn enrol(&self) -> Result<()> {
        self.mesh.manifests().namespace("demo", true)?;
        self.mesh.wait_for_state(&[&self.client, &self.near, &self.far], "enrolled")
    }

    /// Takes the namespace out of the mesh and waits until its pods are let go.
    pub fn un_enrol(&self) -> Result<()> {
        self.mesh.manifests().namespace("demo", false)?;
        self.mesh.wait_until_not_enrolled(&[&self.client, &self.near, &self.far])
    }
}

impl Pod {
    /// One connection to a `talk` server, described. Its marker has the name of our namespace.
    pub fn probe(&self, to: SocketAddr) -> Result<Probe> {
        self.report(&["probe", &to.to_string(), "--tag", self.namespace()], SHORT)
    }

    /// One connection that must succeed, be seen with our address, and lead to `server`.
    pub fn assert_reaches(&self, to: SocketAddr, servers: &[SocketAddr]) -> Result<()> {
        let probe = self.probe(to)?;
        let what = format!("{} -> {to}", self.name());
        let seen = probe.server.with_context(|| format!("{what}: {}", probe.error.unwrap_or_default()))?;
        ensure!(probe.peer == Some(to), "{what}: getpeername gives {:?}", probe.peer);
        ensure!(self.addresses().contains(&seen.peer.ip()), "{what}: the server sees the client as {}", seen.peer);
        ensure!(servers.contains(&seen.local), "{what}: the server was dialled as {}", seen.local);
        Ok(())
    }

    /// One connection that must fail within `limit`, and not by running into a time-out.
    pub fn assert_refused(&self, to: SocketAddr, limit: Duration) -> Result<()> {
        let probe = self.probe(to)?;
        let what = format!("{} -> {to}", self.name());
        let error = probe.error.with_context(|| format!("{what}: reached {:?}", probe.server))?;
        ensure!(probe.total_ms <= limit.as_secs_f64() * 1e3, "{what}: {error} only after {} ms", probe.total_ms);
        Ok(())
    }

    /// Starts connections at a steady rate, and returns when they have begun.
    pub fn start_rate(&self, to: &[SocketAddr], per_second: u64, seconds: u64, tag: &str) -> Result<Process> {
        let to: Vec<String> = to.iter().map(ToString::to_string).collect();
        let (rate, seconds) = (per_second.to_string(), seconds.to_string());
        let mut arguments = vec!["rate", "--per-second", &rate, "--seconds", &seconds, "--tag", tag];
        arguments.extend(to.iter().map(String::as_str));
        let process = self.tool(&arguments)?;
        process.wait_for_output("started", SHORT)?;
        Ok(process)
    }

    /// Starts a long connection, and returns when its first message was answered.
    pub fn start_pingpong(&self, to: SocketAddr, tag: &str) -> Result<Process> {
        let process = self.tool(&["pingpong", &to.to_string(), "--tag", tag])?;
        process.wait_for_output("connected", SHORT)?;
        Ok(process)
    }

    /// Byte-exact transfers that must all succeed.
    pub fn assert_transfers(&self, to: SocketAddr, arguments: &[&str]) -> Result<()> {
        let to = to.to_string();
        let mut all = vec!["transfer", &to];
        all.extend(arguments);
        let done: Transfers = self.report(&all, LONG)?;
        ensure!(done.errors.is_empty(), "{} -> {to} {arguments:?}: {} ok, {:?}", self.name(), done.ok, done.errors);
        Ok(())
    }
}

impl Rate {
    /// Fails when an attempt failed.
    pub fn assert_all_ok(&self) -> Result<()> {
        ensure!(self.ok == self.attempts && self.attempts > 0, "{}", self.summary());
        Ok(())
    }

    /// Fails when an attempt failed that was not under way at one of `moments`, each given as its begin and end.
    pub fn assert_only_failed_across(&self, moments: &[(u64, u64)]) -> Result<()> {
        let was_under_way = |f: &Failure| moments.iter().any(|&(from, to)| f.started_us <= to && f.ended_us >= from);
        let details: Vec<String> = self
            .failed
            .iter()
            .filter(|f| !was_under_way(f))
            .map(|f| {
                let before = moments.iter().filter(|&&(_, to)| to <= f.started_us).map(|&(_, to)| f.started_us - to);
                let after = before.min().unwrap_or_default();
                format!("{}: {} begun {after} us later, took {} us", f.stage, f.error, f.ended_us - f.started_us)
            })
            .collect();
        let shown = &details[..details.len().min(10)];
        ensure!(details.is_empty(), "{}; {} not excused: {shown:#?}", self.summary(), details.len());
        Ok(())
    }

    /// One line for a person.
    pub fn summary(&self) -> String {
        let seconds = (self.ended_us - self.started_us) as f64 / 1e6;
        format!(
            "{} of {} ok in {seconds:.1} s, p50 {} us, p99 {} us, max {} us, failures {:?}",
            self.ok, self.attempts, self.latency_us.p50, self.latency_us.p99, self.latency_us.max, self.failures
        )
    }
}
