use http::{HeaderName, Method};

use super::*;
use crate::http::backend::InvalidRef;
use crate::http::filter::{Fault, HeaderEdits, Mirror, Origin, PathEdit, Redirect, Share};
use crate::http::route::{Match, PathMatch};
use crate::http::table::Table;
use crate::http::table::tests::{Asked, route};

fn service(name: &str) -> BackendService {
    BackendService { service: format!("shop/{name}.shop.svc").parse().unwrap(), port: 80, subset: None }
}

fn backend(name: &str, weight: u32) -> Backend {
    let upstream = match name.strip_prefix('!') {
        Some(reference) => Upstream::Invalid { reference: reference.into(), why: InvalidRef::BackendNotFound },
        None => Upstream::Service(service(name)),
    };
    Backend { weight, upstream, filters: Vec::new() }
}

fn rule(filters: Vec<Filter>, backends: Vec<Backend>) -> Rule {
    Rule { filters, backends, ..Rule::default() }
}

fn table(rule: Rule) -> Table {
    let mut route = (*route("http shop/r 1\n x:")).clone();
    route.rules = vec![Arc::new(rule)];
    Table::new(route.key.kind, &[Arc::new(route)])
}

fn planned(table: &Table, request: &str, held: Option<&Held>) -> Plan {
    let asked = Asked::new(request);
    let request = asked.request();
    let found = table.find(&request).unwrap();
    plan(&Ask { found, request, port: 8080, turn: found.turn(), held })
}

/// A plan in few words.
fn words(plan: &Plan) -> String {
    match plan {
        Plan::Fail(failure) => failure.as_str().to_owned(),
        Plan::Answer(answer) => answer.status.as_u16().to_string(),
        Plan::Forward(forward) => {
            let name = forward.backend.service.hostname.as_str();
            format!("{} {}", name.split('.').next().unwrap(), forward.target)
        }
    }
}

fn edits(set: &str, add: &str, remove: &str) -> HeaderEdits {
    let lines = |text: &str| {
        let line = |line: &str| {
            let (name, value) = line.split_once('=').unwrap();
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        text.split_whitespace().map(line).collect()
    };
    HeaderEdits {
        set: lines(set),
        add: lines(add),
        remove: remove.split_whitespace().map(|n| n.parse().unwrap()).collect(),
    }
}

fn redirect(path: Option<PathEdit>) -> Filter {
    Filter::Redirect(Redirect { scheme: None, host: None, port: None, path, status: StatusCode::FOUND })
}

fn unknown() -> Filter {
    Filter::Unknown("ExtensionRef a".into())
}

#[test]
fn backends_that_are_missing_or_wrong_cost_their_own_share() {
    for (backends, of_ten) in [
        (&[][..], &[("no_backend", 10)][..]),
        (&[("a", 0)], &[("no_backend", 10)]),
        (&[("a", 0), ("b", 0)], &[("no_backend", 10)]),
        (&[("a", 1)], &[("a http://web/", 10)]),
        (&[("a", 7), ("b", 3)], &[("a http://web/", 7), ("b http://web/", 3)]),
        (&[("a", 1), ("!x", 1)], &[("a http://web/", 5), ("invalid_backend", 5)]),
        (&[("a", 1), ("!x", 0)], &[("a http://web/", 10)]),
        (&[("!x", 1)], &[("invalid_backend", 10)]),
    ] {
        let table = table(rule(Vec::new(), backends.iter().map(|(name, weight)| backend(name, *weight)).collect()));
        let all: Vec<String> = (0..10).map(|_| words(&planned(&table, "GET /", None))).collect();
        for (outcome, times) in of_ten {
            assert_eq!(all.iter().filter(|words| words == outcome).count(), *times, "{backends:?}: {all:?}");
        }
    }
}

#[test]
fn connections_that_are_not_looked_into_share_backends_too() {
    let table = table(rule(Vec::new(), vec![backend("a", 3), backend("!x", 1)]));
    let all: Vec<_> = (0..8).map(|turn| plan_opaque(&table.find_opaque(None).unwrap(), turn)).collect();
    assert_eq!(all.iter().filter(|to| **to == Ok(service("a"))).count(), 6);
    assert_eq!(all.iter().filter(|to| **to == Err(Failure::InvalidBackend)).count(), 2);
    let none = self::table(rule(Vec::new(), Vec::new()));
    assert_eq!(plan_opaque(&none.find_opaque(None).unwrap(), 0), Err(Failure::NoBackend));
}

#[test]
fn a_filter_that_is_not_known_fails_the_request_wherever_it_stands() {
    let with = |filters: Vec<Filter>, of_backend: Vec<Filter>| {
        let backend = Backend { filters: of_backend, ..backend("a", 1) };
        words(&planned(&table(rule(filters, vec![backend])), "GET /", None))
    };
    assert_eq!(with(vec![redirect(None), unknown()], vec![]), "unknown_filter");
    assert_eq!(with(vec![unknown(), redirect(None)], vec![]), "unknown_filter");
    assert_eq!(with(vec![], vec![unknown()]), "unknown_filter");
    assert_eq!(with(vec![], vec![redirect(None), unknown()]), "unknown_filter");
    assert_eq!(with(vec![redirect(None)], vec![unknown()]), "302");
    assert_eq!(Failure::UnknownFilter.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[test]
fn a_redirect_answers_without_a_backend_and_from_a_backend() {
    let header = |plan: Plan, name: &str| match plan {
        Plan::Answer(answer) => answer.headers[name].to_str().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    let set = Filter::ResponseHeaders(edits("x-a=1", "", ""));
    let of_rule = || table(rule(vec![redirect(None), set.clone()], vec![]));
    assert_eq!(header(planned(&of_rule(), "GET /a?q=1", None), "location"), "http://web:8080/a?q=1");
    assert_eq!(header(planned(&of_rule(), "GET /a?q=1", None), "x-a"), "1");
    let backend = Backend { filters: vec![redirect(None)], ..backend("a", 1) };
    let of_backend = table(rule(vec![set.clone()], vec![backend]));
    assert_eq!(header(planned(&of_backend, "GET /a", None), "location"), "http://web:8080/a");
    assert_eq!(header(planned(&of_backend, "GET /a", None), "x-a"), "1");
    let respond = Filter::Respond { status: StatusCode::IM_A_TEAPOT, body: "short and stout".into() };
    let Plan::Answer(answer) = planned(&table(rule(vec![respond], vec![])), "GET /", None) else { panic!() };
    assert_eq!((answer.status.as_u16(), &*answer.body), (418, "short and stout"));
}

#[test]
fn rewrites_of_rule_and_backend_make_one_target() {
    let rewrite =
        |host: Option<&str>, path: Option<PathEdit>| Filter::Rewrite(Rewrite { host: host.map(Into::into), path });
    let prefix = |to: &str| Some(PathEdit::Prefix(to.into()));
    let full = |to: &str| Some(PathEdit::Full(to.into()));
    let with = |filters: Vec<Filter>, of_backend: Vec<Filter>| {
        let backend = Backend { filters: of_backend, ..backend("a", 1) };
        let matches = vec![Match { path: Some(PathMatch::Prefix("/old".into())), ..Match::default() }];
        let table = table(Rule { matches, ..rule(filters, vec![backend]) });
        words(&planned(&table, "GET /old/x?q=1", None))
    };
    assert_eq!(with(vec![], vec![]), "a http://web/old/x?q=1");
    assert_eq!(with(vec![rewrite(Some("api"), None)], vec![]), "a http://api/old/x?q=1");
    assert_eq!(with(vec![rewrite(None, prefix("/new"))], vec![]), "a http://web/new/x?q=1");
    assert_eq!(with(vec![rewrite(Some("api"), full("/y"))], vec![]), "a http://api/y?q=1");
    assert_eq!(with(vec![rewrite(Some("api"), full("/y"))], vec![rewrite(None, full("/z"))]), "a http://api/z?q=1");
    assert_eq!(with(vec![rewrite(Some("no host"), None)], vec![]), "ill_filtered");
    assert_eq!(with(vec![redirect(prefix("/new"))], vec![]), "302");
    let exact = vec![Match { path: Some(PathMatch::Exact("/old".into())), ..Match::default() }];
    let of_exact = table(Rule { matches: exact, ..rule(vec![rewrite(None, prefix("/new"))], vec![backend("a", 1)]) });
    assert_eq!(words(&planned(&of_exact, "GET /old", None)), "ill_filtered");
}

#[test]
fn headers_are_edited_on_the_way_in_and_out() {
    let request = |set: &str, add: &str, remove: &str| Filter::RequestHeaders(edits(set, add, remove));
    let response = |set: &str, add: &str, remove: &str| Filter::ResponseHeaders(edits(set, add, remove));
    let backend = Backend {
        filters: vec![request("a=backend", "", "c"), response("a=backend", "b=backend", "")],
        ..backend("a", 1)
    };
    let table = table(rule(vec![request("a=rule", "b=rule", ""), response("a=rule", "b=rule", "c")], vec![backend]));
    let Plan::Forward(forward) = planned(&table, "GET /", None) else { panic!() };
    let text = |headers: &HeaderMap| {
        let mut lines: Vec<String> = headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        lines.sort();
        lines.join(" ")
    };
    let start = || HeaderMap::from_iter([(HeaderName::from_static("c"), HeaderValue::from_static("0"))]);
    let (mut sent, mut answered) = (start(), start());
    forward.edit_request(&mut sent);
    forward.edit_response(&mut answered);
    assert_eq!(text(&sent), "a=backend b=rule");
    assert_eq!(text(&answered), "a=rule b=backend b=rule");
}

#[test]
fn mirrors_get_their_shares_and_bad_ones_nothing() {
    let mirror = |name: &str, parts: u32, of: u32| {
        Filter::Mirror(Mirror { upstream: backend(name, 1).upstream, share: Share { parts, of } })
    };
    let filters = vec![mirror("m", 1, 1), mirror("n", 1, 4), mirror("!x", 1, 1), mirror("o", 0, 1)];
    let table = table(rule(filters, vec![backend("a", 1), backend("b", 1)]));
    let (mut m, mut n, mut n_with_a) = (0, 0, 0);
    for _ in 0..1000 {
        let Plan::Forward(forward) = planned(&table, "GET /", None) else { panic!() };
        assert!(forward.mirrors.iter().all(|mirror| *mirror == service("m") || *mirror == service("n")));
        m += usize::from(forward.mirrors.contains(&service("m")));
        let copied = forward.mirrors.contains(&service("n"));
        n += usize::from(copied);
        n_with_a += usize::from(copied && forward.backend == service("a"));
    }
    assert_eq!(m, 1000);
    assert!((245..=255).contains(&n), "{n} of 250");
    // Copies are not all of one backend's requests.
    assert!((100..=150).contains(&n_with_a), "{n_with_a} of 125");
}

#[test]
fn a_preflight_request_is_answered_here_before_anything_else() {
    let cors = Filter::Cors(Cors { allow_origins: vec![Origin::Exact("https://b".into())], ..Cors::default() });
    let table = table(rule(vec![redirect(None), cors.clone()], vec![]));
    let Plan::Answer(answer) = planned(&table, "OPTIONS / origin=https://b access-control-request-method=GET", None)
    else {
        panic!()
    };
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://b");

    let table = self::table(rule(vec![cors], vec![backend("a", 1)]));
    for (request, allowed) in
        [("GET / origin=https://b", true), ("GET / origin=https://c", false), ("OPTIONS /", false)]
    {
        let Plan::Forward(forward) = planned(&table, request, None) else { panic!() };
        let mut headers = HeaderMap::new();
        forward.edit_response(&mut headers);
        assert_eq!(headers.contains_key("access-control-allow-origin"), allowed, "{request}");
    }
}

#[test]
fn a_session_keeps_its_backend_even_without_weight() {
    let table = table(rule(Vec::new(), vec![backend("a", 1), backend("b", 0)]));
    let held = |name: &str| Held { scope: 0, backend: service(name), endpoint: "pod-7".into(), began: 0, used: 0 };
    let with = |held: Option<&Held>| {
        let Plan::Forward(forward) = planned(&table, "GET /", held) else { panic!() };
        (forward.backend, forward.endpoint)
    };
    assert_eq!(with(None), (service("a"), None));
    assert_eq!(with(Some(&held("a"))), (service("a"), Some("pod-7".into())));
    assert_eq!(with(Some(&held("b"))), (service("b"), Some("pod-7".into())));
    // A backend that the rule no longer has is not gone to.
    assert_eq!(with(Some(&held("c"))), (service("a"), None));
}

#[test]
fn faults_delay_and_fail_their_shares() {
    let half = Share { parts: 1, of: 2 };
    let fault =
        Fault { delay: Some((half, Duration::from_secs(1))), abort: Some((half, StatusCode::TOO_MANY_REQUESTS)) };
    let rule = rule(vec![Filter::Fault(fault)], vec![backend("a", 1)]);
    let delayed = (0..100).filter(|turn| delay(&rule, *turn) == Some(Duration::from_secs(1))).count();
    let table = table(rule);
    let failed = (0..100).filter(|_| words(&planned(&table, "GET /", None)) == "injected").count();
    assert!((48..=52).contains(&delayed) && (48..=52).contains(&failed), "{delayed} and {failed} of 50");
}

#[test]
fn without_routes_a_request_goes_on_as_it_is() {
    let asked = Asked::new("GET /a?q=1 x=1");
    let forward = Forward::direct(service("a"), asked.target.clone());
    let mut headers = asked.headers.clone();
    forward.edit_request(&mut headers);
    forward.edit_response(&mut headers);
    assert_eq!((headers, forward.target, forward.via), (asked.headers, asked.target, None));
    assert_eq!(asked.method, Method::GET);
}
