//! Who reaches whom through the mesh, what each side sees, and what the wire shows.

use std::net::SocketAddr;

use anyhow::ensure;
use loam_tests::capture::Capture;
use loam_tests::mesh::Options;
use loam_tests::report::Rate;
use loam_tests::scene::{CLOSED, ECHO, LONG, SERVICE, SHORT, Scene, TALK, serve};
use loam_tests::{Pod, eventually, in_lab};
use serde_json::Value;

fn both(pods: &[&Pod], port: u16) -> Vec<SocketAddr> {
    pods.iter().flat_map(|p| p.at_each(port)).collect()
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn an_enrolled_pod_reaches_pods_of_its_node_and_of_others_itself_and_pods_outside() {
    in_lab(|lab| {
        let Scene { mesh: _mesh, client, near, far, outside, .. } = &Scene::enrolled(lab)?;
        for to in both(&[near, far, client, outside], TALK) {
            client.assert_reaches(to, &[to])?;
        }
        for to in both(&[client, near], TALK) {
            far.assert_reaches(to, &[to])?;
        }
        // As a program does that knows IPv6 sockets only.
        for pod in [near, far, client, outside] {
            let mapped = (pod.v4().to_ipv6_mapped(), TALK).into();
            client.assert_reaches(mapped, &[pod.at(TALK)])?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_service_address_leads_to_each_of_its_pods_and_also_to_the_caller() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let endpoints = both(&[&scene.near, &scene.far], TALK);
        for vip in scene.service.at_each(SERVICE) {
            scene.client.assert_reaches(vip, &endpoints)?;
            let rate: Rate = scene.client.start_rate(&[vip], 50, 2, "service")?.report(SHORT)?;
            rate.assert_all_ok()?;
        }
        let own = both(&[&scene.client], TALK);
        for vip in scene.own_service.at_each(SERVICE) {
            scene.client.assert_reaches(vip, &own)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_outside_reaches_enrolled_pods_and_is_seen_with_its_own_address() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for to in both(&[&scene.client, &scene.near, &scene.far], TALK) {
            scene.outside.assert_reaches(to, &[to])?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn loopback_stays_the_pods_own() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        for ip in ["127.0.0.1", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"] {
            let to = format!("{ip}:{TALK}").parse()?;
            let probe = scene.client.probe(to)?;
            ensure!(probe.server.is_some_and(|s| s.peer.ip().is_loopback()), "{to}: {:?}", probe.error);
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn every_connection_has_one_line_at_each_end_with_both_identities_and_the_same_bytes() {
    in_lab(|lab| {
        let options = Options { ztunnel: vec!["--log-format".into(), "json".into()], ..Options::default() };
        let scene = Scene::plain_with(lab, &options)?;
        scene.enrol()?;
        let Scene { mesh, client, far, outside, .. } = &scene;
        client.assert_transfers(far.at(ECHO), &["--order", "echo", "--count", "30", "--max-bytes", "100000"])?;
        outside.assert_transfers(far.at(ECHO), &["--order", "echo", "--count", "10"])?;
        let port = format!(":{ECHO}");
        let ends = |direction: &str, source: &str| -> Vec<Value> {
            let lines = mesh.ztunnel_logs().into_iter().filter_map(|(_, l)| serde_json::from_str::<Value>(&l).ok());
            lines
                .filter(|l| l["message"] == "connection complete" && l["direction"] == direction)
                .filter(|l| l["src.workload"] == source)
                .filter(|l| {
                    [&l["dst.addr"], &l["dst.hbone_addr"]]
                        .iter()
                        .any(|a| a.as_str().is_some_and(|a| a.ends_with(&port)))
                })
                .collect()
        };
        let (sending, receiving) = eventually(SHORT, || {
            let (sending, receiving) = (ends("outbound", "client"), ends("inbound", "client"));
            ensure!(sending.len() == 30 && receiving.len() == 30, "{} and {} lines", sending.len(), receiving.len());
            Ok((sending, receiving))
        })?;
        for line in sending.iter().chain(&receiving) {
            ensure!(line["src.identity"] == client.identity().as_str(), "{line}");
            ensure!(line["dst.identity"] == far.identity().as_str(), "{line}");
            ensure!(line["bytes_sent"] == line["bytes_recv"], "an echo is as long as its call: {line}");
            ensure!(line.get("error").is_none(), "{line}");
        }
        let bytes = |lines: &[Value]| lines.iter().filter_map(|l| l["bytes_sent"].as_u64()).sum::<u64>();
        ensure!(bytes(&sending) == bytes(&receiving) && bytes(&sending) > 0, "the ends disagree");
        // From outside there is one line, and no identity in it.
        let strangers = eventually(SHORT, || {
            let lines = ends("inbound", "outside");
            ensure!(lines.len() == 10, "{} lines: {lines:?}", lines.len());
            Ok(lines)
        })?;
        ensure!(strangers.iter().all(|l| l.get("src.identity").is_none()), "{strangers:?}");
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn nothing_between_enrolled_pods_is_readable_on_the_wire() {
    in_lab(|lab| {
        let Scene { mesh: _mesh, client, near, far, outside, service, .. } = &Scene::enrolled(lab)?;
        let captures = Capture::on_all(&lab.nodes())?;
        let mut targets = both(&[near, far], TALK);
        targets.extend(service.at_each(SERVICE));
        let rate: Rate = client.start_rate(&targets, 200, 4, "inside")?.report(SHORT)?;
        rate.assert_all_ok()?;
        for to in both(&[near, far], ECHO) {
            client.assert_transfers(to, &["--order", "echo", "--count", "20", "--max-bytes", "4000000"])?;
        }
        // Failures must not be readable either.
        let _ = client.probe(far.at(CLOSED))?;
        // The oracle reads what is meant to be readable.
        client.assert_transfers(outside.at(ECHO), &["--order", "echo", "--exactly", "--tag", "out"])?;
        let seen = Capture::finish_all(captures)?;
        seen.assert_no_plaintext_but(&["out"])?;
        ensure!(seen.readable("out") > 0, "the capture is blind: {seen:?}");
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_closed_port_is_refused_at_once_wherever_it_is() {
    in_lab(|lab| {
        let Scene { mesh: _mesh, client, near, far, outside, .. } = &Scene::enrolled(lab)?;
        let limit = std::time::Duration::from_secs(1);
        // A link that just came up answers neighbour discovery a second or two later.
        for from in [client, outside] {
            for to in both(&[near, far], TALK) {
                from.assert_reaches(to, &[to])?;
            }
        }
        for to in both(&[near, far, client, outside], CLOSED) {
            client.assert_refused(to, limit)?;
        }
        for to in both(&[client, near, far], CLOSED) {
            outside.assert_refused(to, limit)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_made_later_is_enrolled_and_reached_while_the_controller_is_needed_only_for_news() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let late = lab.node(1).pod("late", "demo", "late")?;
        serve(&late)?;
        scene.mesh.enrol(&[&late])?;
        for to in late.at_each(TALK) {
            scene.client.assert_reaches(to, &[to])?;
        }
        scene.mesh.controller().kill()?;
        let rate: Rate = scene.client.start_rate(&[late.at(TALK)], 100, 3, "orphan")?.report(LONG)?;
        rate.assert_all_ok()?;
        scene.mesh.restart_controller()?;
        let next = lab.node(0).pod("next", "demo", "next")?;
        serve(&next)?;
        scene.mesh.enrol(&[&next])?;
        scene.client.assert_reaches(next.at(TALK), &[next.at(TALK)])
    });
}
