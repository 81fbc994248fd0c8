//! What it costs to find the rule of a request: nanoseconds for each kind of routes, as one line of JSON.
//!
//! `route [ROUTES] [REQUESTS]`; 10,000 routes unless told otherwise.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures and reports")]

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use loam_core::http::pattern::Pattern;
use loam_core::http::route::{HeaderMatch, Kind, Match, Order, PathMatch, Route, RouteKey, Rule};
use loam_core::http::table::Table;
use loam_core::http::target::{Head, PathRules, Request, Scheme, Target};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u32>().ok());
    let (routes, requests) = (arguments.next().unwrap_or(10_000).max(1), arguments.next().unwrap_or(1_000_000).max(1));
    let tenant = HeaderName::from_static("x-tenant");
    let by_header = |i: u32| Match {
        path: Some(PathMatch::Prefix("/".into())),
        headers: vec![HeaderMatch { name: tenant.clone(), value: Pattern::Exact(i.to_string().into()), absent: false }],
        ..Match::default()
    };
    let by_path = |path: PathMatch| Match { path: Some(path), ..Match::default() };
    let exact = |i: u32| by_path(PathMatch::Exact(format!("/shop/{i}/cart").into()));
    let prefix = |i: u32| by_path(PathMatch::Prefix(format!("/shop/{i}").into()));
    let kinds: [(&str, &dyn Fn(u32) -> Match); 3] = [("exact", &exact), ("prefix", &prefix), ("header", &by_header)];
    let measured: Vec<String> = kinds
        .into_iter()
        .map(|(name, condition)| {
            let (compile, find) = nanoseconds(routes, requests, condition);
            format!("\"{name}_ns\":{find:.1},\"{name}_compile_us\":{:.1}", compile / 1000.0)
        })
        .collect();
    println!("{{\"routes\":{routes},\"canonical_ns\":{:.1},{}}}", canonical(requests), measured.join(","));
}

/// To compile a table, and to find a rule in it, paths in canonical form given.
fn nanoseconds(routes: u32, requests: u32, condition: &dyn Fn(u32) -> Match) -> (f64, f64) {
    let routes: Vec<Arc<Route>> = (0..routes).map(|i| route(i, condition(i))).collect();
    let began = Instant::now();
    let table = Table::new(Kind::Http, &routes);
    let compile = began.elapsed().as_nanos() as f64;
    let asked: Vec<(Target, HeaderMap)> = (0..1000)
        .map(|n| {
            let i = n * routes.len() / 1000;
            let tenant = HeaderValue::try_from(i.to_string()).expect("digits");
            let headers = HeaderMap::from_iter([(HeaderName::from_static("x-tenant"), tenant)]);
            (target(&format!("http://web/shop/{i}/cart?page=2")), headers)
        })
        .collect();
    let began = Instant::now();
    for n in 0..requests as usize {
        let (target, headers) = &asked[n % asked.len()];
        let found = table.find(&Request { method: &Method::GET, target, headers });
        assert!(std::hint::black_box(found).is_some());
    }
    (compile, began.elapsed().as_nanos() as f64 / f64::from(requests))
}

/// To put a usual target into its canonical form.
fn canonical(requests: u32) -> f64 {
    let uri = "http://web.shop.svc.cluster.local/shop/1234/cart?page=2".parse().expect("a URI");
    let headers = HeaderMap::new();
    let head =
        Head { method: &Method::GET, uri: &uri, version: Version::HTTP_2, headers: &headers, extended_connect: false };
    let began = Instant::now();
    for _ in 0..requests {
        assert!(Target::of(std::hint::black_box(&head), Scheme::Http, &PathRules::default()).is_ok());
    }
    began.elapsed().as_nanos() as f64 / f64::from(requests)
}

fn target(uri: &str) -> Target {
    let (uri, headers) = (uri.parse().expect("a URI"), HeaderMap::new());
    let head =
        Head { method: &Method::GET, uri: &uri, version: Version::HTTP_2, headers: &headers, extended_connect: false };
    Target::of(&head, Scheme::Http, &PathRules::default()).expect("a canonical target")
}

fn route(i: u32, condition: Match) -> Arc<Route> {
    Arc::new(Route {
        key: RouteKey { kind: Kind::Http, namespace: "shop".into(), name: format!("r{i}").into() },
        created: u64::from(i),
        ports: vec![80],
        hostnames: Vec::new(),
        order: Order::Specific,
        rules: vec![Arc::new(Rule { matches: vec![condition], ..Rule::default() })],
    })
}
