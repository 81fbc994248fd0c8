use std::fmt::Write;

use super::*;
use crate::dump::Dump;
use crate::testmesh::{changes, key, mesh, uid};

/// Everything a snapshot answers, as text: two that print the same behave the same.
fn shown(mesh: &Snapshot) -> String {
    let dump = Dump::of(mesh);
    let mut text = format!("{dump:?}");
    for members in mesh.services() {
        let Some(service) = members.service() else { continue };
        for addr in &service.addresses {
            let at = NetworkAddr { network: addr.network.clone(), ip: addr.range.addr() };
            write!(text, "{:?}", mesh.service_at(&at, "none").map(|s| &s.key)).unwrap();
            write!(text, "{:?}", mesh.service_around(&at, "none").map(|s| &s.key)).unwrap();
        }
        write!(text, "{:?}", mesh.service_named(&service.key.hostname, "none").map(|s| &s.key)).unwrap();
    }
    for workload in mesh.workloads() {
        for ip in &workload.addresses {
            let at = NetworkAddr { network: workload.network.clone(), ip: *ip };
            write!(text, "{:?}", mesh.workload_at(&at).map(|w| &w.uid)).unwrap();
        }
        write!(text, "{:?}", mesh.local(workload.namespace(), &workload.name, &workload.node).is_some()).unwrap();
    }
    let mut parts: Vec<_> = text.split("None").collect();
    parts.sort_unstable();
    parts.concat()
}

const LINES: [&str; 9] = [
    "pod a/web-1 10.0.0.1 hbone node=n1",
    "pod a/api-1 10.0.0.2 hbone node=n1 serves=a/api",
    "pod a/api-2 10.0.0.3 hbone node=n2 serves=a/api,a/range",
    "pod b/api-3 10.0.0.3 node=n2 serves=b/api",
    "svc a/api 10.1.0.1 ports=80>8080",
    "svc b/api 10.1.0.1 ports=80>8080 canonical",
    "svc a/range 10.2.0.0/16 ports=80>80",
    "svc b/range 10.2.3.0/24 ports=80>80",
    "svc a/head ports=80>80",
];

#[test]
fn the_order_of_arrival_does_not_matter() {
    let reference = shown(&mesh(&LINES.join("\n")));
    let mut order: Vec<usize> = (0..LINES.len()).collect();
    let mut x = 1u64;
    for _ in 0..200 {
        for i in (1..order.len()).rev() {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            order.swap(i, (x >> 33) as usize % (i + 1));
        }
        // One by one, with things that come, go, change and come again.
        let mut mesh = Snapshot::default();
        for i in &order {
            let line = LINES[*i];
            let name = line.split_whitespace().nth(1).unwrap();
            let remove = format!("-{} {name}", &line[..3]);
            mesh = mesh.apply(changes(line)).apply(changes(&remove));
            mesh = mesh.apply(changes(&line.replace("10.", "11.").replace("serves=", "serves=z/z,")));
            mesh = mesh.apply(changes(line));
        }
        assert_eq!(shown(&mesh), reference, "{order:?}");
        // All at once.
        let lines: Vec<_> = order.iter().map(|i| LINES[*i]).collect();
        assert_eq!(shown(&self::mesh(&lines.join("\n"))), reference, "{order:?}");
    }
}

#[test]
fn endpoints_that_arrive_before_their_service_are_kept() {
    let early = mesh("pod a/api-1 10.0.0.2 serves=a/api");
    assert!(early.service(&key("a/api")).is_none());
    let complete = early.apply(changes("svc a/api 10.1.0.1 ports=80>80"));
    assert_eq!(complete.members(&key("a/api")).unwrap().workloads().len(), 1);
    let again = complete.apply(changes("-svc a/api")).apply(changes("svc a/api 10.1.0.1 ports=80>80"));
    assert_eq!(shown(&again), shown(&complete));
}

#[test]
fn what_is_removed_leaves_nothing_behind() {
    let mesh = mesh(&LINES.join("\n"));
    let removals: Vec<String> =
        LINES.iter().map(|l| format!("-{} {}", &l[..3], l.split_whitespace().nth(1).unwrap())).collect();
    let empty = mesh.apply(changes(&removals.join("\n")));
    assert!(empty.workloads.is_empty() && empty.addresses.is_empty() && empty.services.is_empty());
    assert!(empty.hostnames.is_empty() && empty.clusters.is_empty());
    assert_eq!(shown(&empty), shown(&Snapshot::default()));
    assert_eq!(mesh.workload_count(), 4);
    // Removing what is not there changes nothing.
    assert_eq!(shown(&empty.apply(changes(&removals.join("\n")))), shown(&Snapshot::default()));
}

#[test]
fn a_snapshot_does_not_change_when_the_next_one_is_made() {
    let before = mesh(&LINES.join("\n"));
    let text = shown(&before);
    let after = before.apply(changes("-pod a/api-1\nsvc a/api 10.9.9.9 ports=1>1\npod a/web-1 10.0.0.77"));
    assert_eq!(shown(&before), text);
    assert_ne!(shown(&after), text);
    assert_eq!((before.revision(), after.revision()), (1, 2));
}

#[test]
fn a_local_pod_is_found_by_name_and_node() {
    let mesh = mesh(&LINES.join("\n"));
    assert_eq!(mesh.local("a", "web-1", "n1").unwrap().uid, uid("a/web-1"));
    assert!(mesh.local("a", "web-1", "n2").is_none());
    assert!(mesh.local("b", "web-1", "n1").is_none());
}

#[test]
fn of_ranges_around_an_address_the_callers_own_then_the_longest_is_meant() {
    let mesh = mesh(&LINES.join("\n"));
    let at = |ip: &str, namespace| {
        let addr = NetworkAddr { network: "".into(), ip: ip.parse().unwrap() };
        mesh.service_around(&addr, namespace).map(|s| s.key.to_string())
    };
    assert_eq!(at("10.2.3.4", "c").as_deref(), Some("b/range.b.svc"));
    assert_eq!(at("10.2.3.4", "a").as_deref(), Some("a/range.a.svc"));
    assert_eq!(at("10.2.9.4", "c").as_deref(), Some("a/range.a.svc"));
    assert_eq!(at("10.3.0.1", "c"), None);
    assert_eq!(at("::a02:304", "c"), None);
}

#[test]
fn one_change_does_not_touch_the_rest_of_a_large_mesh() {
    let pods: String =
        (0..5000).map(|i| format!("pod a/api-{i} 10.{}.{}.7 serves=a/s{}\n", i / 250, i % 250, i % 500)).collect();
    let services: String = (0..500).map(|i| format!("svc a/s{i} 11.0.{}.{} ports=80>80\n", i / 250, i % 250)).collect();
    let before = mesh(&(pods + &services));
    let after = before.apply(changes("pod a/api-7 10.0.7.7 serves=a/s7 unhealthy"));
    let mut touched = (0, 0, 0);
    after.workloads.diff(&before.workloads, &mut |_, _| touched.0 += 1);
    after.services.diff(&before.services, &mut |_, _| touched.1 += 1);
    after.addresses.diff(&before.addresses, &mut |_, _| touched.2 += 1);
    assert_eq!(touched, (1, 1, 1));
}

#[test]
fn a_workload_of_a_large_mesh_stays_small() {
    assert!(size_of::<Workload>() <= 360, "{}", size_of::<Workload>());
}

#[test]
fn routes_and_traffic_of_a_service_come_and_go() {
    use crate::http::route::ServiceRoutes;
    use crate::http::table::tests::route;
    use crate::http::traffic::{ServiceTraffic, Traffic};

    let key = key("a/api");
    let routes = |text: &str| {
        let routes = text.split(',').filter(|text| !text.is_empty()).map(route).collect();
        Change::Routes(ServiceRoutes { service: key.clone(), routes })
    };
    let empty = Snapshot::default();
    assert!(empty.routes(&key).is_none() && empty.traffic(&key).is_none());
    let bound = empty.apply(vec![routes("")]);
    assert!(bound.routes(&key).unwrap().find(80, None).is_none());
    let routed = bound.apply(vec![routes("http a/r 1\n x:")]);
    assert!(routed.routes(&key).unwrap().find(80, None).is_some());
    assert!(bound.routes(&key).unwrap().find(80, None).is_none(), "the earlier one stays as it is");
    assert!(routed.apply(vec![Change::RemoveRoutes(key.clone())]).routes(&key).is_none());

    let traffic =
        ServiceTraffic { service: key.clone(), traffic: Traffic::default(), ports: Vec::new(), subsets: Vec::new() };
    let used = routed.apply(vec![Change::Traffic(traffic)]);
    assert!(used.traffic(&key).is_some() && used.members(&key).is_none());
    assert!(used.apply(vec![Change::RemoveTraffic(key.clone())]).traffic(&key).is_none());
}
