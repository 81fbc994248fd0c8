//! Who is not what the mesh expects is refused, on the real path of a connection.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::lab::FABRIC_V4;
use loam_tests::manifests::PodFacts;
use loam_tests::mesh::CONTROL_PORT;
use loam_tests::process::Process;
use loam_tests::report::{Greeted, Lured, Signed};
use loam_tests::scene::{SHORT, Scene, TALK, serve};
use loam_tests::{eventually, in_lab};

/// The port of tunnels.
const HBONE: u16 = 15008;

/// What a peer can be wrong in, and what the ztunnel that refuses it says.
const FLAWS: [(&str, &str); 6] = [
    ("foreign-root", "does not chain to our roots"),
    ("foreign-trust-domain", "foreign trust domain other.example"),
    ("two-uris", "names 2 URIs instead of one"),
    ("expired", "its certificate expired"),
    ("no-certificate", "sent no certificate"),
    ("old-tls", "TLS"),
];

fn shown<'a>(authority: &'a str, identity: &'a str, flaw: &'a str) -> [&'a str; 6] {
    ["--authority", authority, "--identity", identity, "--flaw", flaw]
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_client_that_is_wrong_in_any_way_gets_no_tunnel_and_the_log_says_in_which() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (authority, identity) = (scene.mesh.authority().display().to_string(), scene.outside.identity());
        let greeted = |process: Process| process.report::<Greeted>(SHORT);
        for to in scene.far.at_each(HBONE) {
            let to = to.to_string();
            let ways = |flaw: &str| -> Result<[(&str, Greeted); 2]> {
                let arguments = [&["greet", &to][..], &shown(&authority, &identity, flaw)].concat();
                let from_node = lab.node(0).tool(&arguments)?;
                Ok([("a pod", greeted(scene.outside.tool(&arguments)?)?), ("a node", greeted(from_node)?)])
            };
            for (from, right) in ways("none")? {
                ensure!(right.error.is_none() && right.answered > 0, "a right peer on {from} is refused: {right:?}");
            }
            for (flaw, _) in FLAWS {
                for (from, wrong) in ways(flaw)? {
                    let refusal = wrong.error.with_context(|| format!("{flaw} from {from} is welcome at {to}"))?;
                    ensure!(wrong.answered == 0, "{flaw} from {from} was told something: {refusal}");
                    ensure!(!refusal.contains("nothing after"), "{flaw} from {from} is left to wait: {refusal}");
                }
            }
        }
        for (flaw, why) in FLAWS {
            eventually(SHORT, || {
                let logs = scene.mesh.ztunnel_logs();
                let lines = logs.iter().filter(|(node, line)| node == "node-b" && line.contains(why)).count();
                ensure!(lines >= 2, "{flaw}: {lines} lines say {why:?}");
                Ok(())
            })?;
        }
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_server_that_is_wrong_in_any_way_is_told_nothing() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let authority = scene.mesh.authority().display().to_string();
        // Its node is one without an agent: nobody but it answers at its addresses.
        let impostor = lab.node(1).pod("impostor", "demo", "impostor")?;
        serve(&impostor)?;
        let facts = PodFacts { node: Some("node-z".into()), ..Default::default() };
        scene.mesh.manifests().pod_with(&impostor, &facts)?;
        let (right, other) = (impostor.identity(), scene.far.identity());
        let captures = Capture::on_all(&lab.nodes())?;
        let lured = |identity: &str, flaw: &str| -> Result<Lured> {
            let arguments = [&["lure", "[::]:15008"][..], &shown(&authority, identity, flaw)].concat();
            let holder = impostor.tool(&arguments)?;
            holder.wait_for_output("serving", SHORT)?;
            for to in impostor.at_each(TALK) {
                let probe = scene.client.probe(to)?;
                let error = probe.error.with_context(|| format!("{flaw}: reached {:?}", probe.server))?;
                ensure!(probe.total_ms < 5000.0, "{flaw}: {error} only after {} ms", probe.total_ms);
            }
            holder.finish()
        };
        // Known to the ztunnel once its tunnel port is dialled instead of the port that the application asked for.
        let is_dialled = || {
            let holder =
                impostor.tool(&[&["lure", "[::]:15008"][..], &shown(&authority, &right, "expired")].concat())?;
            holder.wait_for_output("serving", SHORT)?;
            let probe = scene.client.probe(impostor.at(TALK))?;
            let lured: Lured = holder.finish()?;
            ensure!(lured.connections > 0, "the mesh does not know the pod: {probe:?}");
            Ok(())
        };
        eventually(SHORT, is_dialled)?;
        let flaws = ["foreign-root", "foreign-trust-domain", "two-uris", "expired", "old-tls"];
        for (identity, flaw) in flaws.iter().map(|flaw| (&right, *flaw)).chain([(&other, "none")]) {
            let lured = lured(identity, flaw)?;
            ensure!(lured.connections > 0, "{flaw}: nobody dialled: {lured:?}");
            ensure!(lured.bytes == 0, "{flaw}: the impostor was told something: {lured:?}");
        }
        // With the certificate that is expected here the ztunnel speaks: the silence was not an accident.
        let arguments = [&["lure", "[::]:15008"][..], &shown(&authority, &right, "none")].concat();
        let holder = impostor.tool(&arguments)?;
        holder.wait_for_output("serving", SHORT)?;
        let _ = scene.client.probe(impostor.at(TALK))?;
        let told: Lured = holder.finish()?;
        ensure!(told.bytes > 0, "not even the right server is told anything: {told:?}");
        Capture::finish_all(captures)?.assert_no_plaintext()
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_node_gets_certificates_for_identities_that_run_on_it_and_for_no_other() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let address = format!("{FABRIC_V4}:{CONTROL_PORT}");
        let root = scene.mesh.authority().join("root-cert.pem").display().to_string();
        let ask = |node: usize, identity: &str| -> Result<Signed> {
            let mesh_node = scene.mesh.node(node);
            let token = mesh_node.token().display().to_string();
            let place = ["sign", "--address", &address, "--ca-root", &root, "--token", &token];
            mesh_node.node().tool(&[&place[..], &["--identity", identity]].concat())?.report(SHORT)
        };
        let client = scene.client.identity();
        let here = ask(0, &client)?;
        ensure!(here.certificates > 0, "the node of the client gets no certificate for it: {here:?}");
        let nobody = "spiffe://cluster.local/ns/demo/sa/nobody";
        let foreign = client.replace("cluster.local", "other.example");
        for (node, identity) in [(1, client.as_str()), (0, nobody), (0, &foreign)] {
            let denied = ask(node, identity)?;
            let error = denied.error.with_context(|| format!("node {node} got a certificate for {identity}"))?;
            ensure!(error.contains("PermissionDenied"), "{identity}: {error}");
        }
        eventually(Duration::from_secs(5), || {
            let said = format!("{}{}", scene.mesh.controller().stdout(), scene.mesh.controller().stderr());
            let names = |line: &&str| line.contains("node-b") && line.contains(&client) && !line.contains("signed");
            ensure!(said.lines().any(|line| names(&line)), "the controller does not say whom it denied: {said}");
            Ok(())
        })
    });
}
