//! Which endpoint a connection is given, and what callers notice when endpoints die, leave or pass their address on.

#![allow(clippy::print_stdout, reason = "a run shows its figures")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use loam_tests::manifests::{Manifests, PodFacts, Service};
use loam_tests::mesh::{Mesh, MeshNode, Options};
use loam_tests::metrics::sum;
use loam_tests::process::{Process, SIGTERM};
use loam_tests::report::{PingPong, Rate, now_us};
use loam_tests::scene::{LONG, SERVICE, SHORT, TALK, serve};
use loam_tests::{Lab, Pod, eventually, in_lab};
use serde_json::Value;

/// A caller on the first node and a service over pods on both.
struct Cast {
    mesh: Mesh,
    client: Pod,
    pods: Vec<Pod>,
    servers: Vec<Process>,
    service: Service,
}

impl Cast {
    /// With an endpoint for each of `nodes`, called `api-0` and so on.
    fn enrolled(lab: &Lab, nodes: &[usize]) -> Result<Self> {
        let client = lab.node(0).pod("client", "demo", "client")?;
        serve(&client)?;
        let api = |(i, node): (usize, &usize)| lab.node(*node).pod(&format!("api-{i}"), "demo", "server");
        let pods: Vec<Pod> = nodes.iter().enumerate().map(api).collect::<Result<_>>()?;
        let servers = pods.iter().map(serve).collect::<Result<_>>()?;
        let options = Options { ztunnel: vec!["--log-format".into(), "json".into()], ..Options::default() };
        let mesh = Mesh::start_with(lab, &options)?;
        let all: Vec<&Pod> = pods.iter().collect();
        let service = mesh.manifests().service("demo", "api", &[(SERVICE, TALK)], &all)?;
        mesh.enrol(&[&[&client][..], &all[..]].concat())?;
        let cast = Self { mesh, client, pods, servers, service };
        // Every tunnel is up before a test begins.
        let everyone: Vec<SocketAddr> = cast.pods.iter().map(|pod| pod.at(TALK)).collect();
        everyone.iter().try_for_each(|to| cast.client.assert_reaches(*to, &[*to]))?;
        cast.client.assert_reaches(cast.vip(), &everyone)?;
        Ok(cast)
    }

    fn vip(&self) -> SocketAddr {
        self.service.at(SERVICE)
    }

    fn callers_node(&self) -> &MeshNode {
        self.mesh.node(0)
    }

    /// Connections that the caller's node opened to an endpoint so far.
    fn opened(&self, pod: &Pod) -> Result<f64> {
        let labels = ["reporter=\"source\"", &format!("destination_canonical_service=\"{}\"", pod.name())];
        let text = self.callers_node().ztunnel().metrics()?;
        Ok(sum(&text, "istio_tcp_connections_opened_total", &labels).unwrap_or_default())
    }

    /// Waits until `pod` is given connections.
    fn wait_until_used(&self, pod: &Pod) -> Result<()> {
        let before = self.opened(pod)?;
        eventually(LONG, || {
            ensure!(self.opened(pod)? > before, "{} is given no connection", pod.name());
            Ok(())
        })
    }
}

fn finish(rate: &Process) -> Result<Rate> {
    rate.signal(SIGTERM)?;
    let rate: Rate = rate.report(LONG)?;
    println!("{}", rate.summary());
    Ok(rate)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn an_endpoint_dies_and_no_caller_sees_an_error() {
    in_lab(|lab| {
        let mut cast = Cast::enrolled(lab, &[0, 1, 1])?;
        let rate = cast.client.start_rate(&[cast.vip()], 300, 120, "dies")?;
        cast.wait_until_used(&cast.pods[1])?;
        let mut moments = Vec::new();
        for i in [1, 0] {
            let begun = now_us();
            cast.servers[i].kill()?;
            moments.push((begun, now_us()));
            let before = cast.opened(&cast.pods[2])?;
            eventually(SHORT, || {
                ensure!(cast.opened(&cast.pods[2])? > before + 600.0, "the last endpoint is not used");
                Ok(())
            })?;
            cast.servers[i] = serve(&cast.pods[i])?;
            // It is set aside for a while, and then it is found to be back.
            cast.wait_until_used(&cast.pods[i])?;
        }
        let rate = finish(&rate)?;
        // What the dying process itself had accepted may fail with it, and nothing else.
        rate.assert_only_failed_across(&moments)?;
        ensure!(rate.attempts > 1000, "{}", rate.summary());

        let ztunnel = cast.callers_node().ztunnel();
        let metrics = ztunnel.metrics()?;
        let counted = |name| sum(&metrics, name, &[]).unwrap_or_default();
        ensure!(counted("loam_endpoint_spells_total") >= 2.0, "no endpoint was set aside");
        ensure!(counted("loam_connection_retries_total") >= 3.0, "no connection was tried again");
        let complete = |line: &Value| line["message"] == "connection complete" && line["direction"] == "outbound";
        let lines = cast.mesh.ztunnel_logs().into_iter().filter_map(|(_, l)| serde_json::from_str::<Value>(&l).ok());
        let retried: Vec<Value> = lines.filter(|l| complete(l) && l.get("tries").is_some()).collect();
        ensure!(!retried.is_empty(), "no line tells of more than one try");
        for line in retried {
            ensure!(line.get("error").is_none() && line["tries"].as_u64() >= Some(2), "{line}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn the_node_of_an_endpoint_falls_silent_and_callers_see_no_more_than_a_pause() {
    in_lab(|lab| {
        let cast = Cast::enrolled(lab, &[0, 1])?;
        let rate = cast.client.start_rate(&[cast.vip()], 200, 120, "silent")?;
        cast.wait_until_used(&cast.pods[1])?;
        let begun = now_us();
        lab.node(1).run(&["ip", "link", "set", "eth0", "down"])?.success()?;
        let moment = (begun, now_us());
        let before = cast.opened(&cast.pods[0])?;
        eventually(SHORT, || {
            ensure!(cast.opened(&cast.pods[0])? > before + 2000.0, "the other endpoint is not used");
            Ok(())
        })?;
        let rate = finish(&rate)?;
        rate.assert_only_failed_across(&[moment])?;
        ensure!(rate.latency_us.max < 5_000_000, "a caller waited too long: {}", rate.summary());
        ensure!(rate.latency_us.p50 < 100_000, "most callers waited: {}", rate.summary());
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_terminating_endpoint_is_given_nothing_a_second_after_the_change_and_keeps_what_it_has() {
    in_lab(|lab| {
        let cast = Cast::enrolled(lab, &[0, 1])?;
        let [_, leaving] = &cast.pods[..] else { unreachable!("there are two") };
        let established = cast.client.start_pingpong(leaving.at(TALK), "stays")?;
        let rate = cast.client.start_rate(&[cast.vip()], 300, 120, "leaves")?;
        cast.wait_until_used(leaving)?;

        let text = Manifests::pod_text(leaving, &PodFacts::default());
        let going = "metadata:\n  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n  deletionGracePeriodSeconds: 3600\n";
        let file = format!("pod-{}-{}.yaml", leaving.namespace(), leaving.name());
        cast.mesh.manifests().write(&file, &text.replacen("metadata:\n", going, 1))?;
        let changed = Instant::now();
        let mut late = None;
        while changed.elapsed() < Duration::from_secs(5) {
            // The clock first: what is counted then came before it was read or a little later, never earlier.
            let at = changed.elapsed();
            let opened = cast.opened(leaving)?;
            match late {
                None if at >= Duration::from_secs(1) => late = Some(opened),
                Some(then) => ensure!(opened <= then, "{} new connections {at:?} after the change", opened - then),
                None => {}
            }
        }
        ensure!(late.is_some(), "nothing was observed");
        finish(&rate)?.assert_all_ok()?;
        let established: PingPong = established.finish()?;
        ensure!(established.error.is_none(), "an established connection was cut: {established:?}");
        Ok(())
    });
}

/// What the caller's node has open towards other pods.
fn tunnels(node: &MeshNode) -> Result<u64> {
    let answer: Value = serde_json::from_str(&node.ztunnel().admin("/debug/tunnels")?)?;
    answer["tunnels"].as_u64().context("no number of tunnels")
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn an_address_that_passes_to_another_workload_is_reached_as_that_and_old_tunnels_are_gone() {
    in_lab(|lab| {
        let cast = Cast::enrolled(lab, &[1])?;
        let old = &cast.pods[0];
        let address = old.v4();
        let node = cast.callers_node();
        eventually(SHORT, || {
            ensure!(tunnels(node)? > 0, "no tunnel");
            Ok(())
        })?;
        // It disappears from the network first, so that no goodbye reaches the caller's node.
        lab.node(1).run(&["ip", "link", "set", old.veth(), "down"])?.success()?;
        cast.mesh.manifests().endpoints(&cast.service, &[])?;
        cast.mesh.manifests().remove_pod(old)?;
        eventually(Duration::from_secs(5), || {
            ensure!(tunnels(node)? == 0, "{} tunnels to a workload that is gone", tunnels(node)?);
            Ok(())
        })?;
        old.vanish()?;
        cast.mesh.wait_until_forgotten(&[old])?;

        let new = lab.node(1).pod("other", "demo", "other")?;
        let own = format!("{}/24", new.v4());
        new.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?.success()?;
        new.run(&["ip", "addr", "del", &own, "dev", "eth0"])?.success()?;
        // The deletion takes the next address of the range with it unless it was made the first one.
        let _ = new.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        let _ = new.run(&["ip", "route", "add", "default", "via", &gateway(address), "dev", "eth0"])?;
        serve(&new)?;
        let facts = PodFacts { addresses: Some(vec![address.into()]), ..PodFacts::default() };
        cast.mesh.manifests().pod_with(&new, &facts)?;
        cast.mesh.wait_for_state(&[&new], "enrolled")?;
        let to = SocketAddr::new(address.into(), TALK);
        eventually(SHORT, || cast.client.assert_reaches(to, &[to]))?;
        let proven = |line: &Value| {
            line["message"] == "connection complete"
                && line["direction"] == "outbound"
                && line["dst.identity"] == new.identity().as_str()
        };
        eventually(SHORT, || {
            let lines = cast.mesh.ztunnel_logs();
            let mut lines = lines.iter().filter_map(|(_, line)| serde_json::from_str::<Value>(line).ok());
            ensure!(lines.any(|line| proven(&line)), "no connection proved to reach {}", new.identity());
            Ok(())
        })
    });
}

/// The router of a pod's range, which is its first address.
fn gateway(address: std::net::Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!("{a}.{b}.{c}.1")
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_caller_stays_with_its_endpoint_when_the_service_says_so_also_across_ztunnels() {
    in_lab(|lab| {
        let cast = Cast::enrolled(lab, &[0, 1, 1])?;
        let endpoints: Vec<SocketAddr> = cast.pods.iter().map(|pod| pod.at(TALK)).collect();
        let used = |calls: usize| -> Result<BTreeSet<SocketAddr>> {
            let probe = |_| {
                let probe = cast.client.probe(cast.vip())?;
                Ok(probe.server.with_context(|| probe.error.unwrap_or_default())?.local)
            };
            (0..calls).map(probe).collect()
        };
        eventually(SHORT, || {
            let used = used(12)?;
            ensure!(used.len() > 1, "{used:?}: connections do not spread");
            Ok(())
        })?;

        let file = "service-demo-api.yaml";
        let text = cast.mesh.manifests().read(file)?;
        let sticky = text.replacen("spec:\n", "spec:\n  sessionAffinity: ClientIP\n", 1);
        cast.mesh.manifests().write(file, &sticky)?;
        let home = eventually(SHORT, || {
            let used = used(12)?;
            ensure!(used.len() == 1, "the caller was given {used:?}");
            used.into_iter().next().context("at least one")
        })?;
        ensure!(endpoints.contains(&home), "{home} is no endpoint");

        cast.callers_node().replace_ztunnel()?;
        ensure!(used(12)? == [home].into(), "the next ztunnel gives another endpoint");

        // Its endpoint dies: the caller is given another one, and stays with that.
        let at = endpoints.iter().position(|endpoint| *endpoint == home).context("known")?;
        cast.servers[at].kill()?;
        let next = used(12)?;
        ensure!(next.len() == 1 && !next.contains(&home), "{next:?} instead of {home}");
        Ok(())
    });
}
