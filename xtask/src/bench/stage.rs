//! The pairs of pods that are measured: one in the open, one in our mesh, perhaps one through another ztunnel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use loam_tests::mesh::{MeshNode, Options};
use loam_tests::{Lab, Mesh, Pod, Process, eventually};

use super::load;

/// Port of the iperf3 server.
pub(crate) const BULK: u16 = 5201;
/// Port of the small HTTP server.
pub(crate) const WEB: u16 = 8080;
/// Port of the server that idle connections lead to.
pub(crate) const TALK: u16 = 7001;

/// What everything is compared with.
pub(crate) const PLAIN: &str = "plain";
pub(crate) const OURS: &str = "ours";
pub(crate) const OTHER: &str = "other";

/// Time for a server to start, or a path to work.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Everybody in place.
#[derive(Debug)]
pub(crate) struct Stage {
    mesh: Mesh,
    pub(crate) variants: Vec<Variant>,
}

/// A pair of pods.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// On one node.
    pub(crate) client: Pod,
    /// On another.
    pub(crate) server: Pod,
    is_meshed: bool,
}

/// Whether a ztunnel is driven as ours is, to judge by its help.
pub(crate) fn is_driven_like_ours(help: &str) -> bool {
    ["--run-dir", "--xds-address", "--ca-root"].iter().all(|flag| help.contains(flag))
}

impl Stage {
    /// Makes it in a lab with two nodes; the other ztunnel gets two nodes of its own.
    pub(crate) fn set(lab: &Lab, other: Option<&Path>) -> Result<Self> {
        let mut options = Options::default();
        if let Some(program) = other {
            for _ in 0..2 {
                let node = lab.add_node()?;
                options.ztunnel_programs.insert(node.name().to_owned(), program.to_owned());
            }
        }
        let pair = |name: &'static str, first: usize| -> Result<Variant> {
            let client = lab.node(first).pod("client", name, "client")?;
            let server = lab.node(first + 1).pod("server", name, "server")?;
            serve(&server)?;
            Ok(Variant { name, client, server, is_meshed: name != PLAIN })
        };
        let mut variants = vec![pair(PLAIN, 0)?, pair(OURS, 0)?];
        if other.is_some() {
            variants.push(pair(OTHER, 2)?);
        }
        let mesh = Mesh::start_with(lab, &options)?;
        for variant in variants.iter().filter(|v| v.is_meshed) {
            mesh.enrol(&[&variant.client, &variant.server])?;
        }
        for variant in &variants {
            eventually(START_TIMEOUT, || {
                load::paced(&variant.client, &variant.server, 10, Duration::from_millis(200)).map(drop)
            })?;
        }
        Ok(Self { mesh, variants })
    }

    /// The mesh on the two nodes of a variant, the client's first; none for the plain one.
    pub(crate) fn nodes(&self, variant: &Variant) -> Result<Vec<&MeshNode>> {
        match variant.is_meshed {
            true => Ok(vec![self.mesh.node_of(&variant.client)?, self.mesh.node_of(&variant.server)?]),
            false => Ok(Vec::new()),
        }
    }

    /// What carries a variant's traffic: ztunnels, and the keepers that make their sockets.
    pub(crate) fn processes(&self, variant: &Variant) -> Result<Vec<Process>> {
        let nodes = self.nodes(variant)?;
        Ok(nodes.iter().flat_map(|node| [node.ztunnel().process().clone(), node.keeper()]).collect())
    }
}

fn serve(pod: &Pod) -> Result<()> {
    let (bulk, talk, web) = (BULK.to_string(), TALK.to_string(), format!("0.0.0.0:{WEB}"));
    let iperf3 = pod.spawn("iperf3", &["iperf3", "--server", "--port", &bulk, "--forceflush"])?;
    iperf3.wait_for_output("listening", START_TIMEOUT)?;
    for server in [pod.tool(&["serve", "--talk", &talk])?, pod.tool(&["web", &web])?] {
        server.wait_for_output("serving", START_TIMEOUT)?;
        ensure!(server.is_running(), "{} ended: {}", server.name(), server.stderr());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_of_ours_can_be_driven_and_others_cannot() {
        let ours = "Options:\n  --node <NODE>\n  --run-dir <RUN_DIR>\n  --xds-address <A>\n  --ca-root <CA_ROOT>\n";
        assert!(is_driven_like_ours(ours));
        assert!(!is_driven_like_ours(
            "Istio Ztunnel (ztunnel)\n\nCommands:\nproxy (default) - Start the ztunnel proxy\n"
        ));
    }
}
