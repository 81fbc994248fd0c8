//! Processes die and are replaced; applications must not notice, and never is anything sent in the clear.

#![allow(clippy::print_stdout, reason = "a run shows its figures")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::process::{Process, SIGTERM};
use loam_tests::report::{PingPong, Rate, now_us};
use loam_tests::scene::{LONG, SERVICE, SHORT, Scene, TALK};
use loam_tests::{eventually, in_lab};

const READY: Duration = Duration::from_secs(20);
/// How long the keeper lets new connections wait for the next ztunnel.
const GRACE: Duration = Duration::from_secs(2);

/// Ends a series early and reads its report.
fn finish(rate: &Process) -> Result<Rate> {
    rate.signal(SIGTERM)?;
    let rate: Rate = rate.report(LONG)?;
    println!("{}", rate.summary());
    Ok(rate)
}

/// Fails unless about `per_second` attempts per second were made: a test under load needs its load.
fn assert_kept(rate: &Rate, per_second: f64) -> Result<()> {
    let seconds = (rate.ended_us - rate.started_us) as f64 / 1e6;
    ensure!(rate.attempts as f64 > 0.8 * per_second * seconds, "the rate was not kept: {}", rate.summary());
    Ok(())
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn twenty_kills_of_ztunnel_with_a_prompt_restart_fail_no_new_connection_and_show_no_plaintext() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])?;
        let captures = Capture::on_all(&lab.nodes())?;
        let targets = [scene.far.at(TALK), scene.near.at(TALK), scene.service.at(SERVICE)];
        let rate = scene.client.start_rate(&targets, 500, 150, "kill")?;
        let mut kills = Vec::new();
        for round in 0..20 {
            let node = scene.mesh.node(round % 2);
            let begun = now_us();
            node.ztunnel().process().kill()?;
            kills.push((begun, now_us()));
            let next = node.start_ztunnel()?;
            next.wait_ready(READY)?;
            // Once it is ready, and until the next kill, not one may fail.
            let between: Rate =
                scene.client.report(&["churn", &scene.far.at(TALK).to_string(), "--count", "300"], LONG)?;
            between.assert_all_ok()?;
        }
        let rate = finish(&rate)?;
        // What was under way through the old process may fail with it, and nothing else.
        rate.assert_only_failed_across(&kills)?;
        ensure!(rate.latency_us.max < 10_000_000, "{}", rate.summary());
        Capture::finish_all(captures)?.assert_no_plaintext()
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_ztunnel_that_stays_dead_means_refusal_within_100_ms_after_the_grace_and_never_plaintext() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, far, near, outside, service, .. } = &scene;
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        let captures = Capture::on_all(&lab.nodes())?;
        let rate = client.start_rate(&[far.at(TALK), service.at(SERVICE)], 50, 60, "dead")?;
        mesh.node(0).ztunnel().process().kill()?;
        let (dead, dead_us) = (Instant::now(), now_us());
        std::thread::sleep((GRACE + Duration::from_millis(500)).saturating_sub(dead.elapsed()));

        let mut targets = [far.at_each(TALK), near.at_each(TALK), outside.at_each(TALK)].concat();
        targets.extend(service.at_each(SERVICE));
        targets.extend(client.at_each(TALK));
        for to in targets {
            let probe = client.probe(to)?;
            let error = probe.error.with_context(|| format!("{to} was reached without a ztunnel"))?;
            ensure!(error.contains("ConnectionRefused"), "{to}: {error}");
            ensure!(probe.total_ms < 100.0, "{to}: {error} only after {} ms", probe.total_ms);
        }
        // Into the pod: from outside the mesh, and through the other node's tunnel.
        for to in client.at_each(TALK) {
            outside.assert_refused(to, Duration::from_millis(100))?;
            far.assert_refused(to, Duration::from_secs(3))?;
        }
        let waited = finish(&rate)?;
        ensure!(waited.attempts > waited.ok, "nothing failed: {}", waited.summary());
        for failure in &waited.failed {
            let after_grace = failure.started_us > dead_us + GRACE.as_micros() as u64 + 300_000;
            let limit = if after_grace { 100_000 } else { GRACE.as_micros() as u64 + 500_000 };
            let took = failure.ended_us - failure.started_us;
            ensure!(took <= limit, "{}: {} took {took} us, at most {limit}", failure.stage, failure.error);
        }

        mesh.node(0).start_ztunnel()?.wait_ready(READY)?;
        eventually(SHORT, || client.assert_reaches(far.at(TALK), &[far.at(TALK)]))?;
        eventually(SHORT, || outside.assert_reaches(client.at(TALK), &[client.at(TALK)]))?;
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["plain"])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn ztunnel_replaced_twenty_times_under_a_thousand_connections_per_second_fails_none() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])?;
        let established = [
            scene.client.start_pingpong(scene.far.at(TALK), "long")?,
            scene.outside.start_pingpong(scene.client.at(TALK), "long-in")?,
        ];
        let captures = Capture::on_all(&lab.nodes())?;
        let targets = [scene.far.at_each(TALK), scene.near.at_each(TALK)].concat();
        let rate = scene.client.start_rate(&targets, 1000, 150, "swap")?;
        for round in 0..20 {
            scene.mesh.node(round % 2).replace_ztunnel()?;
        }
        let rate = finish(&rate)?;
        rate.assert_all_ok()?;
        assert_kept(&rate, 1000.0)?;
        for connection in established {
            let report: PingPong = connection.finish()?;
            ensure!(report.error.is_none(), "an established connection was cut: {report:?}");
        }
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["long-in"])?;
        // With its last connection gone each replaced process ends by itself.
        for node in scene.mesh.nodes() {
            let mut old = node.ztunnels();
            old.pop();
            for ztunnel in old {
                ztunnel.process().wait(READY).context("a replaced ztunnel does not end")?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_replaced_ztunnel_stays_until_it_is_told_to_end_or_its_keeper_is_gone() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let node = scene.mesh.node(0);
        let (to, waits) = (scene.far.at(TALK), "waiting to be told to end");
        let first = node.ztunnel();
        let second = node.start_ztunnel()?;
        first.process().wait_for_output(waits, READY)?;
        let third = node.start_ztunnel()?;
        second.process().wait_for_output(waits, READY)?;
        third.wait_ready(READY)?;
        for ztunnel in [&first, &second] {
            ensure!(ztunnel.process().is_running(), "it has ended, and whoever supervises it would start it again");
        }
        scene.client.assert_reaches(to, &[to])?;
        first.process().signal(SIGTERM)?;
        first.process().wait(READY).context("it does not end when it is told to")?;
        ensure!(second.process().is_running(), "it ended with another");
        node.restart_keeper()?;
        second.process().wait(READY).context("it outlives its keeper")?;
        scene.client.assert_reaches(to, &[to])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn the_agent_killed_twenty_times_under_a_thousand_connections_per_second_is_not_noticed() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let established = scene.client.start_pingpong(scene.far.at(TALK), "long")?;
        let captures = Capture::on_all(&lab.nodes())?;
        let rate = scene.client.start_rate(&[scene.far.at(TALK), scene.near.at(TALK)], 1000, 150, "agent")?;
        // On both nodes at once: a keeper starts its agent ever later when it keeps dying.
        for _ in 0..10 {
            let killed: Vec<_> = scene.mesh.nodes().iter().map(|n| Ok((n, n.agent_pid()?))).collect::<Result<_>>()?;
            for (node, _) in &killed {
                node.kill_agent()?;
            }
            for (node, old) in killed {
                eventually(READY, || {
                    let pid = node.agent_pid()?;
                    ensure!(pid != old, "the agent is not started again");
                    let written_by = &node.status()?["pid"];
                    ensure!(*written_by == pid, "agent {pid} has not said how its pods are, {written_by} has");
                    Ok(())
                })?;
            }
        }
        let rate = finish(&rate)?;
        rate.assert_all_ok()?;
        assert_kept(&rate, 1000.0)?;
        let report: PingPong = established.finish()?;
        ensure!(report.error.is_none(), "an established connection was cut: {report:?}");
        scene.mesh.wait_for_state(&[&scene.client, &scene.near, &scene.far], "enrolled")?;
        Capture::finish_all(captures)?.assert_no_plaintext()
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_is_enrolled_by_an_agent_that_was_killed_before() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        scene.mesh.node(0).kill_agent()?;
        let late = lab.node(0).pod("late", "demo", "late")?;
        loam_tests::scene::serve(&late)?;
        scene.mesh.enrol(&[&late])?;
        late.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])?;
        scene.far.assert_reaches(late.at(TALK), &[late.at(TALK)])
    });
}
