//! The mesh on a Kubernetes cluster, installed by the chart: the bookshop comes into it, lives in it and leaves it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::bookshop::{self, Bookshop};
use loam_tests::cluster::{Forward, Kubectl, NodeCaptures, Seen};
use loam_tests::eventually;
use loam_tests::load::Load;
use loam_tests::release::Release;
use loam_tests::report::Captured;
use loam_tests::tenant::{Tenant, calling};
use loam_tests::testing::{on_cluster, on_own_cluster};
use serde_json::{Value, json};

/// Until what happened is known everywhere.
const KNOWN: Duration = Duration::from_secs(60);
/// Requests of one visitor.
const REQUESTS: u32 = 30;

/// Runs `work` and gives what passed the nodes meanwhile.
fn watched(cluster: &Seen, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
    let captures = NodeCaptures::start(cluster)?;
    work()?;
    let seen = captures.finish()?;
    ensure!(seen.dropped == 0, "the captures lost {} packets and prove nothing", seen.dropped);
    Ok(seen)
}

/// A visitor on every node, each of whom is served every time.
fn visit_from_everywhere(shop: &Bookshop<'_>) -> Result<()> {
    for node in shop.nodes()? {
        let visit = shop.visit(&node, REQUESTS)?;
        visit.success().with_context(|| format!("the visitor on {node}"))?;
        ensure!(visit.reviewed_by.len() == 3, "not every version of reviews took part: {visit:?}");
    }
    Ok(())
}

/// Every address of the shop's pods.
fn addresses(shop: &Bookshop<'_>) -> Result<Vec<IpAddr>> {
    Ok(shop.pods()?.into_iter().flat_map(|pod| pod.addresses).collect())
}

/// What must not change when the mesh comes and goes.
fn identity(shop: &Bookshop<'_>) -> Result<Vec<(String, String)>> {
    Ok(shop.pods()?.into_iter().map(|pod| (pod.name, pod.uid)).collect())
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_labelled_bookshop_speaks_in_mutual_tls_and_in_the_clear_again_without_the_label() {
    on_own_cluster(|kubectl, cluster| {
        let release = Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        ensure!(shop.nodes()?.len() > 1, "all pods are on one node, so nothing goes from node to node");
        let (ends, before) = (addresses(&shop)?, identity(&shop)?);
        eventually(KNOWN, || visit_from_everywhere(&shop))?;
        let plain = watched(cluster, || visit_from_everywhere(&shop))?;
        ensure!(plain.readable_between(&ends).0 > 0, "the captures see no HTTP even without the mesh");

        shop.enrol(true)?;
        let meshed = watched(cluster, || visit_from_everywhere(&shop))?;
        let (readable, example) = meshed.readable_between(&ends);
        ensure!(readable == 0, "{readable} packets of HTTP were readable: {example}");
        let tunnelled = meshed.payload_bytes.get(&15008).copied().unwrap_or_default();
        ensure!(tunnelled > 0, "no tunnel was at work: {:?}", meshed.payload_bytes);
        let identity_of = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", bookshop::NAMESPACE);
        let (from, to) = (identity_of("bookinfo-reviews"), identity_of("bookinfo-ratings"));
        let logs = release.proxy_logs()?;
        let names_both = |line: &str| line.contains(&from) && line.contains(&to);
        ensure!(logs.lines().any(names_both), "no line of the access logs names {from} and {to}");

        shop.enrol(false)?;
        let after = watched(cluster, || visit_from_everywhere(&shop))?;
        ensure!(after.readable_between(&ends).0 > 0, "it is still not in the clear");
        ensure!(identity(&shop)? == before, "pods were made anew");
        ensure!(shop.restarts()? == 0, "a container was started again");
        shop.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn logs_commands_and_forwarded_ports_of_captured_pods_work_as_ever() {
    on_cluster(|kubectl| {
        Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        let pods = shop.pods()?;
        let page = pods.iter().find(|pod| pod.name.starts_with("productpage")).context("the page has no pod")?;
        let place = ["--namespace", bookshop::NAMESPACE];
        let logs = kubectl.run(&[&place[..], &["logs", &page.name]].concat())?;
        ensure!(logs.contains("productpage listens on"), "the log is {logs:?}");
        let version = kubectl.run(&[&place[..], &["exec", &page.name, "--", "loam-bookinfo", "--version"]].concat())?;
        ensure!(version.starts_with("loam-bookinfo"), "the command said {version:?}");
        let answer = through_a_forwarded_port(&page.name, 9080)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the forwarded port answered {answer:?}");
        shop.close()
    });
}

/// The start of the answer to a request for /health.
fn through_a_forwarded_port(pod: &str, port: u16) -> Result<String> {
    let forward = Forward::to(bookshop::NAMESPACE, pod, port)?;
    let mut stream = TcpStream::connect(forward.address())?;
    stream.set_read_timeout(Some(KNOWN))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

/// A second page as a StatefulSet behind a headless service, with a service account of its own by default.
fn stateful_page() -> Result<Value> {
    let labels = json!({"app": "stateful"});
    let metadata = json!({"name": "stateful", "namespace": bookshop::NAMESPACE});
    let security = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"clusterIP": "None", "selector": labels, "ports": [{"name": "http", "port": 9080}]},
        },
        {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata,
            "spec": {
                "serviceName": "stateful", "replicas": 2, "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "page", "image": bookshop::image()?, "imagePullPolicy": "IfNotPresent",
                        "args": ["productpage"], "securityContext": security,
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 9080}, "periodSeconds": 1},
                    }],
                }},
            },
        },
    ]}))
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn services_headless_services_and_pods_of_a_stateful_set_are_reached_by_their_names() {
    on_cluster(|kubectl| {
        Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        kubectl.run_with_input(&["apply", "--filename=-"], &stateful_page()?.to_string())?;
        let place = ["--namespace", bookshop::NAMESPACE];
        kubectl.run(&[&place[..], &["rollout", "status", "statefulset/stateful", "--timeout=60s"]].concat())?;
        let node = shop.nodes()?.into_iter().next().context("no pods")?;
        for name in [
            "productpage",
            "productpage.bookinfo",
            "stateful.bookinfo.svc.cluster.local",
            "stateful-0.stateful",
            "stateful-1.stateful.bookinfo",
        ] {
            eventually(KNOWN, || shop.send(&node, &format!("{name}:9080"), 10, 1)?.ended()?.success())
                .with_context(|| format!("by the name {name}"))?;
        }
        shop.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_job_in_the_mesh_completes() {
    on_cluster(|kubectl| {
        Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        let url = format!("http://productpage.{}:9080/productpage", bookshop::NAMESPACE);
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "reader", "namespace": bookshop::NAMESPACE},
            "spec": {"backoffLimit": 0, "completions": 3, "parallelism": 1, "template": {"spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "reader", "image": bookshop::image()?, "imagePullPolicy": "IfNotPresent",
                    "args": ["traffic", "--url", url, "--rate", "10", "--seconds", "1"],
                }],
            }}},
        });
        kubectl.apply(&job.to_string())?;
        eventually(2 * KNOWN, || {
            let get =
                ["get", "job", "reader", "--namespace", bookshop::NAMESPACE, "--output=jsonpath={.status.succeeded}"];
            let succeeded = kubectl.run(&get)?;
            ensure!(succeeded == "3", "{succeeded:?} of 3 pods of the Job succeeded");
            Ok(())
        })?;
        shop.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn an_upgrade_and_a_rollback_fail_no_request_and_start_no_pod_again() {
    on_cluster(|kubectl| {
        let release = Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        let (before, proxies) = (identity(&shop)?, release.node_pods()?);
        let address = format!("productpage.{}:9080", bookshop::NAMESPACE);
        let nodes = shop.nodes()?;
        let visitors: Vec<_> = nodes.iter().map(|node| shop.send(node, &address, 20, 60)).collect::<Result<_>>()?;
        visitors.iter().try_for_each(|visitor| visitor.wait_until_under_way())?;
        release.upgrade(&["log.level=info\\,loam_ztunnel=debug"])?;
        let upgraded = release.node_pods()?;
        ensure!(upgraded.iter().all(|pod| !proxies.contains(pod)), "the upgrade left {upgraded:?} as they were");
        release.roll_back()?;
        for visitor in visitors {
            visitor.ended()?.success()?;
        }
        let restarted: Vec<_> = release.node_pods()?.into_iter().filter(|(_, restarts)| *restarts > 0).collect();
        ensure!(restarted.is_empty(), "containers of the mesh were started again: {restarted:?}");
        ensure!(identity(&shop)? == before && shop.restarts()? == 0, "the upgrade touched the shop's pods");
        shop.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn killed_agents_and_keepers_fail_no_request_and_pods_stay_captured() {
    on_own_cluster(|kubectl, cluster| {
        let release = Release::install(kubectl)?;
        let shop = Bookshop::open(kubectl)?;
        shop.enrol(true)?;
        let (nodes, ends) = (shop.nodes()?, addresses(&shop)?);
        let address = format!("productpage.{}:9080", bookshop::NAMESPACE);
        let send = |node: &String| shop.send(node, &address, 20, 40);
        let visitors: Vec<_> = nodes.iter().map(send).collect::<Result<_>>()?;
        visitors.iter().try_for_each(|visitor| visitor.wait_until_under_way())?;
        let seen = watched(cluster, || {
            for program in ["^/usr/local/bin/loam-agent run", "^/usr/local/bin/loam-agent keeper"] {
                for node in &nodes {
                    cluster.run_inside(node, &["pkill", "-9", "-f", program])?;
                    eventually(KNOWN, || cluster.run_inside(node, &["pgrep", "-f", program]))
                        .with_context(|| format!("{program} on {node} is not started again"))?;
                }
                release.wait_until_ready()?;
            }
            visitors.into_iter().try_for_each(|visitor| visitor.ended()?.success())
        })?;
        let (readable, example) = seen.readable_between(&ends);
        ensure!(readable == 0, "{readable} packets of HTTP were readable: {example}");
        ensure!(shop.restarts()? == 0, "a container of the shop was started again");
        shop.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn controllers_that_are_replaced_fail_no_connection_and_no_proxy_starts_again() {
    on_own_cluster(|kubectl, cluster| {
        let release = Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "controllers-e2e")?;
        let nodes = cluster.nodes();
        let servers: Vec<_> =
            nodes.iter().map(|node| tenant.server(&format!("server-{node}"), node)).collect::<Result<_>>()?;
        let proxies = release.node_pods()?;
        let load = Load::start(tenant, cluster, &nodes, &servers)?;
        let done = (1..=3).try_for_each(|round| -> Result<()> {
            release.replace_controller()?;
            // What changes reaches the proxies from the new one: a pod that nobody knew is in the mesh.
            for (node, to) in nodes.iter().zip(servers.iter().rev()) {
                let pod = format!("after-{round}-{node}");
                tenant.pod(&pod, node, &[calling("call", *to, "after")])?;
                tenant.served(&pod, "call").with_context(|| format!("after controller {round}"))?;
            }
            Ok(())
        });
        // Both may fail, and the first says more.
        let carried = load.end();
        done?;
        carried?.success()?;
        ensure!(release.node_pods()? == proxies, "the proxies are {:?} and were {proxies:?}", release.node_pods()?);
        tenant.leave()
    });
}

/// Everything on the nodes that the mesh may have changed.
fn look_at_nodes(cluster: &Seen) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for node in cluster.nodes() {
        for (what, script) in [
            ("pinned programs", "ls /sys/fs/bpf"),
            ("run directory", "ls /run | grep loam || true"),
            ("CNI plugins", "ls -l /opt/cni/bin"),
            ("CNI chain", "head -c 100000 /etc/cni/net.d/*"),
            ("rules", "ip rule; ip -6 rule; ip route show table all type local | grep -v table.local || true"),
        ] {
            let text = cluster.run_inside(&node, &["sh", "-c", script])?;
            found.insert(format!("{what} of {node}"), text);
        }
    }
    Ok(found)
}

/// Rules and switches in the network namespaces of the shop's pods.
fn look_at_pods(cluster: &Seen, kubectl: &Kubectl) -> Result<String> {
    let path = r#"jsonpath={range .items[*]}{.spec.nodeName} {.metadata.uid}{"\n"}{end}"#;
    let pods = kubectl.run(&["get", "pods", "--namespace", bookshop::NAMESPACE, "--output", path])?;
    let mut found = String::new();
    for (node, uid) in pods.lines().filter_map(|line| line.split_once(' ')) {
        // Any process in a cgroup of the pod; with the driver cgroupfs it has the pod's uid in its path.
        let script = format!(
            "for p in /proc/[0-9]*; do grep -q {uid} $p/cgroup 2>/dev/null && pid=${{p#/proc/}}; done; \
             nsenter --target $pid --net sh -c 'ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
             cd /proc/sys/net; grep . ipv4/tcp_fwmark_accept ipv4/fwmark_reflect'"
        );
        found.push_str(&cluster.run_inside(node, &["sh", "-c", &script]).with_context(|| format!("pod {uid}"))?);
    }
    Ok(found)
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn an_uninstalled_mesh_leaves_nothing_on_the_nodes_and_traffic_as_it_was() {
    on_own_cluster(|kubectl, cluster| {
        // What an earlier test installed may have come before anybody looked.
        Release::install(kubectl)?.uninstall()?;
        let shop = Bookshop::open(kubectl)?;
        let (ends, identity_before) = (addresses(&shop)?, identity(&shop)?);
        let before = (look_at_nodes(cluster)?, look_at_pods(cluster, kubectl)?);
        let release = Release::install(kubectl)?;
        shop.enrol(true)?;
        visit_from_everywhere(&shop)?;
        ensure!(look_at_nodes(cluster)? != before.0, "the looks see nothing of the mesh");
        // The label is still there: what is gone must not be needed.
        release.uninstall()?;
        let captured: Vec<_> = shop.pods()?.into_iter().filter(|pod| pod.captured).collect();
        ensure!(captured.is_empty(), "the objects of pods still say that they are captured: {captured:?}");
        let after = (look_at_nodes(cluster)?, look_at_pods(cluster, kubectl)?);
        ensure!(after == before, "something is left.\nbefore: {before:#?}\nafter: {after:#?}");
        // Pods that could not be probed for a moment are endpoints again.
        eventually(KNOWN, || visit_from_everywhere(&shop))?;
        let plain = watched(cluster, || visit_from_everywhere(&shop))?;
        ensure!(plain.readable_between(&ends).0 > 0, "the captures see no HTTP");
        ensure!(identity(&shop)? == identity_before && shop.restarts()? == 0, "the mesh touched the shop's pods");
        shop.close()
    });
}
