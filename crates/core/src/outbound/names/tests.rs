use std::collections::BTreeSet;

use super::*;
use crate::testmesh::{mesh, uid};

/// Services whose endpoints are names: beside addresses, alone, in a tunnel.
const NAMED: &str = "
    pod shop/web-1   10.0.0.1,fd00::1  hbone
    pod shop/api-1   10.0.0.2          hbone  serves=shop/api
    pod shop/far-1   host=db.example          serves=shop/db
    pod shop/mix-1   host=mix.example         serves=shop/mix
    pod shop/mix-2   10.0.0.9                 serves=shop/mix
    pod shop/vm-1    host=vm.example   hbone  serves=shop/vm
    svc shop/api     10.1.0.1          ports=80>8080
    svc shop/db      10.1.0.2,fd01::2  ports=80>5432
    svc shop/mix     10.1.0.3          ports=80>8080
    svc shop/vm      10.1.0.4          ports=80>8080
    svc shop/loop    10.1.0.5          ports=5432>8080
    pod shop/loop-1  host=again.example       serves=shop/loop
";

fn resolved(text: &str) -> Vec<Resolved> {
    let one = |text: &str| {
        let (host, addresses) = text.split_once('=').unwrap();
        let addresses = match addresses.strip_prefix('!') {
            Some(why) => Err(why.into()),
            None => Ok(addresses.split(',').map(|ip| ip.parse().unwrap()).collect()),
        };
        Resolved { host: host.parse().unwrap(), addresses }
    };
    text.split_whitespace().map(one).collect()
}

/// A connection of `web-1`, when names have been resolved like that: `db.example=192.0.2.1,192.0.2.2 x.example=!why`.
#[track_caller]
fn check_named(names: &str, original_dst: &str, expected: &str) {
    let (mesh, names) = (mesh(NAMED), resolved(names));
    let source = mesh.workload(&uid("shop/web-1")).unwrap();
    let query = Query::new(source, OrigDst::new(original_dst.parse().unwrap()), 0);
    let got = match plan(&mesh, &Query { names: &names, ..query }) {
        Ok(plan) => {
            assert!(plan.picked().is_some() && plan.destination().service.is_some());
            match plan {
                Plan::Direct { upstream, .. } => format!("direct {upstream}"),
                Plan::Tunnel { next_hop, authority, .. } => format!("tunnel {next_hop} for {authority}"),
            }
        }
        Err(Unplanned::Refused(refusal)) => format!("refused {}: {}", refusal.reason.as_str(), refusal.detail),
        Err(Unplanned::Unresolved(host)) => format!("unresolved {host}"),
    };
    assert!(got.starts_with(expected), "{original_dst}: {got}");
}

#[test]
fn a_name_is_resolved_before_it_is_dialled() {
    check_named("", "10.1.0.2:80", "unresolved db.example");
    check_named("db.example=192.0.2.1", "10.1.0.2:80", "direct 192.0.2.1:5432");
    check_named("", "10.1.0.4:80", "unresolved vm.example");
    check_named("vm.example=192.0.2.4", "10.1.0.4:80", "tunnel 192.0.2.4:15008 for 192.0.2.4:8080");
}

#[test]
fn a_name_that_leads_nowhere_is_passed_over_and_told_when_nothing_is_left() {
    check_named("mix.example=!silent", "10.1.0.3:80", "direct 10.0.0.9:8080");
    let refused = "refused name_unresolved: service shop/db.shop.svc has no usable endpoint for port 80: db.example: ";
    check_named("db.example=!silent", "10.1.0.2:80", &format!("{refused}silent"));
    for nowhere in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "ff02::1"] {
        check_named(&format!("db.example={nowhere}"), "10.1.0.2:80", &format!("{refused}has no address"));
    }
}

#[test]
fn addresses_of_the_callers_family_come_first_and_each_is_tried_once() {
    let names = "db.example=2001:db8::1,192.0.2.1,192.0.2.2";
    check_named(names, "[fd01::2]:80", "direct [2001:db8::1]:5432");
    let (mesh, names) = (mesh(NAMED), resolved(names));
    let source = mesh.workload(&uid("shop/web-1")).unwrap();
    let mut first = BTreeSet::new();
    for entropy in 0..16 {
        let mut tried = Vec::new();
        let query = Query::new(source, OrigDst::new("10.1.0.2:80".parse().unwrap()), entropy);
        while let Ok(plan) = plan(&mesh, &Query { names: &names, tried: &tried, ..query }) {
            tried.push(plan.picked().unwrap().endpoint);
        }
        assert!(tried.len() == 3 && tried[2].is_ipv6(), "{tried:?}");
        first.insert(tried[0]);
    }
    assert_eq!(first.len(), 2, "each of the same family is first at some time");
}

#[test]
fn a_name_that_leads_into_the_mesh_means_what_its_address_means_there() {
    // A pod, a service, the caller itself, its listeners, a service of names.
    check_named("db.example=10.0.0.2", "10.1.0.2:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:5432");
    check_named("mix.example=10.0.0.2", "10.1.0.3:80", "tunnel 10.0.0.2:15008 for 10.0.0.2:8080");
    check_named("db.example=10.1.0.1", "10.1.0.2:80", "refused port_unknown");
    check_named("db.example=10.0.0.1", "10.1.0.2:80", "direct 10.0.0.1:5432");
    check_named("db.example=10.1.0.5", "10.1.0.2:80", "refused loop");
    let mesh = mesh(&NAMED.replace("80>5432", "80>15006"));
    let source = mesh.workload(&uid("shop/web-1")).unwrap();
    let query = Query::new(source, OrigDst::new("10.1.0.2:80".parse().unwrap()), 0);
    let refused = plan(&mesh, &Query { names: &resolved("db.example=10.0.0.1"), ..query });
    assert!(matches!(refused, Err(Unplanned::Refused(refusal)) if refusal.reason == Reason::Loop));
}
