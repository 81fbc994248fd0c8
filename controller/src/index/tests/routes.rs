//! Which waypoint hears of which routes, and what is told about them.

use super::waypoints::{WAYPOINT, service};
use super::*;
use crate::index::Wish;
use crate::status::RouteStatus;

/// The routes that waypoints know, as `resource: kind namespace/name ports`.
#[derive(Default)]
struct Known(BTreeMap<String, Vec<String>>);

impl Known {
    fn take(&mut self, world: &mut World) {
        for (name, told) in world.index.compile().routes {
            match told {
                Some((gateway, routes)) => {
                    assert_eq!(*name, format!("{gateway}/{}", routes.service));
                    let route = |r: &Arc<loam_core::http::route::Route>| format!("{} {:?}", r.key, r.ports);
                    self.0.insert(name.to_string(), routes.routes.iter().map(route).collect());
                }
                None => drop(self.0.remove(&*name)),
            }
        }
    }

    #[track_caller]
    fn check(&self, expected: &[(&str, &[&str])]) {
        let known: Vec<_> = self.0.iter().map(|(name, routes)| (name.as_str(), routes.as_slice())).collect();
        let expected: Vec<(&str, Vec<String>)> =
            expected.iter().map(|(name, routes)| (*name, routes.iter().map(|r| (*r).to_owned()).collect())).collect();
        let expected: Vec<_> = expected.iter().map(|(name, routes)| (*name, routes.as_slice())).collect();
        assert_eq!(known, expected);
    }
}

fn apply(world: &mut World, known: &mut Known, yaml: &str) {
    let state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    state.objects.into_iter().for_each(|object| world.index.apply(object));
    known.take(world);
}

fn delete(world: &mut World, known: &mut Known, kind: Kind, namespace: &str, name: &str) {
    world.index.delete(&Key { kind, namespace: namespace.into(), name: name.into() });
    known.take(world);
}

/// A route of a kind and namespace for the port of `shop/web`, to `shop/web` itself.
fn route(kind: &str, namespace: &str, name: &str, port: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}, generation: 1}}\n\
         spec: {{parentRefs: [{{group: \"\", kind: Service, namespace: shop, name: web{port}}}], \
         rules: [{{backendRefs: [{{name: web, namespace: shop, port: 80}}]}}]}}\n"
    )
}

const USES: &str = "istio.io/use-waypoint: w";
const WEB: &str = "shop/w/shop/web.shop.svc.cluster.local";

fn web() -> String {
    service("shop", USES).replace("ports: [{port: 80}]", "ports: [{name: http, port: 80}, {name: alt, port: 8080}]")
}

#[test]
fn a_waypoint_hears_of_the_routes_of_services_that_are_bound_to_it() {
    let (mut world, mut known) = (World::new(), Known::default());
    apply(&mut world, &mut known, &[WAYPOINT, &service("shop", "")].concat());
    apply(&mut world, &mut known, &route("HTTPRoute", "shop", "r", ""));
    known.check(&[]);
    apply(&mut world, &mut known, &web());
    known.check(&[(WEB, &["HTTPRoute shop/r [80, 8080]"])]);
    apply(&mut world, &mut known, &route("HTTPRoute", "consumer", "r", ", port: 8080"));
    known.check(&[(WEB, &["HTTPRoute consumer/r [8080]", "HTTPRoute shop/r [80, 8080]"])]);
    delete(&mut world, &mut known, Kind::HttpRoute, "shop", "r");
    known.check(&[(WEB, &["HTTPRoute consumer/r [8080]"])]);
    delete(&mut world, &mut known, Kind::HttpRoute, "consumer", "r");
    known.check(&[(WEB, &[])]);
    apply(&mut world, &mut known, &service("shop", "istio.io/use-waypoint: none"));
    known.check(&[]);
}

#[test]
fn a_waypoint_forgets_routes_after_everybody_knows_of_another() {
    let mut world = World::of(&[WAYPOINT, &service("shop", USES)].concat());
    let state = loam_manifest::read([("m.yaml", service("shop", "istio.io/use-waypoint: other").as_bytes())]);
    state.objects.into_iter().for_each(|object| world.index.apply(object));
    let steps = world.index.compile().steps();
    let told: Vec<_> = steps.iter().map(|step| (!step.changes.is_empty(), step.routes.clone())).collect();
    let [(true, first), (false, last)] = &told[..] else { panic!("{told:?}") };
    assert!(matches!(&first[..], [(name, Some(_))] if name.starts_with("shop/other/")), "{first:?}");
    assert!(matches!(&last[..], [(name, None)] if **name == *WEB), "{last:?}");
}

#[test]
fn a_route_that_no_port_takes_is_not_told_to_anybody() {
    let (mut world, mut known) = (World::new(), Known::default());
    apply(&mut world, &mut known, &[WAYPOINT, &web(), &route("HTTPRoute", "shop", "r", ", port: 81")].concat());
    known.check(&[(WEB, &[])]);
    apply(&mut world, &mut known, &route("HTTPRoute", "shop", "r", ", sectionName: alt"));
    known.check(&[(WEB, &["HTTPRoute shop/r [8080]"])]);
}

#[test]
fn a_backend_that_comes_or_goes_changes_the_routes_that_lead_to_it() {
    let (mut world, mut known) = (World::new(), Known::default());
    let route =
        route("HTTPRoute", "shop", "r", "").replace("{name: web, namespace: shop, port: 80}", "{name: b, port: 80}");
    apply(&mut world, &mut known, &[WAYPOINT, &web(), &route].concat());
    let resolved = |world: &World| status(world, Kind::HttpRoute, "shop", "r").parents[0].1[1].reason;
    assert_eq!(resolved(&world), crate::status::Reason::BackendNotFound);
    apply(
        &mut world,
        &mut known,
        &service("shop", "").replace("name: web", "name: b").replace("10.96.0.1", "10.96.0.2"),
    );
    assert_eq!(resolved(&world), crate::status::Reason::ResolvedRefs);
    delete(&mut world, &mut known, Kind::Service, "shop", "b");
    assert_eq!(resolved(&world), crate::status::Reason::BackendNotFound);
}

fn status(world: &World, kind: Kind, namespace: &str, name: &str) -> RouteStatus {
    let key = Key { kind, namespace: namespace.into(), name: name.into() };
    match &*world.index.wishes().told[&key] {
        Wish::Route(status) => status.clone(),
        other => panic!("{other:?}"),
    }
}

/// `type holds reason` of what is told to the first parent.
fn told(world: &World, kind: Kind, namespace: &str) -> Vec<String> {
    let status = status(world, kind, namespace, "r");
    status.parents.first().map_or_else(Vec::new, |(_, conditions)| {
        conditions.iter().map(|c| format!("{} {} {}", c.kind, c.holds, c.reason)).collect()
    })
}

#[test]
fn a_route_is_told_whether_its_parent_takes_it() {
    let (mut world, mut known) = (World::new(), Known::default());
    let mut check = |port: &str, yaml: &str, expected: &[&str]| {
        apply(&mut world, &mut known, &[yaml, &route("HTTPRoute", "shop", "r", port)].concat());
        assert_eq!(told(&world, Kind::HttpRoute, "shop"), expected);
    };
    check("", "", &["Accepted false NoMatchingParent", "ResolvedRefs false BackendNotFound"]);
    let accepted = ["Accepted true Accepted", "ResolvedRefs true ResolvedRefs"];
    let bound = [&accepted[..], &["ResolvedWaypoints true ResolvedWaypoints"]].concat();
    check("", &service("shop", ""), &[&accepted[..], &["ResolvedWaypoints false WaypointMissing"]].concat());
    check("", &[WAYPOINT, &web()].concat(), &bound);
    check(", port: 8080", "", &bound);
    let refused = ["Accepted false NoMatchingParent", "ResolvedRefs true ResolvedRefs"];
    check(", port: 81", "", &refused);
    check(", sectionName: none", "", &refused);
    check("", &web().replace("clusterIP: 10.96.0.1", "clusterIP: None"), &refused);
}

#[test]
fn of_two_kinds_on_one_port_the_lesser_is_in_conflict_there() {
    let (mut world, mut known) = (World::new(), Known::default());
    let grpc = route("GRPCRoute", "shop", "r", ", port: 8080");
    apply(&mut world, &mut known, &[WAYPOINT, &web(), &grpc, &route("HTTPRoute", "shop", "r", "")].concat());
    assert_eq!(told(&world, Kind::HttpRoute, "shop")[0], "Accepted true Accepted", "it keeps port 80");
    apply(&mut world, &mut known, &route("HTTPRoute", "shop", "r", ", port: 8080"));
    assert_eq!(told(&world, Kind::HttpRoute, "shop")[0], "Accepted false Conflicted");
    assert_eq!(told(&world, Kind::GrpcRoute, "shop")[0], "Accepted true Accepted");
    // Callers of another namespace have routes of their own.
    apply(&mut world, &mut known, &route("HTTPRoute", "consumer", "r", ", port: 8080"));
    assert_eq!(told(&world, Kind::HttpRoute, "consumer")[0], "Accepted true Accepted");
}

#[test]
fn a_route_to_a_waypoint_or_by_a_misspelt_group_is_told_so_and_others_are_not_spoken_about() {
    let (mut world, mut known) = (World::new(), Known::default());
    let parent = |parent: &str| {
        route("HTTPRoute", "shop", "r", "").replace("{group: \"\", kind: Service, namespace: shop, name: web}", parent)
    };
    apply(&mut world, &mut known, &[WAYPOINT, &web(), &parent("{name: w}")].concat());
    assert_eq!(told(&world, Kind::HttpRoute, "shop")[0], "Accepted false NotAllowedByListeners");
    apply(&mut world, &mut known, &parent("{group: core, kind: Service, name: web}"));
    assert_eq!(told(&world, Kind::HttpRoute, "shop")[0], "Accepted false NoMatchingParent");
    apply(&mut world, &mut known, &parent("{name: somebody-elses-gateway}"));
    assert_eq!(told(&world, Kind::HttpRoute, "shop"), [] as [&str; 0]);
}

#[test]
fn how_a_backend_is_spoken_to_is_told_to_the_waypoints_that_reach_it() {
    let mut world = World::new();
    let (mut known, b) =
        (Known::default(), service("shop", "").replace("name: web", "name: b").replace("10.96.0.1", "10.96.0.2"));
    let to_b =
        route("HTTPRoute", "shop", "r", "").replace("{name: web, namespace: shop, port: 80}", "{name: b, port: 80}");
    apply(&mut world, &mut known, &[WAYPOINT, &web(), &b, &to_b].concat());
    let policy = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\n\
                  metadata: {name: p, namespace: shop}\n\
                  spec: {targetRefs: [{group: \"\", kind: Service, name: b}], retryConstraint: {budget: {percent: 1}}}\n";
    let state = loam_manifest::read([("m.yaml", policy.as_bytes())]);
    state.objects.into_iter().for_each(|object| world.index.apply(object));
    let traffic = world.index.compile().traffic;
    let [(name, Some((gateway, traffic)))] = &traffic[..] else { panic!("{traffic:?}") };
    assert_eq!((&**name, &**gateway), ("shop/w/shop/b.shop.svc.cluster.local", "shop/w"));
    assert_eq!(traffic.traffic.budget.percent, 1);
    world.index.delete(&Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() });
    let traffic = world.index.compile().traffic;
    assert!(matches!(&traffic[..], [(_, None)]), "{traffic:?}");
}

#[test]
fn a_service_of_which_a_policy_decides_is_not_a_waypoints_to_serve() {
    let policy = |target: &str, more: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop{more}}}\n\
             spec: {{targetRefs: [{target}], rules: [{{}}]}}\n"
        )
    };
    let optional = WAYPOINT.replace(
        "{name: w, namespace: shop}\nspec: {gateway",
        "{name: w, namespace: shop, annotations: {loam.dev/waypoint-traversal: optional}}\nspec: {gateway",
    );
    for gateway in [WAYPOINT, &optional] {
        let (mut world, mut known) = (World::new(), Known::default());
        apply(&mut world, &mut known, &[gateway, &web()].concat());
        known.check(&[(WEB, &[])]);
        for target in ["{kind: Service, group: \"\", name: web}", "{kind: Gateway, group: g, name: w}"] {
            apply(&mut world, &mut known, &policy(target, ""));
            known.check(&[]);
            apply(&mut world, &mut known, &policy(target, ", annotations: {istio.io/dry-run: \"true\"}"));
            known.check(&[(WEB, &[])]);
            apply(&mut world, &mut known, &policy(target, ""));
            known.check(&[]);
            delete(&mut world, &mut known, Kind::AuthorizationPolicy, "shop", "p");
            known.check(&[(WEB, &[])]);
        }
    }
}

#[test]
fn a_policy_at_a_waypoint_closes_the_way_past_it() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
               spec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    let web = service("shop", USES)
        .replace("ports: [{port: 80}]", "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]");
    let policy = |target: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRefs: [{target}], rules: [{{}}]}}\n"
        )
    };
    let mut world = World::of(&[WAYPOINT, &web, pod].concat());
    let mut traversal = |yaml: &str| {
        let state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        state.objects.into_iter().for_each(|object| world.index.apply(object));
        let changes = world.index.compile().changes;
        changes.into_iter().find_map(|(name, resource)| match resource {
            Some(Resource::Workload(workload)) if &*name == "Kubernetes//Pod/shop/web" => {
                let rule = |t: &loam_core::traversal::Traversal| {
                    let identities: Vec<String> = t.identities.iter().map(ToString::to_string).collect();
                    format!("{} {} {:?}", t.waypoint, identities.join(","), t.ports)
                };
                Some(workload.traversal.iter().map(rule).collect::<Vec<_>>())
            }
            _ => None,
        })
    };
    let by_waypoint = Some(vec!["shop/w spiffe://cluster.local/ns/shop/sa/default [8080]".to_owned()]);
    assert_eq!(traversal(&policy("{kind: Service, group: \"\", name: web}")), by_waypoint);
    assert_eq!(traversal(&policy("{kind: Service, group: \"\", name: other}")), Some(Vec::new()));
    let web = policy("{kind: Service, group: \"\", name: web}");
    assert_eq!(traversal(&web), by_waypoint);
    let dry = web.replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: \"true\"}}");
    assert_eq!(traversal(&dry), Some(Vec::new()));
    assert_eq!(traversal(&policy("{kind: Gateway, group: gateway.networking.k8s.io, name: w}")), by_waypoint);
    let optional = WAYPOINT.replace(
        "{name: w, namespace: shop}\nspec: {gateway",
        "{name: w, namespace: shop, annotations: {loam.dev/waypoint-traversal: optional}}\nspec: {gateway",
    );
    assert_eq!(traversal(&optional), Some(Vec::new()));
}
