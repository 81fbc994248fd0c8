use std::collections::BTreeMap;

use loam_manifest::gateway::ParentRef;

use super::*;
use crate::apiserver::ApiServer;
use crate::status::{Condition, Reason, RouteStatus};

const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/w";
const BUDGET: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/w";

fn writer(server: &ApiServer) -> Writer {
    let template = Template {
        image: "registry/loam-waypoint:1".into(),
        pull_policy: "Never".into(),
        pull_secrets: Vec::new(),
        control_plane: "istiod.istio-system.svc:15012".into(),
        env: Vec::new(),
    };
    Writer { api: Api::new(server.client()), template: Some(Arc::new(template)) }
}

fn waypoint(infrastructure: &str, ready: bool) -> Waypoint {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, uid: u-1}}\n\
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}], \
         infrastructure: {infrastructure}}}\n"
    );
    let mut state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
    let Some(loam_manifest::Object::Gateway(object)) = state.objects.pop() else { panic!("{:?}", state.problems) };
    let gateway = crate::resource::gateway::gateway(object.metadata, object.spec, &mut Vec::new());
    Waypoint { gateway, hostname: "w.shop.svc.cluster.local".into(), ready }
}

/// Status and reason of a condition of the Gateway.
fn told(server: &ApiServer, kind: &str) -> (String, String) {
    let gateway = server.get(&format!("{GATEWAYS}/w")).unwrap();
    let conditions = gateway["status"]["conditions"].as_array().unwrap().clone();
    let condition = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap();
    (condition["status"].as_str().unwrap().to_owned(), condition["reason"].as_str().unwrap().to_owned())
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

async fn write(server: &ApiServer, waypoint: Waypoint) {
    let task = Task::Waypoint(Name::new("shop", "w"), Arc::new(waypoint));
    assert_eq!(writer(server).one(&task).await, Ok(()));
}

fn with_gateway() -> ApiServer {
    let server = ApiServer::default();
    server.put(GATEWAYS, json!({"metadata": {"name": "w", "namespace": "shop"}}));
    server
}

#[tokio::test]
async fn a_waypoint_is_made_and_its_gateway_says_when_it_is_programmed() {
    let server = with_gateway();
    write(&server, waypoint("{}", false)).await;
    assert!(server.get(DEPLOYMENT).is_some() && server.get(BUDGET).is_none());
    assert_eq!(told(&server, "Programmed"), is("False", "Pending"));
    write(&server, waypoint("{}", true)).await;
    assert_eq!(told(&server, "Programmed"), is("True", "Programmed"));
    let writes = server.count("/gateways/w/status");
    write(&server, waypoint("{}", true)).await;
    assert_eq!(server.count("/gateways/w/status"), writes, "what is so was written again");
}

#[tokio::test]
async fn parts_that_nobody_asks_for_any_more_are_taken_away() {
    let server = with_gateway();
    let maps = "/api/v1/namespaces/shop/configmaps";
    server.put(maps, json!({"metadata": {"name": "more"}, "data": {"deployment": "spec: {replicas: 2}"}}));
    let more = "{parametersRef: {group: \"\", kind: ConfigMap, name: more}}";
    write(&server, waypoint(more, false)).await;
    assert!(server.get(BUDGET).is_some());
    assert_eq!(server.get(DEPLOYMENT).unwrap()["spec"]["replicas"], 2);
    write(&server, waypoint("{}", false)).await;
    assert!(server.get(BUDGET).is_none());
    server.remove(&format!("{maps}/more"));
    write(&server, waypoint(more, false)).await;
    assert_eq!(told(&server, "Accepted"), is("False", "InvalidParameters"));
}

#[tokio::test]
async fn a_service_of_somebody_else_is_left_alone() {
    let server = with_gateway();
    let service = json!({"metadata": {"name": "w"}, "spec": {"selector": {"app": "w"}}});
    server.put("/api/v1/namespaces/shop/services", service);
    write(&server, waypoint("{}", false)).await;
    assert_eq!(told(&server, "Programmed"), is("False", "Invalid"));
    assert!(server.get(DEPLOYMENT).is_none());
    assert_eq!(server.get("/api/v1/namespaces/shop/services/w").unwrap()["spec"]["selector"], json!({"app": "w"}));
}

#[tokio::test]
async fn what_is_forbidden_is_told_by_the_gateway() {
    let server = with_gateway();
    server.forbid("/deployments/");
    write(&server, waypoint("{}", false)).await;
    assert_eq!(told(&server, "Programmed"), is("False", "NoResources"));
    let gateway = server.get(&format!("{GATEWAYS}/w")).unwrap().to_string();
    assert!(gateway.contains("a ClusterRole of this program's service account must allow it"), "{gateway}");
}

fn route_wish(generation: i64) -> Wish {
    let reference = ParentRef {
        group: Some(String::new()),
        kind: Some("Service".into()),
        name: "web".into(),
        ..ParentRef::default()
    };
    let accepted = Condition::is("Accepted", Reason::Accepted, "m");
    Wish::Route(RouteStatus { generation: Some(generation), parents: vec![(reference, vec![accepted])] })
}

fn route_key() -> Key {
    Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() }
}

#[tokio::test]
async fn a_route_keeps_what_other_controllers_say_and_is_never_told_about_an_older_version() {
    let server = ApiServer::default();
    let theirs = json!({"controllerName": "example.org/other", "parentRef": {"name": "g"}, "conditions": []});
    let route = json!({"metadata": {"name": "r", "generation": 2}, "status": {"parents": [theirs]}});
    server.put(ROUTES, route);
    let told = |generation| Task::Told(route_key(), Arc::new(route_wish(generation)));
    assert_eq!(writer(&server).one(&told(1)).await, Err(Trouble::Outrun));
    assert_eq!(writer(&server).one(&told(2)).await, Ok(()));
    let parents = server.get(&format!("{ROUTES}/r")).unwrap()["status"]["parents"].clone();
    assert_eq!(parents[0], theirs);
    assert_eq!(parents[1]["parentRef"], json!({"group": "", "kind": "Service", "name": "web"}));
    assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 2);
}

#[tokio::test]
async fn whoever_names_a_waypoint_is_told_and_a_missing_one_is_an_event() {
    let server = ApiServer::default();
    server.put("/api/v1/namespaces/shop/services", json!({"metadata": {"name": "web", "uid": "u-2"}}));
    let key = Key { kind: Kind::Service, namespace: "shop".into(), name: "web".into() };
    let bound = |holds| {
        let reason = if holds { Reason::WaypointAccepted } else { Reason::WaypointMissing };
        let condition = Condition { kind: crate::index::WAYPOINT_BOUND, holds, reason, message: "m".into() };
        Task::Told(key.clone(), Arc::new(Wish::Bound(None, condition)))
    };
    for (holds, events) in [(false, 1), (false, 1), (true, 1), (false, 2)] {
        assert_eq!(writer(&server).one(&bound(holds)).await, Ok(()));
        assert_eq!(server.count("POST /api/v1/namespaces/shop/events"), events);
    }
    assert_eq!(writer(&server).one(&Task::Unbound(key.clone())).await, Ok(()));
    let service = server.get("/api/v1/namespaces/shop/services/web").unwrap();
    assert_eq!(service["status"]["conditions"], json!([]));
}

#[tokio::test]
async fn a_class_says_whether_the_definitions_of_the_cluster_are_known() {
    let server = ApiServer::default();
    let classes = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
    server.put(classes, json!({"metadata": {"name": "istio-waypoint", "generation": 1}}));
    let key = Key { kind: Kind::GatewayClass, namespace: "".into(), name: "istio-waypoint".into() };
    let (definitions, name) = DEFINITION.rsplit_once('/').unwrap();
    for (version, status) in [("v1.7.0", "True"), ("v0.5.0", "False")] {
        let annotations = json!({"gateway.networking.k8s.io/bundle-version": version});
        server.put(definitions, json!({"metadata": {"name": name, "annotations": annotations}}));
        assert_eq!(writer(&server).one(&Task::Told(key.clone(), Arc::new(Wish::Class(Some(1))))).await, Ok(()));
        let class = server.get(&format!("{classes}/istio-waypoint")).unwrap();
        assert_eq!(class["status"]["conditions"][1]["type"], "SupportedVersion");
        assert_eq!(class["status"]["conditions"][1]["status"], status, "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_leads_writes() {
    let server = ApiServer::default();
    server.put(ROUTES, json!({"metadata": {"name": "r", "generation": 1}}));
    let told = BTreeMap::from([(route_key(), Arc::new(route_wish(1)))]);
    let (_wishes, wished) = watch::channel(Arc::new(Wishes { told, has_class: true, ..Wishes::default() }));
    let (leads, led) = watch::channel(false);
    let keeping = tokio::spawn(keep(server.client(), None, wished, led));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.count("httproutes"), 0);
    leads.send_replace(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.count("PATCH"), 1);
    keeping.abort();
}
