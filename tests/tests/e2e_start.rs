//! Pods that begin in the mesh: what their first process says first is not readable, with and without an agent on the
//! node.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::{Kubectl, NodeCaptures};
use loam_tests::eventually;
use loam_tests::release::{self, Release};
use loam_tests::tenant::{SETTLE, TALK, Tenant, calling, talking};
use loam_tests::testing::on_own_cluster;
use serde_json::Value;

/// Pods that are made at a time on each node.
const PODS: usize = 4;
/// A node has this label while it may have an agent.
const HERE: &str = "loam.dev/e2e";

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn what_pods_say_first_and_in_their_init_containers_is_not_readable() {
    on_own_cluster(|kubectl, cluster| {
        Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "start-e2e")?;
        let nodes = cluster.nodes();
        let server = |node: &String| tenant.server(&format!("server-{node}"), node);
        let servers: Vec<SocketAddr> = nodes.iter().map(server).collect::<Result<_>>()?;
        let captures = NodeCaptures::start(cluster)?;
        let names =
            |node: &String| -> Vec<String> { (0..PODS).map(|number| format!("early-{node}-{number}")).collect() };
        for node in &nodes {
            for (number, name) in names(node).iter().enumerate() {
                let to = servers[number % servers.len()];
                tenant.pod_with(name, node, &[calling("init", to, "init")], &[calling("main", to, "main")])?;
            }
        }
        for name in nodes.iter().flat_map(names) {
            for container in ["init", "main"] {
                tenant.served(&name, container)?;
            }
        }
        captures.finish()?.assert_no_plaintext()?;
        tenant.leave()
    });
}

/// How often a pod could not be made because nobody answered the plugin.
fn refusals(tenant: &Tenant<'_>, pod: &str) -> Result<u64> {
    let selector = format!("--field-selector=involvedObject.name={pod},reason=FailedCreatePodSandBox");
    let list: Value = serde_json::from_str(&tenant.run(&["get", "events", &selector, "--output=json"])?)?;
    let events = list["items"].as_array().context("kubectl gave no list of events")?;
    let remedy = "see that the Loam agent runs on this node";
    let ours = events.iter().filter(|event| event["message"].as_str().is_some_and(|text| text.contains(remedy)));
    Ok(ours.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

/// Lets a node have an agent, or waits until it has none.
fn allow_agent(kubectl: &Kubectl, node: &str, allowed: bool) -> Result<()> {
    let label = if allowed { format!("{HERE}=here") } else { format!("{HERE}-") };
    kubectl.run(&["label", "--overwrite", "node", node, &label])?;
    let on_node = format!("--field-selector=spec.nodeName={node}");
    let get = ["get", "pods", "--namespace", release::NAMESPACE, "--selector=app=ztunnel", &on_node, "--output=name"];
    eventually(SETTLE, || {
        let left = kubectl.run(&get)?;
        ensure!(allowed || left.trim().is_empty(), "{node} still has {}", left.trim());
        Ok(())
    })
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_pod_that_is_made_while_its_node_has_no_agent_waits_and_then_starts_in_the_mesh() {
    on_own_cluster(|kubectl, cluster| {
        let nodes = cluster.nodes();
        let [here, there] = &nodes[..] else { anyhow::bail!("this test is for two nodes, and there are {nodes:?}") };
        for node in &nodes {
            allow_agent(kubectl, node, true)?;
        }
        let release = Release::install(kubectl)?;
        release.upgrade(&[&format!("node.nodeSelector.{}=here", HERE.replace('.', "\\."))])?;
        let tenant = Tenant::enter(kubectl, "start-e2e")?;
        let far = tenant.server("far", there)?;
        allow_agent(kubectl, here, false)?;

        let captures = NodeCaptures::start(cluster)?;
        tenant.pod_with("late", here, &[calling("first", far, "first")], &[talking("late")])?;
        eventually(SETTLE, || {
            let refusals = refusals(&tenant, "late")?;
            ensure!(refusals >= 2, "it was refused {refusals} times: {:?}", tenant.state("late")?);
            Ok(())
        })?;
        let waiting = tenant.state("late")?;
        ensure!(waiting.phase == "Pending" && !waiting.captured, "it does not wait: {waiting:?}");

        allow_agent(kubectl, here, true)?;
        let late = SocketAddr::new(tenant.captured("late")?, TALK);
        tenant.served("late", "first")?;
        tenant.pod("near", there, &[calling("near", late, "near")])?;
        tenant.served("near", "near")?;
        captures.finish()?.assert_no_plaintext()?;
        ensure!(tenant.state("late")?.restarts == 0, "its containers were started more than once");
        tenant.leave()?;
        for node in &nodes {
            allow_agent(kubectl, node, true)?;
        }
        Release::install(kubectl).map(drop)
    });
}
