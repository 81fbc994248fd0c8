//! Pods come into the mesh and leave it while their connections live.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::manifests::PodFacts;
use loam_tests::process::{Process, SIGTERM};
use loam_tests::report::{PingPong, Rate, now_us};
use loam_tests::scene::{LONG, SHORT, Scene, TALK, serve};
use loam_tests::{eventually, in_lab};

/// A connection that began just before a pod was captured may send its first bytes a moment later.
const UNDER_WAY_US: u64 = 300_000;

/// Longest wait of a connection that needs to know more about a pod than its node does, and some time for the rest.
const PATIENCE: Duration = Duration::from_secs(8);

fn assert_unharmed(connections: Vec<(&str, Process)>) -> Result<()> {
    for (name, connection) in connections {
        let report: PingPong = connection.finish()?;
        ensure!(report.error.is_none(), "{name} was cut: {report:?}");
        ensure!(report.slowest_ms < 2000.0, "{name} was stuck: {report:?}");
    }
    Ok(())
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn connections_older_than_the_enrolment_flow_on_and_are_the_only_plaintext() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        let Scene { client, near, far, outside, .. } = &scene;
        let old = vec![
            ("client -> far", client.start_pingpong(far.at(TALK), "old")?),
            ("client -> near", client.start_pingpong(near.at_each(TALK).pop().context("no address")?, "old")?),
            ("far -> client", far.start_pingpong(client.at(TALK), "old")?),
            ("client -> client", client.start_pingpong(client.at(TALK), "old")?),
            ("client -> outside", client.start_pingpong(outside.at(TALK), "old")?),
            ("outside -> client", outside.start_pingpong(client.at(TALK), "old")?),
        ];
        let captures = Capture::on_all(&lab.nodes())?;
        let during = client.start_rate(&[far.at(TALK), near.at(TALK)], 200, 120, "during")?;
        scene.enrol()?;
        let enrolled_us = now_us();
        let after: Rate = client.start_rate(&[far.at(TALK), near.at(TALK)], 200, 3, "after")?.report(SHORT)?;
        after.assert_all_ok()?;
        during.signal(SIGTERM)?;
        let during: Rate = during.report(LONG)?;
        during.assert_all_ok()?;
        assert_unharmed(old)?;
        let seen = Capture::finish_all(captures)?;
        seen.assert_no_plaintext_but(&["old", "during"])?;
        ensure!(seen.readable("old") > 0, "the old connections did not stay in the clear: {seen:?}");
        seen.assert_not_readable_since("during", enrolled_us + UNDER_WAY_US)
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn leaving_the_mesh_cuts_no_connection_and_coming_back_works_every_time() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, near, far, outside, .. } = &scene;
        let established = vec![
            ("client -> far", client.start_pingpong(far.at(TALK), "meshed")?),
            ("client -> near", client.start_pingpong(near.at(TALK), "meshed")?),
            ("outside -> client", outside.start_pingpong(client.at(TALK), "in")?),
        ];
        let inside = client.start_rate(&[far.at_each(TALK), near.at_each(TALK)].concat(), 300, 150, "toggle")?;
        let from_outside = outside.start_rate(&client.at_each(TALK), 200, 150, "toggle")?;
        let captures = Capture::on_all(&lab.nodes())?;
        for _ in 0..10 {
            scene.un_enrol()?;
            for to in [far.at(TALK), near.at(TALK)] {
                client.assert_reaches(to, &[to])?;
            }
            scene.enrol()?;
            // Fresh listeners that nobody accepts from would swallow new connections.
            for to in [far.at_each(TALK), near.at_each(TALK)].concat() {
                client.assert_reaches(to, &[to])?;
            }
            outside.assert_reaches(client.at(TALK), &[client.at(TALK)])?;
        }
        for rate in [inside, from_outside] {
            rate.signal(SIGTERM)?;
            let rate: Rate = rate.report(LONG)?;
            rate.assert_all_ok()?;
        }
        assert_unharmed(established)?;
        let seen = Capture::finish_all(captures)?;
        ensure!(seen.readable("meshed") == 0, "a connection through the mesh became readable: {:?}", seen.markers);
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_that_leaves_with_a_label_of_its_own_is_let_go_alone() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let opted_out = loam_tests::manifests::PodFacts {
            labels: [("istio.io/dataplane-mode".to_owned(), "none".to_owned())].into(),
            ..Default::default()
        };
        scene.mesh.manifests().pod_with(&scene.near, &opted_out)?;
        scene.mesh.wait_until_not_enrolled(&[&scene.near])?;
        scene.mesh.wait_for_state(&[&scene.client, &scene.far], "enrolled")?;
        for pod in [&scene.near, &scene.far] {
            eventually(SHORT, || scene.client.assert_reaches(pod.at(TALK), &[pod.at(TALK)]))?;
            let rate: Rate = scene.client.start_rate(&[pod.at(TALK)], 50, 2, "label")?.report(SHORT)?;
            rate.assert_all_ok()?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_that_starts_while_the_controller_is_away_sends_as_itself_and_is_reached_when_it_is_back() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, far, outside, .. } = &scene;
        mesh.controller().kill()?;
        // A neighbour has its service account, so that its certificate needs no authority.
        let late = lab.node(0).pod("late", client.namespace(), client.service_account())?;
        let stranger = lab.node(1).pod("stranger", "abroad", "stranger")?;
        for pod in [&late, &stranger] {
            serve(pod)?;
        }
        let captures = Capture::on_all(&lab.nodes())?;
        let starting = PodFacts { starting: true, ..PodFacts::default() };
        mesh.manifests().pod_with(&late, &starting)?;
        mesh.wait_for_state(&[&late], "enrolled")?;
        for to in [far.at(TALK), scene.near.at(TALK)] {
            late.assert_reaches(to, &[to])?;
        }
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{}", late.namespace(), late.service_account());
        let says = |(_, line): &(String, String)| {
            line.contains("inbound") && line.contains(&late.addresses()[0].to_string()) && line.contains(&identity)
        };
        eventually(SHORT, || {
            ensure!(mesh.ztunnel_logs().iter().any(says), "nobody heard {identity}");
            Ok(())
        })?;
        // Who may reach it, and whether it may leave the mesh, only the controller knows.
        outside.assert_refused(late.at(TALK), PATIENCE)?;
        late.assert_refused(stranger.at(TALK), PATIENCE)?;
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["plain"])?;
        mesh.restart_controller()?;
        eventually(SHORT, || outside.assert_reaches(late.at(TALK), &[late.at(TALK)]))
    });
}
