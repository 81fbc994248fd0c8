//! What happens to a mesh in its years, ten times in a row: nothing that has nothing to do with it fails, and nothing is
//! readable.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::bookshop::Bookshop;
use loam_tests::cluster::{Kubectl, NodeCaptures, PodState, Seen};
use loam_tests::eventually;
use loam_tests::load::Load;
use loam_tests::release::Release;
use loam_tests::tenant::{TALK, Tenant, calling, talking};
use loam_tests::testing::on_own_cluster;
use serde_json::json;

/// How often each thing happens.
const TIMES: usize = 10;
/// Longest boot of a node, and longest way back of everything on it.
const BOOT: Duration = Duration::from_secs(240);
/// Until what happened is known everywhere.
const KNOWN: Duration = Duration::from_secs(60);
/// Requests of one visitor.
const REQUESTS: u32 = 30;

/// A server on each of `nodes`, and a service that leads to all of them. The service comes last.
fn servers(tenant: &Tenant<'_>, nodes: &[String]) -> Result<Vec<SocketAddr>> {
    // It is known to all long before the first of its pods runs.
    tenant.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "talk"},
        "spec": {"selector": {"talks": "yes"}, "ports": [{"port": TALK}]},
    }))?;
    for node in nodes {
        tenant.pod(&server(node), node, &[talking("server")])?;
        tenant.run(&["label", "pod", &server(node), "talks=yes"])?;
    }
    let mut to = Vec::new();
    for node in nodes {
        to.push(SocketAddr::new(tenant.captured(&server(node))?, TALK));
    }
    let service = tenant.run(&["get", "service", "talk", "--output=jsonpath={.spec.clusterIP}"])?;
    to.push(SocketAddr::new(service.parse().with_context(|| format!("the service is at {service:?}"))?, TALK));
    Ok(to)
}

fn server(node: &str) -> String {
    format!("server-{node}")
}

/// Does `work` under load from every node, with every packet looked at; an error when a connection failed or was
/// readable.
fn under_load(
    kubectl: &Kubectl,
    cluster: &Seen,
    work: impl FnOnce(&Release<'_>, &Tenant<'_>, &[SocketAddr]) -> Result<()>,
) -> Result<()> {
    let release = Release::install(kubectl)?;
    let tenant = Tenant::enter(kubectl, "soak-e2e")?;
    let nodes = cluster.nodes();
    let to = servers(&tenant, &nodes)?;
    let captures = NodeCaptures::start(cluster)?;
    let load = Load::start(tenant, cluster, &nodes, &to)?;
    let done = work(&release, &tenant, &to);
    // Both may fail, and the first says more.
    let carried = load.end();
    done?;
    carried?.success()?;
    captures.finish()?.assert_no_plaintext()?;
    let restarted: Vec<_> = tenant.states()?.into_iter().filter(|pod| pod.restarts > 0).collect();
    ensure!(restarted.is_empty(), "containers were started again: {restarted:?}");
    tenant.leave()
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --e2e --soak"]
fn ten_rollouts_of_the_nodes_fail_no_connection_and_end_none() {
    on_own_cluster(|kubectl, cluster| {
        under_load(kubectl, cluster, |release, _, _| {
            for round in 1..=TIMES {
                release.replace_nodes().with_context(|| format!("rollout {round}"))?;
            }
            let restarted: Vec<_> = release.node_pods()?.into_iter().filter(|(_, restarts)| *restarts > 0).collect();
            ensure!(restarted.is_empty(), "containers of the mesh were started again: {restarted:?}");
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --e2e --soak"]
fn ten_kills_of_the_agents_fail_no_connection_and_pods_start_in_the_mesh_after_each() {
    on_own_cluster(|kubectl, cluster| {
        under_load(kubectl, cluster, |release, tenant, to| {
            let before = release.node_pods()?;
            for round in 1..=TIMES {
                for node in cluster.nodes() {
                    // The one before may not be started again yet.
                    let kill = ["pkill", "-9", "-f", "^/usr/local/bin/loam-agent run"];
                    eventually(KNOWN, || cluster.run_inside(&node, &kill))?;
                }
                for node in cluster.nodes() {
                    let (pod, to) = (format!("after-{round}-{node}"), to[round % to.len()]);
                    tenant.pod(&pod, &node, &[calling("call", to, "after")])?;
                    tenant.served(&pod, "call").with_context(|| format!("kill {round}"))?;
                }
            }
            ensure!(release.node_pods()? == before, "more than the agents was started again");
            Ok(())
        })
    });
}

/// Waits until a node is as the API server should see it.
fn node_is(kubectl: &Kubectl, node: &str, ready: bool) -> Result<()> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    eventually(BOOT, || {
        let status = kubectl.run(&["get", "node", node, "--output", path])?;
        ensure!((status == "True") == ready, "{node} is ready: {status}");
        Ok(())
    })
}

/// Waits until every pod of the shop on `node` was started again, since its object speaks of the time before until then.
fn is_back(shop: &Bookshop<'_>, node: &str, before: &[PodState]) -> Result<()> {
    eventually(BOOT, || {
        for pod in shop.pods()? {
            let former = before.iter().find(|former| former.uid == pod.uid);
            let is_again = pod.node != node || former.is_none_or(|former| pod.restarts > former.restarts);
            ensure!(is_again && pod.ready && pod.captured, "it is not back: {pod:?}");
        }
        Ok(())
    })
}

/// A visitor on every node, each of whom is served every time.
fn visit_from_everywhere(shop: &Bookshop<'_>) -> Result<()> {
    for node in shop.nodes()? {
        shop.visit(&node, REQUESTS)?.success().with_context(|| format!("the visitor on {node}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --e2e --soak"]
fn a_node_that_lost_its_power_ten_times_is_in_the_mesh_after_each_and_others_notice_nothing() {
    on_own_cluster(|kubectl, cluster| {
        let release = Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "soak-e2e")?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        let nodes = cluster.nodes();
        let [lost, other] = &nodes[..] else { anyhow::bail!("this test is for two nodes, and there are {nodes:?}") };
        // What has nothing to do with the node that is lost.
        let near = tenant.server("near", other)?;
        let load = Load::start(tenant, cluster, std::slice::from_ref(other), &[near])?;
        let done = (1..=TIMES).try_for_each(|round| -> Result<()> {
            let before = shop.pods()?;
            cluster.switch_off(lost)?;
            // Now and then it is back before anybody noticed.
            if round % 2 == 0 {
                node_is(kubectl, lost, false)?;
            }
            cluster.switch_on(lost)?;
            let captures = eventually(BOOT, || NodeCaptures::start(cluster))?;
            is_back(&shop, lost, &before)?;
            node_is(kubectl, lost, true)?;
            release.wait_until_ready()?;
            // Until other nodes know its pods by their new addresses.
            eventually(KNOWN, || visit_from_everywhere(&shop))?;
            visit_from_everywhere(&shop).with_context(|| format!("after loss {round}"))?;
            let seen = captures.finish()?;
            ensure!(seen.dropped == 0, "the captures lost {} packets and prove nothing", seen.dropped);
            let ends: Vec<_> = shop.pods()?.into_iter().flat_map(|pod| pod.addresses).collect();
            let (readable, example) = seen.readable_between(&ends);
            ensure!(readable == 0, "{readable} packets of HTTP were readable after loss {round}: {example}");
            Ok(())
        });
        let carried = load.end();
        done?;
        carried?.success()?;
        shop.close()?;
        tenant.leave()
    });
}
