//! The kubelet's probes reach applications under STRICT, and nobody else on the node does.

use std::time::Duration;

use anyhow::{Result, ensure};
use loam_tests::manifests::PodFacts;
use loam_tests::report::Probe;
use loam_tests::scene::{ECHO, SHORT, Scene, TALK};
use loam_tests::{eventually, in_lab};

/// Longest time in which a connection is refused.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn under_strict_the_kubelet_alone_reaches_what_it_probes_with_or_without_a_ztunnel() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (node, client, manifests) = (lab.node(0), &scene.client, scene.mesh.manifests());
        let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                      demo}\nspec: {mtls: {mode: STRICT}}\n";
        manifests.write("strict.yaml", strict)?;
        manifests.pod_with(client, &PodFacts { probe: Some(TALK), ..PodFacts::default() })?;
        let probe = |as_kubelet: bool, to| -> Result<Probe> {
            let arguments = ["probe", &std::net::SocketAddr::to_string(&to), "--tag", "kubelet"];
            let process = if as_kubelet { node.kubelet(&arguments)? } else { node.tool(&arguments)? };
            process.report(SHORT)
        };
        let refused = |as_kubelet, to| -> Result<()> {
            let probe = probe(as_kubelet, to)?;
            ensure!(probe.server.is_none(), "{to} was reached: {probe:?}");
            ensure!(probe.total_ms <= AT_ONCE.as_secs_f64() * 1e3, "{to}: refused only after {} ms", probe.total_ms);
            Ok(())
        };
        let reached = |to| -> Result<()> {
            let probe = probe(true, to)?;
            ensure!(probe.server.is_some(), "{to}: {:?}", probe.error);
            Ok(())
        };
        for to in client.at_each(TALK) {
            eventually(SHORT, || refused(false, to))?;
            eventually(SHORT, || reached(to))?;
            refused(false, to)?;
        }
        for to in client.at_each(ECHO) {
            refused(true, to)?;
        }
        scene.mesh.node(0).ztunnel().process().kill()?;
        for to in client.at_each(TALK) {
            reached(to)?;
        }
        Ok(())
    });
}
