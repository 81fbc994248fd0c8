use super::*;
use crate::testmesh::{mesh, uid};

const SHOP: &str = "
    pod shop/api-1  10.0.0.2,fd00::2  hbone  serves=shop/api,shop/named:80>9000,shop/trap
    pod shop/web-1  10.0.0.1          hbone  serves=shop/web
    svc shop/api    10.1.0.1  ports=80>8080
    svc shop/named  10.1.0.2  ports=80>0,81>0
    svc shop/web    10.1.0.3  ports=80>8080
    svc shop/trap   10.1.0.4  ports=80>15006
";

/// A CONNECT for `authority` reaches shop/api-1 at `arrived_at`.
#[track_caller]
fn check(arrived_at: &str, authority: &str, expected: &str) {
    let mesh = mesh(SHOP);
    let local = mesh.workload(&uid("shop/api-1")).unwrap();
    let arrived_at = OrigDst::new(format!("{arrived_at}:15008").parse().unwrap());
    let query = Query { local, arrived_at, authority: &authority.parse().unwrap() };
    let got = match plan(&mesh, &query) {
        Ok(plan) => format!("{} {}", plan.upstream, plan.service.map_or("-".into(), |s| s.name.clone())),
        Err(refusal) => format!("refused {}", refusal.reason.as_str()),
    };
    assert_eq!(got, expected);
}

#[test]
fn a_tunnel_leads_to_the_address_it_arrived_at() {
    check("10.0.0.2", "10.0.0.2:8080", "10.0.0.2:8080 api");
    check("10.0.0.2", "10.0.0.2:9000", "10.0.0.2:9000 named");
    check("10.0.0.2", "10.0.0.2:7", "10.0.0.2:7 -");
    check("[fd00::2]", "[fd00::2]:8080", "[fd00::2]:8080 api");
    check("[::ffff:10.0.0.2]", "10.0.0.2:8080", "10.0.0.2:8080 api");
}

#[test]
fn a_tunnel_is_no_way_to_anything_else() {
    for authority in ["10.0.0.1:8080", "[fd00::2]:8080", "127.0.0.1:8080", "169.254.169.254:80", "10.1.0.1:80"] {
        check("10.0.0.2", authority, "refused authority_mismatch");
    }
}

#[test]
fn our_own_listeners_are_refused_whatever_names_them() {
    for port in [15001, 15006, 15008] {
        check("10.0.0.2", &format!("10.0.0.2:{port}"), "refused loop");
    }
    check("10.0.0.2", "trap.shop.svc:80", "refused loop");
}

#[test]
fn a_name_leads_to_the_port_on_which_this_workload_serves_it() {
    check("10.0.0.2", "api.shop.svc:80", "10.0.0.2:8080 api");
    check("[fd00::2]", "API.shop.svc:80", "[fd00::2]:8080 api");
    check("10.0.0.2", "named.shop.svc:80", "10.0.0.2:9000 named");
    check("10.0.0.2", "named.shop.svc:81", "refused port_unknown");
    check("10.0.0.2", "api.shop.svc:99", "refused port_unknown");
    check("10.0.0.2", "web.shop.svc:80", "refused authority_mismatch");
    check("10.0.0.2", "unknown.example:80", "refused authority_mismatch");
}

#[test]
fn plaintext_goes_where_it_was_going_except_to_our_own_listeners() {
    let mesh = mesh(SHOP);
    let local = mesh.workload(&uid("shop/api-1")).unwrap();
    let at = |port| plan_plaintext(&mesh, local, OrigDst::new(format!("10.0.0.2:{port}").parse().unwrap()));
    let plan = at(8080).unwrap();
    assert_eq!((plan.upstream.to_string(), &*plan.service.unwrap().name), ("10.0.0.2:8080".into(), "api"));
    for port in [15001, 15006, 15008] {
        assert_eq!(at(port).unwrap_err().reason, Reason::Loop);
    }
}

#[test]
fn what_arrives_at_an_address_that_is_not_the_workloads_is_refused() {
    check("127.0.0.1", "127.0.0.1:8080", "refused authority_mismatch");
    check("10.0.0.9", "10.0.0.9:8080", "refused authority_mismatch");
    let mesh = mesh(SHOP);
    let local = mesh.workload(&uid("shop/api-1")).unwrap();
    for (addr, allowed) in [("10.0.0.2:8080", true), ("127.0.0.1:8080", false), ("[fe80::2]:8080", false)] {
        let planned = plan_plaintext(&mesh, local, OrigDst::new(addr.parse().unwrap()));
        assert_eq!(planned.is_ok(), allowed, "{addr}: {planned:?}");
    }
}
