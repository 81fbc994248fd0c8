//! The places where a redirect goes wrong in silence.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use loam_tests::report::{Held, Rate};
use loam_tests::scene::{LONG, SHORT, Scene, TALK};
use loam_tests::{Pod, eventually, in_lab};

/// Holds connections from the plain pod to an enrolled one while more come and go between the same two addresses.
fn crowd(scene: &Scene, to: SocketAddr, held: &str, more: &str) -> Result<()> {
    let holder = scene.outside.tool(&["hold", &to.to_string(), "--count", held])?;
    holder.wait_for_output("held", LONG)?;
    let churn: Rate = scene.outside.report(&["churn", &to.to_string(), "--count", more], LONG)?;
    churn.assert_all_ok()?;
    let held: Held = holder.finish()?;
    ensure!(held.failures.is_empty() && held.lost == 0, "{held:?}");
    Ok(())
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_delivery_never_takes_a_port_that_its_client_uses_itself() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for to in scene.client.at_each(TALK) {
            crowd(&scene, to, "800", "2400")?;
        }
        // A client whose own ports are the very ones that deliveries are made from.
        scene.outside.sysctl("net/ipv4/ip_local_port_range", "61000 65535")?;
        for to in scene.client.at_each(TALK) {
            crowd(&scene, to, "400", "1200")?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn the_port_of_a_client_inside_the_mesh_is_not_confused_either() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for to in [scene.far.at(TALK), scene.near.at(TALK), scene.client.at(TALK)] {
            let holder = scene.client.tool(&["hold", &to.to_string(), "--count", "500"])?;
            holder.wait_for_output("held", LONG)?;
            let churn: Rate = scene.client.report(&["churn", &to.to_string(), "--count", "1500"], LONG)?;
            churn.assert_all_ok()?;
            let held: Held = holder.finish()?;
            ensure!(held.failures.is_empty() && held.lost == 0, "{to}: {held:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn connections_to_our_own_ports_end_at_once_and_never_go_in_circles() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let files = || -> Result<usize> { scene.mesh.nodes().iter().map(|n| n.ztunnel().process().open_files()).sum() };
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])?;
        let before = files()?;
        let callers: [&Pod; 2] = [&scene.client, &scene.outside];
        for caller in callers {
            for target in [&scene.client, &scene.near, &scene.far] {
                for port in [15001, 15006, 15008] {
                    for to in target.at_each(port) {
                        // A tunnel port may hold a stranger until its handshake times out; a circle would not end.
                        caller.assert_refused(to, Duration::from_secs(12))?;
                    }
                }
            }
        }
        let after = files()?;
        ensure!(after < before + 100, "{before} descriptors became {after}");
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn an_address_nobody_has_fails_as_it_does_without_the_mesh() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        // No route on the node: the network says so, and the application learns it.
        scene.client.assert_refused("203.0.113.7:80".parse()?, Duration::from_secs(4))?;
        // A service address without endpoints.
        let empty = scene.mesh.manifests().service("demo", "empty", &[(80, 80)], &[])?;
        for vip in empty.at_each(80) {
            // Until the ztunnel has heard of it, nobody routes the address.
            eventually(SHORT, || scene.client.assert_refused(vip, Duration::from_secs(1)))?;
        }
        // A port that a service does not have.
        for vip in scene.service.at_each(81) {
            scene.client.assert_refused(vip, Duration::from_secs(4))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn strict_reverse_path_checks_in_pods_and_on_nodes_do_no_harm() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        for pod in [&scene.client, &scene.near, &scene.far] {
            for name in ["all", "default", "eth0", "lo"] {
                pod.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
            }
        }
        scene.enrol()?;
        for to in [&scene.near, &scene.far, &scene.client, &scene.outside] {
            scene.client.assert_reaches(to.at(TALK), &[to.at(TALK)])?;
        }
        scene.outside.assert_reaches(scene.client.at(TALK), &[scene.client.at(TALK)])?;
        let rate: Rate = scene.client.start_rate(&[scene.service.at(80)], 50, 2, "strict")?.report(SHORT)?;
        rate.assert_all_ok()
    });
}
