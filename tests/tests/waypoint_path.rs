//! Connections that go through a waypoint, that must, and that must not.
//!
//! The waypoint is a pod with an HBONE endpoint that says what it is asked for (`loam-lab waypoint`).

#![allow(clippy::print_stdout, reason = "a run shows its figures")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::capture::Capture;
use loam_tests::lab::FABRIC_V4;
use loam_tests::manifests::{PodFacts, Service};
use loam_tests::mesh::CONTROL_PORT;
use loam_tests::metrics::sum;
use loam_tests::process::{Process, SIGTERM};
use loam_tests::report::{Passed, PingPong, Probe, Rate, now_us};
use loam_tests::scene::{ECHO, LONG, SERVICE, SHORT, Scene, TALK};
use loam_tests::{Lab, Pod, eventually, in_lab};
use serde_json::Value;

/// The port of tunnels.
const HBONE: u16 = 15008;

/// How long a connection may wait for a waypoint before it is refused, with some room.
const PATIENCE: Duration = Duration::from_secs(4);

/// A waypoint with an endpoint on each node; the one on the callers' node comes first.
struct Waypoint {
    name: &'static str,
    service: Service,
    pods: Vec<Pod>,
}

impl Waypoint {
    /// Declares it; its endpoints serve once they are started.
    fn declare(lab: &Lab, scene: &Scene, name: &'static str) -> Result<Self> {
        let manifests = scene.mesh.manifests();
        let pods: Vec<Pod> =
            (0..2).map(|node| lab.node(node).pod(&format!("{name}-{node}"), "demo", name)).collect::<Result<_>>()?;
        let labels = [
            ("gateway.networking.k8s.io/gateway-name", name),
            ("istio.io/dataplane-mode", "none"),
            // It speaks HBONE itself: only whoever is in the mesh gets a certificate.
            ("networking.istio.io/tunnel", "http"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let facts = PodFacts { labels, ..PodFacts::default() };
        pods.iter().try_for_each(|pod| manifests.pod_with(pod, &facts))?;
        let all: Vec<&Pod> = pods.iter().collect();
        let service = manifests.service("demo", name, &[(HBONE, HBONE)], &all)?;
        let gateway = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  namespace: demo\n  name: {name}\n\
             spec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: {HBONE}\n    \
             protocol: HBONE\n"
        );
        manifests.write(&format!("gateway-{name}.yaml"), &gateway)?;
        Ok(Self { name, service, pods })
    }

    /// Starts the endpoint number `index`, which hands connections to the scene's service on to `far`.
    fn start(&self, scene: &Scene, index: usize) -> Result<Process> {
        let pod = &self.pods[index];
        let token = scene.mesh.node_of(pod)?.token().display().to_string();
        let root = scene.mesh.authority().join("root-cert.pem").display().to_string();
        let (address, identity) = (format!("{FABRIC_V4}:{CONTROL_PORT}"), pod.identity());
        let far = scene.far.identity();
        let route = |(vip, endpoint): (SocketAddr, SocketAddr)| format!("{vip}={endpoint}={far}");
        let routes: Vec<String> =
            scene.service.at_each(SERVICE).into_iter().zip(scene.far.at_each(TALK)).map(route).collect();
        let mut arguments = vec!["waypoint", "[::]:15008", "--identity", &identity, "--address", &address];
        arguments.extend(["--ca-root", &root, "--token", &token]);
        arguments.extend(routes.iter().flat_map(|route| ["--route", route]));
        let process = pod.tool(&arguments)?;
        process.wait_for_output("serving", SHORT)?;
        Ok(process)
    }

    fn identity(&self) -> String {
        self.pods[0].identity()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.pods.iter().flat_map(Pod::addresses).collect()
    }

    /// What people call it.
    fn named(&self) -> String {
        format!("demo/{}", self.name)
    }
}

/// What a waypoint's endpoint was asked for so far.
fn passed(process: &Process) -> Vec<Passed> {
    process.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Writes the labels and annotations of the scene's service anew.
fn mark(scene: &Scene, labels: &str, annotations: &str) -> Result<()> {
    let file = "service-demo-talk.yaml";
    let text = scene.mesh.manifests().read(file)?;
    let plain: String = text
        .lines()
        .filter(|line| !line.starts_with("  labels:") && !line.starts_with("  annotations:"))
        .map(|line| format!("{line}\n"))
        .collect();
    let marks = format!("metadata:\n  labels: {{{labels}}}\n  annotations: {{{annotations}}}\n");
    scene.mesh.manifests().write(file, &plain.replacen("metadata:\n", &marks, 1))
}

/// Puts the scene's service behind a waypoint, or behind none.
fn bind(scene: &Scene, waypoint: Option<&str>) -> Result<()> {
    let label = waypoint.map(|name| format!("istio.io/use-waypoint: {name}")).unwrap_or_default();
    mark(scene, &label, "")
}

/// Whether a call of the service comes out at its pod by way of the waypoint.
fn by_way_of(scene: &Scene, waypoint: &Waypoint, to: SocketAddr) -> Result<bool> {
    let probe = scene.client.probe(to)?;
    let seen = probe.server.with_context(|| format!("{to}: {}", probe.error.unwrap_or_default()))?;
    Ok(waypoint.addresses().contains(&seen.peer.ip()))
}

fn wait_until_bound(scene: &Scene, waypoint: &Waypoint) -> Result<()> {
    let to = scene.service.at(SERVICE);
    eventually(SHORT, || {
        ensure!(by_way_of(scene, waypoint, to)?, "{to} is not reached by way of {}", waypoint.name);
        Ok(())
    })
}

fn wait_until_unbound(scene: &Scene, waypoint: &Waypoint) -> Result<()> {
    let to = scene.service.at(SERVICE);
    eventually(SHORT, || {
        ensure!(!by_way_of(scene, waypoint, to)?, "{to} is still reached by way of {}", waypoint.name);
        Ok(())
    })
}

/// A connection that must fail, and after at most `limit`.
fn assert_fails(from: &Pod, to: SocketAddr, limit: Duration) -> Result<Probe> {
    let probe: Probe = from.report(&["probe", &to.to_string(), "--timeout-ms", "20000"], SHORT)?;
    ensure!(probe.error.is_some(), "{} reaches {to}: {:?}", from.name(), probe.server);
    ensure!(probe.total_ms <= limit.as_secs_f64() * 1e3, "refused only after {} ms", probe.total_ms);
    Ok(probe)
}

/// Waits for a line of the access log with all of `words`.
fn logged(scene: &Scene, words: &[&str]) -> Result<()> {
    eventually(SHORT, || {
        let logs = scene.mesh.ztunnel_logs();
        let mut lines = logs.iter().filter(|(_, line)| line.contains("connection complete"));
        ensure!(lines.any(|(_, line)| words.iter().all(|word| line.contains(word))), "no line has {words:?}");
        Ok(())
    })
}

/// What the callers' ztunnel says of the only waypoint.
fn state(scene: &Scene) -> Result<String> {
    let text = scene.mesh.node(0).ztunnel().admin("/debug/waypoints")?;
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let first = all.get(0).with_context(|| format!("no waypoint is listed: {all}"))?;
    Ok(first["state"].as_str().unwrap_or_default().to_owned())
}

fn finish(rate: &Process) -> Result<Rate> {
    rate.signal(SIGTERM)?;
    let rate: Rate = rate.report(LONG)?;
    println!("{}", rate.summary());
    Ok(rate)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_service_behind_a_waypoint_is_reached_by_way_of_it_and_its_pods_are_not() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, far, .. } = &scene;
        let waypoint = Waypoint::declare(lab, &scene, "waypoint")?;
        let serving = waypoint.start(&scene, 0)?;
        bind(&scene, Some("waypoint"))?;
        wait_until_bound(&scene, &waypoint)?;

        let captures = Capture::on_all(&lab.nodes())?;
        let before = passed(&serving).len();
        for (vip, endpoint) in scene.service.at_each(SERVICE).into_iter().zip(far.at_each(TALK)) {
            let probe = client.probe(vip)?;
            let seen = probe.server.with_context(|| format!("{vip}: {}", probe.error.unwrap_or_default()))?;
            ensure!(probe.peer == Some(vip), "the client sees {:?}", probe.peer);
            ensure!(seen.local == endpoint, "{vip} led to {}", seen.local);
            ensure!(waypoint.pods[0].addresses().contains(&seen.peer.ip()), "the server sees {}", seen.peer);
        }
        client.assert_transfers(scene.service.at(SERVICE), &["--order", "server", "--count", "20"])?;
        let asked = passed(&serving).split_off(before);
        for vip in scene.service.at_each(SERVICE) {
            let is_it = |p: &&Passed| p.authority == vip.to_string();
            let one = asked.iter().find(is_it).with_context(|| format!("{vip} was not asked for: {asked:?}"))?;
            ensure!(one.peer == client.identity(), "{} asked", one.peer);
            let forwarded = one.forwarded.clone().unwrap_or_default();
            ensure!(client.addresses().iter().any(|ip| forwarded.contains(&ip.to_string())), "{forwarded}");
            ensure!(forwarded.contains("host=talk.demo.svc"), "{forwarded}");
            let baggage = one.baggage.clone().unwrap_or_default();
            ensure!(baggage.contains("k8s.namespace.name=demo"), "{baggage}");
        }
        let sent = ["direction=\"outbound\"", &format!("dst.identity=\"{}\"", waypoint.identity())];
        logged(&scene, &sent)?;
        let delivered = ["direction=\"inbound\"", &format!("src.identity=\"{}\"", waypoint.identity())];
        logged(&scene, &delivered)?;

        // Addresses of pods pass beside it, and a pod in front of which it is may call its own service.
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;
        eventually(SHORT, || {
            let own = far.probe(scene.service.at(SERVICE))?;
            let seen = own.server.with_context(|| own.error.unwrap_or_default())?;
            ensure!(waypoint.addresses().contains(&seen.peer.ip()), "the server sees {}", seen.peer);
            Ok(())
        })?;
        Capture::finish_all(captures)?.assert_no_plaintext()
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_waypoint_that_is_gone_is_not_gone_around_unless_somebody_asks_for_that() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, near, far, .. } = &scene;
        let vip = scene.service.at(SERVICE);
        let waypoint = Waypoint::declare(lab, &scene, "waypoint")?;
        let serving: Vec<Process> = (0..2).map(|i| waypoint.start(&scene, i)).collect::<Result<_>>()?;
        bind(&scene, Some("waypoint"))?;
        wait_until_bound(&scene, &waypoint)?;
        ensure!(state(&scene)? == "ready", "{}", state(&scene)?);

        // It died, and nobody has noticed yet.
        serving.iter().try_for_each(Process::kill)?;
        assert_fails(client, vip, Duration::from_secs(15))?;
        client.assert_reaches(far.at(TALK), &[far.at(TALK)])?;

        let manifests = scene.mesh.manifests();
        manifests.endpoints(&waypoint.service, &[])?;
        eventually(SHORT, || {
            ensure!(state(&scene)? == "waypoint_not_ready", "{}", state(&scene)?);
            Ok(())
        })?;
        assert_fails(client, vip, PATIENCE)?;
        logged(&scene, &["reason=\"waypoint_not_ready\"", "error=\"waypoint demo/waypoint.demo.svc"])?;

        manifests.remove("service-demo-waypoint.yaml")?;
        manifests.remove("gateway-waypoint.yaml")?;
        eventually(SHORT, || {
            ensure!(state(&scene)? == "waypoint_missing", "{}", state(&scene)?);
            Ok(())
        })?;
        assert_fails(client, vip, PATIENCE)?;
        logged(&scene, &["reason=\"waypoint_missing\"", "waypoint.absent=\"waypoint_missing\""])?;
        let counted = |outcome: &str| -> Result<f64> {
            let metrics = scene.mesh.node(0).ztunnel().metrics()?;
            let labels = ["waypoint=\"demo/waypoint.demo.svc", &format!("outcome=\"{outcome}\"")];
            Ok(sum(&metrics, "loam_waypoint_absent_total", &labels).unwrap_or_default())
        };
        ensure!(counted("refused")? >= 2.0 && counted("bypassed")? == 0.0, "{} refused", counted("refused")?);

        // Who would rather have connections than the waypoint says so, and each of them tells.
        mark(&scene, "istio.io/use-waypoint: waypoint", "loam.dev/waypoint-unavailable: pass")?;
        let endpoints = [near.at(TALK), far.at(TALK)];
        eventually(SHORT, || client.assert_reaches(vip, &endpoints))?;
        logged(&scene, &["waypoint.absent=\"waypoint_missing\"", "bytes_sent"])?;
        ensure!(counted("bypassed")? >= 1.0, "no connection is counted that went past the waypoint");
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn another_endpoint_of_a_waypoint_takes_what_one_does_not() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let waypoint = Waypoint::declare(lab, &scene, "waypoint")?;
        let serving: Vec<Process> = (0..2).map(|i| waypoint.start(&scene, i)).collect::<Result<_>>()?;
        bind(&scene, Some("waypoint"))?;
        wait_until_bound(&scene, &waypoint)?;
        let rate = scene.client.start_rate(&[scene.service.at(SERVICE)], 100, 120, "tries")?;
        let asked = |i: usize, at_least: usize| {
            eventually(LONG, || {
                let count = passed(&serving[i]).len();
                ensure!(count >= at_least, "endpoint {i} was asked {count} times only");
                Ok(())
            })
        };
        asked(0, 100)?;
        asked(1, 100)?;
        let begun = now_us();
        serving[0].kill()?;
        let moment = (begun, now_us());
        asked(1, passed(&serving[1]).len() + 300)?;
        let rate = finish(&rate)?;
        // What the dying process itself had accepted may fail with it, and nothing else.
        rate.assert_only_failed_across(&[moment])?;
        logged(&scene, &["tries=2", "bytes_sent"])
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn waypoints_are_switched_on_off_and_over_and_no_connection_notices() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let vip = scene.service.at(SERVICE);
        let waypoints = [Waypoint::declare(lab, &scene, "waypoint")?, Waypoint::declare(lab, &scene, "other")?];
        let serving: Vec<Process> = waypoints.iter().map(|w| w.start(&scene, 0)).collect::<Result<_>>()?;
        for waypoint in &waypoints {
            // Its other endpoint is not needed.
            scene.mesh.manifests().endpoints(&waypoint.service, &[&waypoint.pods[0]])?;
        }
        let direct = scene.client.start_pingpong(vip, "direct")?;
        let rate = scene.client.start_rate(&[vip], 200, 140, "switches")?;

        bind(&scene, Some("waypoint"))?;
        wait_until_bound(&scene, &waypoints[0])?;
        let through = scene.client.start_pingpong(vip, "through")?;
        for _ in 0..5 {
            bind(&scene, Some("other"))?;
            wait_until_bound(&scene, &waypoints[1])?;
            bind(&scene, None)?;
            wait_until_unbound(&scene, &waypoints[1])?;
            bind(&scene, Some("waypoint"))?;
            wait_until_bound(&scene, &waypoints[0])?;
        }
        bind(&scene, None)?;
        wait_until_unbound(&scene, &waypoints[0])?;
        finish(&rate)?.assert_all_ok()?;
        for serving in &serving {
            ensure!(passed(serving).len() > 20, "{} carried next to nothing", serving.name());
        }
        for connection in [direct, through] {
            let report: PingPong = connection.finish()?;
            ensure!(report.error.is_none(), "{} was cut: {report:?}", connection.name());
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn what_a_waypoint_protects_is_not_reached_past_it_and_the_refusal_names_it() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let Scene { client, far, outside, .. } = &scene;
        let (vip, pod) = (scene.service.at(SERVICE), far.at(TALK));
        let waypoint = Waypoint::declare(lab, &scene, "waypoint")?;
        let serving = waypoint.start(&scene, 0)?;
        bind(&scene, Some("waypoint"))?;
        wait_until_bound(&scene, &waypoint)?;
        client.assert_reaches(pod, &[pod])?;
        outside.assert_reaches(pod, &[pod])?;
        let past = client.start_pingpong(pod, "past")?;
        let through = client.start_pingpong(vip, "through")?;

        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: demo\n  \
                      name: guard\nspec:\n  targetRefs:\n  - kind: Service\n    group: \"\"\n    name: talk\n  \
                      action: ALLOW\n  rules:\n  - {}\n";
        scene.mesh.manifests().write("policy.yaml", policy)?;
        // Who went past it is cut, and who comes again is refused; by way of it everything goes on.
        let cut: PingPong = past.report(SHORT)?;
        ensure!(cut.error.is_some(), "the connection past the waypoint goes on");
        assert_fails(client, pod, PATIENCE)?;
        assert_fails(outside, pod, PATIENCE)?;
        ensure!(by_way_of(&scene, &waypoint, vip)?, "{vip} is not reached by way of the waypoint");
        let required = ["reason=\"waypoint_required\"", &waypoint.named()];
        logged(&scene, &[&required[..], &["direction=\"inbound\""]].concat())?;
        logged(&scene, &[&required[..], &["direction=\"outbound\""]].concat())?;
        let asked = format!("/debug/authz?dst={pod}&source={}&source_ip={}", client.identity(), client.v4());
        let told: Value = serde_json::from_str(&scene.mesh.node_of(far)?.ztunnel().admin(&asked)?)?;
        ensure!(told["reason"] == "waypoint_required" && told["waypoints"][0] == waypoint.named().as_str(), "{told}");

        // Other ports of the pod are none of the service's.
        client.assert_transfers(far.at(ECHO), &["--order", "echo"])?;

        scene.mesh.manifests().remove("policy.yaml")?;
        eventually(SHORT, || client.assert_reaches(pod, &[pod]))?;
        let report: PingPong = through.finish()?;
        ensure!(report.error.is_none(), "the connection by way of the waypoint was cut: {report:?}");
        ensure!(!passed(&serving).is_empty(), "the waypoint was never asked");
        Ok(())
    });
}
