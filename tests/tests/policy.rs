//! Who may talk to whom: policies on the way of real connections.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::mesh::Options;
use loam_tests::process::Process;
use loam_tests::report::{PingPong, Probe, now_us};
use loam_tests::scene::{SHORT, Scene, TALK};
use loam_tests::{Pod, eventually, in_lab};
use serde_json::Value;

/// From a change to its effect on connections.
const SOON: Duration = Duration::from_secs(1);

/// How long a connection waits for a policy.
const WAIT: Duration = Duration::from_secs(5);

/// A policy about the workloads of `demo` with a label, against callers with an identity.
fn deny(name: &str, app: &str, caller: &Pod, annotations: &str) -> String {
    let principal = caller.identity().replacen("spiffe://", "", 1);
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: demo\n  name: {name}\n\
         \x20 annotations: {{{annotations}}}\nspec:\n  action: DENY\n  selector:\n    matchLabels:\n      app: {app}\n\
         \x20 rules:\n  - from:\n    - source:\n        principals: [\"{principal}\"]\n"
    )
}

/// How a long connection ended, and how long after `since`.
fn cut(connection: &Process, since: u64) -> Result<(String, Duration)> {
    let report: PingPong = connection.report(SHORT)?;
    let error = report.error.context("the connection ended in peace")?;
    Ok((error, Duration::from_micros(report.ended_us.saturating_sub(since))))
}

/// A connection that nobody cuts.
fn assert_unharmed(connection: &Process) -> Result<()> {
    let report: PingPong = connection.finish()?;
    ensure!(report.error.is_none(), "{}: {:?}", connection.name(), report.error);
    Ok(())
}

/// What the ztunnel of `pod` says about connections.
fn admin(scene: &Scene, pod: &Pod, path: &str) -> Result<Value> {
    let text = scene.mesh.node_of(pod)?.ztunnel().admin(path)?;
    serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
}

/// Waits for a line of the log with all of `words`.
fn logged(scene: &Scene, words: &[&str]) -> Result<()> {
    eventually(SHORT, || {
        let logs = scene.mesh.ztunnel_logs();
        let mut lines = logs.iter().filter(|(_, line)| line.contains("connection complete"));
        ensure!(lines.any(|(_, line)| words.iter().all(|word| line.contains(word))), "no line has {words:?}");
        Ok(())
    })
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_policy_that_denies_cuts_its_caller_within_a_second_and_nobody_else_and_explains_itself() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, near, far, .. } = &scene;
        let to = far.at(TALK);
        let theirs = client.start_pingpong(to, "theirs")?;
        let others = [near.start_pingpong(to, "others")?, client.start_pingpong(near.at(TALK), "else")?];

        let changed = now_us();
        scene.mesh.manifests().write("policy.yaml", &deny("no-client", "far", client, ""))?;
        let (_, after) = cut(&theirs, changed)?;
        ensure!(after <= SOON, "cut only after {after:?}");
        client.assert_refused(to, SOON)?;
        near.assert_reaches(to, &[to])?;
        client.assert_reaches(near.at(TALK), &[near.at(TALK)])?;

        // In the log, by the connection that was cut and by the one that was refused.
        let denied = ["policy=\"demo/no-client\"", "verdict=\"deny\"", "reason=\"denied\"", "denied by policy"];
        logged(&scene, &denied)?;
        let denials = admin(&scene, far, "/debug/denials")?;
        let denials = denials.as_array().context("a list of denials")?;
        for was_cut in [true, false] {
            let is_it = |d: &&Value| d["cut"] == was_cut && d["src"]["identity"] == client.identity().as_str();
            let denial = denials.iter().find(is_it).with_context(|| format!("cut={was_cut}: {denials:?}"))?;
            ensure!(denial["policy"] == "demo/no-client" && denial["reason"] == "denied", "{denial}");
        }
        let metrics = scene.mesh.node_of(far)?.ztunnel().metrics()?;
        let counted = "loam_policy_denials_total{reason=\"denied\",policy=\"demo/no-client\"} 2";
        ensure!(metrics.lines().any(|line| line == counted), "the metrics do not say {counted}");
        let what_if = |pod: &Pod| {
            admin(&scene, far, &format!("/debug/authz?dst={to}&source={}&source_ip={}", pod.identity(), pod.v4()))
        };
        let told = what_if(client)?;
        ensure!(told["verdict"] == "deny" && told["policy"] == "demo/no-client", "{told}");
        ensure!(what_if(near)?["verdict"] == "allow", "{}", what_if(near)?);

        // On trial it denies nobody, and says that it would.
        let trial = deny("no-client", "far", client, "istio.io/dry-run: \"true\"");
        scene.mesh.manifests().write("policy.yaml", &trial)?;
        eventually(SHORT, || client.assert_reaches(to, &[to]))?;
        logged(&scene, &["verdict=\"allow\"", "dry_run.policy=\"demo/no-client\"", "dry_run.verdict=\"deny\""])?;
        others.iter().try_for_each(assert_unharmed)
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn strict_refuses_who_is_outside_the_mesh_also_where_it_is_connected() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, far, outside, .. } = &scene;
        let to = far.at(TALK);
        let (stranger, member) = (outside.start_pingpong(to, "stranger")?, client.start_pingpong(to, "member")?);
        let changed = now_us();
        let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: demo\n  \
                      name: default\nspec:\n  mtls:\n    mode: STRICT\n";
        scene.mesh.manifests().write("strict.yaml", strict)?;
        let (_, after) = cut(&stranger, changed)?;
        ensure!(after <= SOON, "cut only after {after:?}");
        outside.assert_refused(to, SOON)?;
        client.assert_reaches(to, &[to])?;
        assert_unharmed(&member)?;
        logged(&scene, &["src.workload=\"outside\"", "verdict=\"deny\"", "policy=\""])?;
        let told = admin(&scene, far, &format!("/debug/authz?dst={to}&source_ip={}", outside.v4()))?;
        ensure!(told["verdict"] == "deny" && told["policy"].is_string(), "{told}");
        scene.mesh.manifests().remove("strict.yaml")?;
        eventually(SHORT, || outside.assert_reaches(to, &[to]))
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_policy_that_does_not_come_is_waited_for_and_then_denies() {
    in_lab(|lab| {
        let options = Options { tampered: true, ..Options::default() };
        let scene = Scene::plain_with(lab, &options)?;
        scene.enrol()?;
        let Scene { client, near, far, .. } = &scene;
        let to = far.at(TALK);
        let theirs = client.start_pingpong(to, "theirs")?;
        let others = client.start_pingpong(near.at(TALK), "others")?;
        // A policy of this name is kept from the proxies; that workloads list it is not.
        let changed = now_us();
        scene.mesh.manifests().write("policy.yaml", &deny("withheld", "far", near, ""))?;
        eventually(SHORT, || {
            let told = admin(&scene, far, &format!("/debug/authz?dst={to}&source_ip={}", client.v4()))?;
            ensure!(told["reason"] == "policy_pending" && told["policy"] == "demo/withheld", "{told}");
            Ok(())
        })?;
        let patient = |pod: &Pod| pod.tool(&["probe", &to.to_string(), "--timeout-ms", "20000"]);
        let probe: Probe = patient(client)?.report(SHORT)?;
        let waited = Duration::from_secs_f64(probe.total_ms / 1e3);
        ensure!(probe.error.is_some(), "it passed: {probe:?}");
        ensure!(waited >= WAIT - SOON / 2 && waited <= WAIT + 2 * SOON, "refused after {waited:?}");
        // What is connected had the same time.
        let (_, after) = cut(&theirs, changed)?;
        ensure!(after >= WAIT && after <= WAIT + 2 * SOON, "cut after {after:?}");
        logged(&scene, &["policy=\"demo/withheld\"", "reason=\"policy_pending\"", "verdict=\"deny\""])?;

        // Who waits passes as soon as nothing is missing.
        let waiting = patient(client)?;
        eventually(SHORT, || {
            let metrics = scene.mesh.node_of(far)?.ztunnel().metrics()?;
            let held = "istio_tcp_sockets_open{reporter=\"destination\"} 1";
            ensure!(metrics.lines().any(|line| line == held), "nobody waits");
            Ok(())
        })?;
        scene.mesh.manifests().remove("policy.yaml")?;
        let probe: Probe = waiting.report(SHORT)?;
        ensure!(probe.error.is_none() && probe.total_ms < WAIT.as_secs_f64() * 1e3, "{probe:?}");
        assert_unharmed(&others)
    });
}
