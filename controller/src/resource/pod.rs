//! A pod, reduced.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod as K8sPod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_core::ids::{Identity, TrustDomain};
use loam_core::workload::{Health, WorkloadKind};
use loam_manifest::enrol::Wish;

use super::use_waypoint::{GATEWAY_NAME, UseWaypoint};
use super::workload_entry::TUNNEL_LABEL;
use super::{Flaw, Labels, is_tcp, usable_ip, usable_port, usable_text};

/// Says that an agent has already redirected the pod.
const REDIRECTED_ANNOTATION: &str = "ambient.istio.io/redirection";

/// Labels that name the application, best first.
pub(crate) const NAME_LABELS: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];

/// Labels that name its version, best first.
pub(crate) const REVISION_LABELS: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// What a Deployment adds to the name of its ReplicaSet.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Most addresses of one pod: Kubernetes knows one for each family.
const MAX_ADDRESSES: usize = 8;

/// What matters about a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node; empty while it has none.
    pub node: Arc<str>,
    /// Who it speaks as, within its namespace.
    pub service_account: Arc<str>,
    /// What it says about the mesh.
    pub wish: Wish,
    /// Whether an agent says that it is redirected.
    pub redirected: bool,
    /// Whether its addresses are its node's.
    pub host_network: bool,
    /// Whether it has run to its end.
    pub ended: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it may receive connections.
    pub health: Health,
    /// Its TCP ports that have a name.
    pub ports: Box<[(Box<str>, u16)]>,
    /// What it calls itself.
    pub canonical_name: Arc<str>,
    /// The version it says it is.
    pub canonical_revision: Arc<str>,
    /// What made it.
    pub owner: Arc<str>,
    /// Kind of what made it.
    pub kind: WorkloadKind,
    /// What it says about the waypoint in front of it.
    pub waypoint: UseWaypoint,
}

impl Pod {
    /// Whether it belongs to the mesh, given whether its namespace does.
    pub fn in_mesh(&self, namespace_in: bool) -> bool {
        if self.has_own_tunnel() {
            return true;
        }
        match self.wish {
            Wish::Never(_) => false,
            Wish::In | Wish::Out | Wish::Inherit => self.redirected || self.wish.under(namespace_in).is_ok(),
        }
    }

    /// The Gateway whose waypoint it is.
    pub fn gateway(&self) -> Option<&str> {
        self.labels.get(GATEWAY_NAME)
    }

    /// Whether it answers to tunnels by itself.
    pub fn has_own_tunnel(&self) -> bool {
        !self.host_network && self.labels.get(TUNNEL_LABEL) == Some("http")
    }

    /// The port that goes by a name.
    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| **n == *name).map(|(_, port)| *port)
    }
}

/// Reads a pod.
pub fn read(pod: K8sPod, flaws: &mut Vec<Flaw>) -> Pod {
    let wish = Wish::of(&pod);
    let metadata = pod.metadata;
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let phase = status.phase.as_deref().unwrap_or_default();
    let ended = matches!(phase, "Succeeded" | "Failed");
    let deleting = metadata.deletion_timestamp.is_some();
    let (owner, kind) = owner(&metadata, flaws);
    let waypoint = UseWaypoint::read(&metadata, metadata.namespace.as_deref().unwrap_or_default(), flaws);
    let mut label = |keys: [&str; 3]| {
        let labels = metadata.labels.as_ref()?;
        let mut values = keys.iter().map(|key| usable_text(key, labels.get(*key).map_or("", String::as_str), flaws));
        values.find(|v| !v.is_empty())
    };
    let canonical_name = label(NAME_LABELS).map_or_else(|| Arc::clone(&owner), Into::into);
    let canonical_revision = label(REVISION_LABELS).unwrap_or("latest").into();
    let annotation = metadata.annotations.as_ref().and_then(|a| a.get(REDIRECTED_ANNOTATION));
    let redirected = annotation.is_some_and(|v| v == "enabled");
    Pod {
        addresses: addresses(&status, flaws),
        node: usable_text("node", spec.node_name.as_deref().unwrap_or_default(), flaws).into(),
        service_account: service_account(&spec, flaws).into(),
        wish,
        redirected,
        host_network: spec.host_network == Some(true),
        ended,
        deleting,
        health: if deleting || !is_ready(&status) { Health::Unhealthy } else { Health::Healthy },
        ports: named_ports(&spec, flaws),
        canonical_name,
        canonical_revision,
        owner,
        kind,
        waypoint,
        labels: metadata.labels.unwrap_or_default().into(),
    }
}

/// Empty for a name that no identity can have: such a pod is nobody.
fn service_account<'a>(spec: &'a PodSpec, flaws: &mut Vec<Flaw>) -> &'a str {
    let given = [&spec.service_account_name, &spec.service_account];
    let name = given.into_iter().flatten().find(|name| !name.is_empty()).map_or("default", String::as_str);
    match Identity::new(TrustDomain::default(), "any", name) {
        Ok(_) => name,
        Err(error) => {
            flaws.push(format!("the pod is left out: {error}"));
            ""
        }
    }
}

fn addresses(status: &PodStatus, flaws: &mut Vec<Flaw>) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let mut addresses = Vec::new();
    for text in all.filter(|text| !text.is_empty()) {
        match usable_ip(text) {
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) if addresses.len() < MAX_ADDRESSES => addresses.push(ip),
            Ok(ip) => flaws.push(format!("address {ip} is left out: a pod has at most {MAX_ADDRESSES}")),
            Err(flaw) => flaws.push(flaw),
        }
    }
    addresses
}

/// Nobody probes the pods of a directory of manifests: one that says nothing about being ready is ready.
fn is_ready(status: &PodStatus) -> bool {
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    ready.is_none_or(|c| c.status == "True")
}

/// A name on a container that runs as long as the pod does; other init containers are gone when it serves.
fn named_ports(spec: &PodSpec, flaws: &mut Vec<Flaw>) -> Box<[(Box<str>, u16)]> {
    let lasting = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(lasting));
    let mut ports: Vec<(Box<str>, u16)> = Vec::new();
    for port in containers.flat_map(|c| c.ports.iter().flatten()) {
        let Some(name) = port.name.as_deref().filter(|n| !n.is_empty() && is_tcp(port.protocol.as_deref())) else {
            continue;
        };
        match usable_port("container port", port.container_port) {
            // As with Kubernetes, the first container that has the name counts.
            Ok(number) if ports.iter().all(|(n, _)| **n != *name) => ports.push((name.into(), number)),
            Ok(_) => {}
            Err(flaw) => flaws.push(flaw),
        }
    }
    ports.into()
}

/// What a person calls the workload: the Deployment and not its ReplicaSet of the day.
fn owner(metadata: &ObjectMeta, flaws: &mut Vec<Flaw>) -> (Arc<str>, WorkloadKind) {
    let own = metadata.name.as_deref().unwrap_or_default();
    let owner = metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    let name = owner.map_or("", |o| usable_text("owner", &o.name, flaws));
    let Some(owner) = owner.filter(|_| !name.is_empty()) else { return (own.into(), WorkloadKind::Pod) };
    let hash = metadata.labels.as_ref().and_then(|l| l.get(TEMPLATE_HASH_LABEL));
    match owner.kind.as_str() {
        "ReplicaSet" => match deployment(name, hash.map(String::as_str)) {
            Some(deployment) => (deployment.into(), WorkloadKind::Deployment),
            None => (name.into(), WorkloadKind::Pod),
        },
        "Job" => match cron_job(name) {
            Some(cron_job) => (cron_job.into(), WorkloadKind::CronJob),
            None => (name.into(), WorkloadKind::Job),
        },
        // The wire has no word for the others, but a name for what they made.
        _ => (name.into(), WorkloadKind::Pod),
    }
}

/// A ReplicaSet that a Deployment made ends in the hash that its pods wear as a label.
fn deployment<'a>(replica_set: &'a str, hash: Option<&str>) -> Option<&'a str> {
    replica_set.strip_suffix(hash?)?.strip_suffix('-').filter(|name| !name.is_empty())
}

/// A Job that a CronJob made ends in the minute it was made for.
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    let is_minute = minute.len() >= 8 && minute.bytes().all(|b| b.is_ascii_digit());
    (is_minute && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> (Pod, Vec<Flaw>) {
        let text = format!("apiVersion: v1\nkind: Pod\n{yaml}");
        let mut state = loam_manifest::read([("m.yaml", text.as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        let Some(loam_manifest::Object::Pod(pod)) = state.objects.pop() else { panic!("not a pod") };
        let mut flaws = Vec::new();
        (read(*pod, &mut flaws), flaws)
    }

    #[test]
    fn the_owner_is_what_a_person_made() {
        let owned = |labels: &str, owner: &str| {
            let text = format!(
                "metadata: {{name: p, labels: {labels}, ownerReferences: [{{controller: true, apiVersion: a, uid: u, \
                 {owner}}}]}}"
            );
            let pod = pod(&text).0;
            (pod.owner.to_string(), pod.kind)
        };
        let named = |name: &str, kind| (name.to_owned(), kind);
        let hash = "{pod-template-hash: 5d8f}";
        assert_eq!(owned(hash, "kind: ReplicaSet, name: web-5d8f"), named("web", WorkloadKind::Deployment));
        assert_eq!(owned("{}", "kind: ReplicaSet, name: web-5d8f"), named("web-5d8f", WorkloadKind::Pod));
        assert_eq!(owned("{}", "kind: Job, name: tidy-28401120"), named("tidy", WorkloadKind::CronJob));
        assert_eq!(owned("{}", "kind: Job, name: tidy"), named("tidy", WorkloadKind::Job));
        assert_eq!(owned("{}", "kind: StatefulSet, name: db"), named("db", WorkloadKind::Pod));
        assert_eq!(&*pod("metadata: {name: p}").0.owner, "p");
    }

    #[test]
    fn names_of_the_application_come_from_labels_in_their_order() {
        let named = |labels: &str| {
            let pod = pod(&format!("metadata: {{name: p, labels: {labels}}}")).0;
            (pod.canonical_name.to_string(), pod.canonical_revision.to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(named("{}"), pair("p", "latest"));
        assert_eq!(named("{app: a, version: v1}"), pair("a", "v1"));
        assert_eq!(
            named("{app: a, app.kubernetes.io/name: b, version: v1, app.kubernetes.io/version: v2}"),
            pair("b", "v2")
        );
        assert_eq!(
            named("{app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: v3}"),
            pair("c", "v3")
        );
    }

    #[test]
    fn a_pod_is_healthy_unless_it_says_otherwise() {
        let health = |text: &str| pod(text).0.health;
        let status = |s: &str| health(&format!("metadata: {{name: p}}\nstatus: {{conditions: [{s}]}}"));
        assert_eq!(status(""), Health::Healthy);
        assert_eq!(status("{type: Ready, status: \"True\"}"), Health::Healthy);
        assert_eq!(status("{type: Ready, status: \"False\"}"), Health::Unhealthy);
        assert_eq!(status("{type: Ready, status: Unknown}"), Health::Unhealthy);
        assert_eq!(health("metadata: {name: p, deletionTimestamp: \"2026-01-01T00:00:00Z\"}"), Health::Unhealthy);
    }

    #[test]
    fn what_no_api_server_lets_in_is_told_and_goes_no_further() {
        let long = "x".repeat(254);
        let (pod, flaws) = pod(&format!(
            "metadata: {{name: p, labels: {{app: \"a\\nb\", version: {long}}}}}\n\
             spec: {{nodeName: {long}, serviceAccountName: a/b, containers: []}}\n"
        ));
        assert_eq!((&*pod.canonical_name, &*pod.canonical_revision, &*pod.node), ("p", "latest", ""));
        assert_eq!(&*pod.service_account, "");
        assert_eq!(flaws.len(), 4, "{flaws:?}");
    }

    #[test]
    fn addresses_and_ports_that_cannot_be_are_left_out_and_told() {
        let (pod, flaws) = pod("metadata: {name: p}\n\
             spec: {containers: [{name: c, ports: [{name: a, containerPort: 80}, {name: b, containerPort: 0}, \
             {name: u, containerPort: 53, protocol: UDP}, {containerPort: 81}, {name: a, containerPort: 82}]}]}\n\
             status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}, {ip: \"fe80::1%eth0\"}, \
             {ip: 0.0.0.0}, {ip: \"::ffff:10.0.0.2\"}]}");
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1", "10.0.0.2"]);
        assert_eq!((pod.port("a"), pod.port("b"), pod.port("u")), (Some(80), None, None));
        assert_eq!(flaws.len(), 3, "{flaws:?}");
    }
}
