//! Waypoints in the lab: pods that run `loam-waypoint`.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::{FABRIC_V4, Lab};
use crate::manifests::{PodFacts, Service};
use crate::mesh::{CONTROL_PORT, Mesh};
use crate::process::Process;
use crate::topology::Pod;
use crate::{bin, eventually};

/// The port of tunnels.
pub const HBONE: u16 = 15008;

/// Longest start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A waypoint: a Gateway, its service, and a pod on each node.
#[derive(Debug)]
pub struct Waypoint {
    /// The Gateway's name.
    pub name: String,
    /// Its service.
    pub service: Service,
    /// Its pods.
    pub pods: Vec<Pod>,
}

impl Waypoint {
    /// Declares `NAMESPACE/NAME`; its pods serve once they are started.
    pub fn declare(lab: &Lab, mesh: &Mesh, namespace: &str, name: &str) -> Result<Self> {
        let manifests = mesh.manifests();
        let pod = |node| lab.node(node).pod(&format!("{name}-{node}"), namespace, name);
        let pods: Vec<Pod> = (0..2).map(pod).collect::<Result<_>>()?;
        let labels = [
            ("gateway.networking.k8s.io/gateway-name", name),
            ("istio.io/dataplane-mode", "none"),
            ("networking.istio.io/tunnel", "http"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let facts = PodFacts { labels, ..PodFacts::default() };
        pods.iter().try_for_each(|pod| manifests.pod_with(pod, &facts))?;
        let service = manifests.service(namespace, name, &[(HBONE, HBONE)], &pods.iter().collect::<Vec<_>>())?;
        let gateway = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  namespace: {namespace}\n  name: {name}\n\
             spec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: {HBONE}\n    \
             protocol: HBONE\n"
        );
        manifests.write(&format!("gateway-{name}.yaml"), &gateway)?;
        Ok(Self { name: name.to_owned(), service, pods })
    }

    /// Puts it in front of a service of HTTP servers in its namespace.
    pub fn bind(&self, mesh: &Mesh, service: &Service) -> Result<()> {
        let text = mesh.manifests().read(&service.file())?;
        let label = format!("metadata:\n  labels: {{istio.io/use-waypoint: {}}}\n", self.name);
        let text = text
            .replacen("metadata:\n", &label, 1)
            .replace("    targetPort:", "    appProtocol: http\n    targetPort:");
        mesh.manifests().write(&service.file(), &text)
    }

    /// Takes it away from a service that was bound to it.
    pub fn release(&self, mesh: &Mesh, service: &Service) -> Result<()> {
        let text = mesh.manifests().read(&service.file())?;
        let label = format!("  labels: {{istio.io/use-waypoint: {}}}\n", self.name);
        mesh.manifests().write(&service.file(), &text.replacen(&label, "", 1))
    }

    /// Starts the pod number `index` and waits until it is ready.
    pub fn start(&self, mesh: &Mesh, index: usize) -> Result<Process> {
        let pod = &self.pods[index];
        let program = bin::path("loam-waypoint")?;
        let control = format!("{FABRIC_V4}:{CONTROL_PORT}");
        let arguments = [
            program.display().to_string(),
            format!("--name={}", self.name),
            format!("--namespace={}", pod.namespace()),
            format!("--pod={}", pod.name()),
            format!("--address={}", pod.v4()),
            format!("--service-account={}", pod.service_account()),
            format!("--node={}", pod.node()),
            format!("--xds-address={control}"),
            format!("--ca-root={}", mesh.authority().join("root-cert.pem").display()),
            format!("--token={}", mesh.node_of(pod)?.token().display()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process = pod.spawn("waypoint", &arguments)?;
        eventually(START_TIMEOUT, || {
            let ready = pod.tool(&["get", "http://127.0.0.1:15021/healthz/ready"])?.output(START_TIMEOUT)?;
            ready.success().map(drop).with_context(|| process.stderr())
        })?;
        Ok(process)
    }

    /// What the pod number `index` counts.
    pub fn metrics(&self, index: usize) -> Result<String> {
        self.pods[index].tool(&["get", "http://127.0.0.1:15020/stats/prometheus"])?.output(START_TIMEOUT)?.success()
    }
}
