//! Bytes in are bytes out, an end stays an end, a reset stays a reset, and nothing is left afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use loam_tests::mesh::MeshNode;
use loam_tests::report::Rate;
use loam_tests::scene::{ECHO, LONG, Scene, TALK};
use loam_tests::{eventually, in_lab, metrics};

/// Paths through the mesh: to the same node, to another, out of the mesh, and into it.
fn paths(scene: &Scene) -> [(&loam_tests::Pod, &loam_tests::Pod); 4] {
    let Scene { client, near, far, outside, .. } = scene;
    [(client, near), (client, far), (client, outside), (outside, far)]
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn random_sizes_are_echoed_byte_for_byte_whoever_ends_first() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for (from, to) in paths(&scene) {
            for address in to.at_each(ECHO) {
                let sizes = ["--count", "40", "--max-bytes", "2000000", "--parallel", "8"];
                from.assert_transfers(address, &[&["--order", "echo"][..], &sizes].concat())?;
            }
            for address in to.at_each(TALK) {
                let sizes = ["--count", "40", "--max-bytes", "2000000", "--parallel", "8"];
                from.assert_transfers(address, &[&["--order", "server"][..], &sizes].concat())?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn sixty_four_megabytes_are_carried_in_both_orders() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let large = ["--exactly", "--max-bytes", "67108864", "--count", "2", "--parallel", "2"];
        scene.client.assert_transfers(scene.far.at(ECHO), &[&["--order", "echo"][..], &large].concat())?;
        scene.client.assert_transfers(scene.far.at(TALK), &[&["--order", "server"][..], &large].concat())?;
        scene.outside.assert_transfers(scene.far.at(ECHO), &[&["--order", "echo"][..], &large].concat())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn one_byte_is_carried_like_any_other() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for order in ["echo", "server"] {
            let port = if order == "echo" { ECHO } else { TALK };
            let one = ["--order", order, "--exactly", "--max-bytes", "1", "--count", "50"];
            scene.client.assert_transfers(scene.far.at(port), &one)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for (from, to) in paths(&scene) {
            for address in to.at_each(TALK) {
                for order in ["client-reset", "server-reset"] {
                    from.assert_transfers(address, &["--order", order, "--count", "20"])?;
                }
            }
        }
        Ok(())
    });
}

/// Open descriptors of a node's ztunnel and keeper, and connections the ztunnel says are open.
fn footprint(node: &MeshNode) -> Result<(usize, usize, f64)> {
    let ztunnel = node.ztunnel();
    let open = open_connections(&ztunnel.metrics()?);
    Ok((ztunnel.process().open_files()?, node.keeper().open_files()?, open))
}

/// Opened minus closed connections.
fn open_connections(text: &str) -> f64 {
    let sum = |name| metrics::sum(text, name, &[]).unwrap_or_default();
    sum("istio_tcp_connections_opened_total") - sum("istio_tcp_connections_closed_total")
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn ten_thousand_connections_leave_descriptors_and_gauges_where_they_were() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let churn = |from: &loam_tests::Pod, to: std::net::SocketAddr, count: &str| -> Result<()> {
            let rate: Rate = from.report(&["churn", &to.to_string(), "--count", count], LONG)?;
            rate.assert_all_ok()
        };
        let all = |count: &str| -> Result<()> {
            churn(&scene.client, scene.far.at(TALK), count)?;
            churn(&scene.client, scene.near.at(TALK), count)?;
            churn(&scene.client, scene.outside.at(TALK), count)?;
            churn(&scene.outside, scene.far.at(TALK), count)
        };
        // Tunnels, pools of sockets and metric series are made at the first use and stay.
        all("200")?;
        std::thread::sleep(Duration::from_secs(1));
        let before: Vec<_> = scene.mesh.nodes().iter().map(footprint).collect::<Result<_>>()?;
        all("2500")?;
        for (node, &(ztunnel, keeper, open)) in scene.mesh.nodes().iter().zip(&before) {
            eventually(Duration::from_secs(20), || {
                let after = footprint(node)?;
                // Idle tunnels and prefetched sockets vary by a few.
                ensure!(after.0 <= ztunnel + 80, "ztunnel had {ztunnel} descriptors and has {}", after.0);
                ensure!(after.1 <= keeper + 16, "the keeper had {keeper} descriptors and has {}", after.1);
                ensure!(after.2 <= open, "{open} connections were open, {} are", after.2);
                Ok(())
            })?;
        }
        Ok(())
    });
}
