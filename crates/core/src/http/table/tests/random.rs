//! Random routes and requests over few words, so that they often match, and the rules of the Gateway API in the fewest
//! words: every match is looked at, and of those that hold the one that no other precedes is taken.

use std::cmp::Ordering;

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn of(&mut self, words: &[&str]) -> String {
        words[self.below(words.len())].to_owned()
    }

    fn sometimes(&mut self, words: &[&str]) -> String {
        if self.below(3) == 0 { self.of(words) } else { String::new() }
    }

    fn path(&mut self) -> String {
        let segments: Vec<String> = (0..self.below(4)).map(|_| self.of(&["a", "b", "ab"])).collect();
        let last = if self.below(4) == 0 && !segments.is_empty() { "/" } else { "" };
        format!("/{}{last}", segments.join("/"))
    }

    fn matches(&mut self, kind: &str) -> String {
        let one = |random: &mut Self| {
            let path = match (kind, random.below(6)) {
                ("grpc", 0) => String::new(),
                ("grpc", _) => {
                    let service = random.of(&["a", "b", "ab", "*", "~a.*", "~.*"]);
                    format!("@{service}/{}", random.of(&["a", "b", "*", "~a.?"]))
                }
                (_, 0) => String::new(),
                (_, 1) => format!("={}", random.path()),
                (_, 2 | 3) => random.path(),
                (_, 4) => format!("^{}", random.path()),
                (_, _) => random.of(&["~/a.*", "~/.*", "~/b/[ab]", "~/ab?"]),
            };
            let method = if kind == "grpc" { String::new() } else { random.sometimes(&["GET", "PUT"]) };
            let headers =
                [random.sometimes(&["h=1", "h=2", "h=~[12]", "!h=1"]), random.sometimes(&["i=1", "i=^1", "i=*"])];
            let query = if kind == "grpc" { String::new() } else { random.sometimes(&["?q=1", "?q=~.*", "?r=1"]) };
            format!("{path} {method} {} {query}", headers.join(" "))
        };
        (0..self.below(4)).map(|_| one(self)).collect::<Vec<_>>().join("|")
    }

    fn route(&mut self, kind: &str, number: usize) -> Arc<Route> {
        let head = match kind {
            "http" if self.below(5) == 0 => "listed",
            kind => kind,
        };
        let hosts = self.sometimes(&["a.org", "*.org", "*.a.org,b.org", "x.a.org"]);
        let mut text = format!("{head} {}/r{number} {} {hosts}", self.of(&["a", "a-b", "b"]), self.below(3));
        for rule in 0..1 + self.below(3) {
            text.push_str(&format!("\n r{number}-{rule}: {}", self.matches(kind)));
        }
        route(&text)
    }

    fn request(&mut self, kind: &str) -> Asked {
        let path = match kind {
            "grpc" => format!("/{}/{}", self.of(&["a", "b", "ab"]), self.of(&["a", "b", "ab"])),
            _ => self.path(),
        };
        let host = self.of(&["a.org", "x.a.org", "y.a.org", "b.org", "c.com"]);
        let (method, query) = (self.of(&["GET", "PUT", "POST"]), self.sometimes(&["?q=1", "?q=2&q=1", "?r=1&q=1"]));
        let headers: Vec<String> =
            ["h=1", "h=2", "i=1", "i=12"].iter().map(|header| self.sometimes(&[header])).collect();
        Asked::new(&format!("{method} http://{host}{path}{query} {}", headers.join(" ")))
    }
}

/// One match under one host, with where it is written.
struct Candidate<'a> {
    route: &'a Route,
    host: Option<&'a HostPattern>,
    rule: usize,
    condition: Match,
    number: usize,
}

fn candidates(routes: &[Arc<Route>]) -> Vec<Candidate<'_>> {
    let mut all = Vec::new();
    for route in routes {
        let hosts: Vec<Option<&HostPattern>> = match route.hostnames.is_empty() {
            true => vec![None],
            false => route.hostnames.iter().map(Some).collect(),
        };
        for (rule, written) in route.rules.iter().enumerate() {
            let matches = if written.matches.is_empty() { vec![Match::default()] } else { written.matches.clone() };
            for (number, condition) in matches.into_iter().enumerate() {
                for host in &hosts {
                    all.push(Candidate { route, host: *host, rule, condition: condition.clone(), number });
                }
            }
        }
    }
    all
}

fn holds(candidate: &Candidate<'_>, asked: &Asked) -> bool {
    let host = asked.target.host();
    let under = match candidate.host.map(ToString::to_string) {
        None => true,
        Some(pattern) => match pattern.strip_prefix('*') {
            Some(suffix) => host.ends_with(suffix) && host != suffix,
            None => host == pattern,
        },
    };
    let path = asked.target.path();
    let segments = |path: &str| path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let on_path = match &candidate.condition.path {
        None => true,
        Some(PathMatch::Exact(exact)) => path == &**exact,
        Some(PathMatch::Prefix(prefix)) => segments(path).starts_with(&segments(prefix)),
        Some(PathMatch::Text(text)) => path.starts_with(&**text),
        Some(PathMatch::Regex(regex)) => regex.matches(path),
        Some(PathMatch::Grpc { service, method }) => {
            let names = segments(path);
            let fits = |wanted: &Option<NameMatch>, name: &str| match wanted {
                None => true,
                Some(NameMatch::Exact(exact)) => **exact == *name,
                Some(NameMatch::Regex(regex)) => regex.matches(name),
            };
            names.len() == 2 && fits(service, &names[0]) && fits(method, &names[1])
        }
    };
    let text = |pattern: &Pattern, text: &str| match pattern {
        Pattern::Exact(exact) => text == &**exact,
        Pattern::Prefix(prefix) => text.starts_with(&**prefix),
        Pattern::Suffix(suffix) => text.ends_with(&**suffix),
        Pattern::Regex(regex) => regex.matches(text),
        Pattern::Present => true,
    };
    let values =
        |name: &HeaderName| asked.headers.get_all(name).iter().map(|value: &HeaderValue| value.to_str().unwrap());
    let headers = candidate.condition.headers.iter().all(|h| values(&h.name).any(|v| text(&h.value, v)) != h.absent);
    let query = candidate.condition.query.iter().all(|q| {
        let pairs = asked.target.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(name, _)| **name == *q.name).is_some_and(|(_, value)| text(&q.value, value))
    });
    let method = candidate.condition.method.as_ref().is_none_or(|method| *method == asked.method);
    under && on_path && headers && query && method
}

/// Which of two matches that hold is taken, rule for rule.
fn precedes(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let more = |of: &dyn Fn(&Candidate<'_>) -> usize| of(b).cmp(&of(a));
    let exact_host = |c: &Candidate<'_>| usize::from(c.host.is_some_and(|host| !host.to_string().starts_with('*')));
    let host_length = |c: &Candidate<'_>| c.host.map_or(0, |host| host.to_string().trim_start_matches('*').len());
    let listed = |c: &Candidate<'_>| usize::from(c.route.order == Order::Listed);
    let hosts = more(&exact_host).then_with(|| more(&host_length)).then_with(|| more(&listed));
    let path = |c: &Candidate<'_>| c.condition.path.clone();
    let exact = |c: &Candidate<'_>| usize::from(matches!(path(c), Some(PathMatch::Exact(_))));
    let prefix = |c: &Candidate<'_>| match path(c) {
        Some(PathMatch::Prefix(prefix)) => prefix.trim_end_matches('/').len(),
        Some(PathMatch::Text(text)) if text.len() > 1 => text.len(),
        _ => 0,
    };
    let regex = |c: &Candidate<'_>| match path(c) {
        Some(PathMatch::Regex(regex)) => regex.as_str().len(),
        _ => 0,
    };
    let name = |c: &Candidate<'_>, second: bool, letters: bool| match path(c) {
        Some(PathMatch::Grpc { service, method }) => match if second { method } else { service } {
            Some(NameMatch::Exact(exact)) if letters => exact.len(),
            Some(NameMatch::Regex(regex)) if !letters => regex.as_str().len(),
            _ => 0,
        },
        _ => 0,
    };
    let specific = || {
        more(&exact)
            .then_with(|| more(&prefix))
            .then_with(|| more(&regex))
            .then_with(|| more(&|c| name(c, false, true)))
            .then_with(|| more(&|c| name(c, true, true)))
            .then_with(|| more(&|c| name(c, false, false)))
            .then_with(|| more(&|c| name(c, true, false)))
            .then_with(|| more(&|c| usize::from(c.condition.method.is_some())))
            .then_with(|| more(&|c| c.condition.headers.len()))
            .then_with(|| more(&|c| c.condition.query.len()))
    };
    let both_listed = listed(a) == 1 && listed(b) == 1;
    let specific = hosts.then_with(|| if both_listed { Ordering::Equal } else { specific() });
    let key = |c: &Candidate<'_>| format!("{}/{}", c.route.key.namespace, c.route.key.name);
    specific
        .then_with(|| a.route.created.cmp(&b.route.created))
        .then_with(|| key(a).cmp(&key(b)))
        .then_with(|| (a.rule, a.number).cmp(&(b.rule, b.number)))
}

#[test]
fn a_table_takes_what_the_rules_of_the_gateway_api_say() {
    let (mut matched, mut unmatched) = (0, 0);
    for seed in 0..500 {
        let mut random = Random(seed);
        let kind = if seed % 4 == 0 { "grpc" } else { "http" };
        let routes: Vec<Arc<Route>> = (0..1 + random.below(6)).map(|number| random.route(kind, number)).collect();
        let table = Table::new(routes[0].key.kind, &routes);
        let candidates = candidates(&routes);
        for _ in 0..30 {
            let asked = random.request(kind);
            let best = candidates.iter().filter(|candidate| holds(candidate, &asked)).min_by(|a, b| precedes(a, b));
            let best = best.map(|best| best.route.rules[best.rule].name.clone());
            let found = table.find(&asked.request()).map(|found| found.rule.name.clone());
            let request = format!("{} {} {:?}", asked.method, asked.target, asked.headers);
            assert_eq!(found, best, "seed {seed}: {request} of {routes:#?}");
            if best.is_some() { matched += 1 } else { unmatched += 1 }
        }
    }
    assert!(matched > 3_000 && unmatched > 1_500, "{matched} requests matched and {unmatched} did not");
}
