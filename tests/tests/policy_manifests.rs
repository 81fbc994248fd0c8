//! Policies as manifests, on the whole way: from the file to the connection that is refused or cut.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::report::PingPong;
use loam_tests::scene::{SHORT, Scene, TALK};
use loam_tests::{Lab, Pod, bin, eventually, in_lab};
use serde_json::Value;

/// What a change of policy may take from the file to the wire.
const WITHIN: Duration = Duration::from_secs(1);

fn manifest(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {spec}\n"
    )
}

/// Waits until connections are refused, and says so if that takes too long.
fn refused_soon(from: &Pod, to: &Pod) -> Result<()> {
    eventually(WITHIN, || from.assert_refused(to.at(TALK), SHORT))
}

fn reached_soon(from: &Pod, to: &Pod) -> Result<()> {
    eventually(SHORT, || from.assert_reaches(to.at(TALK), &[to.at(TALK)]))
}

/// What the controller tells about its policies.
fn told(lab: &Lab, object: &str) -> Result<Value> {
    let tool = bin::path("loam-lab")?.display().to_string();
    let text = lab.run(&[&tool, "get", "http://127.0.0.1:15014/debug/policies"])?.success()?;
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let found = all.as_array().and_then(|all| all.iter().find(|p| p["object"] == object));
    found.cloned().with_context(|| format!("{object} is not told: {text}"))
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_manifest_that_denies_stops_one_caller_also_on_its_open_connection_and_nobody_else() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, near, far, outside, .. } = &scene;
        let [hit, spared, stranger] = [
            client.start_pingpong(far.at(TALK), "hit")?,
            near.start_pingpong(far.at(TALK), "spared")?,
            outside.start_pingpong(far.at(TALK), "stranger")?,
        ];
        let rule = "{from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}]}";
        let spec = format!("{{action: DENY, selector: {{matchLabels: {{app: far}}}}, rules: [{rule}]}}");
        mesh.manifests().write("deny.yaml", &manifest("AuthorizationPolicy", "demo", "deny", &spec))?;
        refused_soon(client, far)?;
        let hit: PingPong = hit.report(SHORT)?;
        ensure!(hit.error.is_some() && hit.messages > 0, "the open connection was not cut: {hit:?}");
        for (from, to) in [(near, far), (outside, far), (client, near)] {
            from.assert_reaches(to.at(TALK), &[to.at(TALK)])?;
        }
        for kept in [spared, stranger] {
            let kept: PingPong = kept.finish()?;
            ensure!(kept.error.is_none(), "a connection was cut that no policy denies: {kept:?}");
        }
        mesh.manifests().remove("deny.yaml")?;
        reached_soon(client, far)
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn strict_refuses_who_is_outside_the_mesh_except_at_ports_that_are_named() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, near, far, outside, .. } = &scene;
        outside.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        let strict = manifest("PeerAuthentication", "demo", "default", "{mtls: {mode: STRICT}}");
        mesh.manifests().write("strict.yaml", &strict)?;
        refused_soon(outside, far)?;
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        let except =
            format!("{{selector: {{matchLabels: {{app: far}}}}, portLevelMtls: {{{TALK}: {{mode: DISABLE}}}}}}");
        mesh.manifests().write("except.yaml", &manifest("PeerAuthentication", "demo", "except", &except))?;
        reached_soon(outside, far)?;
        refused_soon(outside, near)
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_manifest_that_becomes_wrong_leaves_the_last_valid_policy_in_force_and_is_told() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, near, far, .. } = &scene;
        let spec =
            |action: &str| format!("{{action: {action}, selector: {{matchLabels: {{app: far}}}}, rules: [{{}}]}}");
        let write =
            |spec: &str| mesh.manifests().write("deny.yaml", &manifest("AuthorizationPolicy", "demo", "deny", spec));
        write(&spec("DENY"))?;
        refused_soon(client, far)?;
        write(&spec("DENNY"))?;
        eventually(SHORT, || {
            let status = told(lab, "AuthorizationPolicy demo/deny")?;
            ensure!(status["conditions"][0]["reason"] == "Invalid", "{status}");
            Ok(())
        })?;
        client.assert_refused(far.at(TALK), SHORT)?;
        client.assert_reaches(near.at(TALK), &[near.at(TALK)])?;
        // What L4 cannot see makes the rule wider, and that is told, too.
        write("{action: DENY, selector: {matchLabels: {app: near}}, rules: [{to: [{operation: {methods: [POST]}}]}]}")?;
        reached_soon(client, far)?;
        refused_soon(client, near)?;
        let status = told(lab, "AuthorizationPolicy demo/deny")?;
        ensure!(status["rules"][0]["effect"] == "denies-more", "{status}");
        Ok(())
    });
}
