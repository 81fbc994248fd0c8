//! What is outside Kubernetes: who may reach it, how it is declared, and how endpoints come to their end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use loam_tests::manifests::{Manifests, PodFacts};
use loam_tests::scene::{ECHO, SERVICE, SHORT, Scene, TALK, serve};
use loam_tests::{Lab, Pod, eventually, in_lab};

/// Longest time in which a connection is refused.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What nobody routes but the mesh.
const VIP: &str = "203.0.113.10";

/// Somebody with an address, of whom no manifest tells.
fn stranger(lab: &Lab) -> Result<Pod> {
    let stranger = lab.node(1).pod("stranger", "abroad", "stranger")?;
    serve(&stranger)?;
    Ok(stranger)
}

fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{{spec}}}\n"
    )
}

fn registry_only(scene: &Scene) -> Result<()> {
    let text = istio("Sidecar", "default", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    scene.mesh.manifests().write("sidecar.yaml", &text)
}

fn vip() -> Result<SocketAddr> {
    Ok(format!("{VIP}:{SERVICE}").parse()?)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn registry_only_refuses_strangers_by_name_until_they_are_declared() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, manifests, stranger) = (&scene.client, scene.mesh.manifests(), stranger(lab)?);
        let to = stranger.at(TALK);
        client.assert_reaches(to, &[to])?;
        registry_only(&scene)?;
        for to in stranger.at_each(TALK) {
            eventually(SHORT, || client.assert_refused(to, AT_ONCE))?;
        }
        eventually(SHORT, || {
            let says = |(_, line): &(String, String)| {
                line.contains(&to.to_string()) && line.contains("Sidecar demo/default") && line.contains("ServiceEntry")
            };
            ensure!(scene.mesh.ztunnel_logs().iter().any(says), "no line names the policy and what to do");
            Ok(())
        })?;
        // What belongs to the registry is reached as before: pods inside and outside the mesh, services, itself.
        for to in [scene.near.at(TALK), scene.far.at(TALK), scene.outside.at(TALK), client.at(TALK)] {
            client.assert_reaches(to, &[to])?;
        }
        client.assert_reaches(scene.service.at(SERVICE), &[scene.near.at(TALK), scene.far.at(TALK)])?;
        // Who is in another namespace is not meant.
        scene.outside.assert_reaches(to, &[to])?;

        let spec = format!(
            "hosts: [stranger.example], addresses: [{}], resolution: NONE, ports: [{{number: {TALK}, name: talk, \
             protocol: TCP}}]",
            stranger.v4()
        );
        manifests.write("entry.yaml", &istio("ServiceEntry", "stranger", &spec))?;
        eventually(SHORT, || client.assert_reaches(to, &[to]))?;
        client.assert_refused(stranger.at(ECHO), AT_ONCE)?;
        manifests.remove("entry.yaml")?;
        eventually(SHORT, || client.assert_refused(to, AT_ONCE))?;
        manifests.remove("sidecar.yaml")?;
        eventually(SHORT, || client.assert_reaches(to, &[to]))
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_declared_address_leads_to_the_endpoints_that_are_written_down_whoever_they_are() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let stranger = stranger(lab)?;
        registry_only(&scene)?;
        eventually(SHORT, || scene.client.assert_refused(stranger.at(TALK), AT_ONCE))?;
        // A stranger, a pod outside the mesh, and one inside, which is reached through its tunnel.
        for pod in [&stranger, &scene.outside, &scene.far] {
            let spec = format!(
                "hosts: [talk.example], addresses: [{VIP}], resolution: STATIC, ports: [{{number: {SERVICE}, name: talk, \
                 protocol: TCP, targetPort: {TALK}}}], endpoints: [{{address: {}}}]",
                pod.v4()
            );
            scene.mesh.manifests().write("entry.yaml", &istio("ServiceEntry", "talk", &spec))?;
            eventually(SHORT, || scene.client.assert_reaches(vip()?, &[pod.at(TALK)]))?;
        }
        let tunnelled = |(_, line): &(String, String)| {
            line.contains("talk.example") && line.contains(&scene.far.identity()) && line.contains("outbound")
        };
        eventually(SHORT, || {
            ensure!(scene.mesh.ztunnel_logs().iter().any(tunnelled), "a pod of the mesh was reached in the clear");
            Ok(())
        })
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_machine_that_is_declared_is_a_workload_like_any_other() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, manifests, machine) = (&scene.client, scene.mesh.manifests(), stranger(lab)?);
        registry_only(&scene)?;
        eventually(SHORT, || client.assert_refused(machine.at(TALK), AT_ONCE))?;
        let spec = format!("address: {}, serviceAccount: machine, labels: {{app: machine}}", machine.v4());
        manifests.write("machine.yaml", &istio("WorkloadEntry", "machine", &spec))?;
        eventually(SHORT, || client.assert_reaches(machine.at(TALK), &[machine.at(TALK)]))?;
        let spec = format!(
            "hosts: [machine.internal], addresses: [{VIP}], location: MESH_INTERNAL, resolution: STATIC, ports: \
             [{{number: {SERVICE}, name: talk, protocol: TCP, targetPort: {TALK}}}], workloadSelector: {{labels: {{app: \
             machine}}}}"
        );
        manifests.write("entry.yaml", &istio("ServiceEntry", "machine", &spec))?;
        eventually(SHORT, || client.assert_reaches(vip()?, &[machine.at(TALK)]))?;
        manifests.remove("machine.yaml")?;
        eventually(SHORT, || client.assert_refused(vip()?, AT_ONCE))?;
        eventually(SHORT, || client.assert_refused(machine.at(TALK), AT_ONCE))
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn an_endpoint_that_ends_gets_no_new_connection_a_second_later() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, near, far) = (&scene.client, scene.near.at(TALK), scene.far.at(TALK));
        let to = scene.service.at(SERVICE);
        eventually(SHORT, || client.assert_reaches(to, &[far]))?;
        let ends = Manifests::pod_text(&scene.far, &PodFacts::default()).replacen(
            "metadata:\n",
            "metadata:\n  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n",
            1,
        );
        let written = Instant::now();
        scene.mesh.manifests().write("pod-demo-far.yaml", &ends)?;
        let mut later = 0;
        while later < 30 {
            later += usize::from(written.elapsed() > Duration::from_secs(1));
            let servers: &[SocketAddr] = if later > 0 { &[near] } else { &[near, far] };
            client.assert_reaches(to, servers)?;
        }
        // It still is who it is, and whoever asks for it by address reaches it.
        client.assert_reaches(far, &[far])
    });
}
