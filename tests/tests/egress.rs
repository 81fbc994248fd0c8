//! What is outside Kubernetes: who may reach it, how it is declared, and how endpoints come to their end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use loam_tests::manifests::{Manifests, PodFacts};
use loam_tests::process::Process;
use loam_tests::report::{PingPong, Probe, now_us};
use loam_tests::scene::{ECHO, SERVICE, SHORT, Scene, TALK, serve};
use loam_tests::{Lab, Pod, eventually, in_lab, metrics};

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

/// Fails unless a connection is cut within a second of `since`.
fn assert_cut(connection: &Process, since: u64) -> Result<()> {
    let report: PingPong = connection.report(SHORT)?;
    report.error.context("the connection ended in peace")?;
    let after = Duration::from_micros(report.ended_us.saturating_sub(since));
    ensure!(after <= AT_ONCE, "cut only after {after:?}");
    Ok(())
}

fn logged(scene: &Scene, words: &[&str]) -> Result<()> {
    eventually(SHORT, || logged_once(scene, words))
}

fn logged_once(scene: &Scene, words: &[&str]) -> Result<()> {
    let has_all = |(_, line): &(String, String)| words.iter().all(|word| line.contains(word));
    ensure!(scene.mesh.ztunnel_logs().iter().any(has_all), "no line has {words:?}");
    Ok(())
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
fn registry_only_cuts_open_connections_to_strangers_within_a_second_and_no_others() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, manifests) = (&scene.client, scene.mesh.manifests());
        let (unknown, known) = (stranger(lab)?, lab.node(1).pod("known", "abroad", "known")?);
        serve(&known)?;
        let spec = format!(
            "hosts: [known.example], addresses: [{}], resolution: NONE, ports: [{{number: {TALK}, name: talk, \
             protocol: TCP}}]",
            known.v4()
        );
        manifests.write("entry.yaml", &istio("ServiceEntry", "known", &spec))?;
        logged_service(&scene, &known)?;
        let theirs = client.start_pingpong(unknown.at(TALK), "theirs")?;
        let declared = client.start_pingpong(known.at(TALK), "declared")?;
        let others = [
            client.start_pingpong(scene.far.at(TALK), "far")?,
            client.start_pingpong(scene.outside.at(TALK), "outside")?,
            client.start_pingpong(scene.service.at(SERVICE), "service")?,
            client.start_pingpong(client.at(TALK), "own")?,
            scene.outside.start_pingpong(unknown.at(TALK), "elsewhere")?,
        ];
        let changed = now_us();
        registry_only(&scene)?;
        assert_cut(&theirs, changed)?;
        let to = unknown.at(TALK).to_string();
        logged(&scene, &["connection complete", &to, "reason=\"not_registered\"", "Sidecar demo/default"])?;
        // What is declared stays until that is taken back.
        let changed = now_us();
        manifests.remove("entry.yaml")?;
        assert_cut(&declared, changed)?;
        for other in &others {
            let report: PingPong = other.finish()?;
            ensure!(report.error.is_none(), "{}: {:?}", other.name(), report.error);
        }
        Ok(())
    });
}

/// Waits until connections to the declared address are known to be that.
fn logged_service(scene: &Scene, declared: &Pod) -> Result<()> {
    eventually(SHORT, || {
        scene.client.assert_reaches(declared.at(TALK), &[declared.at(TALK)])?;
        let line = |(_, line): &(String, String)| line.contains("known.example");
        ensure!(scene.mesh.ztunnel_logs().iter().any(line), "the ztunnel does not know it yet");
        Ok(())
    })
}

/// A name server that answers `with` to everything.
fn name_server(at: &Pod, with: &Pod) -> Result<Process> {
    let server = at.tool(&["answer", "--with", &with.v4().to_string(), "--listen", &at.at(53).to_string()])?;
    server.wait_for_output("serving", SHORT)?;
    Ok(server)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn endpoints_that_are_names_are_resolved_by_the_pods_own_server_and_dialled() {
    in_lab(|lab| {
        let scene = Scene::plain(lab)?;
        let (client, manifests, stranger) = (&scene.client, scene.mesh.manifests(), stranger(lab)?);
        let names = lab.node(1).pod("names", "plain", "names")?;
        let server = name_server(&names, &stranger)?;
        let resolv_conf = lab.work().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {}\n", names.v4()))?;
        let annotation = format!("annotations:\n    loam.dev/resolv-conf: {}\n", resolv_conf.display());
        let text = Manifests::pod_text(client, &PodFacts::default()).replace("annotations:\n", &annotation);
        manifests.write("pod-demo-client.yaml", &text)?;
        scene.enrol()?;
        registry_only(&scene)?;
        eventually(SHORT, || client.assert_refused(stranger.at(TALK), AT_ONCE))?;

        let ports = format!("ports: [{{number: {SERVICE}, name: talk, protocol: TCP, targetPort: {TALK}}}]");
        let entry = |name: &str, vip: &str, more: &str| {
            let spec = format!("hosts: [{name}.example], addresses: [{vip}], {ports}, {more}");
            manifests.write(&format!("entry-{name}.yaml"), &istio("ServiceEntry", name, &spec))
        };
        // The host itself, an endpoint, a machine.
        entry("host", VIP, "resolution: DNS")?;
        entry("round", "203.0.113.11", "resolution: DNS_ROUND_ROBIN, endpoints: [{address: db.example.org}]")?;
        entry("vm", "203.0.113.12", "resolution: DNS, workloadSelector: {labels: {app: vm}}")?;
        let machine = istio("WorkloadEntry", "vm", "address: vm.example.org, labels: {app: vm}");
        manifests.write("machine.yaml", &machine)?;
        for last in [10, 11, 12] {
            let to = format!("203.0.113.{last}:{SERVICE}").parse()?;
            eventually(SHORT, || client.assert_reaches(to, &[stranger.at(TALK)]))?;
        }

        // The name passes to a pod of the mesh, which is reached as such.
        server.kill()?;
        let server = name_server(&names, &scene.far)?;
        eventually(SHORT, || client.assert_reaches(vip()?, &[scene.far.at(TALK)]))?;
        logged(&scene, &["outbound", "host.example", &scene.far.identity()])?;

        // Its server is gone: what was known is used, and what was not is refused by name.
        server.kill()?;
        let began = Instant::now();
        while began.elapsed() < 2 * AT_ONCE {
            client.assert_reaches(vip()?, &[scene.far.at(TALK)])?;
        }
        entry("late", "203.0.113.13", "resolution: DNS")?;
        let late = format!("203.0.113.13:{SERVICE}").parse()?;
        eventually(SHORT, || {
            let probe: Probe = client.probe(late)?;
            ensure!(probe.error.is_some() && probe.total_ms < 5_000.0, "{probe:?}");
            logged_once(&scene, &["late.example", "reason=\"name_unresolved\"", "no answer within"])
        })?;
        let text = scene.mesh.node_of(client)?.ztunnel().metrics()?;
        let counted = metrics::sum(&text, "istio_on_demand_dns_total", &["source_workload_namespace=\"demo\""]);
        ensure!(counted.unwrap_or_default() >= 4.0, "istio_on_demand_dns_total is {counted:?}");
        Ok(())
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
fn a_service_entry_is_there_for_the_namespaces_it_is_exported_to_and_for_no_others() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (stranger, other) = (stranger(lab)?, lab.node(0).pod("other", "other", "client")?);
        scene.mesh.enrol(&[&other])?;
        let cases = [("['.']", true, false), ("[other]", false, true), ("['*']", true, true), ("['~']", false, false)];
        for (export, own_sees, other_sees) in cases {
            let spec = format!(
                "hosts: [talk.example], addresses: [{VIP}], resolution: STATIC, exportTo: {export}, ports: [{{number: \
                 {SERVICE}, name: talk, protocol: TCP, targetPort: {TALK}}}], endpoints: [{{address: {}}}]",
                stranger.v4()
            );
            scene.mesh.manifests().write("entry.yaml", &istio("ServiceEntry", "talk", &spec))?;
            for (pod, sees) in [(&scene.client, own_sees), (&other, other_sees)] {
                eventually(SHORT, || match sees {
                    true => pod.assert_reaches(vip()?, &[stranger.at(TALK)]),
                    // Without the entry it is an address like any other, which nobody has.
                    false => pod.assert_refused(vip()?, SHORT),
                })
                .with_context(|| format!("{} with exportTo {export}", pod.namespace()))?;
            }
        }
        Ok(())
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
