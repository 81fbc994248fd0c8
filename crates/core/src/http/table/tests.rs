use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use super::*;
use crate::http::host::HostPattern;
use crate::http::pattern::{Pattern, Regex};
use crate::http::route::{HeaderMatch, NameMatch, Order, QueryMatch};
use crate::http::target::{Head, PathRules, Scheme, Target};

mod random;

/// A request in text: `METHOD URI [name=value]...`.
pub(in crate::http) struct Asked {
    pub(in crate::http) method: Method,
    pub(in crate::http) target: Target,
    pub(in crate::http) headers: HeaderMap,
}

impl Asked {
    pub(in crate::http) fn new(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let method: Method = words.next().unwrap().parse().unwrap();
        let uri = words.next().unwrap();
        let uri = if uri.starts_with('/') { format!("http://web{uri}") } else { uri.to_owned() };
        let mut headers = HeaderMap::new();
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let uri = uri.parse().unwrap();
        let head =
            Head { method: &method, uri: &uri, version: Version::HTTP_2, headers: &headers, extended_connect: false };
        let target = Target::of(&head, Scheme::Http, &PathRules::default()).unwrap();
        Self { method, target, headers }
    }

    pub(in crate::http) fn request(&self) -> Request<'_> {
        Request { method: &self.method, target: &self.target, headers: &self.headers }
    }
}

/// A match in text: `=/exact`, `/prefix`, `^text`, `~regex`, `@service.method` with `*` for any, `METHOD`,
/// `name=value`, `!name=value`, `?name=value`; a value may be `^prefix`, `~regex` or `*`.
fn condition(text: &str) -> Match {
    let pattern = |value: &str| match value.split_at_checked(1) {
        Some(("*", "")) => Pattern::Present,
        Some(("^", prefix)) => Pattern::Prefix(prefix.into()),
        Some(("~", regex)) => Pattern::Regex(Regex::new(regex).unwrap()),
        Some(_) | None => Pattern::Exact(value.into()),
    };
    let name = |text: &str| match text.strip_prefix('~') {
        _ if text == "*" => None,
        Some(regex) => Some(NameMatch::Regex(Regex::new(regex).unwrap())),
        None => Some(NameMatch::Exact(text.into())),
    };
    let mut condition = Match::default();
    for word in text.split_whitespace() {
        let (kind, rest) = word.split_at(1);
        match (kind, word.split_once('=')) {
            ("=", _) => condition.path = Some(PathMatch::Exact(rest.into())),
            ("/", _) => condition.path = Some(PathMatch::Prefix(word.into())),
            ("^", _) => condition.path = Some(PathMatch::Text(rest.into())),
            ("~", _) => condition.path = Some(PathMatch::Regex(Regex::new(rest).unwrap())),
            ("@", _) => {
                let (service, method) = rest.split_once('/').unwrap();
                condition.path = Some(PathMatch::Grpc { service: name(service), method: name(method) });
            }
            ("?", Some((name, value))) => {
                condition.query.push(QueryMatch { name: name[1..].into(), value: pattern(value) });
            }
            (_, Some((name, value))) => condition.headers.push(HeaderMatch {
                name: name.trim_start_matches('!').parse().unwrap(),
                value: pattern(value),
                absent: name.starts_with('!'),
            }),
            (_, None) => condition.method = Some(word.parse().unwrap()),
        }
    }
    condition
}

/// A route for port 80 in text: `kind namespace/name created [host,...]` and below a rule on each line: its name, a
/// colon, and matches between `|`.
pub(crate) fn route(text: &str) -> Arc<Route> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let (kind, order) = match head[0] {
        "grpc" => (Kind::Grpc, Order::Specific),
        "http" => (Kind::Http, Order::Specific),
        "listed" => (Kind::Http, Order::Listed),
        "tls" => (Kind::Tls, Order::Specific),
        _ => (Kind::Tcp, Order::Specific),
    };
    let (namespace, name) = head[1].split_once('/').unwrap();
    let hostnames = head.get(3).map(|hosts| hosts.split(',').map(|host| host.parse().unwrap()).collect());
    let rule = |line: &str| {
        let (name, matches) = line.split_once(':').unwrap();
        let matches = matches.split('|').map(str::trim).filter(|m| !m.is_empty()).map(condition).collect();
        Arc::new(Rule { name: Some(name.into()), matches, ..Rule::default() })
    };
    Arc::new(Route {
        key: RouteKey { kind, namespace: namespace.into(), name: name.into() },
        created: head[2].parse().unwrap(),
        ports: vec![80],
        hostnames: hostnames.unwrap_or_default(),
        order,
        rules: lines.map(rule).collect(),
    })
}

fn table(routes: &[&str]) -> Table {
    let routes: Vec<Arc<Route>> = routes.iter().map(|text| route(text)).collect();
    Table::new(routes[0].key.kind, &routes)
}

/// The name of the rule that is taken; `-` for none.
fn taken(table: &Table, request: &str) -> String {
    let asked = Asked::new(request);
    let found = table.find(&asked.request());
    found.map_or("-".to_owned(), |found| found.rule.name.as_deref().unwrap_or_default().to_owned())
}

fn check(routes: &[&str], requests: &[(&str, &str)]) {
    let table = table(routes);
    for (request, rule) in requests {
        assert_eq!(taken(&table, request), *rule, "{request}");
    }
}

#[test]
fn prefixes_are_whole_segments_and_headers_on_the_root_beat_the_root() {
    // The routes of the conformance test `MeshHTTPRouteMatching`.
    check(
        &["http a/r 1
             one: / | version=one
             two: /v2 | version=two"],
        &[
            ("GET /", "one"),
            ("GET /example", "one"),
            ("GET / Version=one", "one"),
            ("GET /v2", "two"),
            ("GET /v2/", "two"),
            ("GET /v2/example", "two"),
            ("GET / VERSION=two", "two"),
            ("GET /v2example", "one"),
            ("GET /foo/v2/example", "one"),
        ],
    );
}

#[test]
fn the_most_specific_match_is_taken() {
    check(
        &["http a/r 1
             root:
             regex: ~/r.*
             longer: ~/re.*
             short: /a
             long: /a/b/
             exact: =/a/b/c
             method: GET /a
             header: /a h=1
             headers: /a h=1 i=2
             query: /a ?q=1
             both: /a h=1 ?q=1"],
        &[
            ("PUT /x", "root"),
            ("PUT /r", "regex"),
            ("PUT /red", "longer"),
            ("PUT /a", "short"),
            ("PUT /a/bc", "short"),
            ("PUT /a/b", "long"),
            ("PUT /a/b/d h=1 i=2", "long"),
            ("PUT /a/b/c", "exact"),
            ("PUT /a/b/c/", "long"),
            ("GET /a h=1 i=2", "method"),
            ("PUT /a h=1", "header"),
            ("PUT /a i=2 h=1", "headers"),
            ("PUT /a?q=1", "query"),
            ("PUT /a?q=1 h=1", "both"),
            ("PUT /a?q=1 h=1 i=2", "headers"),
            ("PUT /A", "root"),
        ],
    );
}

#[test]
fn among_equals_the_older_route_is_taken_then_the_name_then_the_order() {
    let rules = |name: &str| format!("\n first-{name}: /a\n second-{name}: /a | /b");
    let route = |head: &str, name: &str| format!("{head}{}", rules(name));
    let (new, old) = (route("http b/x 20", "new"), route("http c/x 10", "old"));
    check(&[&new, &old], &[("GET /a", "first-old"), ("GET /b", "second-old")]);
    let (dashed, plain) = (route("http a-b/x 10", "dashed"), route("http a/x 10", "plain"));
    // "a-b/x" is before "a/x".
    check(&[&plain, &dashed], &[("GET /a", "first-dashed"), ("GET /b", "second-dashed")]);
}

#[test]
fn a_query_is_matched_by_its_first_values_and_unmatched_requests_find_nothing() {
    check(
        &["http a/r 1
             one: ?animal=whale
             two: ?animal=dolphin | ?animal=dolphin ?color=blue
             three: ?a=~[0-9]+
             path: /path ?animal=shark"],
        &[
            ("GET /?animal=whale", "one"),
            ("GET /?animal=dolphin&color=blue", "two"),
            ("GET /?animal=dolphin&animal=whale", "two"),
            ("GET /?animal=wh%61le", "one"),
            ("GET /?Animal=whale", "-"),
            ("GET /?animal=shark", "-"),
            ("GET /path?animal=shark", "path"),
            ("GET /path?animal=whale", "one"),
            ("GET /?a=12", "three"),
            ("GET /?a=1b", "-"),
            ("GET /", "-"),
        ],
    );
}

#[test]
fn each_value_of_a_repeated_header_is_looked_at() {
    check(
        &["http a/r 1
             deny: x=a
             without: /w !x=a
             present: /p y=*
             begins: /b z=^v"],
        &[
            ("GET / x=b x=a", "deny"),
            ("GET / x=a x=b", "deny"),
            ("GET / x=b", "-"),
            ("GET /w x=b", "without"),
            ("GET /w x=b x=a", "deny"),
            ("GET /p y=", "present"),
            ("GET /p", "-"),
            ("GET /b z=u z=v2", "begins"),
        ],
    );
}

#[test]
fn the_first_of_several_conditions_for_one_header_counts() {
    let mut first = condition("/ x=a x=b ?q=1 ?q=2");
    first.headers[1].name = HeaderName::from_static("x");
    let canonical = first.in_canonical_form();
    assert_eq!((canonical.headers.len(), canonical.query.len()), (1, 1));
    assert_eq!(canonical.headers[0].value, Pattern::Exact("a".into()));
    check(&["http a/r 1\n one: /a x=a x=b\n two: /a y=a"], &[("GET /a x=a y=a", "one"), ("GET /a x=b", "-")]);
}

#[test]
fn paths_of_routes_are_compared_in_canonical_form() {
    check(
        &["http a/r 1\n exact: =/caf%c3%a9\n prefix: /%7euser/"],
        &[("GET /caf%C3%A9", "exact"), ("GET /%7Euser/x", "prefix"), ("GET /~user", "prefix")],
    );
}

#[test]
fn methods_of_grpc_are_matched_by_service_and_method() {
    check(
        &["grpc a/r 1
             all:
             header: h=1
             service: @pkg.Echo/*
             method: @*/Say
             exact: @pkg.Echo/Say
             exact-header: @pkg.Echo/Say h=1
             regex: @~pkg[.].*/~S.*"],
        &[
            ("POST /other.Svc/Get", "all"),
            ("POST /other.Svc/Get h=1", "header"),
            ("POST /pkg.Echo/Get", "service"),
            ("POST /pkg.Echo/Get h=1", "service"),
            ("POST /other.Svc/Say", "method"),
            ("POST /pkg.Echo/Say", "exact"),
            ("POST /pkg.Echo/Say h=1", "exact-header"),
            ("POST /pkg.Other/Send", "regex"),
            ("POST /pkg.Echo/Say/more", "all"),
            ("POST /pkg.Echo", "all"),
            ("POST /pkg.echo/say", "all"),
        ],
    );
}

#[test]
fn listed_rules_are_taken_as_they_are_listed_and_before_others() {
    check(
        &[
            "listed a/l 20
             text: ^/api
             later: =/api/v1
             absent: /x !h=*",
            "http a/r 1
             exact: =/api/v1
             rest: /x",
        ],
        &[("GET /api/v1", "text"), ("GET /apiary", "text"), ("GET /x h=1", "rest"), ("GET /x", "absent")],
    );
}

#[test]
fn hosts_come_before_paths_and_a_host_without_a_match_leaves_it_to_the_next() {
    check(
        &[
            "http a/any 1\n any: =/a",
            "http a/wide 1 *.org\n wide: /a",
            "http a/narrow 1 *.b.org\n narrow: /b",
            "http a/exact 1 a.b.org\n exact: /c",
        ],
        &[
            ("GET http://a.b.org/c", "exact"),
            ("GET http://A.b.org:8080/c", "exact"),
            ("GET http://a.b.org/b", "narrow"),
            ("GET http://a.b.org/a", "wide"),
            ("GET http://b.org/a", "wide"),
            ("GET http://org/a", "any"),
            ("GET http://a.com/a", "any"),
            ("GET http://x.b.org/c", "-"),
        ],
    );
}

#[test]
fn opaque_connections_find_their_route_by_server_name() {
    let table = table(&["tls a/w 2 *.a.org\n wide:", "tls a/e 3 x.a.org\n exact:", "tls a/any 4\n any:"]);
    for (name, rule) in [(Some("x.a.org"), "exact"), (Some("y.a.org"), "wide"), (Some("a.org"), "any"), (None, "any")] {
        let found = table.find_opaque(name).unwrap();
        assert_eq!(found.rule.name.as_deref(), Some(rule), "{name:?}");
    }
    assert!(self::table(&["tls a/w 2 *.a.org\n wide:"]).find_opaque(Some("b.org")).is_none());
}

#[test]
fn a_preflight_request_counts_as_what_it_asks_for_where_origins_matter() {
    let with = |filters: Vec<Filter>| {
        let mut route = (*route("http a/r 1\n put: PUT /a")).clone();
        route.rules = vec![Arc::new(Rule { filters, ..(*route.rules[0]).clone() })];
        Table::new(Kind::Http, &[Arc::new(route)])
    };
    let asks = "OPTIONS /a origin=https://b access-control-request-method=PUT";
    assert_eq!(taken(&with(vec![Filter::Cors(Default::default())]), asks), "put");
    assert_eq!(taken(&with(vec![Filter::Cors(Default::default())]), &asks.replace("=PUT", "=GET")), "-");
    assert_eq!(taken(&with(Vec::new()), asks), "-");
}

fn service(routes: &[(&str, &[u16])]) -> ServiceTable {
    let on_ports = |(text, ports): &(&str, &[u16])| Arc::new(Route { ports: ports.to_vec(), ..(*route(text)).clone() });
    let routes = routes.iter().map(on_ports).collect();
    ServiceTable::new(&ServiceRoutes { service: "shop/web.shop.svc".parse().unwrap(), routes })
}

#[test]
fn callers_with_routes_of_their_own_use_these_alone() {
    let service = service(&[
        ("http shop/producer 1\n producer: /a\n more: /b", &[80]),
        ("http client/consumer 1\n consumer: /a", &[80]),
        ("http other/consumer 1\n other: /c", &[8080]),
    ]);
    for (port, caller, request, rule) in [
        (80, None, "GET /a", "producer"),
        (80, Some("shop"), "GET /a", "producer"),
        (80, Some("other"), "GET /b", "more"),
        (80, Some("client"), "GET /a", "consumer"),
        (80, Some("client"), "GET /b", "-"),
        (8080, Some("other"), "GET /c", "other"),
        (8080, Some("client"), "GET /a", "no routes"),
        (8080, None, "GET /a", "no routes"),
        (443, Some("client"), "GET /a", "no routes"),
    ] {
        let found = service.find(port, caller).map_or("no routes".to_owned(), |table| taken(table, request));
        assert_eq!(found, rule, "{caller:?} {port} {request}");
    }
}

#[test]
fn of_several_kinds_the_strongest_has_the_port() {
    let service = service(&[
        ("http shop/h 1\n http:", &[80, 7070]),
        ("grpc shop/g 1\n grpc:", &[7070]),
        ("tcp shop/t 1\n tcp:", &[7070, 9090]),
        ("tcp client/t 1\n tcp:", &[7070]),
    ]);
    let kind = |port, caller| service.find(port, caller).unwrap().kind();
    assert_eq!((kind(80, None), kind(7070, None), kind(9090, None)), (Kind::Http, Kind::Grpc, Kind::Tcp));
    assert_eq!(kind(7070, Some("client")), Kind::Tcp);
    let conflicts: Vec<String> =
        service.conflicts().iter().map(|c| format!("{} {} {}", c.port, c.route, c.prevails.as_str())).collect();
    assert_eq!(conflicts, ["7070 HTTPRoute shop/h GRPCRoute", "7070 TCPRoute shop/t GRPCRoute"]);
}

#[test]
fn ten_thousand_routes_are_looked_up_without_meeting_them() {
    let one = |i: u32| {
        let text = match i % 4 {
            0 => format!("http a/r{i} 1\n r{i}: =/exact/{i}"),
            1 => format!("http a/r{i} 1\n r{i}: /prefix/{i}"),
            2 => format!("http a/r{i} 1\n r{i}: /tenants tenant={i}"),
            _ => format!("http a/r{i} 1 h{i}.org\n r{i}: /"),
        };
        route(&text)
    };
    let routes: Vec<Arc<Route>> = (0..10_000).map(one).collect();
    let table = Table::new(Kind::Http, &routes);
    let met = std::cell::Cell::new(0);
    for request in [
        "GET /exact/5000",
        "GET /prefix/5001/x/y",
        "GET /tenants/x tenant=5002",
        "GET http://h5003.org/exact/1",
        "GET /nothing",
        "GET /tenants tenant=x",
    ] {
        met.set(0);
        let asked = Asked::new(request);
        let request = asked.request();
        let holds = |rank: u32| {
            met.set(met.get() + 1);
            table.entries[rank as usize].condition.holds(&request, &asked.method)
        };
        table.index.first(asked.target.host(), Some(&request), holds);
        assert!(met.get() <= 1, "{} matches were met", met.get());
    }
    assert_eq!(taken(&table, "GET /tenants/x tenant=5002"), "r5002");
}

#[test]
fn turns_are_counted_by_rule() {
    let table = table(&["http a/r 1\n one: /a\n two: /b"]);
    let turn = |request: &str| table.find(&Asked::new(request).request()).map(|found| found.turn());
    assert_eq!([turn("GET /a"), turn("GET /a"), turn("GET /b")], [Some(0), Some(1), Some(0)]);
    let scope = |request: &str| table.find(&Asked::new(request).request()).map(|found| found.scope());
    assert_ne!(scope("GET /a"), scope("GET /b"));
}
