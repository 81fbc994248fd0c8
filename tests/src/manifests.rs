//! The directory of Kubernetes manifests that stands for the API server.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

use crate::host;
use crate::topology::Pod;

/// A directory of manifests. Every write replaces a whole file at once.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    next_vip: AtomicU16,
    /// Serialises writers, so that each file's content is that of one of them.
    writing: Mutex<()>,
}

/// A service with one port per entry, which every endpoint serves.
#[derive(Debug, Clone)]
pub struct Service {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its own addresses.
    pub vips: Vec<IpAddr>,
    /// Port of the service and port of the endpoints.
    pub ports: Vec<(u16, u16)>,
}

impl Service {
    /// The file that describes it.
    pub fn file(&self) -> String {
        format!("service-{}-{}.yaml", self.namespace, self.name)
    }

    /// Its addresses with a port.
    pub fn at_each(&self, port: u16) -> Vec<SocketAddr> {
        self.vips.iter().map(|&ip| (ip, port).into()).collect()
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.vips[0], port).into()
    }
}

/// What a pod's manifest says beyond what the lab knows of it.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Other addresses than its own.
    pub addresses: Option<Vec<IpAddr>>,
    /// Another network namespace file than its own; an empty one leaves the annotation out.
    pub netns: Option<String>,
    /// Another node than its own.
    pub node: Option<String>,
    /// Its containers do not run yet.
    pub starting: bool,
    /// A port that the kubelet probes.
    pub probe: Option<u16>,
}

impl Manifests {
    /// An empty directory at `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir: dir.to_owned(), next_vip: AtomicU16::new(10), writing: Mutex::default() })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes or replaces a file.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let _writing = self.writing.lock();
        let aside = self.dir.with_extension("aside");
        fs::write(&aside, text).with_context(|| format!("write {file}"))?;
        fs::rename(&aside, self.dir.join(file)).with_context(|| format!("replace {file}"))
    }

    /// What a file says.
    pub fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.dir.join(file)).with_context(|| format!("read {file}"))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.dir.join(file)).with_context(|| format!("remove {file}"))
    }

    /// A namespace, in the mesh or not.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let labels = if enrolled { "\n  labels:\n    istio.io/dataplane-mode: ambient" } else { "" };
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{labels}\n");
        self.write(&format!("namespace-{name}.yaml"), &text)
    }

    /// A pod as the lab made it, with its service account.
    pub fn pod(&self, pod: &Pod) -> Result<()> {
        self.pod_with(pod, &PodFacts::default())
    }

    /// A pod that says something else, too.
    pub fn pod_with(&self, pod: &Pod, facts: &PodFacts) -> Result<()> {
        let (namespace, account) = (pod.namespace(), pod.service_account());
        let text =
            format!("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  namespace: {namespace}\n  name: {account}\n");
        self.write(&format!("account-{namespace}-{account}.yaml"), &text)?;
        self.write(&Self::pod_file(pod), &Self::pod_text(pod, facts))
    }

    /// Takes a pod's manifest away.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.remove(&Self::pod_file(pod))
    }

    fn pod_file(pod: &Pod) -> String {
        format!("pod-{}-{}.yaml", pod.namespace(), pod.name())
    }

    /// The manifest of a pod.
    pub fn pod_text(pod: &Pod, facts: &PodFacts) -> String {
        let (namespace, name, account) = (pod.namespace(), pod.name(), pod.service_account());
        let addresses = facts.addresses.clone().unwrap_or_else(|| pod.addresses());
        let netns = facts.netns.clone().unwrap_or_else(|| pod.netns().display().to_string());
        let mut text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  uid: {}\n",
            uid(pod)
        );
        text.push_str("  annotations:\n");
        if !netns.is_empty() {
            let _ = writeln!(text, "    loam.dev/netns: {netns}");
        }
        for (key, value) in &facts.annotations {
            let _ = writeln!(text, "    {key}: {value:?}");
        }
        let _ = write!(text, "  labels:\n    app: {name}\n");
        for (key, value) in &facts.labels {
            let _ = writeln!(text, "    {key}: {value:?}");
        }
        let _ = write!(
            text,
            "spec:\n  nodeName: {}\n  serviceAccountName: {account}\n  containers:\n  - name: app\n{}\
             status:\n  phase: {}\n",
            facts.node.as_deref().unwrap_or(pod.node()),
            facts
                .probe
                .map(|port| format!("    readinessProbe: {{tcpSocket: {{port: {port}}}}}\n"))
                .unwrap_or_default(),
            if facts.starting { "Pending" } else { "Running" }
        );
        if let Some(first) = addresses.first() {
            let _ = write!(text, "  podIP: \"{first}\"\n  podIPs:\n");
        }
        for address in &addresses {
            let _ = writeln!(text, "  - ip: \"{address}\"");
        }
        text.push_str("  conditions:\n  - type: Ready\n    status: \"True\"\n");
        text
    }

    /// A service over `pods`, with addresses of its own.
    pub fn service(&self, namespace: &str, name: &str, ports: &[(u16, u16)], pods: &[&Pod]) -> Result<Service> {
        let n = self.next_vip.fetch_add(1, Ordering::Relaxed);
        let mut vips: Vec<IpAddr> = vec![Ipv4Addr::new(10, 96, (n >> 8) as u8, n as u8).into()];
        if host::has_ipv6() {
            vips.push(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n).into());
        }
        let service = Service { namespace: namespace.to_owned(), name: name.to_owned(), vips, ports: ports.to_vec() };
        self.write(&service.file(), &service_text(&service))?;
        self.endpoints(&service, pods)?;
        Ok(service)
    }

    /// Replaces the endpoints of a service.
    pub fn endpoints(&self, service: &Service, pods: &[&Pod]) -> Result<()> {
        let mut text = slice_text(service, "IPv4", pods);
        if host::has_ipv6() {
            text.push_str(&slice_text(service, "IPv6", pods));
        }
        self.write(&format!("endpoints-{}-{}.yaml", service.namespace, service.name), &text)
    }
}

/// A uid that is unique in the lab and the same in every run.
fn uid(pod: &Pod) -> String {
    let [a, b, c, d] = pod.v4().octets();
    format!("{a:02x}{b:02x}{c:02x}{d:02x}-0000-4000-8000-000000000000")
}

fn service_text(service: &Service) -> String {
    let Service { namespace, name, vips, ports } = service;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {namespace}\n  name: {name}\nspec:\n  \
         clusterIP: \"{}\"\n  clusterIPs:\n",
        vips[0]
    );
    for vip in vips {
        let _ = writeln!(text, "  - \"{vip}\"");
    }
    let families = if vips.len() > 1 { "[IPv4, IPv6]" } else { "[IPv4]" };
    let _ = write!(text, "  ipFamilies: {families}\n  ports:\n");
    for (port, target) in ports {
        let _ = write!(text, "  - name: tcp-{port}\n    port: {port}\n    targetPort: {target}\n");
    }
    text
}

fn slice_text(service: &Service, family: &str, pods: &[&Pod]) -> String {
    let Service { namespace, name, ports, .. } = service;
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {namespace}\n  \
         name: {name}-{}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n",
        family.to_lowercase()
    );
    for (port, target) in ports {
        let _ = write!(text, "- name: tcp-{port}\n  port: {target}\n");
    }
    text.push_str(if pods.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for pod in pods {
        let address = match (family, pod.v6()) {
            ("IPv4", _) => pod.v4().to_string(),
            (_, Some(v6)) => v6.to_string(),
            (_, None) => continue,
        };
        let _ = write!(
            text,
            "- addresses: [\"{address}\"]\n  conditions: {{ready: true}}\n  nodeName: {}\n  targetRef:\n    \
             kind: Pod\n    namespace: {}\n    name: {}\n",
            pod.node(),
            pod.namespace(),
            pod.name()
        );
    }
    text
}
