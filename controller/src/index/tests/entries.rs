//! ServiceEntries, WorkloadEntries, and who may leave the registry.

use super::*;

fn entry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn machine(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1beta1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {{{spec}}}\n"
    )
}

const PORT: &str = "ports: [{number: 443, name: tls, protocol: TLS}]";
const EXTERNAL: &str = "Kubernetes/networking.istio.io/ServiceEntry/shop/e/";

#[test]
fn endpoints_that_are_written_down_are_workloads_and_a_pods_address_is_that_pod() {
    let spec = "hosts: [db.example, alias.example], addresses: [203.0.113.1], resolution: STATIC, ports: [{number: \
                5432, name: sql, protocol: TCP, targetPort: 15432}], endpoints: [{address: 192.0.2.1, locality: \
                r1/z1}, {address: 192.0.2.2, ports: {sql: 9}}, {address: 10.0.0.1}]";
    let hosts = |port: u16| format!("alias.example[5432>{port}] db.example[5432>{port}]");
    let services = [
        "shop/alias.example: 203.0.113.1 [5432>15432]".to_owned(),
        "shop/db.example: 203.0.113.1 [5432>15432]".to_owned(),
    ];
    let one = format!("{EXTERNAL}192.0.2.1: 192.0.2.1 sa=default at=r1/z1 {}", hosts(15432));
    let two = format!("{EXTERNAL}192.0.2.2: 192.0.2.2 sa=default {}", hosts(9));
    let mut world = World::of(&[entry("shop", "e", spec), pods(&["a 10.0.0.1"])].concat());
    let a = format!("{POD_A} node=n1 {}", hosts(15432));
    world.check(&[&a, &one, &two, &services[0], &services[1]]);
    // When the pod goes, its address is a stranger's; when it comes back, it is the pod again.
    world.delete(Kind::Pod, "shop", "a");
    let stranger = format!("{EXTERNAL}10.0.0.1: 10.0.0.1 sa=default {}", hosts(15432));
    world.check(&[&stranger, &one, &two, &services[0], &services[1]]);
    world.apply(&pods(&["a 10.0.0.1"]));
    world.check(&[&a, &one, &two, &services[0], &services[1]]);
    world.delete(Kind::ServiceEntry, "shop", "e");
    world.check(&[&format!("{POD_A} node=n1")]);
}

#[test]
fn a_selector_takes_pods_and_machines_with_the_labels() {
    let spec = "hosts: [web.internal], addresses: [203.0.113.1], location: MESH_INTERNAL, resolution: STATIC, ports: \
                [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], workloadSelector: {labels: {app: web}}";
    let vm = "address: 192.0.2.7, serviceAccount: web, weight: 3, locality: r1/z1, network: west, labels: {app: web, \
              networking.istio.io/tunnel: http}, ports: {http: 9090}";
    let all = [entry("shop", "e", spec), machine("vm", vm), pods(&["a 10.0.0.1 app=web", "b 10.0.0.2 app=other"])];
    let mut world = World::of(&all.concat());
    let b = "Kubernetes//Pod/shop/b: 10.0.0.2 sa=default node=n1";
    let a = format!("{POD_A} node=n1 web.internal[80>8080]");
    let service = "shop/web.internal: 203.0.113.1 [80>8080]";
    let uid = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm: 192.0.2.7 sa=web hbone at=r1/z1";
    world.check(&[&a, b, &format!("{uid} web.internal[80>9090]"), service]);
    // A service of Kubernetes selects machines as well.
    world.apply(&super::service("web", WEB));
    let web = "web.shop.svc.cluster.local[80>8080]";
    world.check(&[
        &format!("{POD_A} node=n1 web.internal[80>8080] {web}"),
        b,
        &format!("{uid} web.internal[80>9090] {web}"),
        service,
        "shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080]",
    ]);
    world.delete(Kind::Service, "shop", "web");
    world.delete(Kind::ServiceEntry, "shop", "e");
    world.check(&[&format!("{POD_A} node=n1"), b, uid]);
    world.delete(Kind::WorkloadEntry, "shop", "vm");
    world.check(&[&format!("{POD_A} node=n1"), b]);
}

#[test]
fn names_that_are_to_be_resolved_are_endpoints() {
    let dns = |more: &str| entry("shop", "e", &format!("addresses: [203.0.113.1], {PORT}, {more}"));
    // Each host is its own endpoint.
    let world = World::of(&dns("hosts: [a.example, b.example], resolution: DNS"));
    world.check(&[
        &format!("{EXTERNAL}a.example:  sa=default host=a.example a.example[443>443]"),
        &format!("{EXTERNAL}b.example:  sa=default host=b.example b.example[443>443]"),
        "shop/a.example: 203.0.113.1 [443>443]",
        "shop/b.example: 203.0.113.1 [443>443]",
    ]);
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    let more = "hosts: [a.example], resolution: DNS_ROUND_ROBIN, endpoints: [{address: c.example, ports: {tls: 8443}}, \
                {address: 192.0.2.1}]";
    let mut world = World::of(&dns(more));
    world.check(&[
        &format!("{EXTERNAL}192.0.2.1: 192.0.2.1 sa=default a.example[443>443]"),
        &format!("{EXTERNAL}c.example:  sa=default host=c.example a.example[443>8443]"),
        "shop/a.example: 203.0.113.1 [443>443]",
    ]);
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    world.apply(&dns("hosts: [a.example], resolution: DNS"));
    world.check(&[
        &format!("{EXTERNAL}a.example:  sa=default host=a.example a.example[443>443]"),
        "shop/a.example: 203.0.113.1 [443>443]",
    ]);
    // Without an address of its own a host is given one.
    let world = World::of(&entry("shop", "e", &format!("hosts: [a.example], resolution: DNS, {PORT}")));
    assert!(world.resources["shop/a.example"].starts_with("240.240."), "{:?}", world.resources);
}

#[test]
fn a_machine_that_is_known_by_name_is_selected_like_any_other() {
    let spec = "hosts: [db.internal], addresses: [203.0.113.1], resolution: DNS, workloadSelector: {labels: {app: db}}, \
                ports: [{number: 5432, name: sql, protocol: TCP}]";
    let vm = machine("vm", "address: db.example.org, labels: {app: db}");
    World::of(&[entry("shop", "e", spec), vm].concat()).check(&[
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm:  sa=default host=db.example.org db.internal[5432>5432]",
        "shop/db.internal: 203.0.113.1 [5432>5432]",
    ]);
}

#[test]
fn without_resolution_connections_go_where_they_were_going() {
    let spec = format!("hosts: [cidr.example], addresses: [198.51.100.0/24], resolution: NONE, {PORT}");
    World::of(&entry("shop", "e", &spec)).check(&["shop/cidr.example: 198.51.100.0 [443>443] Passthrough[]"]);
}

#[test]
fn made_up_addresses_are_the_same_in_whatever_order_objects_come() {
    let documents: Vec<_> = (0..60)
        .map(|i| entry("shop", &format!("e{i}"), &format!("hosts: [h{i}.example], resolution: STATIC, {PORT}")))
        .collect();
    let expected = World::of(&documents.concat()).resources;
    let mut world = World::new();
    for document in documents.iter().rev() {
        world.apply(document);
    }
    assert_eq!(world.resources, expected);
    // A label refuses them, and nothing is made up for a pattern.
    let refused = entry("shop", "e", &format!("hosts: [a.example, '*.b.example'], resolution: STATIC, {PORT}"));
    let refused = refused.replace("namespace: shop", "namespace: shop, labels: {X: \"false\"}");
    let labelled = refused.replace('X', "networking.istio.io/enable-autoallocate-ip");
    assert_eq!(World::of(&labelled).resources["shop/a.example"], " [443>443]");
    let world = World::of(&refused);
    assert_eq!(world.resources["shop/*.b.example"], " [443>443]");
    assert_ne!(world.resources["shop/a.example"], " [443>443]");
    assert!(
        world.problems().len() == 1 && world.problems()[0].contains("a pattern gets none"),
        "{:?}",
        world.problems()
    );
}

#[test]
fn a_host_is_the_elders_and_a_service_of_kubernetes_comes_first() {
    let spec = |ip: &str| format!("hosts: [a.example], addresses: [{ip}], resolution: NONE, {PORT}");
    let aged = |name: &str, ip: &str, day: u8| {
        let text = entry("shop", name, &spec(ip));
        text.replace("namespace: shop", &format!("namespace: shop, creationTimestamp: 2026-01-0{day}T00:00:00Z"))
    };
    let mut world = World::of(&[entry("shop", "a", &spec("203.0.113.1")), aged("z", "203.0.113.9", 2)].concat());
    world.check(&["shop/a.example: 203.0.113.9 [443>443] Passthrough[]"]);
    let told = ["ServiceEntry shop/a: host a.example is left out: it belongs to ServiceEntry shop/z, so merge the two"];
    assert_eq!(world.problems(), told);
    // Another namespace has its own.
    world.apply(&entry("other", "a", &spec("203.0.113.5")));
    let other = "other/a.example: 203.0.113.5 [443>443] Passthrough[]";
    world.check(&[other, "shop/a.example: 203.0.113.9 [443>443] Passthrough[]"]);
    world.delete(Kind::ServiceEntry, "shop", "z");
    world.check(&[other, "shop/a.example: 203.0.113.1 [443>443] Passthrough[]"]);
    assert!(world.problems().is_empty());

    let clash = format!(
        "hosts: [web.shop.svc.cluster.local], addresses: [203.0.113.1], resolution: STATIC, {PORT}, endpoints: \
         [{{address: 192.0.2.1}}]"
    );
    let mut world = World::of(&[entry("shop", "e", &clash), super::service("web", WEB)].concat());
    let kubernetes = "shop/web.shop.svc.cluster.local: 10.1.0.1 [80>8080]";
    world.check(&[kubernetes]);
    assert!(world.problems()[0].contains("it belongs to Service shop/web"), "{:?}", world.problems());
    world.delete(Kind::Service, "shop", "web");
    let host = "web.shop.svc.cluster.local";
    world.check(&[
        &format!("{EXTERNAL}192.0.2.1: 192.0.2.1 sa=default {host}[443>443]"),
        &format!("shop/{host}: 203.0.113.1 [443>443]"),
    ]);
    world.apply(&super::service("web", WEB));
    world.check(&[kubernetes]);
}

#[test]
fn an_entry_cannot_catch_what_belongs_to_a_pod_or_service() {
    let spec =
        "hosts: [a.example], addresses: [10.1.0.1, 10.0.0.1, 203.0.113.1], resolution: NONE, ports: [{number: 80}]";
    let mut world = World::of(&entry("shop", "e", spec));
    world.check(&["shop/a.example: 10.1.0.1,10.0.0.1,203.0.113.1 [80>80] Passthrough[]"]);
    world.apply(&[super::service("web", WEB), pods(&["a 10.0.0.1"])].concat());
    assert_eq!(world.resources["shop/a.example"], "203.0.113.1 [80>80] Passthrough[]");
    let told = [
        "ServiceEntry shop/e: address 10.0.0.1 is left out: it belongs to pod shop/a",
        "ServiceEntry shop/e: address 10.1.0.1 is left out: it belongs to service shop/web",
    ];
    assert_eq!(world.problems(), told);
    world.delete(Kind::Service, "shop", "web");
    world.delete(Kind::Pod, "shop", "a");
    world.check(&["shop/a.example: 10.1.0.1,10.0.0.1,203.0.113.1 [80>80] Passthrough[]"]);
}

#[test]
fn a_machine_with_somebody_elses_address_is_left_out_and_told() {
    let mut world = World::of(
        &[pods(&["a 10.0.0.1"]), machine("vm", "address: 10.0.0.1"), machine("x", "address: 192.0.2.1")].concat(),
    );
    let a = format!("{POD_A} node=n1");
    let x = "Kubernetes/networking.istio.io/WorkloadEntry/shop/x: 192.0.2.1 sa=default";
    world.check(&[&a, x]);
    world.apply(&machine("y", "address: 192.0.2.1"));
    world.check(&[&a, x]);
    let told = [
        "WorkloadEntry shop/vm: is left out: its address 10.0.0.1 belongs to pod shop/a",
        "WorkloadEntry shop/y: is left out: its address 192.0.2.1 belongs to WorkloadEntry shop/x",
    ];
    assert_eq!(world.problems(), told);
    world.delete(Kind::Pod, "shop", "a");
    world.delete(Kind::WorkloadEntry, "shop", "x");
    world.check(&[
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm: 10.0.0.1 sa=default",
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/y: 192.0.2.1 sa=default",
    ]);
    assert!(world.problems().is_empty());
}

#[test]
fn what_is_shown_to_some_is_not_shown_to_all() {
    let shown = |export: &str| {
        let spec = format!("hosts: [a.example], addresses: [203.0.113.1], resolution: NONE, {PORT}{export}");
        let mut index = World::new().index;
        let text = entry("shop", "e", &spec);
        let state = loam_manifest::read([("m.yaml", text.as_bytes())]);
        state.objects.into_iter().for_each(|object| index.apply(object));
        let visibility = |(_, resource)| match resource {
            Some(Resource::Service(service)) => Some(service.visibility),
            Some(Resource::Workload(_)) | None => None,
        };
        index.compile().changes.into_iter().find_map(visibility)
    };
    use loam_core::service::Visibility;
    assert_eq!(shown(""), Some(Visibility::Public));
    assert_eq!(shown(", exportTo: ['*']"), Some(Visibility::Public));
    assert_eq!(shown(", exportTo: ['.']"), Some(Visibility::Namespace));
    assert_eq!(shown(", exportTo: [shop]"), Some(Visibility::Namespace));
    let some = |namespaces: &[&str]| Some(Visibility::Namespaces(namespaces.iter().map(|n| (*n).into()).collect()));
    assert_eq!(shown(", exportTo: [other, ., shop]"), some(&["other", "shop"]));
    assert_eq!(shown(", exportTo: [other]"), some(&["other"]), "and not its own");
    assert_eq!(shown(", exportTo: [other, '*']"), Some(Visibility::Public));
    assert_eq!(shown(", exportTo: [other, '~']"), None);
    assert_eq!(shown(", exportTo: ['Not/A_Namespace']"), None);
    assert_eq!(shown(", exportTo: ['~']"), None);
}

#[test]
fn slices_withdraw_pods_that_end_or_are_not_ready_for_a_service() {
    let slice = |conditions: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: s, \
             namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\nports: [{{port: 8080}}]\nendpoints:\n\
             - {{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: a}}, conditions: {{{conditions}}}}}\n\
             - {{addresses: [10.0.0.2], conditions: {{{conditions}}}}}\n"
        )
    };
    let pods = pods(&["a 10.0.0.1 app=web", "b 10.0.0.2 app=web"]);
    let selected = WEB.to_owned();
    let bare = "clusterIP: 10.1.0.1, ports: [{port: 80, targetPort: 8080}]".to_owned();
    let served = |world: &World| {
        let serves = |(name, text): (&String, &String)| name.contains("/Pod/") && text.contains("web.shop");
        world.resources.iter().filter(|r| serves(*r)).count()
    };
    for spec in [selected, bare] {
        let mut world = World::of(&[&*pods, &super::service("web", &spec), &slice("ready: true")].concat());
        for (conditions, expected) in [
            ("ready: true", 2),
            ("ready: false", 0),
            ("ready: true, serving: true, terminating: false", 2),
            ("ready: false, serving: true, terminating: true", 0),
            ("terminating: true", 0),
            ("", 2),
        ] {
            world.apply(&slice(conditions));
            assert_eq!(served(&world), expected, "{spec}: {conditions:?}");
        }
        let published = super::service("web", &format!("{spec}, publishNotReadyAddresses: true"));
        world.apply(&[published, slice("ready: false")].concat());
        assert_eq!(served(&world), 2, "{spec}");
    }
}

#[test]
fn clients_are_kept_with_their_endpoint_where_the_service_asks_for_it() {
    let affinity = |spec: &str| {
        let mut index = World::new().index;
        let text = super::service("web", &format!("{WEB}, {spec}"));
        let state = loam_manifest::read([("m.yaml", text.as_bytes())]);
        state.objects.into_iter().for_each(|object| index.apply(object));
        let found = |(_, resource)| match resource {
            Some(Resource::Service(service)) => Some(service.balancing.affinity),
            Some(Resource::Workload(_)) | None => None,
        };
        (index.compile().changes.into_iter().find_map(found).unwrap(), index.problems().len())
    };
    use loam_core::service::Affinity;
    assert_eq!(affinity("sessionAffinity: ClientIP"), (Affinity::ClientAddress, 0));
    assert_eq!(affinity("sessionAffinity: None"), (Affinity::None, 0));
    assert_eq!(affinity("sessionAffinity: Cookie"), (Affinity::None, 1));
}

/// Whether the pod of namespace shop may leave the registry: nobody, or who says no.
fn bound(world: &World) -> Option<String> {
    let text = &world.resources["Kubernetes//Pod/shop/a"];
    text.split_once(" only-by=").map(|(_, origin)| origin.to_owned())
}

#[test]
fn who_may_leave_the_registry_is_said_by_the_nearest() {
    let sidecar = |namespace: &str, name: &str, mode: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {{name: {name}, namespace: \
             {namespace}}}\nspec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
        )
    };
    let mut world = World::of(&[AMBIENT, &pods(&["a 10.0.0.1"])].concat());
    assert_eq!(bound(&world), None);
    world.apply(&sidecar("istio-system", "default", "REGISTRY_ONLY"));
    assert_eq!(bound(&world).as_deref(), Some("Sidecar istio-system/default"));
    let annotated = |mode: &str| {
        let annotation = format!("{{name: shop, annotations: {{loam.dev/outbound-traffic-policy: {mode}}}, ");
        AMBIENT.replace("{name: shop, ", &annotation)
    };
    assert_ne!(annotated("X"), AMBIENT);
    world.apply(&annotated("ALLOW_ANY"));
    assert_eq!(bound(&world), None);
    world.apply(&annotated("REGISTRY_ONLY"));
    let annotation = "annotation loam.dev/outbound-traffic-policy of namespace shop";
    assert_eq!(bound(&world).as_deref(), Some(annotation));
    world.apply(&sidecar("shop", "own", "ALLOW_ANY"));
    assert_eq!(bound(&world), None);
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    // A second one is told, and the first by name counts.
    world.apply(&sidecar("shop", "another", "REGISTRY_ONLY"));
    assert_eq!(bound(&world).as_deref(), Some("Sidecar shop/another"));
    assert!(world.problems()[0].contains("Sidecar shop/another sets it already"), "{:?}", world.problems());
    world.delete(Kind::Sidecar, "shop", "another");
    world.delete(Kind::Sidecar, "shop", "own");
    assert_eq!(bound(&world).as_deref(), Some(annotation));
    world.apply(AMBIENT);
    world.delete(Kind::Sidecar, "istio-system", "default");
    assert_eq!(bound(&world), None);
}

#[test]
fn a_word_about_egress_that_is_not_understood_restricts_and_a_selector_is_told() {
    let sidecar = |spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: s, namespace: shop}}\nspec: \
             {{{spec}}}\n"
        )
    };
    let mut world = World::of(&[AMBIENT, &pods(&["a 10.0.0.1"])].concat());
    world.apply(&sidecar("outboundTrafficPolicy: {mode: NOTHING}"));
    assert_eq!(bound(&world).as_deref(), Some("Sidecar shop/s"));
    assert!(world.problems()[0].contains("neither ALLOW_ANY nor REGISTRY_ONLY"), "{:?}", world.problems());
    world.apply(&sidecar("workloadSelector: {labels: {a: b}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    assert_eq!(bound(&world), None);
    assert!(world.problems()[0].contains("take workloadSelector away"), "{:?}", world.problems());
    world.apply(&sidecar("egress: [{hosts: ['./*']}]"));
    assert!(bound(&world).is_none() && world.problems().is_empty());
}

#[test]
fn whatever_the_order_of_entries_and_pods_the_result_is_the_same() {
    let selected =
        format!("hosts: [b.example], resolution: STATIC, {PORT}, workloadSelector: {{labels: {{app: web}}}}");
    let written = format!(
        "hosts: [a.example, b.example], addresses: [203.0.113.1], resolution: STATIC, {PORT}, endpoints: [{{address: \
         10.0.0.1}}, {{address: 192.0.2.1}}, {{address: 192.0.2.9}}]"
    );
    let documents = [
        AMBIENT.to_owned(),
        pods(&["a 10.0.0.1 app=web"]),
        pods(&["b 10.0.0.2 app=web"]),
        super::service("web", WEB),
        entry("shop", "selected", &selected),
        entry("shop", "written", &written),
        entry("other", "named", &format!("hosts: [b.example], resolution: STATIC, {PORT}")),
        entry("shop", "web", &format!("hosts: [web.shop.svc.cluster.local], resolution: STATIC, {PORT}")),
        machine("vm", "address: 192.0.2.1, labels: {app: web}"),
        machine("vn", "address: 192.0.2.1, labels: {app: web}"),
        machine("vp", "address: 10.0.0.2, labels: {app: web}"),
    ];
    let whole = World::of(&documents.concat());
    let mut seed = 11_u64;
    for _ in 0..200 {
        let order = super::shuffled(documents.len(), &mut seed);
        let mut world = World::new();
        for i in &order {
            world.apply(&documents[*i]);
        }
        assert_eq!(world.resources, whole.resources, "{order:?}");
        assert_eq!(world.problems(), whole.problems(), "{order:?}");
        for i in &order {
            let state = loam_manifest::read([("m.yaml", documents[*i].as_bytes())]);
            let key = state.objects[0].key();
            world.delete(key.kind, &key.namespace, &key.name);
        }
        assert!(world.resources.is_empty(), "{order:?} leaves {:?}", world.resources);
        assert!(world.problems().is_empty(), "{:?}", world.problems());
        assert!(world.index.entries.told.is_empty() && world.index.entries.workloads.is_empty());
    }
}

#[test]
fn what_is_wrong_with_an_entry_is_told_with_its_place_and_the_rest_of_the_file_counts() {
    let good =
        entry("shop", "good", &format!("hosts: [a.example], addresses: [203.0.113.1], resolution: NONE, {PORT}"));
    let bad =
        entry("shop", "bad", &format!("hosts: [b.example], addresses: [203.0.113.2/33], resolution: STATIC, {PORT}"));
    let world = World::of(&[&*good, &bad].concat());
    world.check(&["shop/a.example: 203.0.113.1 [443>443] Passthrough[]", "shop/b.example:  [443>443]"]);
    let problems = world.index.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].file.as_deref(), problems[0].line), (Some("m.yaml"), Some(7)));
    assert!(problems[0].message.contains("203.0.113.2/33"), "{problems:?}");
}

#[test]
fn a_machine_that_nothing_can_reach_is_told_until_it_is_right() {
    let mut world = World::of(&machine("vm", "address: unix:///run/x"));
    world.check(&[]);
    assert!(world.problems()[0].contains("Unix socket"), "{:?}", world.problems());
    world.apply(&machine("vm", "address: 192.0.2.1"));
    assert!(world.problems().is_empty());
}
