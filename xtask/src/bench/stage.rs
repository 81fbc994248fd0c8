//! The pairs of pods that are measured: one in the open, one in our mesh, perhaps one through another ztunnel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::manifests::PodFacts;
use loam_tests::mesh::Options;
use loam_tests::{Lab, Mesh, Pod, Process, eventually};

use super::other::{Kind, Other};
use super::{istio, load};

/// Port of the iperf3 server.
pub(crate) const BULK: u16 = 5201;
/// Port of the small HTTP server.
pub(crate) const WEB: u16 = 8080;
/// Port of the server that idle connections lead to.
pub(crate) const TALK: u16 = 7001;

/// A name server that nobody routes to: questions to it are captured, or lost.
pub(crate) const NAME_SERVER: &str = "10.96.255.53:53";
/// Name of the service that each pair has.
const SERVICE: &str = "web";

/// What everything is compared with.
pub(crate) const PLAIN: &str = "plain";
pub(crate) const OURS: &str = "ours";

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
    carrier: Carrier,
}

/// What is between the pods of a pair.
#[derive(Debug)]
enum Carrier {
    /// The network alone.
    Nobody,
    /// The mesh of the stage, on their nodes.
    Mesh,
    /// A ztunnel of each pod's own, the client's first.
    Istio(Vec<Process>),
}

impl Variant {
    /// Name of the service of its server.
    pub(crate) fn service(&self) -> String {
        service_name(&self.server)
    }
}

/// Name of the service of a pair, by its server.
pub(crate) fn service_name(server: &Pod) -> String {
    format!("{SERVICE}.{}.svc.cluster.local", server.namespace())
}

impl Stage {
    /// Makes it in a lab with two nodes; another ztunnel that speaks for whole nodes gets two of its own.
    pub(crate) fn set(lab: &Lab, other: Option<&Other>) -> Result<Self> {
        let pair = |name: &'static str, first: usize| -> Result<(Pod, Pod)> {
            let client = lab.node(first).pod("client", name, "client")?;
            let server = lab.node(first + 1).pod("server", name, "server")?;
            serve(&server)?;
            Ok((client, server))
        };
        let variant = |name, (client, server), carrier| Variant { name, client, server, carrier };
        let mut options = Options::default();
        let mut variants =
            vec![variant(PLAIN, pair(PLAIN, 0)?, Carrier::Nobody), variant(OURS, pair(OURS, 0)?, Carrier::Mesh)];
        if let Some(other) = other {
            let name = other.name();
            variants.push(match other.kind {
                Kind::LikeOurs => {
                    for _ in 0..2 {
                        let node = lab.add_node()?;
                        options.ztunnel_programs.insert(node.name().to_owned(), other.program.clone());
                    }
                    variant(name, pair(name, 2)?, Carrier::Mesh)
                }
                Kind::Istio { .. } => {
                    let (client, server) = pair(name, 0)?;
                    let processes = istio::surround(lab, &other.program, [&client, &server])?;
                    variant(name, (client, server), Carrier::Istio(processes))
                }
            });
        }
        let mesh = Mesh::start_with(lab, &options)?;
        for variant in variants.iter().filter(|v| matches!(v.carrier, Carrier::Mesh)) {
            mesh.enrol(&[&variant.client, &variant.server])?;
            // Nobody knows its name servers, and such a pod is captured only if it asks for it.
            let annotations = [("ambient.istio.io/dns-capture".to_owned(), "true".to_owned())].into();
            mesh.manifests().pod_with(&variant.client, &PodFacts { annotations, ..PodFacts::default() })?;
            mesh.manifests().service(variant.name, SERVICE, &[(WEB, WEB)], &[&variant.server])?;
        }
        for variant in &variants {
            eventually(START_TIMEOUT, || {
                load::paced(&variant.client, &variant.server, 10, Duration::from_millis(200)).map(drop)
            })
            .with_context(|| format!("the way of the variant {:?}", variant.name))?;
            if let Carrier::Istio(_) = variant.carrier {
                istio::prove([&variant.client, &variant.server])?;
            }
        }
        Ok(Self { mesh, variants })
    }

    /// The two ztunnels of a variant, the client's first; none for the plain one.
    pub(crate) fn ztunnels(&self, variant: &Variant) -> Result<Vec<Process>> {
        let of = |pod| self.mesh.node_of(pod).map(|node| node.ztunnel().process().clone());
        match &variant.carrier {
            Carrier::Nobody => Ok(Vec::new()),
            Carrier::Mesh => Ok(vec![of(&variant.client)?, of(&variant.server)?]),
            Carrier::Istio(processes) => Ok(processes.clone()),
        }
    }

    /// What carries a variant's traffic: ztunnels, and the keepers that make our ztunnels' sockets.
    pub(crate) fn processes(&self, variant: &Variant) -> Result<Vec<Process>> {
        let mut processes = self.ztunnels(variant)?;
        if let Carrier::Mesh = variant.carrier {
            for pod in [&variant.client, &variant.server] {
                processes.push(self.mesh.node_of(pod)?.keeper());
            }
        }
        Ok(processes)
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
