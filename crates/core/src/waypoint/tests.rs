use super::*;
use crate::http::route::ServiceRoutes;
use crate::snapshot::Change;
use crate::testmesh::{key, mesh, uid};

const SHOP: &str = "
    svc shop/wp     10.1.0.9  ports=15008>15008
    svc shop/other  10.1.0.8  ports=15008>15008
    pod shop/wp-1   10.0.0.9  serves=shop/wp
    svc shop/api    10.1.0.1  ports=80>8080  waypoint=shop/wp
    svc shop/web    10.1.0.2  ports=80>8080
    svc shop/far    10.1.0.3  ports=80>8080  waypoint=shop/other
    svc shop/late   10.1.0.4  ports=80>8080  waypoint=shop/wp
    pod shop/api-1  10.0.0.1  hbone  serves=shop/api:80>8080
    pod shop/job-1  10.0.0.2  hbone  waypoint=shop/wp
    pod shop/safe-1 10.0.0.3  hbone  waypoint=shop/wp by=shop/wp:8080
    pod shop/shut-1 10.0.0.4  hbone  waypoint=shop/wp by=shop/wp
";

/// The mesh where the waypoint knows the routes of `shop/api`, of which there are none.
fn shop() -> Snapshot {
    mesh(SHOP).apply(vec![Change::Routes(ServiceRoutes { service: key("shop/api"), routes: Vec::new() })])
}

/// A CONNECT for `authority` reaches shop/wp-1.
#[track_caller]
fn check(authority: &str, expected: &str) {
    let mesh = shop();
    let local = mesh.workload(&uid("shop/wp-1")).unwrap();
    let query = Query { local, caller_namespace: "shop", authority: &authority.parse().unwrap() };
    let got = match target(&mesh, &query) {
        Ok(Target::Service { service, port, asked }) => {
            format!("service {} {} asked {asked}", service.name, port.service_port)
        }
        Ok(Target::Workload { workload, asked, .. }) => format!("workload {} asked {asked}", workload.name),
        Err(refusal) => format!("refused {}", refusal.reason.as_str()),
    };
    assert_eq!(got, expected);
}

#[test]
fn what_is_bound_to_the_waypoint_may_be_asked_for() {
    check("10.1.0.1:80", "service api 80 asked 10.1.0.1:80");
    check("api.shop.svc:80", "service api 80 asked 10.1.0.1:80");
    check("10.0.0.2:8080", "workload job-1 asked 10.0.0.2:8080");
}

#[test]
fn a_waypoint_is_no_way_to_anything_else() {
    let others = ["10.1.0.2:80", "web.shop.svc:80", "10.1.0.3:80", "10.0.0.1:8080", "10.9.9.9:80", "127.0.0.1:15000"];
    for authority in others {
        check(authority, "refused authority_mismatch");
    }
    check("api.shop.svc:81", "refused port_unknown");
    check("10.1.0.1:81", "refused port_unknown");
}

#[test]
fn a_service_whose_routes_are_not_known_is_not_served_past_them() {
    check("10.1.0.4:80", "refused authority_mismatch");
}

#[test]
fn a_workload_of_which_a_policy_decides_is_not_served_without_it() {
    check("10.0.0.3:8080", "refused authority_mismatch");
    check("10.0.0.3:8081", "workload safe-1 asked 10.0.0.3:8081");
    check("10.0.0.4:8081", "refused authority_mismatch");
}

#[test]
fn listeners_of_the_mesh_are_refused() {
    for port in [15001, 15006, 15008] {
        check(&format!("10.0.0.2:{port}"), "refused loop");
    }
}

#[test]
fn the_way_leads_to_an_endpoint_and_not_to_the_waypoint_again() {
    let mesh = shop();
    let local = mesh.workload(&uid("shop/wp-1")).unwrap();
    let query = Query { local, caller_namespace: "shop", authority: &"10.1.0.1:80".parse().unwrap() };
    let target = target(&mesh, &query).unwrap();
    let plan = target.plan(&mesh, &outbound::Query::new(local, target.asked(), 0)).unwrap();
    let Plan::Tunnel { next_hop, authority, .. } = plan else { panic!("{plan:?}") };
    assert_eq!((next_hop.to_string(), authority.to_string()), ("10.0.0.1:15008".into(), "10.0.0.1:8080".into()));
}
