//! What comes wrong from the control plane is refused by name, and harms nothing else.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use loam_tests::lab::Lab;
use loam_tests::manifests::{Manifests, PodFacts};
use loam_tests::mesh::Options;
use loam_tests::process::SIGTERM;
use loam_tests::report::{PingPong, Rate};
use loam_tests::scene::{SERVICE, SHORT, Scene, TALK, serve};
use loam_tests::{eventually, in_lab};

/// A scene whose configuration passes through somebody who breaks what has certain names.
fn tampered(lab: &Lab) -> Result<Scene> {
    let scene = Scene::plain_with(lab, &Options { tampered: true, ..Options::default() })?;
    scene.enrol()?;
    Ok(scene)
}

/// What the tamperer tells of the ztunnels' answers.
fn refusals(scene: &Scene) -> Result<String> {
    Ok(scene.mesh.tamperer().context("nobody tampers")?.stdout())
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_truncated_resource_and_an_unknown_value_are_refused_by_name_and_the_rest_applies() {
    in_lab(|lab| {
        let scene = tampered(lab)?;
        let rate = scene.client.start_rate(&[scene.far.at(TALK), scene.near.at(TALK)], 100, 120, "bad")?;
        let [truncated, unknown, good] = ["truncated", "unknown-enum", "good"].map(|name| {
            let pod = lab.node(1).pod(name, "demo", "server")?;
            serve(&pod)?;
            Ok::<_, anyhow::Error>(pod)
        });
        let (truncated, unknown, good) = (truncated?, unknown?, good?);
        let texts = [&truncated, &unknown, &good].map(|pod| Manifests::pod_text(pod, &PodFacts::default()));
        scene.mesh.manifests().write("three.yaml", &texts.join("---\n"))?;
        scene.mesh.wait_for_state(&[&good], "enrolled")?;
        for to in good.at_each(TALK) {
            scene.client.assert_reaches(to, &[to])?;
        }
        for (name, why) in [("truncated", "decode"), ("unknown-enum", "tunnel_protocol: 4711 is not known")] {
            eventually(SHORT, || {
                let answers = refusals(&scene)?;
                let is_it = |line: &str| line.contains(&format!("/{name}")) && line.contains(why);
                ensure!(answers.lines().any(is_it), "no answer names {name} with {why:?}: {answers}");
                for node in ["node-a", "node-b"] {
                    let logs = scene.mesh.ztunnel_logs();
                    let mut lines = logs.iter().filter(|(of, line)| of == node && line.contains("rejected"));
                    ensure!(lines.any(|(_, line)| is_it(line)), "the ztunnel of {node} does not log {name}: {why:?}");
                }
                Ok(())
            })?;
        }
        // A pod that the mesh cannot read is not captured, and its status says what is waited for.
        for pod in [&truncated, &unknown] {
            let status = scene.mesh.pod_status(pod)?;
            ensure!(status["state"] == "pending" || status["state"] == "failed", "{status}");
            ensure!(status["reason"] != "", "{status}");
        }
        rate.signal(SIGTERM)?;
        rate.report::<Rate>(SHORT)?.assert_all_ok()?;
        scene.mesh.wait_for_state(&[&scene.client, &scene.near, &scene.far], "enrolled")
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_policy_that_cannot_be_read_denies_what_it_may_be_about_until_it_is_gone() {
    in_lab(|lab| {
        let scene = tampered(lab)?;
        let Scene { client, near, far, outside, .. } = &scene;
        let to = far.at(TALK);
        for (name, why) in [("unknown-enum", "action: 4711 is not known"), ("truncated", "decode")] {
            let open = client.start_pingpong(to, name)?;
            // As it was written it allows everything.
            scene.mesh.manifests().write("policy.yaml", &allow_all(name))?;
            let report: PingPong = open.report(SHORT)?;
            ensure!(report.error.is_some(), "the open connection was not cut");
            client.assert_refused(to, SHORT)?;
            client.assert_refused(near.at(TALK), SHORT)?;
            client.assert_reaches(outside.at(TALK), &[outside.at(TALK)])?;
            eventually(SHORT, || {
                let logs = scene.mesh.ztunnel_logs();
                let text = format!("denied by policy demo/{name}, which cannot be read (");
                let mut lines = logs.iter().filter(|(_, line)| line.contains(&text) && line.contains(why));
                lines.next().map(drop).with_context(|| format!("no line has {text:?} and {why:?}"))
            })?;
            scene.mesh.manifests().remove("policy.yaml")?;
            eventually(SHORT, || client.assert_reaches(to, &[to]))?;
        }
        Ok(())
    });
}

/// A policy of `demo` under which everybody may do everything.
fn allow_all(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: demo\n  name: {name}\n\
         spec:\n  action: ALLOW\n  rules:\n  - {{}}\n"
    )
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_message_that_ends_too_early_costs_its_stream_and_nothing_else() {
    in_lab(|lab| {
        let scene = tampered(lab)?;
        let rate = scene.client.start_rate(&[scene.far.at(TALK), scene.near.at(TALK)], 100, 120, "cut")?;
        let pod = lab.node(1).pod("cut-message", "demo", "server")?;
        serve(&pod)?;
        // What was cut comes whole with the next stream.
        scene.mesh.enrol(&[&pod])?;
        ensure!(refusals(&scene)?.lines().any(|line| line == "cut"), "no message was cut");
        for to in pod.at_each(TALK) {
            eventually(SHORT, || scene.client.assert_reaches(to, &[to]))?;
        }
        let logs = scene.mesh.ztunnel_logs();
        let ended = |(_, line): &&(String, String)| line.contains("configuration stream ended");
        let line = logs.iter().find(ended).context("no ztunnel says that its stream ended")?;
        ensure!(line.1.contains("decode"), "it does not say why: {line:?}");
        rate.signal(SIGTERM)?;
        rate.report::<Rate>(SHORT)?.assert_all_ok()
    });
}

/// How long one object comes and goes, at least.
const CHURN: Duration = Duration::from_secs(2);
/// How often, at least: a thousand times a second where the machine has nothing else to do.
const CHANGES: u32 = 2_000;

/// The controller looks at a directory that never rests every 120 ms.
const LOOKS_PER_SECOND: usize = 9;

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn what_comes_and_goes_two_thousand_times_ends_as_it_was_left_and_disturbs_nothing() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, near, far) = (&scene.client, scene.near.at(TALK), scene.far.at(TALK));
        let (manifests, file) = (scene.mesh.manifests(), "service-demo-restless.yaml");
        let restless = manifests.service("demo", "restless", &[(SERVICE, TALK)], &[&scene.far])?;
        let text = fs::read_to_string(manifests.dir().join(file))?;
        for to in restless.at_each(SERVICE) {
            eventually(SHORT, || client.assert_reaches(to, &scene.far.at_each(TALK)))?;
        }
        let rate = client.start_rate(&[far, near, scene.service.at(SERVICE)], 100, 120, "restless")?;
        let applied = || scene.mesh.controller().stdout().matches("manifests applied").count();
        let (before, began, mut changes) = (applied(), Instant::now(), 0_u32);
        while began.elapsed() < CHURN || changes < CHANGES {
            manifests.remove(file)?;
            manifests.write(file, &text)?;
            changes += 2;
        }

        manifests.remove(file)?;
        for to in restless.at_each(SERVICE) {
            eventually(SHORT, || client.assert_refused(to, SHORT))?;
        }
        manifests.write(file, &text)?;
        for to in restless.at_each(SERVICE) {
            eventually(SHORT, || client.assert_reaches(to, &scene.far.at_each(TALK)))?;
        }
        let (rounds, seconds) = (applied() - before, began.elapsed().as_secs() as usize + 1);
        ensure!(rounds <= LOOKS_PER_SECOND * seconds, "{rounds} rounds of compilation in {seconds} s");
        rate.signal(SIGTERM)?;
        rate.report::<Rate>(SHORT)?.assert_all_ok()
    });
}
