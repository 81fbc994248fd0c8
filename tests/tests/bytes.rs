//! Bytes in are bytes out, an end stays an end, a reset stays a reset, and nothing is left afterwards.

use anyhow::{Context, Result, ensure};
use loam_tests::mesh::MeshNode;
use loam_tests::report::Rate;
use loam_tests::scene::{ECHO, LONG, SHORT, Scene, TALK};
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
        let sizes = ["--count", "24", "--max-bytes", "67108864", "--seed", "7"];
        scene.client.assert_transfers(scene.far.at(ECHO), &[&["--order", "echo"][..], &sizes].concat())?;
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

/// What a node's processes hold while nothing goes on.
#[derive(Debug)]
struct Footprint {
    ztunnel_files: usize,
    keeper_files: usize,
    tasks: f64,
    open_connections: f64,
}

fn footprint(node: &MeshNode) -> Result<Footprint> {
    let ztunnel = node.ztunnel();
    let metrics = ztunnel.metrics()?;
    Ok(Footprint {
        ztunnel_files: ztunnel.process().open_files()?,
        keeper_files: node.keeper().open_files()?,
        tasks: metrics::sum(&metrics, "loam_tasks", &[]).context("tasks are not counted")?,
        open_connections: open_connections(&metrics)?,
    })
}

/// Connections that live, as two kinds of counting agree.
fn open_connections(text: &str) -> Result<f64> {
    let sum = |name| metrics::sum(text, name, &[]).with_context(|| format!("{name} is not among the metrics"));
    let open = sum("istio_tcp_sockets_open")?;
    let counted = sum("istio_tcp_connections_opened_total")? - sum("istio_tcp_connections_closed_total")?;
    ensure!(open == counted, "{open} connections are open, and {counted} were opened and not closed");
    Ok(open)
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
        let settled = || scene.mesh.nodes().iter().map(footprint).collect::<Result<Vec<_>>>();
        let before = eventually(SHORT, || {
            let before = settled()?;
            ensure!(before.iter().all(|b| b.open_connections == 0.0), "connections are still open: {before:?}");
            Ok(before)
        })?;
        all("2500")?;
        for (node, before) in scene.mesh.nodes().iter().zip(&before) {
            eventually(SHORT, || {
                let after = footprint(node)?;
                // Idle tunnels and prefetched sockets vary by a few.
                let is_back = after.ztunnel_files <= before.ztunnel_files + 80
                    && after.keeper_files <= before.keeper_files + 16
                    && after.tasks <= before.tasks + 40.0
                    && after.open_connections == 0.0;
                ensure!(is_back, "{before:?} became {after:?}");
                Ok(())
            })?;
        }
        let opened = |i: usize| {
            metrics::sum(&scene.mesh.node(i).ztunnel().metrics()?, "istio_tcp_connections_opened_total", &[])
                .context("not counted")
        };
        // Three quarters begin on the first node, half of all end on the second.
        ensure!(opened(0)? >= 7500.0 && opened(1)? >= 5000.0, "not all connections were counted");
        Ok(())
    });
}
