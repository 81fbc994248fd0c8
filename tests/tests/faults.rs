//! What is wrong in the environment is told clearly and harms nobody else.

use std::fs;

use anyhow::{Context, Result, ensure};
use loam_tests::manifests::{Manifests, PodFacts};
use loam_tests::mesh::MeshNode;
use loam_tests::process::SIGTERM;
use loam_tests::report::Rate;
use loam_tests::scene::{SHORT, Scene, TALK, serve};
use loam_tests::{Mesh, eventually, in_lab};

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn ztunnel_runs_as_its_own_user_with_no_capability_in_any_set() {
    in_lab(|lab| {
        let mesh = Mesh::start(lab)?;
        for node in mesh.nodes() {
            let status = node.ztunnel().process().proc_file("status")?;
            let field = |name: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("absent");
                line.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            for name in ["Uid:", "Gid:"] {
                ensure!(field(name) == "1337 1337 1337 1337", "{name} {}", field(name));
            }
            ensure!(field("Groups:").is_empty(), "groups {}", field("Groups:"));
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                ensure!(field(set) == "0000000000000000", "{set} {}", field(set));
            }
            ensure!(field("NoNewPrivs:") == "1", "new privileges are allowed");
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_second_agent_is_refused_and_disturbs_nothing() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let node = scene.mesh.node(0);
        let rate = scene.client.start_rate(&[scene.far.at(TALK)], 100, 60, "second")?;
        let command = node.agent_command(scene.mesh.manifests().dir())?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let second = node.node().run(&command)?;
        ensure!(!second.end.is_success(), "a second agent was content");
        let said = format!("{}{}", second.stdout, second.stderr);
        ensure!(said.contains("agent"), "it does not say why it ended: {said:?}");
        scene.client.assert_reaches(scene.near.at(TALK), &[scene.near.at(TALK)])?;
        rate.signal(SIGTERM)?;
        let rate: Rate = rate.report(SHORT)?;
        rate.assert_all_ok()?;
        scene.mesh.wait_for_state(&[&scene.client, &scene.near], "enrolled")
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_whose_port_is_taken_is_reported_and_the_others_are_enrolled() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        let busy = lab.node(0).pod("busy", "demo", "busy")?;
        serve(&busy)?;
        let squatter = busy.tool(&["serve", "--echo", "15008"])?;
        squatter.wait_for_output("serving", SHORT)?;
        scene.mesh.manifests().pod(&busy)?;
        scene.enrol()?;
        eventually(SHORT, || {
            let status = scene.mesh.pod_status(&busy)?;
            ensure!(status["state"] == "failed" || status["state"] == "pending", "{status}");
            ensure!(status.to_string().contains("15008"), "the reason does not name the port: {status}");
            Ok(())
        })?;
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])?;
        squatter.kill()?;
        scene.mesh.wait_for_state(&[&busy], "enrolled")?;
        busy.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_without_a_network_namespace_is_reported_and_the_others_are_enrolled() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        for (name, netns) in [("nowhere", ""), ("gone", "/run/netns/gone")] {
            let pod = lab.node(0).pod(name, "demo", name)?;
            let facts = PodFacts { netns: Some(netns.into()), ..Default::default() };
            scene.mesh.manifests().pod_with(&pod, &facts)?;
            scene.mesh.manifests().namespace("demo", true)?;
            eventually(SHORT, || {
                let status = scene.mesh.pod_status(&pod)?;
                ensure!(status["state"] != "enrolled", "{status}");
                ensure!(status.to_string().contains("netns"), "the reason does not say what is missing: {status}");
                Ok(())
            })
            .with_context(|| name.to_owned())?;
        }
        scene.enrol()?;
        scene.client.assert_reaches(scene.far.at(TALK), &[scene.far.at(TALK)])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_that_vanishes_takes_nothing_with_it_and_its_successor_is_enrolled() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let rate = scene.client.start_rate(&[scene.far.at(TALK)], 100, 60, "vanish")?;
        let keeper_before = scene.mesh.node(0).keeper().open_files()?;
        for round in 0..3 {
            let short = lab.node(0).pod(&format!("short-{round}"), "demo", "short")?;
            serve(&short)?;
            scene.mesh.enrol(&[&short])?;
            scene.far.assert_reaches(short.at(TALK), &[short.at(TALK)])?;
            // First the namespace, as when a node tears a pod down, then the news of it: sometimes before the agent
            // has missed the pod, sometimes after.
            short.vanish()?;
            if round == 1 {
                scene.mesh.wait_until_not_enrolled(&[&short])?;
            }
            scene.mesh.manifests().remove_pod(&short)?;
            scene.mesh.wait_until_forgotten(&[&short])?;
        }
        rate.signal(SIGTERM)?;
        let rate: Rate = rate.report(SHORT)?;
        rate.assert_all_ok()?;
        eventually(SHORT, || {
            let now = scene.mesh.node(0).keeper().open_files()?;
            ensure!(now <= keeper_before + 8, "the keeper had {keeper_before} descriptors and has {now}");
            Ok(())
        })
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_duplicate_address_is_reported_and_the_first_pod_keeps_it() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let twin = lab.node(1).pod("twin", "demo", "twin")?;
        serve(&twin)?;
        let facts = PodFacts { addresses: Some(scene.far.addresses()), ..Default::default() };
        scene.mesh.manifests().pod_with(&twin, &facts)?;
        eventually(SHORT, || {
            let controller = scene.mesh.controller();
            let said = format!("{}{}", controller.stdout(), controller.stderr());
            let line = said.lines().find(|l| l.contains("twin") && l.contains(&scene.far.v4().to_string()));
            ensure!(line.is_some(), "the controller does not name the pod and the address: {said}");
            Ok(())
        })?;
        for to in scene.far.at_each(TALK) {
            scene.client.assert_reaches(to, &[to])?;
        }
        scene.mesh.wait_for_state(&[&scene.client, &scene.near, &scene.far], "enrolled")
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_broken_manifest_is_reported_with_its_line_and_everything_else_stays() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let manifests = scene.mesh.manifests();
        manifests.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [oops\n")?;
        manifests.write("unknown.yaml", "apiVersion: example.org/v1\nkind: Teapot\nmetadata:\n  name: t\n")?;
        let good = Manifests::pod_text(&scene.near, &PodFacts::default());
        manifests.write("pod-demo-near.yaml", &good.replace("podIPs:", "podIPs: 7"))?;
        eventually(SHORT, || {
            let controller = scene.mesh.controller();
            let said = format!("{}{}", controller.stdout(), controller.stderr());
            ensure!(said.lines().any(|l| l.contains("broken.yaml") && l.contains('4')), "no line: {said}");
            ensure!(said.lines().any(|l| l.contains("Teapot")), "the unknown kind is not listed: {said}");
            Ok(())
        })?;
        for pod in [&scene.near, &scene.far] {
            scene.client.assert_reaches(pod.at(TALK), &[pod.at(TALK)])?;
        }
        // A later change of the file does not list its kind again.
        manifests.write("unknown.yaml", "apiVersion: example.org/v1\nkind: Teapot\nmetadata:\n  name: another\n")?;
        let late = lab.node(1).pod("late", "demo", "server")?;
        scene.mesh.enrol(&[&late])?;
        let controller = scene.mesh.controller();
        let said = format!("{}{}", controller.stdout(), controller.stderr());
        ensure!(
            said.lines().filter(|l| l.contains("Teapot")).count() == 1,
            "the unknown kind is not listed once: {said}"
        );
        scene.mesh.wait_for_state(&[&scene.client, &scene.near, &scene.far], "enrolled")
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn cleanup_leaves_nothing_and_pods_talk_as_before() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        let sysctls = ["net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"];
        let look = || -> Result<String> {
            let mut text = String::new();
            for command in [&["ip", "rule"][..], &["ip", "-6", "rule"], &["ip", "route", "show", "table", "all"]] {
                text.push_str(&scene.client.run(command)?.success()?);
            }
            for name in sysctls {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                text.push_str(&scene.client.run(&["cat", &path])?.success()?);
            }
            // Counters and caches of routes come and go by themselves.
            let lines = text.lines().filter(|l| !l.contains("cache") && !l.contains("multicast"));
            Ok(lines.map(str::trim_end).collect::<Vec<_>>().join("\n"))
        };
        let before = look()?;
        scene.enrol()?;
        ensure!(look()? != before, "enrolment changed nothing in the pod");
        let node = scene.mesh.node(0);
        // The kernel itself puts `maps.debug` and `progs.debug` into every BPF file system.
        let pins = |node: &MeshNode| -> Result<Vec<String>> {
            let names = fs::read_dir(node.bpffs())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            Ok(names.filter(|n| !n.ends_with(".debug")).collect())
        };
        ensure!(!pins(node)?.is_empty(), "nothing is pinned");
        for node in scene.mesh.nodes() {
            node.keeper().signal(SIGTERM)?;
            node.keeper().wait(SHORT)?;
            node.ztunnel().process().signal(SIGTERM)?;
            node.clean_up()?;
            let left = pins(node)?;
            ensure!(left.is_empty(), "pins are left: {left:?}");
        }
        let after = look()?;
        ensure!(after == before, "the pod is not as it was.\nbefore:\n{before}\nafter:\n{after}");
        for to in [&scene.far, &scene.near, &scene.outside] {
            scene.client.assert_reaches(to.at(TALK), &[to.at(TALK)])?;
        }
        Ok(())
    });
}
