//! A node's programs are replaced by others, all of them, and nobody notices.

use anyhow::ensure;
use loam_tests::capture::Capture;
use loam_tests::in_lab;
use loam_tests::process::SIGTERM;
use loam_tests::report::{PingPong, Rate};
use loam_tests::scene::{LONG, SHORT, Scene, TALK, serve};

/// How often both nodes are replaced.
const ROUNDS: usize = 10;

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn nodes_replaced_ten_times_each_under_a_thousand_connections_per_second_fail_none() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { mesh, client, near, far, outside, .. } = &scene;
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        let established = [
            ("client -> far", client.start_pingpong(far.at(TALK), "long")?),
            ("client -> near", client.start_pingpong(near.at(TALK), "long")?),
            ("far -> client", far.start_pingpong(client.at(TALK), "long")?),
            ("outside -> client", outside.start_pingpong(client.at(TALK), "plain")?),
        ];
        let captures = Capture::on_all(&lab.nodes())?;
        let targets = [far.at_each(TALK), near.at_each(TALK)].concat();
        let rate = client.start_rate(&targets, 1000, 200, "roll")?;
        for round in 0..2 * ROUNDS {
            let node = mesh.node(round % 2);
            node.roll()?;
            // Only a whole node can take in another pod.
            let late = lab.node(round % 2).pod(&format!("late-{round}"), "demo", "late")?;
            serve(&late)?;
            mesh.enrol(&[&late])?;
            late.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
            node.wait_for_agent(SHORT)?;
        }
        rate.signal(SIGTERM)?;
        rate.report::<Rate>(LONG)?.assert_all_ok()?;
        for (name, connection) in established {
            let report: PingPong = connection.finish()?;
            ensure!(report.error.is_none(), "{name} was cut: {report:?}");
        }
        Capture::finish_all(captures)?.assert_no_plaintext_but(&["plain"])
    });
}
