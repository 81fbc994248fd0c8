//! Pods whose network is being made come into the mesh before they run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::manifests::PodFacts;
use loam_tests::process::Output;
use loam_tests::scene::{Scene, TALK, serve};
use loam_tests::{Pod, bin, eventually, in_lab, scene};
use serde_json::{Value, json};

/// Calls the plugin for `pod`, as a container runtime of its node does.
fn called(scene: &Scene, pod: &Pod, command: &str) -> Result<Output> {
    let mesh_node = scene.mesh.node_of(pod)?;
    let node = mesh_node.node();
    let ips: Vec<Value> = pod.addresses().iter().map(|ip| json!({"address": format!("{ip}/24")})).collect();
    let config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "loam-cni", "socket": node.dir().join("run/cni.sock"),
        "prevResult": {"cniVersion": "1.0.0", "ips": ips},
    });
    let file = node.dir().join(format!("cni-{}.json", pod.name()));
    std::fs::write(&file, config.to_string())?;
    let program = bin::path("loam-cni")?;
    let text = |path: &Path| path.display().to_string();
    let arguments = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={}", pod.namespace(), pod.name());
    let netns = text(&pod.netns());
    let environment = [("CNI_COMMAND", command), ("CNI_NETNS", &netns), ("CNI_ARGS", &arguments)];
    let call = format!("{} < {}", text(&program), text(&file));
    node.spawn_with("cni", &["sh", "-c", &call], &environment)?.output(scene::SHORT)
}

/// What the manifest of a pod says whose network is being made.
fn being_made() -> PodFacts {
    PodFacts { starting: true, netns: Some(String::new()), addresses: Some(vec![]), ..PodFacts::default() }
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_pod_is_captured_when_its_sandbox_is_ready_and_fails_without_the_agent() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (far, manifests) = (&scene.far, scene.mesh.manifests());
        let late = lab.node(0).pod("late", "demo", "late")?;
        let foreign = lab.node(0).pod("foreign", "plain", "foreign")?;
        for pod in [&late, &foreign] {
            serve(pod)?;
            manifests.pod_with(pod, &being_made())?;
        }
        let captures = Capture::on_all(&lab.nodes())?;
        let result: Value = serde_json::from_str(&called(&scene, &late, "ADD")?.success()?)?;
        let first = result["ips"][0]["address"].as_str().context("no address is passed on")?;
        ensure!(first.starts_with(&late.v4().to_string()), "{result}");
        // At once: nothing is waited for that its first process would not wait for.
        late.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        ensure!(scene.mesh.pod_status(&late)?["state"] == "enrolled");
        Capture::finish_all(captures)?.assert_no_plaintext()?;
        called(&scene, &late, "CHECK")?.success()?;
        called(&scene, &foreign, "ADD")?.success()?;
        // A pod that nobody knows may be one of the mesh.
        let unknown = lab.node(0).pod("unknown", "demo", "unknown")?;
        let refused = called(&scene, &unknown, "ADD")?;
        ensure!(refused.success().is_err(), "a sandbox is ready whose pod nobody knows");
        manifests.pod_with(&late, &PodFacts { starting: false, ..PodFacts::default() })?;
        eventually(scene::SHORT, || far.assert_reaches(late.at(TALK), &[late.at(TALK)]))?;

        scene.mesh.node(0).keeper().kill()?;
        ensure!(called(&scene, &foreign, "ADD")?.success().is_err(), "a sandbox is ready without an agent");
        called(&scene, &foreign, "DEL")?.success().map(drop)
    });
}
