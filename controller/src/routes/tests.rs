//! Routes in, rules and conditions out. A rule is shown in one line.

use std::fmt::Write;

use loam_core::http::backend::{Backend, Upstream};
use loam_core::http::filter::Filter;
use loam_core::http::pattern::Pattern;
use loam_core::http::route::{Match, NameMatch, PathMatch};
use loam_core::service::AppProtocol;
use loam_manifest::Object;

use super::*;

/// Services `shop/a` and `shop/b` with port 80, and `other/c` with port 8080 of which a policy cannot be kept.
struct Shop;

impl Neighbours for Shop {
    fn service(&self, name: &Name) -> Option<(ServiceKey, Vec<Port>)> {
        let port = match (&*name.namespace, &*name.name) {
            ("shop", "a" | "b") => 80,
            ("other", "c") => 8080,
            _ => return None,
        };
        let key = format!("{}/{}.{}.svc", name.namespace, name.name, name.namespace).parse().unwrap();
        Some((key, vec![Port { service_port: port, target_port: port, app_protocol: AppProtocol::Unknown }]))
    }

    fn unmet(&self, name: &Name, _: u16) -> Option<String> {
        (&*name.name == "c").then(|| "no roots".to_owned())
    }
}

fn compiled(kind: &str, spec: &str) -> Compiled {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {spec}\n"
    );
    let mut state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
    let spec = match state.objects.pop() {
        Some(Object::HttpRoute(route)) => Spec::Http(route.spec),
        Some(Object::GrpcRoute(route)) => Spec::Grpc(route.spec),
        Some(Object::TlsRoute(route)) => Spec::Tls(route.spec),
        Some(Object::TcpRoute(route)) => Spec::Tcp(route.spec),
        other => panic!("{other:?} {:?}", state.problems),
    };
    let key = RouteKey { kind: spec.kind(), namespace: "shop".into(), name: "r".into() };
    compile(&key, &spec, &Shop)
}

fn show(rule: &Rule) -> String {
    let mut text = String::new();
    if let Some(name) = &rule.name {
        let _ = write!(text, "{name}: ");
    }
    let matches: Vec<String> = rule.matches.iter().map(show_match).collect();
    let _ = write!(text, "[{}]", matches.join(" | "));
    rule.filters.iter().for_each(|filter| text.push_str(&show_filter(filter)));
    text.push_str(" ->");
    rule.backends.iter().for_each(|backend| text.push_str(&show_backend(backend)));
    if let Some(timeout) = rule.timeouts.request {
        let _ = write!(text, " within {timeout:?}");
    }
    if let Some(timeout) = rule.timeouts.backend_request {
        let _ = write!(text, " each {timeout:?}");
    }
    if let Some(retry) = &rule.retry {
        let statuses: Vec<_> = retry.on.statuses.iter().map(|status| status.as_str()).collect();
        let _ = write!(text, " retry {} on {} after {:?}", retry.attempts, statuses.join(","), retry.backoff);
    }
    if let Some(session) = &rule.session {
        let _ = write!(text, " keeps {:?}", session.token);
    }
    text
}

fn show_match(m: &Match) -> String {
    let pattern = |pattern: &Pattern| match pattern {
        Pattern::Exact(text) => format!("={text}"),
        Pattern::Regex(regex) => format!("~{}", regex.as_str()),
        other => format!("{other:?}"),
    };
    let name = |name: &Option<NameMatch>| match name {
        None => "*".to_owned(),
        Some(NameMatch::Exact(text)) => text.to_string(),
        Some(NameMatch::Regex(regex)) => format!("~{}", regex.as_str()),
    };
    let mut parts = Vec::new();
    parts.extend(m.method.as_ref().map(ToString::to_string));
    parts.extend(m.path.as_ref().map(|path| match path {
        PathMatch::Exact(text) => format!("={text}"),
        PathMatch::Prefix(text) => format!("{text}*"),
        PathMatch::Text(text) => format!("text {text}"),
        PathMatch::Regex(regex) => format!("~{}", regex.as_str()),
        PathMatch::Grpc { service, method } => format!("{}/{}", name(service), name(method)),
    }));
    parts.extend(m.headers.iter().map(|h| format!("{}{}", h.name, pattern(&h.value))));
    parts.extend(m.query.iter().map(|q| format!("?{}{}", q.name, pattern(&q.value))));
    parts.join(" ")
}

fn show_filter(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(e) => format!(" request({},{},{})", e.set.len(), e.add.len(), e.remove.len()),
        Filter::ResponseHeaders(e) => format!(" response({},{},{})", e.set.len(), e.add.len(), e.remove.len()),
        Filter::Mirror(mirror) => {
            format!(" mirror({} {}/{})", upstream(&mirror.upstream), mirror.share.parts, mirror.share.of)
        }
        Filter::Redirect(redirect) => {
            format!(" redirect({} {:?} {:?})", redirect.status.as_u16(), redirect.port, redirect.path)
        }
        Filter::Rewrite(rewrite) => format!(" rewrite({:?} {:?})", rewrite.host, rewrite.path),
        Filter::Unknown(_) => " error".to_owned(),
        other => format!(" {other:?}"),
    }
}

fn show_backend(backend: &Backend) -> String {
    let filters: String = backend.filters.iter().map(show_filter).collect();
    format!(" {}x{}{filters}", upstream(&backend.upstream), backend.weight)
}

fn upstream(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Service(service) => format!("{}:{}", service.service.hostname, service.port),
        Upstream::Invalid { why, .. } => why.as_str().to_owned(),
    }
}

#[track_caller]
fn check(kind: &str, rules: &str, expected: &[&str]) -> Compiled {
    let compiled = compiled(kind, &format!("{{rules: [{rules}]}}"));
    let shown: Vec<String> = compiled.rules.iter().map(|rule| show(rule)).collect();
    assert_eq!(shown, expected, "{:?}", compiled.flaws);
    compiled
}

const TO_A: &str = "backendRefs: [{name: a, port: 80}]";

#[test]
fn an_http_rule_keeps_its_matches_backends_and_name() {
    let rules = format!(
        "{{name: first, matches: [{{path: {{value: /v1}}, method: GET}}, {{path: {{type: Exact, value: /x}}, \
         headers: [{{name: A, value: b}}, {{name: a, value: c}}], queryParams: [{{name: q, value: \"1\"}}]}}], {TO_A}}}, \
         {{matches: [{{path: {{type: RegularExpression, value: /a.+}}}}], backendRefs: [{{name: a, port: 80, weight: 3}}, \
         {{name: b, port: 80, weight: 0}}]}}"
    );
    let first = "first: [GET /v1* | =/x a=b ?q=1] -> a.shop.svc:80x1";
    let compiled = check("HTTPRoute", &rules, &[first, "[~/a.+] -> a.shop.svc:80x3 b.shop.svc:80x0"]);
    assert!(compiled.flaws.is_empty() && compiled.sound && compiled.unresolved.is_none());
}

#[test]
fn filters_are_kept_on_rules_and_on_backends() {
    let edits = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}";
    let rules = format!(
        "{{filters: [{edits}, {{type: RequestMirror, requestMirror: {{backendRef: {{name: b, port: 80}}, percent: 10}}}}, \
         {{type: ResponseHeaderModifier, responseHeaderModifier: {{add: [{{name: x, value: y}}]}}}}], \
         backendRefs: [{{name: a, port: 80, filters: [{edits}]}}]}}, \
         {{filters: [{{type: RequestRedirect, requestRedirect: {{port: 8083, path: {{type: ReplacePrefixMatch, \
         replacePrefixMatch: /p}}}}}}]}}, \
         {{filters: [{{type: URLRewrite, urlRewrite: {{hostname: h.org}}}}], {TO_A}}}"
    );
    let expected = [
        "[] request(1,0,1) mirror(b.shop.svc:80 10/100) response(0,1,0) -> a.shop.svc:80x1 request(1,0,1)",
        "[] redirect(302 Some(8083) Some(Prefix(\"/p\"))) ->",
        "[] rewrite(Some(\"h.org\") None) -> a.shop.svc:80x1",
    ];
    assert!(check("HTTPRoute", &rules, &expected).flaws.is_empty());
}

#[test]
fn a_filter_that_cannot_be_kept_answers_with_an_error() {
    let header = |text: &str| format!("{{type: RequestHeaderModifier, requestHeaderModifier: {text}}}");
    let filters = [
        "{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}".to_owned(),
        "{type: Teleport}".to_owned(),
        "{type: RequestRedirect}".to_owned(),
        "{type: RequestRedirect, requestRedirect: {statusCode: 300}}".to_owned(),
        "{type: RequestRedirect, requestRedirect: {scheme: ftp}}".to_owned(),
        "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, percent: 101}}".to_owned(),
        header("{set: [{name: a, value: b}], add: [{name: A, value: c}]}"),
        header("{set: [{name: Host, value: b}]}"),
        header("{remove: [\"a b\"]}"),
        header("{remove: [Transfer-Encoding]}"),
    ];
    for filter in filters {
        let compiled =
            check("HTTPRoute", &format!("{{filters: [{filter}], {TO_A}}}"), &["[] error -> a.shop.svc:80x1"]);
        let conditions = compiled.conditions();
        assert_eq!((conditions[0].holds, conditions[0].reason), (false, Reason::UnsupportedValue), "{filter}");
    }
}

#[test]
fn a_rule_that_nobody_can_match_is_dropped_and_the_others_stay() {
    let matches = [
        "{path: {type: Sideways, value: /}}",
        "{path: {type: RegularExpression, value: \"(\"}}",
        "{headers: [{name: a, value: b, type: Sideways}]}",
        "{headers: [{name: \"a b\", value: b}]}",
        "{method: \"G T\"}",
    ];
    for wrong in matches {
        let rules = format!("{{matches: [{{path: {{value: /}}}}, {wrong}], {TO_A}}}, {{{TO_A}}}");
        let conditions = check("HTTPRoute", &rules, &["[] -> a.shop.svc:80x1"]).conditions();
        let told: Vec<_> = conditions.iter().map(|c| (c.kind, c.holds, c.reason)).collect();
        let expected = [
            (ACCEPTED, true, Reason::Accepted),
            (PARTIALLY_INVALID, true, Reason::UnsupportedValue),
            (RESOLVED_REFS, true, Reason::ResolvedRefs),
        ];
        assert_eq!(told, expected, "{wrong}");
        assert!(conditions[1].message.starts_with("Dropped Rule"), "{}", conditions[1].message);
    }
}

#[test]
fn a_reference_that_leads_nowhere_fails_its_share_and_is_told() {
    for (reference, why, reason) in [
        ("{name: nobody, port: 80}", "BackendNotFound", Reason::BackendNotFound),
        ("{name: a, port: 81}", "BackendNotFound", Reason::BackendNotFound),
        ("{name: a}", "BackendNotFound", Reason::BackendNotFound),
        ("{name: a, port: 80, kind: Bucket}", "InvalidKind", Reason::InvalidKind),
        ("{name: a, port: 80, group: g}", "InvalidKind", Reason::InvalidKind),
        ("{name: c, namespace: other, port: 8080}", "UnmetPolicy", Reason::UnsupportedProtocol),
    ] {
        let rules = format!("{{backendRefs: [{{name: a, port: 80, weight: 9}}, {reference}]}}");
        let compiled = check("HTTPRoute", &rules, &[&format!("[] -> a.shop.svc:80x9 {why}x1")]);
        assert_eq!(compiled.unresolved.as_ref().map(|(reason, _)| *reason), Some(reason), "{reference}");
        assert!(compiled.sound);
    }
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}";
    let compiled = check("HTTPRoute", &format!("{{filters: [{mirror}], {TO_A}}}"), &["[] -> a.shop.svc:80x1"]);
    assert!(compiled.unresolved.is_some(), "a mirror that leads nowhere is told");
}

#[test]
fn timeouts_retries_and_sessions_are_kept_or_answered_with_an_error() {
    let rule = |more: &str| format!("{{{TO_A}, {more}}}");
    let to_a = "[] -> a.shop.svc:80x1";
    for (more, expected) in [
        ("timeouts: {request: 10s, backendRequest: 500ms}", format!("{to_a} within 10s each 500ms")),
        ("timeouts: {request: 0s}", to_a.to_owned()),
        ("timeouts: {request: soon}", "[] error -> a.shop.svc:80x1".to_owned()),
        ("retry: {codes: [500, 503], attempts: 3, backoff: 100ms}", format!("{to_a} retry 3 on 500,503 after 100ms")),
        ("retry: {codes: [200]}", "[] error -> a.shop.svc:80x1".to_owned()),
        ("retry: {attempts: 1000}", "[] error -> a.shop.svc:80x1".to_owned()),
        ("sessionPersistence: {type: Header, sessionName: x-s}", format!("{to_a} keeps Header(\"x-s\")")),
        ("sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}", "[] error -> a.shop.svc:80x1".to_owned()),
    ] {
        check("HTTPRoute", &rule(more), &[&expected]);
    }
}

#[test]
fn the_other_kinds_have_their_own_matches() {
    let grpc = format!(
        "{{matches: [{{method: {{service: s.S, method: M}}}}, {{method: {{service: s.S}}}}, \
         {{method: {{type: RegularExpression, method: \"M.*\"}}, headers: [{{name: a, value: b}}]}}], {TO_A}}}"
    );
    check("GRPCRoute", &grpc, &["[s.S/M | s.S/* | */~M.* a=b] -> a.shop.svc:80x1"]);
    check("TCPRoute", &format!("{{{TO_A}}}"), &["[] -> a.shop.svc:80x1"]);
    let tls = compiled("TLSRoute", &format!("{{hostnames: [a.org, \"*.b.org\"], rules: [{{{TO_A}}}]}}"));
    let hosts: Vec<String> = tls.hostnames.iter().map(ToString::to_string).collect();
    assert_eq!((hosts, tls.rules.len()), (vec!["a.org".to_owned(), "*.b.org".to_owned()], 1));
}

#[test]
fn a_route_of_which_no_name_is_one_is_for_nobody() {
    let route = compiled("TLSRoute", &format!("{{hostnames: [\"a b\"], rules: [{{{TO_A}}}]}}"));
    assert!(route.rules.is_empty());
    assert_eq!((route.conditions()[0].holds, route.conditions()[0].reason), (false, Reason::UnsupportedValue));
}

#[test]
fn a_weight_that_is_none_fails_its_share() {
    for weight in [-1, 1_000_001] {
        let rules = format!("{{backendRefs: [{{name: a, port: 80, weight: {weight}}}, {{name: b, port: 80}}]}}");
        check("HTTPRoute", &rules, &["[] -> a.shop.svc:80x1 error b.shop.svc:80x1"]);
    }
}

#[test]
fn a_parent_is_met_at_the_ports_that_the_reference_means() {
    let port = |number| Port { service_port: number, target_port: number, app_protocol: AppProtocol::Unknown };
    let named = [("http", port(80)), ("grpc", port(7070))];
    let attach = |port: Option<i64>, section: Option<&str>| {
        let reference = ParentRef { port, section_name: section.map(Into::into), ..ParentRef::default() };
        attach(&reference, &named).map(|a| a.ports.into_iter().collect::<Vec<_>>()).map_err(|c| c.reason)
    };
    assert_eq!(attach(None, None), Ok(vec![80, 7070]));
    assert_eq!(attach(Some(80), None), Ok(vec![80]));
    assert_eq!(attach(None, Some("grpc")), Ok(vec![7070]));
    assert_eq!(attach(Some(80), Some("http")), Ok(vec![80]));
    for (port, section) in [(Some(80), Some("grpc")), (Some(81), None), (None, Some("tcp"))] {
        assert_eq!(attach(port, section), Err(Reason::NoMatchingParent));
    }
    let of = |group: Option<&str>, kind: Option<&str>| {
        let text = |text: Option<&str>| text.map(str::to_owned);
        parent(
            &"shop".into(),
            &ParentRef { group: text(group), kind: text(kind), name: "a".into(), ..ParentRef::default() },
        )
    };
    assert_eq!(of(Some(""), Some("Service")), Parent::Service(Name::new("shop", "a")));
    assert_eq!(of(Some("core"), Some("Service")), Parent::Misspelt);
    assert_eq!(of(None, None), Parent::Gateway(Name::new("shop", "a")));
    assert_eq!(of(Some("example.org"), Some("Mesh")), Parent::Foreign);
}

#[test]
fn policies_for_backends_are_read_or_say_why_not() {
    use loam_core::http::traffic::Roots;
    let read = |kind: &str, version: &str, spec: &str| {
        let yaml =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n");
        loam_manifest::read([("m.yaml", yaml.as_bytes())]).objects.pop()
    };
    let targets = "targetRefs: [{group: \"\", kind: Service, name: a}, {group: g, kind: Other, name: b}]";
    let traffic = |spec: &str| {
        let version = "gateway.networking.x-k8s.io/v1alpha1";
        let spec = format!("{{{targets}, {spec}}}");
        let Some(Object::BackendTrafficPolicy(policy)) = read("XBackendTrafficPolicy", version, &spec) else {
            panic!()
        };
        backend_traffic(&policy.spec, None)
    };
    let policy =
        traffic("retryConstraint: {budget: {percent: 50, interval: 20s}, minRetryRate: {count: 3, interval: 2s}}");
    let budget = policy.budget.expect("it has a budget");
    assert_eq!(
        (budget.percent, budget.interval.as_secs(), budget.min_retries, budget.min_interval.as_secs()),
        (50, 20, 3, 2)
    );
    assert_eq!(policy.services, [("a".into(), None)]);
    assert!(!traffic("retryConstraint: {budget: {percent: 101}}").accepted.holds);
    let tls = |validation: &str| {
        let spec = format!("{{{targets}, validation: {validation}}}");
        let version = "gateway.networking.k8s.io/v1";
        let Some(Object::BackendTlsPolicy(policy)) = read("BackendTLSPolicy", version, &spec) else { panic!() };
        let policy = backend_tls(&policy.spec, None);
        let tls = policy.tls.map(|tls| (tls.server_name.to_string(), tls.roots == Roots::System));
        (tls.map_err(|c| c.reason), policy.resolved.reason)
    };
    let system = Ok(("a.org".to_owned(), true));
    assert_eq!(tls("{wellKnownCACertificates: System, hostname: a.org}"), (system, Reason::ResolvedRefs));
    for (kind, reason) in [("ConfigMap", Reason::InvalidCACertificateRef), ("Secret", Reason::InvalidKind)] {
        let read = tls(&format!("{{caCertificateRefs: [{{kind: {kind}, name: c}}], hostname: a.org}}"));
        assert_eq!(read, (Err(Reason::NoValidCACertificate), reason));
    }
    assert_eq!(tls("{wellKnownCACertificates: System, hostname: \"\"}").0, Err(Reason::Invalid));
}
