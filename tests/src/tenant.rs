//! A namespace of a cluster that is in the mesh from the start, and pods in it that run the lab's tool.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Kubectl, PodState};
use crate::eventually;
use crate::report::Probe;

/// Where the tool's servers listen that say what they see.
pub const TALK: u16 = 7000;
/// The image of the tool.
const IMAGE: &str = concat!("ghcr.io/loam-mesh/loam-lab:", env!("CARGO_PKG_VERSION"));
/// Longest start or end of a pod on a busy machine: a sandbox that failed is tried again after up to half a minute.
pub const SETTLE: Duration = Duration::from_secs(120);

/// A namespace of a test.
#[derive(Debug, Clone, Copy)]
pub struct Tenant<'a> {
    kubectl: &'a Kubectl,
    name: &'static str,
}

impl<'a> Tenant<'a> {
    /// Makes the namespace, without what a failed test left in it.
    pub fn enter(kubectl: &'a Kubectl, name: &'static str) -> Result<Self> {
        let tenant = Self { kubectl, name };
        tenant.leave()?;
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        kubectl.apply(&namespace.to_string())?;
        // Pods are refused until it is there.
        eventually(SETTLE, || tenant.run(&["get", "serviceaccount", "default"]))?;
        Ok(tenant)
    }

    /// Deletes it with everything in it, and waits until it is gone.
    pub fn leave(self) -> Result<()> {
        let limit = format!("--timeout={}s", SETTLE.as_secs());
        self.kubectl.run(&["delete", "namespace", self.name, "--ignore-not-found", &limit]).map(drop)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs kubectl in the namespace.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["--namespace", self.name], arguments].concat())
    }

    /// Applies an object to the namespace.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let apply = ["--namespace", self.name, "apply", "--server-side", "--filename=-"];
        self.kubectl.run_with_input(&apply, &object.to_string()).map(drop)
    }

    /// Makes a pod of these containers, which run once, on a node.
    pub fn pod(&self, name: &str, node: &str, containers: &[Value]) -> Result<()> {
        self.pod_with(name, node, &[], containers)
    }

    /// The same, with containers that run before the others.
    pub fn pod_with(&self, name: &str, node: &str, before: &[Value], containers: &[Value]) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "initContainers": before,
                "containers": containers,
            },
        }))
    }

    /// A pod on a node whose server says what it sees; gives where, when it serves and is captured.
    pub fn server(&self, name: &str, node: &str) -> Result<SocketAddr> {
        self.pod(name, node, &[talking(name)])?;
        Ok((self.captured(name)?, TALK).into())
    }

    /// The address of a pod, when it is ready and captured.
    pub fn captured(&self, name: &str) -> Result<IpAddr> {
        eventually(SETTLE, || {
            let pod = self.state(name)?;
            ensure!(pod.ready && pod.captured, "it is not ready or not captured: {pod:?}");
            pod.addresses.first().copied().with_context(|| format!("{name} has no address"))
        })
    }

    /// How a pod is.
    pub fn state(&self, name: &str) -> Result<PodState> {
        Ok(PodState::of(&serde_json::from_str(&self.run(&["get", "pod", name, "--output=json"])?)?))
    }

    /// How all its pods are.
    pub fn states(&self) -> Result<Vec<PodState>> {
        let list: Value = serde_json::from_str(&self.run(&["get", "pods", "--output=json"])?)?;
        Ok(list["items"].as_array().into_iter().flatten().map(PodState::of).collect())
    }

    /// Waits until a container of a pod has ended; what the tool in it reported.
    pub fn report<T: serde::de::DeserializeOwned>(&self, pod: &str, container: &str, limit: Duration) -> Result<T> {
        let ended = || {
            let log = self.run(&["logs", pod, "--container", container])?;
            let line = log.lines().rfind(|line| line.starts_with('{')).map(str::to_owned);
            line.with_context(|| format!("container {container} of {pod} has not reported: {:?}", log.trim()))
        };
        let line = eventually(limit, ended)?;
        serde_json::from_str(&line).with_context(|| format!("read {line:?}"))
    }

    /// Waits for the report of a container that connected once; an error unless it was served.
    pub fn served(&self, pod: &str, container: &str) -> Result<()> {
        let probe: Probe = self.report(pod, container, SETTLE)?;
        ensure!(probe.server.is_some(), "container {container} of {pod} was not served: {probe:?}");
        Ok(())
    }
}

/// A container that runs the tool with these arguments.
pub fn tool(name: &str, arguments: &[&str]) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// A container that connects once to `to`, with markers of `tag` in what it says.
pub fn calling(name: &str, to: SocketAddr, tag: &str) -> Value {
    // Longer than a peer may take that was captured at the same moment.
    tool(name, &["probe", &to.to_string(), "--tag", tag, "--timeout-ms", "20000"])
}

/// A container whose server at [`TALK`] says what it sees.
pub fn talking(name: &str) -> Value {
    let mut container = tool(name, &["serve", "--talk", &TALK.to_string()]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": TALK}, "periodSeconds": 1});
    container
}
