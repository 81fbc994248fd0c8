//! The keeper itself dies. Nothing else has what it has but the ztunnel, which gives it back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::process::{Process, SIGTERM};
use loam_tests::report::{PingPong, Rate};
use loam_tests::scene::{LONG, SHORT, Scene, TALK, serve};
use loam_tests::{eventually, in_lab};

/// From the death of a keeper until the next one keeps everything: an agent that has to find all its pods again, and
/// asks anew for those whose listeners came too late.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(10);

/// How long a connection waits for a socket that only a keeper can make, with room for a busy machine.
const SOCKET_WITHIN: Duration = Duration::from_secs(7);

fn finish(rate: &Process) -> Result<Rate> {
    rate.signal(SIGTERM)?;
    rate.report(LONG)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_keeper_that_is_killed_and_started_again_gets_its_listeners_back_and_nobody_notices() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, near, far, outside, .. } = &scene;
        let established = vec![
            ("client -> far", client.start_pingpong(far.at(TALK), "long")?),
            ("client -> near", client.start_pingpong(near.at(TALK), "long")?),
            ("far -> client", far.start_pingpong(client.at(TALK), "long")?),
            ("outside -> client", outside.start_pingpong(client.at(TALK), "plain")?),
            ("client -> outside", client.start_pingpong(outside.at(TALK), "plain")?),
        ];
        let captures = Capture::on_all(&lab.nodes())?;
        let inside = client.start_rate(&[far.at_each(TALK), near.at_each(TALK)].concat(), 300, 150, "inside")?;
        let from_outside = outside.start_rate(&client.at_each(TALK), 100, 150, "plain")?;
        for round in 0..4 {
            let node = mesh.node(round % 2);
            let killed = Instant::now();
            node.restart_keeper()?;
            // Only a keeper that works with its agent and the ztunnel can take in another pod.
            let late = lab.node(round % 2).pod(&format!("late-{round}"), "demo", "late")?;
            serve(&late)?;
            mesh.enrol(&[&late])?;
            late.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
            far.assert_reaches(late.at(TALK), &[late.at(TALK)])?;
            node.wait_for_agent(SHORT)?;
            let took = killed.elapsed();
            ensure!(took < TAKEN_OVER_WITHIN, "the next keeper had everything only after {took:?}");
        }
        for rate in [inside, from_outside] {
            let rate = finish(&rate)?;
            rate.assert_all_ok()?;
            ensure!(rate.latency_us.max < 3_000_000, "{}", rate.summary());
        }
        for (name, connection) in established {
            let report: PingPong = connection.finish()?;
            ensure!(report.error.is_none(), "{name} was cut: {report:?}");
        }
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["plain"])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_keeper_and_a_ztunnel_that_die_together_are_replaced_and_nothing_goes_in_the_clear() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, far, outside, .. } = &scene;
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        let captures = Capture::on_all(&lab.nodes())?;
        let rate = client.start_rate(&[far.at(TALK)], 200, 150, "both")?;
        let node = mesh.node(0);
        node.keeper().kill()?;
        node.ztunnel().process().kill()?;
        // With the last descriptor of its listeners the pod has nobody who would take a connection.
        eventually(SHORT, || client.assert_refused(far.at(TALK), Duration::from_secs(1)))?;
        node.restart_keeper()?;
        node.start_ztunnel()?.wait_ready(SHORT)?;
        eventually(SHORT, || client.assert_reaches(far.at(TALK), &[far.at(TALK)]))?;
        eventually(SHORT, || far.assert_reaches(client.at(TALK), &[client.at(TALK)]))?;
        eventually(SHORT, || outside.assert_reaches(client.at(TALK), &[client.at(TALK)]))?;
        mesh.wait_for_state(&[client, &scene.near, far], "enrolled")?;
        finish(&rate)?;
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["plain"])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn while_the_keeper_stays_away_new_connections_wait_a_bounded_time_and_old_ones_live_on() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, far, .. } = &scene;
        let established = far.start_pingpong(client.at(TALK), "long")?;
        let captures = Capture::on_all(&lab.nodes())?;
        let node = mesh.node(0);
        node.keeper().kill()?;
        // More than the sockets that the ztunnel has in stock for deliveries.
        let alone: Rate = far.report(&["churn", &client.at(TALK).to_string(), "--count", "200"], LONG)?;
        ensure!(alone.ok > 0 && alone.ok < alone.attempts, "the stock was not used up: {}", alone.summary());
        for failure in &alone.failed {
            let took = Duration::from_micros(failure.ended_us - failure.started_us);
            ensure!(took < SOCKET_WITHIN, "{}: {} only after {took:?}", failure.stage, failure.error);
        }
        node.restart_keeper()?;
        eventually(SHORT, || far.assert_reaches(client.at(TALK), &[client.at(TALK)]))?;
        let again: Rate = far.report(&["churn", &client.at(TALK).to_string(), "--count", "500"], LONG)?;
        again.assert_all_ok()?;
        let report: PingPong = established.finish()?;
        ensure!(report.error.is_none(), "an established connection was cut: {report:?}");
        Capture::finish_all(captures)?.assert_no_plaintext()
    });
}
