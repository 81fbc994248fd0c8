//! Clusters to ask about.

use serde_json::{Value, json};

use super::Server;

pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(crate) fn node(name: &str, kernel: &str) -> Value {
    let info = json!({
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": kernel,
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "",
        "systemUUID": "",
    });
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"nodeInfo": info}})
}

/// A pod that is ready; `more` is merged into it.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example/app:1"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    super::merge(&mut pod, more);
    pod
}

pub(crate) fn captured() -> Value {
    json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}})
}

/// What an agent says of a pod that it cannot capture yet.
pub(crate) fn waiting(why: &str) -> Value {
    json!({"status": {"conditions": [
        {"type": "Ready", "status": "True"},
        {"type": "loam.dev/Enrolled", "status": "False", "reason": "Waiting", "message": why},
    ]}})
}

pub(crate) fn part(kind: &str, name: &str, spec: Value, status: Value) -> Value {
    let labels = json!({"app": name, "app.kubernetes.io/part-of": "loam"});
    let metadata = json!({"namespace": "istio-system", "name": name, "labels": labels});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status})
}

/// A pod of the mesh itself.
pub(crate) fn mesh_pod(app: &str, name: &str, node: &str, image: &str, ready: bool) -> Value {
    let container = if app == "ztunnel" { "istio-proxy" } else { "discovery" };
    let ready = if ready { "True" } else { "False" };
    let labels = json!({"app": app, "istio.io/dataplane-mode": "none"});
    pod(
        "istio-system",
        name,
        node,
        &json!({
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": container, "image": image}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }),
    )
}

fn template(app: &str) -> Value {
    json!({"replicas": 1, "selector": {}, "template": {"metadata": {"labels": {"app": app}}}})
}

/// The mesh, on two nodes.
pub(crate) fn install(server: &Server) {
    let version = env!("CARGO_PKG_VERSION");
    let image = |name: &str| format!("ghcr.io/loam-mesh/{name}:{version}");
    server.put(part("Deployment", "istiod", template("istiod"), json!({"readyReplicas": 1})));
    let scheduled = json!({
        "currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2,
    });
    server.put(part("DaemonSet", "ztunnel", template("ztunnel"), scheduled));
    server.put(mesh_pod("istiod", "istiod-5d8f-x2", "node-a", &image("loam-controller"), true));
    server.put(mesh_pod("ztunnel", "ztunnel-a1", "node-a", &image("loam-ztunnel"), true));
    server.put(mesh_pod("ztunnel", "ztunnel-b1", "node-b", &image("loam-ztunnel"), true));
}

/// Two nodes and a few namespaces, without a mesh.
pub(crate) fn bare() -> Server {
    let server = Server::new();
    server.put(node("node-a", "6.1.0-44-amd64"));
    server.put(node("node-b", "6.1.0-44-amd64"));
    for name in ["default", "kube-system", "istio-system"] {
        server.put(namespace(name, json!({})));
    }
    server
}

/// A shop that is enrolled, and its neighbours.
pub(crate) fn shop() -> Server {
    let server = bare();
    install(&server);
    for (plural, group) in [
        ("authorizationpolicies", "security.istio.io"),
        ("peerauthentications", "security.istio.io"),
        ("serviceentries", "networking.istio.io"),
        ("sidecars", "networking.istio.io"),
        ("workloadentries", "networking.istio.io"),
    ] {
        server.knows(plural, group);
    }
    server.put(namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})));
    server.put(namespace("bank", json!({})));
    server.put(pod("shop", "api-1", "node-a", &captured()));
    server.put(pod("shop", "web-1", "node-b", &captured()));
    server.put(pod(
        "shop",
        "web-2",
        "node-b",
        &waiting("the proxy has no certificate for spiffe://cluster.local/ns/shop/sa/web yet"),
    ));
    server.put(pod("shop", "logs-x", "node-a", &json!({"spec": {"hostNetwork": true}})));
    server.put(pod("shop", "job-1", "node-a", &json!({"status": {"phase": "Succeeded"}})));
    let mut own = captured();
    super::merge(&mut own, &json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}));
    server.put(pod("bank", "ledger-1", "node-a", &own));
    server.put(pod("bank", "teller-1", "node-b", &json!({})));
    server.put(pod("default", "toolbox", "node-a", &json!({})));
    server.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"namespace": "shop", "name": "default"}, "spec": {"mtls": {"mode": "STRICT"}},
    }));
    server
}
