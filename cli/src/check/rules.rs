//! What must be so, decided from what was found.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_kube::{Permission, Version};
use loam_manifest::enrol::{EXCLUDED_NAMESPACES, MODE_LABEL, namespace_in};

use super::{Cluster, Finding, Installation};
use crate::capture::{Standing, State, ended};
use crate::code::Code;
use crate::enroll::INJECTION_LABEL;
use crate::fault::grant;
use crate::names::{CONTROLLER, NODE};
use crate::node::{trouble, version};
use crate::session::{Mesh, is_ours};

/// The oldest Kubernetes that the chart takes.
const KUBERNETES: (u32, u32) = (1, 30);

/// The oldest kernel: the redirect is verified with what came with it.
const KERNEL: (u32, u32) = (5, 18);

/// Kinds that users write, with their groups.
const KINDS: [(&str, &str); 5] = [
    ("authorizationpolicies", "security.istio.io"),
    ("peerauthentications", "security.istio.io"),
    ("serviceentries", "networking.istio.io"),
    ("sidecars", "networking.istio.io"),
    ("workloadentries", "networking.istio.io"),
];

/// The level of pod security at which the pods of the mesh are let in.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Names that are listed in one message.
const MAX_NAMED: usize = 5;

/// What whoever installs must be allowed to make.
pub(super) fn to_install(system: &str) -> Vec<Permission> {
    let create = |group, resource| Permission { verb: "create", group, resource, namespace: None };
    let within = |group, resource| Permission { namespace: Some(system.to_owned()), ..create(group, resource) };
    vec![
        create("", "namespaces"),
        create("apiextensions.k8s.io", "customresourcedefinitions"),
        create("rbac.authorization.k8s.io", "clusterroles"),
        create("rbac.authorization.k8s.io", "clusterrolebindings"),
        within("", "configmaps"),
        within("", "secrets"),
        within("", "serviceaccounts"),
        within("", "services"),
        within("apps", "daemonsets"),
        within("apps", "deployments"),
    ]
}

/// What whoever uses this program must be allowed to do.
pub(super) fn to_look(system: &str) -> Vec<Permission> {
    let core = |verb, resource| Permission { verb, group: "", resource, namespace: None };
    vec![
        core("list", "namespaces"),
        core("list", "nodes"),
        core("list", "pods"),
        core("patch", "namespaces"),
        Permission { namespace: Some(system.to_owned()), ..core("create", "pods/portforward") },
    ]
}

/// What an installation needs.
pub(super) fn before(system: &str, cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![api(&cluster.version)];
    findings.extend(kernels(&cluster.nodes));
    findings.extend(other_meshes(cluster));
    findings.extend(other_installations(system, cluster));
    findings.extend(pod_security(system, cluster.system.as_ref()));
    findings.extend(rights(&cluster.rights, "install the mesh"));
    findings
}

/// What an installation has when it is well.
pub(super) fn after(system: &str, installation: &Installation) -> Vec<Finding> {
    let Installation { cluster, mesh, kinds, namespaces, pods } = installation;
    let mut findings = vec![api(&cluster.version)];
    findings.extend(kernels(&cluster.nodes));
    findings.extend(other_meshes(cluster));
    findings.extend(other_installations(system, cluster));
    let known: BTreeSet<&str> = kinds.iter().filter_map(|kind| kind.metadata.name.as_deref()).collect();
    findings.extend(missing_kinds(&known));
    findings.extend(rights(&cluster.rights, "use this program"));
    findings.push(controller(system, mesh));
    findings.extend(daemons(system, mesh, &cluster.nodes));
    findings.push(skew(mesh));
    findings.push(captured(mesh, namespaces, pods));
    findings.extend(blocked(mesh, namespaces, pods));
    findings.extend(labels(namespaces, pods));
    findings
}

const CLUSTER: &str = "cluster";
const RIGHTS: &str = "permissions";
const MESH: &str = "mesh";

fn api(version: &Version) -> Finding {
    let needed = format!("{}.{}", KUBERNETES.0, KUBERNETES.1);
    match (version.major, version.minor) >= KUBERNETES {
        true => Finding::ok(CLUSTER, format!("Kubernetes is {}, and {needed} or newer is needed", version.text)),
        false => Finding::failed(
            CLUSTER,
            Code::OldKubernetes,
            format!("Kubernetes is {}, and {needed} or newer is needed", version.text),
            "kubectl version",
        ),
    }
}

/// The first two numbers of a kernel's version.
fn kernel(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The name of a node that runs Linux, and its kernel.
fn linux(node: &Node) -> Option<(&str, &str)> {
    let info = node.status.as_ref()?.node_info.as_ref()?;
    let name = node.metadata.name.as_deref()?;
    (info.operating_system == "linux").then_some((name, info.kernel_version.as_str()))
}

fn kernels(nodes: &[Node]) -> Vec<Finding> {
    let needed = format!("{}.{}", KERNEL.0, KERNEL.1);
    let linux: Vec<_> = nodes.iter().filter_map(linux).collect();
    let old = linux.iter().filter(|(_, version)| kernel(version).is_none_or(|version| version < KERNEL));
    let mut findings: Vec<Finding> = old
        .map(|(node, version)| {
            Finding::failed(
                CLUSTER,
                Code::OldKernel,
                format!("the kernel of node {node} is {version}, and {needed} or newer is needed"),
                format!("kubectl get node {node} -o wide"),
            )
        })
        .collect();
    if linux.is_empty() {
        let message = "no node runs Linux, or none may be seen";
        findings.push(Finding::failed(CLUSTER, Code::NoLinux, message, "kubectl get nodes -o wide"));
    } else if findings.is_empty() {
        let message = format!("the kernels of {} are {needed} or newer", nodes_of(linux.len()));
        findings.push(Finding::ok(CLUSTER, message));
    }
    findings
}

fn nodes_of(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

fn rights(rights: &[(Permission, bool)], purpose: &str) -> Vec<Finding> {
    let missing = rights.iter().filter(|(_, has)| !has).map(|(permission, _)| {
        let within = permission.namespace.as_ref().map(|n| format!(" in namespace {n}")).unwrap_or_default();
        let message = format!("you may not {} {}{within}", permission.verb, permission.resource);
        Finding::failed(RIGHTS, Code::MissingPermission, message, grant(permission, ""))
    });
    let findings: Vec<_> = missing.collect();
    match findings.is_empty() {
        true => vec![Finding::ok(RIGHTS, format!("you may {purpose}"))],
        false => findings,
    }
}

fn other_meshes(cluster: &Cluster) -> Vec<Finding> {
    let mut found: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    for deployment in cluster.deployments.iter().filter(|d| !is_ours(&d.metadata)) {
        let labels = deployment.metadata.labels.as_ref();
        let (mesh, remedy) = match labels.is_some_and(|labels| labels.contains_key(super::LINKERD_LABELS)) {
            true => ("Linkerd", "linkerd uninstall | kubectl delete -f -"),
            false => ("Istio", "istioctl uninstall --purge"),
        };
        found.entry(mesh).or_insert((format!("Deployment {}", title(&deployment.metadata)), remedy));
    }
    for daemons in cluster.daemons.iter().filter(|d| !is_ours(&d.metadata)) {
        let (mesh, remedy) = match daemons.metadata.name.as_deref() {
            Some("ztunnel" | "istio-cni-node") => ("Istio", "istioctl uninstall --purge"),
            Some("kmesh") => ("Kmesh", "helm uninstall kmesh --namespace kmesh-system"),
            Some(_) | None => continue,
        };
        found.entry(mesh).or_insert((format!("DaemonSet {}", title(&daemons.metadata)), remedy));
    }
    if found.is_empty() {
        return vec![Finding::ok(CLUSTER, "no other mesh is installed")];
    }
    let finding = |(mesh, (object, remedy)): (&str, (String, &str))| {
        Finding::failed(CLUSTER, Code::OtherMesh, format!("{mesh} is installed: {object}"), remedy)
    };
    found.into_iter().map(finding).collect()
}

/// Two installations would both capture what is enrolled.
fn other_installations(system: &str, cluster: &Cluster) -> Vec<Finding> {
    let controllers = cluster.deployments.iter().map(|deployment| &deployment.metadata);
    let nodes = cluster.daemons.iter().map(|daemons| &daemons.metadata).filter(|m| m.name.as_deref() == Some(NODE));
    let namespaces: BTreeSet<&str> =
        controllers.chain(nodes).filter(|m| is_ours(m)).filter_map(|m| m.namespace.as_deref()).collect();
    let finding = |other: &&str| {
        let message =
            format!("another installation of this mesh is in namespace {other}, and {system} is the one looked at");
        let remedy = format!("loam uninstall --system-namespace {other}");
        Finding::failed(CLUSTER, Code::OtherInstallation, message, remedy)
    };
    namespaces.iter().filter(|namespace| **namespace != system).map(finding).collect()
}

fn pod_security(system: &str, namespace: Option<&Namespace>) -> Option<Finding> {
    let level = namespace?.metadata.labels.as_ref()?.get(ENFORCE)?;
    let message = format!("namespace {system} lets pods in at level {level}, and those of the nodes need privileged");
    let remedy = format!("kubectl label namespace {system} {ENFORCE}=privileged --overwrite");
    (level != "privileged").then(|| Finding::failed(CLUSTER, Code::PodSecurity, message, remedy))
}

fn missing_kinds(known: &BTreeSet<&str>) -> Vec<Finding> {
    let name = |(plural, group): &(&str, &str)| format!("{plural}.{group}");
    let missing: Vec<String> = KINDS.iter().map(name).filter(|name| !known.contains(name.as_str())).collect();
    match missing.is_empty() {
        true => vec![Finding::ok(CLUSTER, "every kind of object that the mesh reads is known")],
        false => vec![Finding::warning(
            CLUSTER,
            Code::MissingKind,
            format!("nobody can write {}: the API server does not know them", missing.join(", ")),
            "loam upgrade",
        )],
    }
}

fn controller(system: &str, mesh: &Mesh) -> Finding {
    let Some(deployment) = &mesh.controller else {
        let message = format!("there is no Deployment {CONTROLLER} in namespace {system}");
        return Finding::failed(MESH, Code::ControllerDown, message, "loam upgrade");
    };
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let message = format!("the controller is ready ({ready} of {wanted})");
    let remedy = format!("kubectl describe pods --namespace {system} --selector app={CONTROLLER}");
    match ready {
        0 => {
            let said = mesh.controller_pods.iter().map(trouble).find(|text| !text.is_empty());
            let said = said.map(|text| format!(": {text}")).unwrap_or_default();
            let message = format!("no controller is ready (0 of {wanted}){said}");
            Finding::failed(MESH, Code::ControllerDown, message, remedy)
        }
        _ if ready < wanted => Finding::warning(MESH, Code::ControllerDown, message, remedy),
        _ => Finding::ok(MESH, message),
    }
}

fn daemons(system: &str, mesh: &Mesh, nodes: &[Node]) -> Vec<Finding> {
    let Some(daemons) = &mesh.daemons else {
        let message = format!("there is no DaemonSet {NODE} in namespace {system}");
        return vec![Finding::failed(MESH, Code::NodeDown, message, "loam upgrade")];
    };
    let mut findings: Vec<Finding> = mesh
        .nodes
        .values()
        .filter(|node| !node.ready)
        .map(|node| {
            let said = if node.trouble.is_empty() { String::new() } else { format!(": {}", node.trouble) };
            let message = format!("the mesh is not ready on node {}{said}", node.node);
            let remedy = format!("kubectl describe pod --namespace {system} {}", node.pod);
            Finding::failed(MESH, Code::NodeDown, message, remedy)
        })
        .collect();
    let bare: Vec<&str> =
        nodes.iter().filter_map(linux).map(|(name, _)| name).filter(|name| !mesh.nodes.contains_key(*name)).collect();
    if !bare.is_empty() {
        let message = format!("the mesh does not run on {}", listed(&bare));
        let remedy = format!("kubectl describe daemonset --namespace {system} {NODE}");
        findings.push(match wanted(daemons) > mesh.nodes.len() {
            true => Finding::failed(MESH, Code::NodeDown, message, remedy),
            // The DaemonSet leaves them out.
            false => Finding::warning(MESH, Code::NodeDown, message, remedy),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(MESH, format!("the mesh is ready on {}", nodes_of(mesh.nodes.len()))));
    }
    findings
}

/// On how many nodes the mesh is to run.
fn wanted(daemons: &DaemonSet) -> usize {
    let wanted = daemons.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
    usize::try_from(wanted).unwrap_or(0)
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MAX_NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

fn skew(mesh: &Mesh) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let controllers = mesh.controller_pods.iter().map(|pod| ("the controller", version(pod, "")));
    let nodes = mesh.nodes.values().map(|node| ("nodes", node.version.clone()));
    let mut versions: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (part, version) in controllers.chain(nodes).filter(|(_, version)| !version.is_empty()) {
        versions.entry(version).or_default().insert(part);
    }
    if versions.keys().all(|version| version == own) {
        return Finding::ok(MESH, format!("every part has version {own}"));
    }
    let part = |(version, parts): (&String, &BTreeSet<&str>)| {
        format!("{version} ({})", parts.iter().copied().collect::<Vec<_>>().join(", "))
    };
    let all = versions.iter().map(part).collect::<Vec<_>>().join(", ");
    Finding::warning(MESH, Code::Skew, format!("this program is {own}, and in the cluster is {all}"), "loam upgrade")
}

/// Where every pod stands that has not ended.
fn standings<'a>(mesh: &Mesh, namespaces: &[Namespace], pods: &'a [Pod]) -> Vec<(&'a Pod, Standing)> {
    let labelled: BTreeMap<&str, bool> =
        namespaces.iter().filter_map(|n| Some((n.metadata.name.as_deref()?, namespace_in(n)))).collect();
    let of = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Standing::of(pod, labelled.get(namespace).copied().unwrap_or_default(), &mesh.nodes)
    };
    pods.iter().filter(|pod| !ended(pod)).map(|pod| (pod, of(pod))).collect()
}

/// Captured pods that NetworkPolicies keep tunnels from; for each way of that one of them.
fn blocked(mesh: &Mesh, namespaces: &[Namespace], pods: &[Pod]) -> Vec<Finding> {
    let mut ways: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for (pod, standing) in standings(mesh, namespaces, pods) {
        if let Standing::Blocked(why) = standing {
            ways.entry(why).or_insert_with(|| (title(&pod.metadata), 0)).1 += 1;
        }
    }
    let finding = |(why, (pod, count)): (String, (String, usize))| {
        let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        Finding::warning(
            MESH,
            Code::TunnelsBlocked,
            format!("pod {pod}{others}: {why}"),
            "kubectl get networkpolicies -A",
        )
    };
    ways.into_iter().map(finding).collect()
}

/// Labels that look as if they asked for the mesh, and do not.
fn labels(namespaces: &[Namespace], pods: &[Pod]) -> Vec<Finding> {
    let label = |metadata: &ObjectMeta, name: &str| metadata.labels.as_ref().and_then(|l| l.get(name)).cloned();
    let is_odd = |mode: &String| !matches!(mode.as_str(), "ambient" | "none" | "");
    let warning = |message, remedy| Finding::warning(MESH, Code::WrongLabel, message, remedy);
    let mut findings = Vec::new();
    for metadata in namespaces.iter().map(|namespace| &namespace.metadata) {
        let name = metadata.name.as_deref().unwrap_or_default();
        match label(metadata, MODE_LABEL) {
            Some(mode) if is_odd(&mode) => findings.push(warning(
                format!("namespace {name} has {MODE_LABEL}={mode}, which asks for nothing; ambient asks for the mesh"),
                format!("kubectl label namespace {name} {MODE_LABEL}=ambient --overwrite"),
            )),
            Some(mode) if mode == "ambient" && EXCLUDED_NAMESPACES.contains(&name) => findings.push(warning(
                format!("namespace {name} has {MODE_LABEL}=ambient, and it is never enrolled"),
                format!("kubectl label namespace {name} {MODE_LABEL}-"),
            )),
            Some(mode) if mode == "ambient" && label(metadata, INJECTION_LABEL).as_deref() == Some("enabled") => {
                findings.push(warning(
                    format!(
                        "new pods of namespace {name} get a sidecar and stay outside: it has {INJECTION_LABEL}=enabled"
                    ),
                    format!("kubectl label namespace {name} {INJECTION_LABEL}-"),
                ));
            }
            Some(_) | None => {}
        }
    }
    let odd = |pod: &&Pod| !ended(pod) && label(&pod.metadata, MODE_LABEL).as_ref().is_some_and(is_odd);
    let pods: Vec<String> = pods.iter().filter(odd).map(|pod| title(&pod.metadata)).collect();
    if !pods.is_empty() {
        let names: Vec<&str> = pods.iter().map(String::as_str).collect();
        findings.push(warning(
            format!("the label {MODE_LABEL} of {} is neither ambient nor none, so it says nothing", listed(&names)),
            format!("kubectl get pods -A --selector '{MODE_LABEL},{MODE_LABEL} notin (ambient,none)'"),
        ));
    }
    findings
}

/// `<namespace>/<name>`.
fn title(metadata: &ObjectMeta) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&metadata.namespace), part(&metadata.name))
}

fn captured(mesh: &Mesh, namespaces: &[Namespace], pods: &[Pod]) -> Finding {
    let states: Vec<State> =
        standings(mesh, namespaces, pods).into_iter().map(|(_, standing)| standing.state()).collect();
    let count = |state: State| states.iter().filter(|s| **s == state).count();
    let (captured, waiting) = (count(State::Captured), count(State::Waiting));
    match waiting {
        0 => Finding::ok(MESH, format!("every pod that belongs to the mesh is captured ({captured})")),
        _ => {
            let message = format!("{waiting} of {} pods that belong to the mesh are not captured", captured + waiting);
            Finding::warning(MESH, Code::NotCaptured, message, "loam status")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;
    use crate::names::PART_OF;

    fn node(name: &str, os: &str, kernel: &str) -> Node {
        let info = json!({
            "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": kernel,
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": os, "osImage": "",
            "systemUUID": "",
        });
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"nodeInfo": info}})).unwrap()
    }

    fn codes(findings: &[Finding]) -> Vec<Option<Code>> {
        findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn kernels_are_compared_by_their_numbers() {
        for (text, number) in [("5.18.0", (5, 18)), ("6.1.0-44-cloud-amd64", (6, 1)), ("5.4-rc1", (5, 4))] {
            assert_eq!(kernel(text), Some(number));
        }
        assert_eq!(kernel("unknown"), None);
        let new = [node("a", "linux", "5.18.0"), node("w", "windows", "10.0.20348")];
        assert_eq!(codes(&kernels(&new)), [None]);
        let old = [node("a", "linux", "5.9.0"), node("b", "linux", "6.0.0"), node("c", "linux", "")];
        assert_eq!(codes(&kernels(&old)), [Some(Code::OldKernel), Some(Code::OldKernel)]);
        assert_eq!(codes(&kernels(&[node("w", "windows", "10.0")])), [Some(Code::NoLinux)]);
    }

    #[test]
    fn an_old_api_server_fails() {
        let version = |major, minor| api(&Version { major, minor, text: "v".into() }).level;
        assert_eq!((version(1, 30), version(1, 29), version(2, 0)), (Level::Ok, Level::Failed, Level::Ok));
    }

    #[test]
    fn another_mesh_is_told_once_and_our_own_is_none() {
        let deployment = |labels: serde_json::Value| {
            let metadata = json!({"name": "istiod", "namespace": "istio-system", "labels": labels});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let daemons = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let version = Version { major: 1, minor: 33, text: "v1.33.0".into() };
        let mut cluster = Cluster {
            version,
            nodes: vec![],
            system: None,
            deployments: vec![deployment(json!({"app": "istiod", PART_OF.0: PART_OF.1}))],
            daemons: vec![daemons("kube-proxy")],
            rights: vec![],
        };
        assert_eq!(codes(&other_meshes(&cluster)), [None]);
        cluster.deployments.push(deployment(json!({"app": "istiod"})));
        cluster.daemons.push(daemons("ztunnel"));
        assert_eq!(codes(&other_meshes(&cluster)), [Some(Code::OtherMesh)]);
        cluster.deployments.push(deployment(json!({"linkerd.io/control-plane-component": "destination"})));
        assert_eq!(other_meshes(&cluster).len(), 2);
    }

    #[test]
    fn another_installation_is_told_by_its_controller_or_its_nodes() {
        let part = |name: &str, namespace: &str, ours: bool| {
            let labels = if ours { json!({PART_OF.0: PART_OF.1}) } else { json!({}) };
            json!({"metadata": {"name": name, "namespace": namespace, "labels": labels}})
        };
        let mut cluster = Cluster {
            version: Version { major: 1, minor: 33, text: "v1.33.0".into() },
            nodes: vec![],
            system: None,
            deployments: vec![serde_json::from_value(part("istiod", "istio-system", true)).unwrap()],
            daemons: vec![
                serde_json::from_value(part("ztunnel", "istio-system", true)).unwrap(),
                serde_json::from_value(part("ztunnel", "foreign", false)).unwrap(),
            ],
            rights: vec![],
        };
        assert_eq!(other_installations("istio-system", &cluster), []);
        cluster.daemons.push(serde_json::from_value(part("ztunnel", "mesh-2", true)).unwrap());
        cluster.deployments.push(serde_json::from_value(part("istiod", "mesh-2", true)).unwrap());
        let found = other_installations("istio-system", &cluster);
        assert_eq!(codes(&found), [Some(Code::OtherInstallation)]);
        assert_eq!(found[0].remedy, "loam uninstall --system-namespace mesh-2");
    }

    #[test]
    fn labels_that_mean_something_else_are_told_with_what_was_meant() {
        let told = |name: &str, labels: serde_json::Value| {
            let namespace = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
            labels_of(&[namespace], &[])
        };
        fn labels_of(namespaces: &[Namespace], pods: &[Pod]) -> Vec<String> {
            labels(namespaces, pods).into_iter().map(|finding| finding.remedy).collect()
        }
        let mode = "istio.io/dataplane-mode";
        let none = Vec::<String>::new();
        assert_eq!(told("shop", json!({mode: "ambient"})), none);
        assert_eq!(told("shop", json!({mode: "none"})), none);
        assert_eq!(told("shop", json!({"istio-injection": "enabled"})), none);
        let wrong = "kubectl label namespace shop istio.io/dataplane-mode=ambient --overwrite";
        assert_eq!(told("shop", json!({mode: "Ambient"})), [wrong]);
        assert_eq!(told("shop", json!({mode: "true"})), [wrong]);
        let both = json!({mode: "ambient", "istio-injection": "enabled"});
        assert_eq!(told("shop", both), ["kubectl label namespace shop istio-injection-"]);
        let excluded = "kubectl label namespace kube-system istio.io/dataplane-mode-";
        assert_eq!(told("kube-system", json!({mode: "ambient"})), [excluded]);
        let pod = |mode: &str| {
            let labels = json!({"istio.io/dataplane-mode": mode});
            serde_json::from_value(json!({"metadata": {"name": mode, "namespace": "shop", "labels": labels}})).unwrap()
        };
        let pods = [pod("ambient"), pod("none"), pod("AMBIENT")];
        let found = labels(&[], &pods);
        assert_eq!(codes(&found), [Some(Code::WrongLabel)]);
        assert!(found[0].message.contains("shop/AMBIENT"), "{}", found[0].message);
    }

    #[test]
    fn each_way_in_which_tunnels_are_blocked_is_told_once() {
        let pod = |name: &str, message: &str| -> Pod {
            let condition =
                json!({"type": "loam.dev/Enrolled", "status": "True", "reason": "TunnelsBlocked", "message": message});
            let labels = json!({"istio.io/dataplane-mode": "ambient"});
            let metadata = json!({"name": name, "namespace": "shop", "labels": labels});
            serde_json::from_value(json!({"metadata": metadata, "status": {"conditions": [condition]}})).unwrap()
        };
        let found = blocked(&Mesh::default(), &[], &[pod("a", "policy x"), pod("b", "policy x"), pod("c", "policy y")]);
        let messages: Vec<&str> = found.iter().map(|finding| &*finding.message).collect();
        assert_eq!(messages, ["pod shop/a and 1 more: policy x", "pod shop/c: policy y"]);
    }

    #[test]
    fn pod_security_below_privileged_keeps_the_mesh_out() {
        let namespace = |level: &str| -> Namespace {
            serde_json::from_value(json!({"metadata": {"labels": {ENFORCE: level}}})).unwrap()
        };
        assert!(pod_security("istio-system", Some(&namespace("baseline"))).is_some());
        assert!(pod_security("istio-system", Some(&namespace("privileged"))).is_none());
        assert!(pod_security("istio-system", None).is_none());
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
