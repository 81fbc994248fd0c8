//! The kubelet's probes of pods that take nothing but mutual TLS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::{Kubectl, PodState, Seen};
use loam_tests::release::{self, Release};
use loam_tests::report::Probe;
use loam_tests::tenant::{SETTLE, TALK, Tenant, tool};
use loam_tests::testing::on_own_cluster;
use loam_tests::{bin, eventually, metrics};
use serde_json::{Value, json};

/// Where the other servers listen.
const HTTP: u16 = 8080;
const GRPC: u16 = 9000;
/// What a container of each name is probed by.
const KINDS: [&str; 4] = ["http", "tcp", "grpc", "exec"];
/// Probes of each kind that must succeed while nothing else is let in.
const PROBES: f64 = 5.0;
/// Until a policy has arrived everywhere.
const KNOWN: Duration = Duration::from_secs(60);

/// A pod on each of `nodes` nodes, in which each kind of probe has a container of its own, for all three ends.
fn probed(nodes: usize) -> Value {
    let servers = [
        tool("http", &["web", &format!("0.0.0.0:{HTTP}")]),
        tool("tcp", &["serve", "--talk", &TALK.to_string()]),
        tool("grpc", &["health", &format!("0.0.0.0:{GRPC}")]),
        tool("exec", &["serve", "--echo", "7001"]),
    ];
    let probes = [
        json!({"httpGet": {"path": "/", "port": HTTP}}),
        json!({"tcpSocket": {"port": TALK}}),
        json!({"grpc": {"port": GRPC}}),
        json!({"exec": {"command": ["loam-lab", "get", format!("http://127.0.0.1:{HTTP}/")]}}),
    ];
    let containers = servers.into_iter().zip(probes).map(|(mut container, mut probe)| {
        // A busy machine takes seconds to start a command in a container.
        (probe["periodSeconds"], probe["timeoutSeconds"]) = (2.into(), 10.into());
        for end in ["livenessProbe", "readinessProbe", "startupProbe"] {
            container[end] = probe.clone();
        }
        container["startupProbe"]["failureThreshold"] = 60.into();
        container
    });
    let labels = json!({"app": "probed"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "probed"},
        "spec": {
            "replicas": nodes,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": labels},
                }],
                "containers": containers.collect::<Vec<_>>(),
            }},
        },
    })
}

/// Does `work` while the whole mesh takes nothing but mutual TLS.
fn under_strict(kubectl: &Kubectl, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": release::NAMESPACE},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    kubectl.apply(&policy.to_string())?;
    let done = work();
    // Other tests must not meet it, whatever became of this one.
    kubectl.run(&["delete", "peerauthentication", "default", "--namespace", release::NAMESPACE])?;
    done
}

/// Whether a process of the pod's node, which is not the kubelet, is served at a port of each address of the pod.
fn serves_others(cluster: &Seen, pod: &PodState) -> Result<Vec<bool>> {
    let addresses = pod.addresses.iter().map(|ip| SocketAddr::new(*ip, TALK));
    let served = addresses.map(|to| -> Result<_> {
        let mut probe = cluster.beside(&pod.node, &bin::path("loam-lab")?)?;
        let output = probe.args(["probe", &to.to_string()]).output().context("start nsenter")?;
        let report: Probe = serde_json::from_slice(&output.stdout).context("read the report of the probe")?;
        Ok(report.server.is_some())
    });
    served.collect()
}

/// How many probes of a pod have succeeded, by container and by what they are for; an error when one has failed.
fn successes(kubectl: &Kubectl, pod: &PodState) -> Result<Vec<(String, f64)>> {
    let text = kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/metrics/probes", pod.node)])?;
    let count = |container: &str, end: &str, result: &str| {
        let labels = [("pod_uid", &*pod.uid), ("container", container), ("probe_type", end), ("result", result)];
        let labels = labels.map(|(name, value)| format!("{name}=\"{value}\""));
        metrics::sum(&text, "prober_probe_total", &labels.each_ref().map(|label| &**label)).unwrap_or_default()
    };
    let mut all = Vec::new();
    for (container, end) in KINDS.iter().flat_map(|kind| [(kind, "Liveness"), (kind, "Readiness")]) {
        let failed = count(container, end, "failed");
        ensure!(failed == 0.0, "{end} of {container} in {} failed {failed} times", pod.name);
        all.push((format!("{end} of {container} in {}", pod.name), count(container, end, "successful")));
    }
    Ok(all)
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn under_strict_every_kind_of_probe_succeeds_and_no_other_process_of_the_node_is_let_in() {
    on_own_cluster(|kubectl, cluster| {
        Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "probes-e2e")?;
        let nodes = cluster.nodes().len();
        let all_ready = || {
            let pods = tenant.states()?;
            let good = pods.iter().filter(|pod| pod.ready && pod.captured).count();
            ensure!(pods.len() == nodes && good == nodes, "not all are ready and captured: {pods:?}");
            Ok(pods)
        };
        under_strict(kubectl, || {
            tenant.apply(&probed(nodes))?;
            let pods = eventually(SETTLE, all_ready)?;
            for pod in &pods {
                eventually(KNOWN, || {
                    let served = serves_others(cluster, pod)?;
                    ensure!(!served.contains(&true), "{} serves whoever asks: {served:?}", pod.name);
                    Ok(())
                })?;
                let before = successes(kubectl, pod)?;
                eventually(SETTLE, || {
                    for ((what, had), (_, has)) in before.iter().zip(successes(kubectl, pod)?) {
                        ensure!(has >= had + PROBES, "{what} succeeded {} times more", has - had);
                    }
                    Ok(())
                })?;
            }
            let after = all_ready()?;
            ensure!(after == pods, "the pods were {pods:?} and are {after:?}");
            ensure!(after.iter().all(|pod| pod.restarts == 0), "containers were started again: {after:?}");
            Ok(())
        })?;
        // The same process is served where plaintext is allowed: what was refused above was refused by the policy.
        for pod in all_ready()? {
            eventually(KNOWN, || {
                let served = serves_others(cluster, &pod)?;
                ensure!(!served.is_empty() && !served.contains(&false), "{} refuses still: {served:?}", pod.name);
                Ok(())
            })?;
        }
        tenant.leave()
    });
}
