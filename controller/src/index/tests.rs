use std::collections::BTreeMap;
use std::fmt::Write;

use loam_core::ids::Identity;
use loam_core::service::{BalancingMode, Port};
use loam_core::workload::{Health, NetworkMode, TunnelProtocol, WorkloadKind};

use super::*;

mod entries;
mod routes;
mod waypoints;

/// An index, and the resources that its changes add up to.
struct World {
    index: Index,
    resources: BTreeMap<String, String>,
    compiled: usize,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh {
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Arc::default(),
            root_namespace: "istio-system".into(),
            network: "".into(),
            egress: Mode::AllowAny,
        };
        Self { index: Index::new(mesh), resources: BTreeMap::new(), compiled: 0 }
    }

    fn of(yaml: &str) -> Self {
        let mut world = Self::new();
        world.apply(yaml);
        world
    }

    /// Applies manifests and returns how many resources were compiled.
    fn apply(&mut self, yaml: &str) -> usize {
        let state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        state.objects.into_iter().for_each(|object| self.index.apply(object));
        self.compile()
    }

    fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> usize {
        self.index.delete(&Key { kind, namespace: namespace.into(), name: name.into() });
        self.compile()
    }

    fn compile(&mut self) -> usize {
        let changes = self.index.compile().changes;
        self.compiled = changes.len();
        for (name, resource) in changes {
            match resource {
                Some(resource) => self.resources.insert(name.to_string(), show(&resource)),
                None => self.resources.remove(&*name),
            };
        }
        self.compiled
    }

    fn problems(&self) -> Vec<String> {
        self.index.problems().iter().map(|p| format!("{}: {}", p.object, p.message)).collect()
    }

    fn runs_on(&self, identity: &str, node: &str) -> bool {
        self.index.residents().runs_on(&identity.parse::<Identity>().unwrap(), node)
    }

    #[track_caller]
    fn check(&self, expected: &[&str]) {
        let lines: Vec<_> = self.resources.iter().map(|(name, text)| format!("{name}: {text}")).collect();
        assert_eq!(lines, expected, "\n{}", lines.join("\n"));
    }
}

/// A resource in one line; what is as usual is left out.
fn show(resource: &Resource) -> String {
    let mut text = String::new();
    match resource {
        Resource::Workload(w) => {
            let ips: Vec<_> = w.addresses.iter().map(ToString::to_string).collect();
            let _ = write!(text, "{} sa={}", ips.join(","), w.identity.service_account());
            if let Some(hostname) = &w.hostname {
                let _ = write!(text, " host={hostname}");
            }
            if w.protocol == TunnelProtocol::Hbone {
                text.push_str(" hbone");
            }
            if w.network_mode == NetworkMode::HostNetwork {
                text.push_str(" host");
            }
            if w.health == Health::Unhealthy {
                text.push_str(" unhealthy");
            }
            if !w.node.is_empty() {
                let _ = write!(text, " node={}", w.node);
            }
            if !w.locality.region.is_empty() || !w.locality.zone.is_empty() {
                let _ = write!(text, " at={}/{}", w.locality.region, w.locality.zone);
            }
            if w.kind != WorkloadKind::Pod {
                let _ = write!(text, " {:?}={}", w.kind, w.owner);
            }
            for service in &*w.services {
                let _ = write!(text, " {}[{}]", service.service.hostname, ports(&service.ports));
            }
            if let Some(waypoint) = &w.waypoint {
                let _ = write!(text, " via={waypoint}");
            }
            if let loam_core::egress::Egress::RegistryOnly { origin } = &w.egress {
                let _ = write!(text, " only-by={origin}");
            }
        }
        Resource::Service(s) => {
            let ips: Vec<_> = s.addresses.iter().map(|a| a.range.addr().to_string()).collect();
            let _ = write!(text, "{} [{}]", ips.join(","), ports(&s.ports));
            if s.balancing.mode != BalancingMode::Any {
                let _ = write!(text, " {:?}{:?}", s.balancing.mode, s.balancing.preference);
            }
            if let Some(waypoint) = &s.waypoint {
                let _ = write!(text, " via={waypoint}");
            }
            for weighted in &s.weighted_waypoints {
                let _ = write!(text, " {}%={}", weighted.weight, weighted.gateway);
            }
            if s.balancing.allow_unhealthy {
                text.push_str(" allow-unhealthy");
            }
        }
    }
    text
}

fn ports(ports: &[Port]) -> String {
    let all: Vec<_> = ports.iter().map(|p| format!("{}>{}", p.service_port, p.target_port)).collect();
    all.join(" ")
}

/// Pods as `name ip [label=value ...]` in namespace shop on node n1.
fn pods(lines: &[&str]) -> String {
    let mut yaml = String::new();
    for line in lines {
        let mut words = line.split(' ');
        let (name, ip) = (words.next().unwrap(), words.next().unwrap());
        let labels: Vec<_> = words.map(|w| w.replace('=', ": ")).collect();
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{}}}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: {ip}}}\n",
            labels.join(", ")
        );
    }
    yaml
}

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n")
}

const AMBIENT: &str = "---\napiVersion: v1\nkind: Namespace\n\
                       metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
const WEB: &str = "clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]";
const POD_A: &str = "Kubernetes//Pod/shop/a: 10.0.0.1 sa=default";

/// The numbers below `n` in an order that follows from `seed`, which moves on.
fn shuffled(n: usize, seed: &mut u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        order.swap(i, usize::try_from(*seed >> 33).unwrap() % (i + 1));
    }
    order
}

#[test]
fn a_pod_is_a_workload_with_what_it_inherits() {
    let yaml = format!(
        "{AMBIENT}---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: \
         {{topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, labels: {{pod-template-hash: 5f}}, \
         ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: web-5f, uid: u, controller: true}}]}}\n\
         spec: {{nodeName: n1, serviceAccountName: web, containers: []}}\n\
         status: {{podIPs: [{{ip: 10.0.0.1}}, {{ip: \"fd00::1\"}}]}}\n"
    );
    let expected = "Kubernetes//Pod/shop/a: 10.0.0.1,fd00::1 sa=web hbone node=n1 at=r/z Deployment=web";
    World::of(&yaml).check(&[expected]);
}

#[test]
fn a_pod_that_is_nobody_is_no_workload() {
    let pod = |status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{nodeName: n1, containers: []}}\nstatus: {{{status}}}\n"
        )
    };
    for status in ["", "podIP: \"\"", "phase: Succeeded, podIP: 10.0.0.1", "phase: Failed, podIP: 10.0.0.1"] {
        World::of(&pod(status)).check(&[]);
    }
}

#[test]
fn labels_decide_who_is_in_the_mesh_and_may_change_their_mind() {
    let mut world = World::of(&pods(&["a 10.0.0.1", "b 10.0.0.2 istio.io/dataplane-mode=none"]));
    let b = "Kubernetes//Pod/shop/b: 10.0.0.2 sa=default node=n1";
    let (outside, inside) = (format!("{POD_A} node=n1"), format!("{POD_A} hbone node=n1"));
    world.check(&[&outside, b]);
    assert!(!world.runs_on("spiffe://cluster.local/ns/shop/sa/default", "n1"));
    world.apply(AMBIENT);
    world.check(&[&inside, b]);
    assert!(world.runs_on("spiffe://cluster.local/ns/shop/sa/default", "n1"));
    world.delete(Kind::Namespace, "", "shop");
    world.check(&[&outside, b]);
    assert!(!world.runs_on("spiffe://cluster.local/ns/shop/sa/default", "n1"));
}

#[test]
fn a_pod_in_the_network_of_its_node_is_never_in_the_mesh() {
    let yaml = format!(
        "{AMBIENT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, annotations: \
         {{ambient.istio.io/redirection: enabled}}}}\nspec: {{nodeName: n1, hostNetwork: true, containers: []}}\n\
         status: {{podIP: 10.0.0.1}}\n"
    );
    let world = World::of(&yaml);
    world.check(&[&format!("{POD_A} host node=n1")]);
    assert!(!world.runs_on("spiffe://cluster.local/ns/shop/sa/default", "n1"));
}

#[test]
fn a_node_may_speak_only_for_living_pods_of_its_own() {
    let pod = |extra: &str, phase: &str| {
        format!(
            "{AMBIENT}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop{extra}}}\n\
             spec: {{nodeName: n1, serviceAccountName: web, containers: []}}\nstatus: {{podIP: 10.0.0.1{phase}}}\n"
        )
    };
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let mut world = World::of(&pod("", ""));
    assert!(world.runs_on(web, "n1"));
    for (identity, node) in [
        (web, "n2"),
        (web, ""),
        ("spiffe://other.domain/ns/shop/sa/web", "n1"),
        ("spiffe://cluster.local/ns/shop/sa/default", "n1"),
        ("spiffe://cluster.local/ns/other/sa/web", "n1"),
    ] {
        assert!(!world.runs_on(identity, node), "{identity} on {node}");
    }
    world.apply(&pod("", ", phase: Succeeded"));
    assert!(!world.runs_on(web, "n1"));
    world.apply(&pod("", ", phase: Running"));
    assert!(world.runs_on(web, "n1"));
    // One that is on its way out still talks.
    world.apply(&pod(", deletionTimestamp: \"2026-01-01T00:00:00Z\"", ""));
    assert!(world.runs_on(web, "n1"));
    world.delete(Kind::Pod, "shop", "a");
    assert!(!world.runs_on(web, "n1"));
}

#[test]
fn a_service_is_served_by_the_pods_that_it_selects() {
    let spec = "clusterIPs: [10.1.0.1, \"fd01::1\"], selector: {app: web}, ports: [{name: http, port: 80, \
                targetPort: http}, {name: dns, port: 53, protocol: UDP}, {name: x, port: 81, targetPort: nowhere}, \
                {name: y, port: 82}]";
    let a = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, labels: {app: web, v: \"1\"}}\n\
             spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\nstatus: {podIP: 10.0.0.1}\n";
    let mut world =
        World::of(&[a, &pods(&["b 10.0.0.2 app=web", "c 10.0.0.3 app=other"]), &service("web", spec)].concat());
    let service = "shop/web.shop.svc.cluster.local: 10.1.0.1,fd01::1 [80>0 81>0 82>82]";
    let host = "web.shop.svc.cluster.local";
    let (b, c) =
        ("Kubernetes//Pod/shop/b: 10.0.0.2 sa=default node=n1", "Kubernetes//Pod/shop/c: 10.0.0.3 sa=default node=n1");
    world.check(&[&format!("{POD_A} {host}[80>8080 82>82]"), &format!("{b} {host}[82>82]"), c, service]);
    world.delete(Kind::Service, "shop", "web");
    world.check(&[POD_A, b, c]);
}

#[test]
fn services_say_how_their_endpoints_are_picked() {
    let cases = [
        ("", ""),
        ("internalTrafficPolicy: Local", " Strict[Node]"),
        ("trafficDistribution: PreferClose", " Failover[Network, Region, Zone]"),
        ("trafficDistribution: PreferSameZone", " Failover[Network, Region, Zone]"),
        ("trafficDistribution: PreferSameNode", " Failover[Network, Region, Zone, Subzone, Node]"),
        ("publishNotReadyAddresses: true", " allow-unhealthy"),
    ];
    for (spec, expected) in cases {
        let spec = format!("{WEB}{}{spec}", if spec.is_empty() { "" } else { ", " });
        let expected = format!("shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080]{expected}");
        World::of(&service("web", &spec)).check(&[&expected]);
    }
    let mut world = World::of(&service("web", WEB));
    world.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: \
         {networking.istio.io/traffic-distribution: PreferClose}}\n",
    );
    world.check(&["shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080] Failover[Network, Region, Zone]"]);
}

#[test]
fn headless_services_have_no_address_and_aliases_are_no_services() {
    let headless = service("web", "clusterIP: None, selector: {app: web}, ports: [{port: 80}]");
    let alias = service("alias", "type: ExternalName, externalName: example.org");
    let world = World::of(&[headless, alias, service("odd", "ports: [{port: 80}]")].concat());
    world.check(&["shop/odd.shop.svc.cluster.local:  [80>80]", "shop/web.shop.svc.cluster.local:  [80>80]"]);
    let expected = ["Service shop/odd: has no clusterIP: callers reach its pods only at their own addresses"];
    assert_eq!(world.problems(), expected);
}

#[test]
fn slices_tell_the_endpoints_of_a_service_without_selector() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: db}}\n\
                 ports: [{name: sql, port: 5432}, {name: other, port: 1}]\nendpoints:\n\
                 - {addresses: [192.0.2.1], zone: z1}\n- {addresses: [192.0.2.2], conditions: {ready: false}}\n\
                 - {addresses: [10.0.0.9], targetRef: {kind: Pod, name: a}}\n- {addresses: [10.0.0.2]}\n";
    let db = service("db", "clusterIP: 10.1.0.2, ports: [{name: sql, port: 5000}, {name: admin, port: 5001}]");
    let mut world = World::of(&[slice, &db, &pods(&["a 10.0.0.1", "b 10.0.0.2"])].concat());
    let host = "db.shop.svc.cluster.local[5000>5432]";
    let a = format!("{POD_A} node=n1 {host}");
    let b = format!("Kubernetes//Pod/shop/b: 10.0.0.2 sa=default node=n1 {host}");
    let one =
        format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.1: 192.0.2.1 sa=default host at=/z1 {host}");
    let two = format!(
        "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.2: 192.0.2.2 sa=default host unhealthy {host}"
    );
    let service = "shop/db.shop.svc.cluster.local: 10.1.0.2 [5000>5000 5001>5001]";
    // The address of a pod is that pod, which may be in the mesh: it is never a stranger.
    world.check(&[&a, &b, &one, &two, service]);
    // When the pod goes, its address is a stranger's.
    world.delete(Kind::Pod, "shop", "b");
    let three = format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/10.0.0.2: 10.0.0.2 sa=default host {host}");
    world.check(&[&a, &three, &one, &two, service]);
    world.delete(Kind::EndpointSlice, "shop", "s");
    world.check(&[&format!("{POD_A} node=n1"), service]);
    world.apply(&[slice, &pods(&["b 10.0.0.2"])].concat());
    world.check(&[&a, &b, &one, &two, service]);
    world.delete(Kind::Service, "shop", "db");
    world.check(&[&format!("{POD_A} node=n1"), "Kubernetes//Pod/shop/b: 10.0.0.2 sa=default node=n1"]);
}

#[test]
fn slices_of_a_service_with_a_selector_only_repeat_it() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                 ports: [{port: 9}]\nendpoints: [{addresses: [192.0.2.1]}, {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}}]\n";
    let world = World::of(&[slice, &service("web", WEB), &pods(&["a 10.0.0.1 app=web"])].concat());
    let a = format!("{POD_A} node=n1 web.shop.svc.cluster.local[80>8080]");
    world.check(&[&a, "shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080]"]);
}

#[test]
fn an_address_of_two_pods_is_the_first_ones_and_nothing_else_is_lost() {
    let mut world = World::of(&pods(&["b 10.0.0.1", "a 10.0.0.1"]));
    let (a, b) = (format!("{POD_A} node=n1"), "Kubernetes//Pod/shop/b:  sa=default node=n1");
    world.check(&[&a, b]);
    assert_eq!(world.problems(), ["Pod shop/b: address 10.0.0.1 is left out: it belongs to pod shop/a"]);
    world.delete(Kind::Pod, "shop", "a");
    world.check(&["Kubernetes//Pod/shop/b: 10.0.0.1 sa=default node=n1"]);
    assert!(world.problems().is_empty());
    world.apply(&pods(&["a 10.0.0.1"]));
    world.check(&[&a, b]);
    // What is on its way out gives way.
    world.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, deletionTimestamp: \"2026-01-01T00:00:00Z\"}\n\
         spec: {nodeName: n1, containers: []}\nstatus: {podIP: 10.0.0.1}\n",
    );
    let leaving = "Kubernetes//Pod/shop/a:  sa=default unhealthy node=n1";
    world.check(&[leaving, "Kubernetes//Pod/shop/b: 10.0.0.1 sa=default node=n1"]);
}

#[test]
fn pods_of_a_node_share_its_address_in_peace() {
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{nodeName: n1, hostNetwork: true, containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
        )
    };
    let world = World::of(&[pod("a"), pod("b"), pods(&["c 10.0.0.1"])].concat());
    let line = |name: &str, extra: &str| format!("Kubernetes//Pod/shop/{name}: 10.0.0.1 sa=default{extra} node=n1");
    world.check(&[&line("a", " host"), &line("b", " host"), &line("c", "")]);
    assert!(world.problems().is_empty());
}

#[test]
fn an_address_of_two_services_is_the_first_ones() {
    let mut world = World::of(&[service("web", WEB), service("old", WEB)].concat());
    let old = "shop/old.shop.svc.cluster.local: 10.1.0.1 [80>8080]";
    world.check(&[old, "shop/web.shop.svc.cluster.local:  [80>8080]"]);
    assert_eq!(world.problems(), ["Service shop/web: address 10.1.0.1 is left out: it belongs to service shop/old"]);
    world.delete(Kind::Service, "shop", "old");
    world.check(&["shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080]"]);
}

#[test]
fn what_is_wrong_with_an_object_is_told_and_the_rest_of_it_counts() {
    let mut world =
        World::of(&service("web", "clusterIP: 10.1.0.1, ports: [{port: 0}, {port: 80}, {port: 80}, {port: 70000}]"));
    world.check(&["shop/web.shop.svc.cluster.local: 10.1.0.1 [80>80]"]);
    let expected = [
        "Service shop/web: port 0 is not between 1 and 65535",
        "Service shop/web: port 70000 is not between 1 and 65535",
        "Service shop/web: port 80 is there twice: the first counts",
    ];
    assert_eq!(world.problems(), expected);
    world.apply(&service("web", WEB));
    assert!(world.problems().is_empty());
}

#[test]
fn a_change_compiles_what_depends_on_it_and_nothing_else() {
    let many: Vec<_> = (0..500).map(|i| format!("p{i} 10.0.{}.{} app=app{}", i / 250, i % 250 + 1, i % 50)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let services: String = (0..50)
        .map(|i| {
            service(
                &format!("s{i}"),
                &format!("clusterIP: 10.1.0.{}, selector: {{app: app{i}}}, ports: [{{port: 80}}]", i + 1),
            )
        })
        .collect();
    let mut world = World::of(&[AMBIENT, &pods(&many), &services].concat());
    assert_eq!(world.compiled, 550);
    assert_eq!(world.apply(&pods(&["p7 10.0.0.8 app=app7"])), 0, "nothing changed");
    assert_eq!(world.apply(&pods(&["p7 10.0.0.8 app=app8"])), 1, "a pod changed its labels");
    assert_eq!(world.apply(&pods(&["new 10.0.9.9 app=app7"])), 1, "a pod came");
    assert_eq!(world.delete(Kind::Pod, "shop", "new"), 1, "a pod went");
    let balanced = "clusterIP: 10.1.0.4, selector: {app: app3}, ports: [{port: 80}], trafficDistribution: PreferClose";
    assert_eq!(world.apply(&service("s3", balanced)), 1, "a service is balanced otherwise");
    let moved = "clusterIP: 10.1.0.4, selector: {app: app3}, ports: [{port: 80, targetPort: 81}]";
    assert_eq!(world.apply(&service("s3", moved)), 11, "a service and its ten pods");
    assert_eq!(world.delete(Kind::Namespace, "", "shop"), 500, "all pods leave the mesh");
}

#[test]
fn whatever_the_order_of_events_the_result_is_the_same() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: db}}\n\
                 ports: [{port: 5432}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [192.0.2.1]}]\n";
    let documents = [
        AMBIENT.to_owned(),
        pods(&["a 10.0.0.1 app=web"]),
        pods(&["b 10.0.0.1 app=web"]),
        pods(&["c 10.0.0.3 app=web x=y"]),
        service("web", WEB),
        service("db", "clusterIP: 10.1.0.1, ports: [{port: 5432}]"),
        slice.to_owned(),
    ];
    let expected = World::of(&documents.concat()).resources;
    // A walk through orders, each with a detour through deletions: one seed, always the same walk.
    let mut seed = 7_u64;
    for _ in 0..300 {
        let order = shuffled(documents.len(), &mut seed);
        let mut world = World::new();
        for i in &order {
            world.apply(&documents[*i]);
        }
        assert_eq!(world.resources, expected, "{order:?}");
        for i in &order {
            let state = loam_manifest::read([("m.yaml", documents[*i].as_bytes())]);
            let key = state.objects[0].key();
            world.delete(key.kind, &key.namespace, &key.name);
        }
        assert!(world.resources.is_empty(), "{order:?} leaves {:?}", world.resources);
        assert!(world.problems().is_empty());
        assert!(world.index.pods_in.0.is_empty() && world.index.slices_of_ip.0.is_empty());
    }
}

#[test]
fn a_service_whose_name_is_no_hostname_is_left_out_and_told() {
    let world = World::of(&service(&"x".repeat(64), WEB));
    world.check(&[]);
    assert!(world.problems()[0].contains("the service is left out: hostname"), "{:?}", world.problems());
}
