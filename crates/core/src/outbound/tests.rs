use std::collections::BTreeSet;

use super::*;
use crate::testmesh::{changes, mesh, uid};

const SHOP: &str = "
    pod shop/web-1      10.0.0.1,fd00::1  hbone  node=n1
    pod shop/api-1      10.0.0.2,fd00::2  hbone  node=n2  serves=shop/api
    pod shop/old-1      10.0.0.3          serves=shop/old
    pod shop/front-1    10.0.0.4          hbone  waypoint=shop/wp
    pod shop/wp-1       10.0.0.5          hbone  serves=shop/wp
    pod shop/node-1     192.168.0.1       hostnet serves=shop/node
    pod far/db-1        10.0.0.9          hbone  network=far serves=shop/far
    pod far/wp-1        10.0.0.10         hbone  network=far serves=far/wp
    svc shop/api        10.1.0.1,fd01::1  ports=80>8080,81>0,82>15008
    svc shop/old        10.1.0.2          ports=80>8080
    svc shop/guarded    10.1.0.3          ports=80>8080  waypoint=shop/wp
    svc shop/wp         10.1.0.4          ports=15008>15008
    svc shop/lost       10.1.0.5          ports=80>8080  waypoint=shop/none
    svc shop/empty      10.1.0.6          ports=80>8080
    svc shop/node       10.1.0.7          ports=80>8080
    svc shop/far        10.1.0.8          ports=80>8080
    svc shop/outside    10.1.0.9          ports=443>443  mode=passthrough
    svc shop/range      10.2.0.0/16       ports=443>443  mode=passthrough
    svc shop/head       ports=80>8080
    svc far/wp          10.1.0.10         ports=15008>15008
    svc shop/abroad     10.1.0.11         ports=80>8080  waypoint=far/wp
";

/// `caller` opens a connection; the plan in one line.
fn planned(mesh: &Snapshot, caller: &str, original_dst: &str, entropy: u64) -> String {
    let source = mesh.workload(&uid(caller)).unwrap();
    let original_dst = OrigDst::new(original_dst.parse().unwrap());
    told(plan(mesh, &Query::new(source, original_dst, entropy)))
}

fn told(planned: Result<Plan, Unplanned>) -> String {
    match planned {
        Ok(Plan::Direct { upstream, .. }) => format!("direct {upstream}"),
        Ok(Plan::Tunnel { next_hop, authority, expect, .. }) => {
            let accounts: Vec<_> = expect.iter().map(Identity::service_account).collect();
            format!("tunnel {next_hop} for {authority} as {}", accounts.join("|"))
        }
        Err(Unplanned::Refused(refusal)) => format!("refused {}", refusal.reason.as_str()),
        Err(Unplanned::Unresolved(host)) => format!("unresolved {host}"),
    }
}

#[track_caller]
fn check(text: &str, caller: &str, original_dst: &str, expected: &str) {
    assert_eq!(planned(&mesh(text), caller, original_dst, 0), expected);
}

#[test]
fn a_pod_address_is_reached_as_its_workload_is() {
    check(SHOP, "shop/web-1", "10.0.0.2:9090", "tunnel 10.0.0.2:15008 for 10.0.0.2:9090 as api");
    check(SHOP, "shop/web-1", "[fd00::2]:9090", "tunnel [fd00::2]:15008 for [fd00::2]:9090 as api");
    check(SHOP, "shop/web-1", "10.0.0.3:9090", "direct 10.0.0.3:9090");
    check(SHOP, "shop/web-1", "[::ffff:10.0.0.2]:9090", "tunnel 10.0.0.2:15008 for 10.0.0.2:9090 as api");
}

#[test]
fn a_service_address_leads_to_an_endpoint_and_its_target_port() {
    check(SHOP, "shop/web-1", "10.1.0.1:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
    check(SHOP, "shop/web-1", "[fd01::1]:80", "tunnel [fd00::2]:15008 for [fd00::2]:8080 as api");
    check(SHOP, "shop/web-1", "10.1.0.2:80", "direct 10.0.0.3:8080");
}

#[test]
fn the_plan_names_what_it_leads_to() {
    let mesh = mesh(SHOP);
    let source = mesh.workload(&uid("shop/web-1")).unwrap();
    let original_dst = OrigDst::new("10.1.0.1:80".parse().unwrap());
    let plan = plan(&mesh, &Query::new(source, original_dst, 0)).unwrap();
    let destination = plan.destination();
    assert_eq!(destination.workload.as_ref().unwrap().uid, uid("shop/api-1"));
    assert_eq!(&*destination.service.as_ref().unwrap().name, "api");
}

#[test]
fn what_the_mesh_does_not_know_goes_where_it_was_going() {
    check(SHOP, "shop/web-1", "203.0.113.1:443", "direct 203.0.113.1:443");
    check(SHOP, "shop/web-1", "[2001:db8::1]:15008", "direct [2001:db8::1]:15008");
}

#[test]
fn a_call_to_oneself_stays_in_the_pod() {
    check(SHOP, "shop/web-1", "10.0.0.1:8080", "direct 10.0.0.1:8080");
    check(SHOP, "shop/api-1", "[fd00::2]:8080", "direct [fd00::2]:8080");
    check(SHOP, "shop/api-1", "10.1.0.1:80", "direct 10.0.0.2:8080");
    check(SHOP, "shop/web-1", "127.0.0.1:8080", "direct 127.0.0.1:8080");
}

#[test]
fn our_own_listeners_are_no_destination_in_ones_own_pod() {
    for port in [15001, 15006, 15008] {
        for ip in ["10.0.0.1", "[fd00::1]", "127.0.0.1", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"] {
            check(SHOP, "shop/web-1", &format!("{ip}:{port}"), "refused loop");
        }
    }
    check(SHOP, "shop/web-1", "10.0.0.2:15001", "tunnel 10.0.0.2:15008 for 10.0.0.2:15001 as api");
}

#[test]
fn a_service_without_a_way_is_refused_by_name() {
    check(SHOP, "shop/web-1", "10.1.0.1:99", "refused port_unknown");
    check(SHOP, "shop/web-1", "10.1.0.1:81", "refused no_healthy_upstream");
    check(SHOP, "shop/web-1", "10.1.0.6:80", "refused no_healthy_upstream");
    check(SHOP, "shop/web-1", "10.1.0.8:80", "refused network_unreachable");
    check(SHOP, "shop/web-1", "10.1.0.11:80", "refused network_unreachable");
    let unhealthy = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone unhealthy serves=a/api,a/all
        svc a/api 10.1.0.1 ports=80>8080
        svc a/all 10.1.0.2 ports=80>8080 unhealthy-too";
    check(unhealthy, "a/web-1", "10.1.0.1:80", "refused no_healthy_upstream");
    check(unhealthy, "a/web-1", "10.1.0.2:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
    check(unhealthy, "a/web-1", "10.0.0.2:8080", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
}

#[test]
fn a_waypoint_is_asked_for_what_the_application_dialled() {
    check(SHOP, "shop/web-1", "10.1.0.3:80", "tunnel 10.0.0.5:15008 for 10.1.0.3:80 as wp");
    // Ports are the waypoint's business.
    check(SHOP, "shop/web-1", "10.1.0.3:99", "tunnel 10.0.0.5:15008 for 10.1.0.3:99 as wp");
    check(SHOP, "shop/web-1", "10.0.0.4:8080", "tunnel 10.0.0.5:15008 for 10.0.0.4:8080 as wp");
}

#[test]
fn a_waypoint_that_is_not_there_is_never_gone_around() {
    check(SHOP, "shop/web-1", "10.1.0.5:80", "refused waypoint_missing");
    let gone = mesh(SHOP).apply(changes("-pod shop/wp-1"));
    assert_eq!(planned(&gone, "shop/web-1", "10.1.0.3:80", 0), "refused waypoint_not_ready");
    assert_eq!(planned(&gone, "shop/web-1", "10.0.0.4:8080", 0), "refused waypoint_not_ready");
    let sick = mesh(SHOP).apply(changes("pod shop/wp-1 10.0.0.5 hbone serves=shop/wp unhealthy"));
    assert_eq!(planned(&sick, "shop/web-1", "10.1.0.3:80", 0), "refused waypoint_not_ready");
    // Its endpoints may be known before it is.
    let unnamed = mesh(SHOP).apply(changes("-svc shop/wp"));
    assert_eq!(planned(&unnamed, "shop/web-1", "10.1.0.3:80", 0), "refused waypoint_missing");
    let by_address = "
        pod a/web-1 10.0.0.1 hbone
        pod a/ill-1 10.0.0.2 hbone unhealthy
        svc a/api 10.1.0.1 ports=80>80 waypoint=10.0.0.77
        svc a/two 10.1.0.2 ports=80>80 waypoint=10.0.0.2";
    check(by_address, "a/web-1", "10.1.0.1:80", "refused waypoint_missing");
    check(by_address, "a/web-1", "10.1.0.2:80", "refused waypoint_not_ready");
}

/// A caller, a waypoint with two endpoints, and a service whose owner wants it passed rather than refused.
const BYPASS: &str = "
    pod a/web-1 10.0.0.1 hbone
    pod a/api-1 10.0.0.2 hbone serves=a/api waypoint=a/wp!bypass
    pod a/api-2 10.0.0.3 hbone serves=a/api
    pod a/wp-1  10.0.0.4 hbone serves=a/wp
    svc a/api   10.1.0.1 ports=80>8080 waypoint=a/wp!bypass
    svc a/wp    10.1.0.3 ports=15008>15008";

#[test]
fn who_asks_for_it_is_passed_while_the_waypoint_is_absent_and_the_plan_says_so() {
    let absent = |mesh: &Snapshot, to: &str| {
        let source = mesh.workload(&uid("a/web-1")).unwrap();
        let plan = plan(mesh, &Query::new(source, OrigDst::new(to.parse().unwrap()), 0)).unwrap();
        plan.destination().absent.as_ref().map(|absent| format!("{} {}", absent.waypoint, absent.why.as_str()))
    };
    let there = mesh(BYPASS);
    for to in ["10.1.0.1:80", "10.0.0.2:8080"] {
        let by_waypoint = format!("tunnel 10.0.0.4:15008 for {to} as wp");
        assert_eq!(planned(&there, "a/web-1", to, 0), by_waypoint);
        assert_eq!(absent(&there, to), None);
        let not_ready = there.apply(changes("-pod a/wp-1"));
        assert_eq!(planned(&not_ready, "a/web-1", to, 0), "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
        assert_eq!(absent(&not_ready, to).as_deref(), Some("a/wp.a.svc:15008 waypoint_not_ready"));
        let missing = not_ready.apply(changes("-svc a/wp"));
        assert_eq!(absent(&missing, to).as_deref(), Some("a/wp.a.svc:15008 waypoint_missing"));
        let back = missing.apply(changes("pod a/wp-1 10.0.0.4 hbone serves=a/wp\nsvc a/wp 10.1.0.3 ports=15008>15008"));
        assert_eq!(planned(&back, "a/web-1", to, 0), by_waypoint);
    }
}

#[test]
fn a_waypoint_that_is_there_and_does_not_answer_is_not_passed() {
    assert_eq!(given(BYPASS, "a/web-1", "10.1.0.1:80", false), ["tunnel 10.0.0.4:15008", "waypoint_not_ready"]);
    // Where it is absent, each endpoint is tried as ever.
    let absent = BYPASS.replace("pod a/wp-1  10.0.0.4 hbone serves=a/wp", "");
    let both = ["tunnel 10.0.0.2:8080", "tunnel 10.0.0.3:8080", "no_healthy_upstream"];
    assert_eq!(given(&absent, "a/web-1", "10.1.0.1:80", false), both);
}

#[test]
fn a_waypoint_given_by_address_is_a_service_or_a_workload() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/wp-1  10.0.0.5 hbone serves=a/wp
        svc a/wp    10.1.0.4 ports=80>80
        svc a/one   10.1.0.1 ports=80>80 waypoint=10.1.0.4
        svc a/two   10.1.0.2 ports=80>80 waypoint=10.0.0.5";
    check(text, "a/web-1", "10.1.0.1:80", "tunnel 10.0.0.5:15008 for 10.1.0.1:80 as wp");
    check(text, "a/web-1", "10.1.0.2:80", "tunnel 10.0.0.5:15008 for 10.1.0.2:80 as wp");
}

#[test]
fn a_waypoint_itself_does_not_go_through_itself() {
    let text = "
        pod a/wp-1  10.0.0.5 hbone serves=a/wp
        pod a/api-1 10.0.0.6 hbone serves=a/api waypoint=a/wp
        svc a/wp    10.1.0.4 ports=15008>15008
        svc a/api   10.1.0.1 ports=80>8080 waypoint=10.1.0.4";
    check(text, "a/wp-1", "10.1.0.1:80", "tunnel 10.0.0.6:15008 for 10.0.0.6:8080 as api");
    check(text, "a/wp-1", "10.0.0.6:8080", "tunnel 10.0.0.6:15008 for 10.0.0.6:8080 as api");
}

const BEHIND: &str = "
    pod a/wp-1  10.0.0.5 serves=a/wp
    pod a/api-1 10.0.0.6 hbone serves=a/api
    pod a/api-2 10.0.0.7 serves=a/api:80>9090
    pod a/ill-1 10.0.0.8 hbone serves=a/api unhealthy
    pod a/far-1 10.0.0.9 hbone serves=a/api network=far
    pod a/job-1 10.0.0.10 hbone waypoint=a/wp
    svc a/wp    10.1.0.4 ports=15008>15008
    svc a/api   10.1.0.1 ports=80>8080 waypoint=a/wp san=spiffe://cluster.local/ns/a/sa/other";

#[test]
fn what_stands_behind_a_waypoint_is_reached_from_there_through_no_waypoint() {
    let mesh = mesh(
        &BEHIND.replace("svc a/api   10.1.0.1 ports=80>8080 waypoint=a/wp", "svc a/api ports=80>8080 waypoint=b/wp"),
    );
    let source = mesh.workload(&uid("a/wp-1")).unwrap();
    let api = mesh.service(&"a/api.a.svc".parse().unwrap()).unwrap();
    let at = |addr: &str| Query::new(source, OrigDst::new(addr.parse().unwrap()), 0);
    let tried = ["10.0.0.7:9090".parse().unwrap()];
    let again = Query { tried: &tried, ..at("0.0.0.0:80") };
    assert_eq!(told(plan_endpoint(&mesh, &again, api)), "tunnel 10.0.0.6:15008 for 10.0.0.6:8080 as api|other");
    assert_eq!(told(plan_endpoint(&mesh, &at("0.0.0.0:81"), api)), "refused port_unknown");
    let job = mesh.workload(&uid("a/job-1")).unwrap();
    let by_workload = plan_workload(&at("10.0.0.10:9000"), job);
    assert_eq!(by_workload.destination().workload.as_ref(), Some(job));
    assert_eq!(told(Ok(by_workload)), "tunnel 10.0.0.10:15008 for 10.0.0.10:9000 as job");
}

#[test]
fn a_session_holds_an_endpoint_while_that_may_be_picked() {
    let mesh = mesh(BEHIND);
    let source = mesh.workload(&uid("a/wp-1")).unwrap();
    let api = mesh.service(&"a/api.a.svc".parse().unwrap()).unwrap();
    let held = |pod: &str, port: u16| {
        let query = Query::new(source, OrigDst::new(([10, 1, 0, 1], port).into()), 0);
        plan_held(&mesh, &query, api, &uid(pod)).map(|plan| told(Ok(plan)))
    };
    assert_eq!(held("a/api-1", 80).as_deref(), Some("tunnel 10.0.0.6:15008 for 10.0.0.6:8080 as api|other"));
    assert_eq!(held("a/api-2", 80).as_deref(), Some("direct 10.0.0.7:9090"));
    // Not healthy, in another network, of another service, not there, and without the port.
    for (pod, port) in [("a/ill-1", 80), ("a/far-1", 80), ("a/job-1", 80), ("a/gone-1", 80), ("a/api-1", 81)] {
        assert_eq!(held(pod, port), None, "{pod}");
    }
}

#[test]
fn a_service_behind_a_waypoint_may_lead_its_caller_to_itself() {
    let text = "
        pod a/web-1 10.0.0.1 hbone serves=a/web
        pod a/wp-1  10.0.0.5 hbone serves=a/wp
        svc a/wp    10.1.0.4 ports=15008>15008
        svc a/web   10.1.0.1 ports=80>8080 waypoint=a/wp";
    check(text, "a/web-1", "10.1.0.1:80", "tunnel 10.0.0.5:15008 for 10.1.0.1:80 as wp");
    check(text, "a/web-1", "10.0.0.1:8080", "direct 10.0.0.1:8080");
    check(text, "a/wp-1", "10.1.0.1:80", "tunnel 10.0.0.1:15008 for 10.0.0.1:8080 as web");
    // Its own service leads a waypoint to its own tunnel port.
    check(text, "a/wp-1", "10.1.0.4:15008", "refused loop");
    check(SHOP, "shop/api-1", "10.1.0.1:82", "refused loop");
}

#[test]
fn addresses_of_pods_pass_beside_the_waypoint_of_their_services() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone serves=a/api,a/head
        pod a/wp-1  10.0.0.5 hbone serves=a/wp
        svc a/wp    10.1.0.4 ports=15008>15008
        svc a/api   10.1.0.1 ports=80>8080 waypoint=a/wp
        svc a/head  ports=80>8080 waypoint=a/wp";
    check(text, "a/web-1", "10.0.0.2:8080", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
    let all = text.replace("serves=a/api,a/head", "serves=a/api,a/head waypoint=a/wp");
    check(&all, "a/web-1", "10.0.0.2:8080", "tunnel 10.0.0.5:15008 for 10.0.0.2:8080 as wp");
    check(&all, "a/web-1", "10.1.0.1:80", "tunnel 10.0.0.5:15008 for 10.1.0.1:80 as wp");
}

#[test]
fn a_waypoint_is_asked_for_an_address_within_the_range_that_stands_behind_it() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/wp-1  10.0.0.5 serves=a/wp
        svc a/wp    10.1.0.4 ports=15008>15008
        svc a/out   10.2.0.0/16,fd02::/64 ports=443>443 mode=passthrough waypoint=a/wp";
    check(text, "a/web-1", "10.2.3.4:443", "tunnel 10.0.0.5:15008 for 10.2.3.4:443 as wp");
    check(text, "a/web-1", "[fd02::7]:443", "tunnel 10.0.0.5:15008 for [fd02::7]:443 as wp");
}

#[test]
fn a_waypoint_is_balanced_as_its_service_asks_and_proves_what_its_service_allows() {
    let text = "
        pod a/web-1 10.0.0.1 hbone zone=east
        pod a/wp-1  10.0.0.4 zone=west serves=a/wp
        pod a/wp-2  10.0.0.5 zone=east serves=a/wp:15008>16008
        svc a/wp    10.1.0.4 ports=15008>15008 mode=failover:zone san=spiffe://cluster.local/ns/a/sa/other
        svc a/api   10.1.0.1 ports=80>8080 waypoint=a/wp";
    for entropy in (0..64).map(|i| i << 58) {
        let at_wp_2 = "tunnel 10.0.0.5:16008 for 10.1.0.1:80 as wp|other";
        assert_eq!(planned(&mesh(text), "a/web-1", "10.1.0.1:80", entropy), at_wp_2);
    }
}

#[test]
fn several_waypoints_share_by_weight() {
    let mesh = mesh(
        "
        pod a/web-1 10.0.0.1 hbone
        pod a/one-1 10.0.0.2 hbone serves=a/one
        pod a/two-1 10.0.0.3 hbone serves=a/two
        svc a/one   10.1.0.2 ports=15008>15008
        svc a/two   10.1.0.3 ports=15008>15008
        svc a/api   10.1.0.1 ports=80>80 waypoint=a/one waypoints=a/one:75,a/two:25
        svc a/nil   10.1.0.4 ports=80>80 waypoints=a/one:0",
    );
    let second = |entropy| planned(&mesh, "a/web-1", "10.1.0.1:80", entropy).contains("10.0.0.3");
    let seconds = (1..4000u64).filter(|i| second(i.wrapping_mul(0x2545_F491_4F6C_DD1D))).count();
    assert!(seconds.abs_diff(1000) < 100, "{seconds}");
    assert!(planned(&mesh, "a/web-1", "10.1.0.4:80", 0).starts_with("tunnel 10.0.0.2:15008"));
    // Whatever its share, a waypoint does not go through another one.
    for account in ["one", "two"] {
        for entropy in (0..64).map(|i| i << 58) {
            let as_waypoint = planned(&mesh, &format!("a/{account}-1"), "10.1.0.1:80", entropy);
            assert_eq!(as_waypoint, "refused no_healthy_upstream");
        }
    }
}

#[test]
fn of_several_waypoints_one_that_is_there_takes_the_share_of_one_that_is_not() {
    let mesh = mesh(
        "
        pod a/web-1 10.0.0.1 hbone
        pod a/one-1 10.0.0.2 hbone serves=a/one
        pod a/nil-1 10.0.0.3 hbone serves=a/nil
        svc a/one   10.1.0.2 ports=15008>15008
        svc a/two   10.1.0.3 ports=15008>15008
        svc a/nil   10.1.0.4 ports=15008>15008
        svc a/api   10.1.0.1 ports=80>80 waypoints=a/one:50,a/two:50
        svc a/off   10.1.0.5 ports=80>80 waypoints=a/two:100,a/nil:0",
    );
    for entropy in (0..64).map(|i| i << 58) {
        assert_eq!(planned(&mesh, "a/web-1", "10.1.0.1:80", entropy), "tunnel 10.0.0.2:15008 for 10.1.0.1:80 as one");
        // One without a share is not meant to get any.
        assert_eq!(planned(&mesh, "a/web-1", "10.1.0.5:80", entropy), "refused waypoint_not_ready");
    }
}

#[test]
fn a_service_that_is_passed_through_goes_where_it_was_going_unless_a_workload_is_there() {
    check(SHOP, "shop/web-1", "10.1.0.9:443", "direct 10.1.0.9:443");
    check(SHOP, "shop/web-1", "10.2.3.4:8443", "direct 10.2.3.4:8443");
    let covered = format!("{SHOP}\npod shop/in-1 10.2.3.4 hbone");
    check(&covered, "shop/web-1", "10.2.3.4:8443", "tunnel 10.2.3.4:15008 for 10.2.3.4:8443 as in");
}

#[test]
fn an_address_of_a_node_does_not_name_a_workload() {
    check(SHOP, "shop/web-1", "192.168.0.1:10250", "direct 192.168.0.1:10250");
    check(SHOP, "shop/web-1", "10.1.0.7:80", "direct 192.168.0.1:8080");
    check(SHOP, "shop/node-1", "192.168.0.1:15008", "direct 192.168.0.1:15008");
}

#[test]
fn an_address_names_a_workload_within_its_network_only() {
    check(SHOP, "shop/web-1", "10.0.0.9:80", "direct 10.0.0.9:80");
}

#[test]
fn identities_of_the_service_are_accepted_beside_the_workloads_own() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone serves=a/api
        svc a/api 10.1.0.1 ports=80>8080 san=spiffe://cluster.local/ns/a/sa/other";
    check(text, "a/web-1", "10.1.0.1:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api|other");
    check(text, "a/web-1", "10.0.0.2:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:80 as api");
}

#[test]
fn an_endpoint_may_serve_a_port_elsewhere_or_not_at_all() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone serves=a/api:80>9000+81>9001
        pod a/api-2 10.0.0.3 hbone serves=a/api:80>9002
        svc a/api 10.1.0.1 ports=80>8080,81>0";
    let mesh = mesh(text);
    let seen = |port: u16| -> BTreeSet<String> {
        (0..64).map(|i| planned(&mesh, "a/web-1", &format!("10.1.0.1:{port}"), i << 58)).collect()
    };
    assert_eq!(
        seen(80).into_iter().collect::<Vec<_>>(),
        ["tunnel 10.0.0.2:15008 for 10.0.0.2:9000 as api", "tunnel 10.0.0.3:15008 for 10.0.0.3:9002 as api"]
    );
    assert_eq!(seen(81).into_iter().collect::<Vec<_>>(), ["tunnel 10.0.0.2:15008 for 10.0.0.2:9001 as api"]);
}

#[test]
fn the_callers_family_is_kept_when_the_service_allows_it() {
    let text = "
        pod a/web-1 10.0.0.1,fd00::1 hbone
        pod a/api-1 10.0.0.2,fd00::2 hbone serves=a/both,a/six
        svc a/both 10.1.0.1,fd01::1 ports=80>8080
        svc a/six  10.1.0.2,fd01::2 ports=80>8080 v6";
    check(text, "a/web-1", "10.1.0.1:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080 as api");
    check(text, "a/web-1", "[fd01::1]:80", "tunnel [fd00::2]:15008 for [fd00::2]:8080 as api");
    check(text, "a/web-1", "10.1.0.2:80", "tunnel [fd00::2]:15008 for [fd00::2]:8080 as api");
    let mesh = mesh(&text.replace("10.0.0.2,fd00::2", "10.0.0.2"));
    assert_eq!(planned(&mesh, "a/web-1", "10.1.0.2:80", 0), "refused no_healthy_upstream");
    assert!(planned(&mesh, "a/web-1", "[fd01::1]:80", 0).starts_with("tunnel 10.0.0.2"));
}

#[test]
fn of_several_services_with_one_address_the_caller_means_its_own() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod b/web-1 10.0.0.2 hbone
        pod c/web-1 10.0.0.3 hbone
        pod z/one-1 10.0.1.1 hbone serves=a/api
        pod z/two-1 10.0.1.2 hbone serves=b/api
        pod z/six-1 10.0.1.3 hbone serves=d/api
        svc a/api 10.1.0.1 ports=80>80
        svc b/api 10.1.0.1 ports=80>80 canonical
        svc d/api 10.1.0.1 ports=80>80 canonical private";
    check(text, "a/web-1", "10.1.0.1:80", "tunnel 10.0.1.1:15008 for 10.0.1.1:80 as one");
    check(text, "b/web-1", "10.1.0.1:80", "tunnel 10.0.1.2:15008 for 10.0.1.2:80 as two");
    check(text, "c/web-1", "10.1.0.1:80", "tunnel 10.0.1.2:15008 for 10.0.1.2:80 as two");
}

#[test]
fn of_several_workloads_with_one_address_the_best_claim_wins_in_any_order() {
    let lines = [
        "pod a/zed-1 10.0.0.7 hbone uid=c/networking.istio.io/WorkloadEntry/a/zed",
        "pod a/low-1 10.0.0.7",
        "pod a/ill-1 10.0.0.7 hbone unhealthy",
        "pod a/two-1 10.0.0.7 hbone",
        "pod a/one-1 10.0.0.7 hbone",
    ];
    for turn in 0..lines.len() {
        let mut lines = lines.to_vec();
        lines.rotate_left(turn);
        let mesh = mesh(&format!("pod a/web-1 10.0.0.1 hbone\n{}", lines.join("\n")));
        let expected = ["one", "two", "ill", "low", "zed"];
        let mut mesh = mesh;
        for name in expected {
            let at = planned(&mesh, "a/web-1", "10.0.0.7:80", 0);
            match name {
                "low" => assert_eq!(at, "direct 10.0.0.7:80"),
                _ => assert_eq!(at, format!("tunnel 10.0.0.7:15008 for 10.0.0.7:80 as {name}")),
            }
            mesh = mesh.apply(changes(&format!("-pod a/{name}-1")));
        }
    }
}

/// What a connection is given that was tried in vain on each endpoint before.
fn given(text: &str, caller: &str, original_dst: &str, tunnels_only: bool) -> Vec<String> {
    let mesh = mesh(text);
    let source = mesh.workload(&uid(caller)).unwrap();
    let original_dst = OrigDst::new(original_dst.parse().unwrap());
    let mut tried = Vec::new();
    let mut given = Vec::new();
    loop {
        match plan(&mesh, &Query { tried: &tried, tunnels_only, ..Query::new(source, original_dst, 0) }) {
            Ok(plan) => {
                let Some(picked) = plan.picked() else {
                    given.push("not picked".into());
                    return given;
                };
                tried.push(picked.endpoint);
                let way = if matches!(plan, Plan::Tunnel { .. }) { "tunnel" } else { "direct" };
                given.push(format!("{way} {}", picked.endpoint));
            }
            Err(Unplanned::Unresolved(host)) => panic!("{host} is to be resolved"),
            Err(Unplanned::Refused(refusal)) => {
                given.push(refusal.reason.as_str().into());
                given[..tried.len()].sort();
                return given;
            }
        }
    }
}

#[test]
fn each_endpoint_of_a_service_is_tried_once() {
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone serves=a/api
        pod a/api-2 10.0.0.3       serves=a/api
        pod a/wp-1  10.0.0.4 hbone serves=a/wp
        pod a/wp-2  10.0.0.5 hbone serves=a/wp
        svc a/api   10.1.0.1 ports=80>8080
        svc a/two   10.1.0.2 ports=80>8080 waypoint=a/wp
        svc a/wp    10.1.0.3 ports=15008>15008";
    let both = ["direct 10.0.0.3:8080", "tunnel 10.0.0.2:8080", "no_healthy_upstream"];
    assert_eq!(given(text, "a/web-1", "10.1.0.1:80", false), both);
    let waypoints = ["tunnel 10.0.0.4:15008", "tunnel 10.0.0.5:15008", "waypoint_not_ready"];
    assert_eq!(given(text, "a/web-1", "10.1.0.2:80", false), waypoints);
    // A waypoint is reached in a tunnel, whether or not its pod is captured.
    let outside = text.replace("10.0.0.5 hbone", "10.0.0.5");
    assert_eq!(given(&outside, "a/web-1", "10.1.0.2:80", true), waypoints);
    let in_tunnels = ["tunnel 10.0.0.2:8080", "no_healthy_upstream"];
    assert_eq!(given(text, "a/web-1", "10.1.0.1:80", true), in_tunnels, "what was to be protected stays so");
}

#[test]
fn an_address_that_the_application_named_has_no_stand_in() {
    for to in ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.1:8080", "203.0.113.1:443", "10.1.0.9:443", "10.0.0.4:8080"] {
        let mesh = mesh(SHOP);
        let source = mesh.workload(&uid("shop/web-1")).unwrap();
        let plan = plan(&mesh, &Query::new(source, OrigDst::new(to.parse().unwrap()), 0)).unwrap();
        // In front of 10.0.0.4 is a waypoint; one of its endpoints is as good as another.
        assert_eq!(plan.picked().is_some(), to.starts_with("10.0.0.4"), "{to}");
    }
}

#[test]
fn the_standing_of_an_endpoint_is_asked_for_by_the_address_that_serves() {
    #[derive(Debug)]
    struct Busy(SocketAddr);
    impl Standings for Busy {
        fn of(&self, endpoint: SocketAddr) -> balance::Standing {
            balance::Standing { connections: u32::from(endpoint == self.0), ..Default::default() }
        }
    }
    let text = "
        pod a/web-1 10.0.0.1 hbone
        pod a/api-1 10.0.0.2 hbone serves=a/api:80>9000
        pod a/api-2 10.0.0.3 hbone serves=a/api
        svc a/api   10.1.0.1 ports=80>8080";
    let mesh = mesh(text);
    let source = mesh.workload(&uid("a/web-1")).unwrap();
    for (busy, idle) in [("10.0.0.2:9000", "10.0.0.3:8080"), ("10.0.0.3:8080", "10.0.0.2:9000")] {
        let standings = Busy(busy.parse().unwrap());
        for entropy in (0..64).map(|i| i << 58) {
            let query = Query::new(source, OrigDst::new("10.1.0.1:80".parse().unwrap()), entropy);
            let plan = plan(&mesh, &Query { standings: &standings, ..query }).unwrap();
            assert_eq!(plan.picked().unwrap().endpoint, idle.parse().unwrap());
        }
    }
}
