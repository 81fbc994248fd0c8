//! Who has which waypoint in front of it.

use super::*;
use crate::index::waypoints::User;

/// A waypoint `shop/w` with a pod that is ready.
pub(super) const WAYPOINT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: w, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: w}}
spec: {clusterIP: 10.96.0.100, selector: {gateway.networking.k8s.io/gateway-name: w}, ports: [{port: 15008}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: w-1
  namespace: shop
  labels: {gateway.networking.k8s.io/gateway-name: w, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}
spec: {containers: []}
status: {podIP: 10.0.0.100, conditions: [{type: Ready, status: \"True\"}]}
";

pub(super) fn service(namespace: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
    )
}

const USES: &str = "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: shop";

/// What is in front of the service `web`, and what is said about it.
fn bound(world: &World, namespace: &str) -> (String, String) {
    let text = &world.resources[&format!("{namespace}/web.{namespace}.svc.cluster.local")];
    let via: Vec<&str> = text.split(' ').filter(|word| word.contains("w.") && word.contains('=')).collect();
    let binding = world.index.waypoints.binding(&User::Service(Name::new(namespace, "web")));
    let condition = binding.and_then(|binding| binding.condition.as_ref());
    (via.join(" "), condition.map_or_else(String::new, |c| format!("{} {}", c.holds, c.reason)))
}

#[track_caller]
fn check(world: &World, namespace: &str, via: &str, condition: &str) {
    assert_eq!(bound(world, namespace), (via.to_owned(), condition.to_owned()));
}

const VIA: &str = "via=shop/w.shop.svc.cluster.local:15008";

#[test]
fn a_waypoint_that_is_named_stays_named_while_it_is_missing_or_not_ready() {
    let mut world = World::of(&service("shop", USES));
    check(&world, "shop", VIA, "false WaypointMissing");
    world.apply(&WAYPOINT.replace("\"True\"", "\"False\""));
    check(&world, "shop", VIA, "false WaypointIsNotReady");
    world.apply(WAYPOINT);
    check(&world, "shop", VIA, "true WaypointAccepted");
    world.delete(Kind::Service, "shop", "w");
    check(&world, "shop", VIA, "false WaypointIsNotReady");
    world.delete(Kind::Gateway, "shop", "w");
    check(&world, "shop", VIA, "false WaypointMissing");
}

#[test]
fn only_who_says_so_lets_connections_pass_a_waypoint_that_is_not_there() {
    let labelled = service("shop", USES);
    let passing = labelled.replace("labels:", "annotations: {loam.dev/waypoint-unavailable: pass}, labels:");
    let mut world = World::of(&passing);
    let bypass = |world: &World| {
        let binding = world.index.waypoints.binding(&User::Service(Name::new("shop", "web"))).unwrap();
        binding.waypoint.as_ref().map(|waypoint| waypoint.bypass)
    };
    check(&world, "shop", VIA, "false WaypointMissing");
    assert_eq!(bypass(&world), Some(true));
    world.apply(&labelled);
    assert_eq!(bypass(&world), Some(false));
}

#[test]
fn a_namespace_names_the_waypoint_of_all_that_is_in_it() {
    let namespace =
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n";
    let mut world = World::of(&[WAYPOINT, &service("shop", ""), &service("shop2", "")].concat());
    check(&world, "shop", "", "");
    world.apply(namespace);
    check(&world, "shop", VIA, "true WaypointAccepted");
    check(&world, "shop2", "", "");
    assert!(!world.resources["shop/w.shop.svc.cluster.local"].contains("via="), "a waypoint is in front of itself");
    world.apply(&service("shop", "istio.io/use-waypoint: none"));
    check(&world, "shop", "", "");
}

#[test]
fn traffic_that_a_waypoint_does_not_take_goes_past_it() {
    let gateway = |traffic: &str| {
        WAYPOINT.replace(
            "{name: w, namespace: shop}\nspec: {gateway",
            &format!("{{name: w, namespace: shop, labels: {{istio.io/waypoint-for: {traffic}}}}}\nspec: {{gateway"),
        )
    };
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: w}}\n\
               spec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    let mut world = World::of(&[&service("shop", USES), pod].concat());
    for (traffic, of_service, of_pod) in
        [("service", true, false), ("workload", false, true), ("all", true, true), ("none", false, false)]
    {
        world.apply(&gateway(traffic));
        let condition = if of_service { "true WaypointAccepted" } else { "false UnsupportedTrafficType" };
        check(&world, "shop", if of_service { VIA } else { "" }, condition);
        let pod = &world.resources["Kubernetes//Pod/shop/web"];
        assert_eq!(pod.contains("via=shop/w."), of_pod, "{traffic}: {pod}");
    }
    assert!(world.resources["Kubernetes//Pod/shop/w-1"].contains("hbone"));
}

#[test]
fn another_namespace_is_admitted_by_a_listener_or_refused() {
    let other = service("other", USES);
    let mut world = World::of(&[WAYPOINT, &other].concat());
    check(&world, "other", "via=shop/not-allowed.w.shop.invalid:15008", "false AttachmentDenied");
    let selecting = WAYPOINT.replace(
        "HBONE}",
        "HBONE, allowedRoutes: {namespaces: {from: Selector, selector: \
                                                {matchLabels: {team: red}}}}}",
    );
    world.apply(&selecting);
    check(&world, "other", "via=shop/not-allowed.w.shop.invalid:15008", "false AttachmentDenied");
    world.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: red}}\n");
    check(&world, "other", VIA, "true WaypointAccepted");
    world.apply(&WAYPOINT.replace("protocol: HBONE", "protocol: HTTP"));
    check(&world, "other", "via=shop/not-allowed.w.shop.invalid:15008", "false AttachmentDenied");
}

#[test]
fn a_canary_takes_its_share_while_it_is_ready() {
    let canary = WAYPOINT.replace("-name: w", "-name: w2").replace("{name: w,", "{name: w2,").replace("w-1", "w2-1");
    let canary = canary.replace("10.96.0.100", "10.96.0.102").replace("10.0.0.100", "10.0.0.102");
    let labels = format!("{USES}, istio.io/use-waypoint-canary: w2");
    let service = service("shop", &labels);
    let service = service.replace("labels:", "annotations: {istio.io/use-waypoint-canary-weight: \"10\"}, labels:");
    let mut world = World::of(&[WAYPOINT, &service].concat());
    check(&world, "shop", VIA, "true WaypointAccepted");
    world.apply(&canary);
    let text = &world.resources["shop/web.shop.svc.cluster.local"];
    assert!(
        text.contains("90%=shop/w.shop.svc.cluster.local:15008 10%=shop/w2.shop.svc.cluster.local:15008"),
        "{text}"
    );
    world.delete(Kind::Pod, "shop", "w2-1");
    check(&world, "shop", VIA, "true WaypointAccepted");
}

#[test]
fn a_service_entry_and_a_workload_entry_have_waypoints_too() {
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: e, namespace: shop, labels: {{{USES}}}}}\n\
         spec: {{hosts: [e.org], addresses: [10.9.9.9], ports: [{{number: 80, name: http}}], resolution: STATIC}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: vm, namespace: shop, labels: {{{USES}}}}}\nspec: {{address: 10.7.0.1}}\n"
    );
    let gateway = WAYPOINT.replace(
        "{name: w, namespace: shop}\nspec: {gateway",
        "{name: w, namespace: shop, labels: {istio.io/waypoint-for: all}}\nspec: {gateway",
    );
    let mut world = World::of(&entry);
    world.apply(&gateway);
    for name in ["shop/e.org", "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"] {
        assert!(world.resources[name].contains(VIA), "{}", world.resources[name]);
    }
    let condition =
        |user: User| world.index.waypoints.binding(&user).and_then(|b| b.condition.clone()).map(|c| c.holds);
    assert_eq!(condition(User::Entry(Name::new("shop", "e"))), Some(true));
    assert_eq!(condition(User::Machine(Name::new("shop", "vm"))), Some(true));
}

#[test]
fn a_gateway_of_another_class_is_no_waypoint() {
    let mut world = World::of(&[WAYPOINT, &service("shop", USES)].concat());
    check(&world, "shop", VIA, "true WaypointAccepted");
    let class = |controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: istio-waypoint}}\n\
             spec: {{controllerName: {controller}}}\n"
        )
    };
    world.apply(&class("example.org/other"));
    check(&world, "shop", VIA, "false WaypointMissing");
    world.apply(&class("istio.io/mesh-controller"));
    check(&world, "shop", VIA, "true WaypointAccepted");
}
