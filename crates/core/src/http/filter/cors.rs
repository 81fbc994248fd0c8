//! Which pages of other origins may use a response (Fetch standard 3.3, GEP-1767).

use std::fmt::Write;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::{Allowed, Cors, Origin};
use crate::http::target::Request;

/// What a browser remembers an answer for, unless told otherwise (Gateway API, `HTTPCORSFilter.maxAge`).
const DEFAULT_MAX_AGE_SECONDS: u64 = 5;

/// What the headers of a response say. The filter is their only source.
static SAID: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// The method that a browser asks for before it uses it, if the request is such a question.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

impl Cors {
    /// The answer to a preflight request, which is never sent on. Pages of an origin that is not allowed learn
    /// nothing.
    pub fn answer(&self, request: &Request<'_>) -> (StatusCode, HeaderMap) {
        let mut answer = HeaderMap::new();
        let asked = request.headers;
        let vary = "origin, access-control-request-method, access-control-request-headers";
        answer.insert(header::VARY, HeaderValue::from_static(vary));
        if !self.allow(asked.get(header::ORIGIN), &mut answer) {
            return (StatusCode::NO_CONTENT, answer);
        }
        let mut say = |name: HeaderName, value: Option<HeaderValue>| value.map(|value| answer.insert(name, value));
        let methods = match &self.allow_methods {
            Allowed::All if self.credentials => asked.get(header::ACCESS_CONTROL_REQUEST_METHOD).cloned(),
            Allowed::All => Some(HeaderValue::from_static("*")),
            Allowed::These(methods) => list(methods.iter().map(Method::as_str)),
        };
        say(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let headers = match &self.allow_headers {
            Allowed::All if self.credentials => asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
            Allowed::All => Some(HeaderValue::from_static("*")),
            Allowed::These(names) => list(names.iter().map(HeaderName::as_str)),
        };
        say(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
        let seconds = self.max_age.map_or(DEFAULT_MAX_AGE_SECONDS, |age| age.as_secs());
        say(header::ACCESS_CONTROL_MAX_AGE, Some(HeaderValue::from(seconds)));
        (StatusCode::NO_CONTENT, answer)
    }

    /// Says in a response to a request of `origin` who may use it, in place of what the backend says.
    pub fn apply(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in &SAID {
            headers.remove(name);
        }
        let same_for_all = self.allow_origins.contains(&Origin::Any) && !self.credentials;
        if !same_for_all {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if !self.allow(origin, headers) {
            return;
        }
        let exposed = match &self.expose_headers {
            // Beside credentials a browser takes the asterisk for a name.
            Allowed::All if self.credentials => {
                let names = headers.keys().filter(|name| **name != header::SET_COOKIE && !SAID.contains(name));
                list(names.map(HeaderName::as_str))
            }
            Allowed::All => Some(HeaderValue::from_static("*")),
            Allowed::These(names) => list(names.iter().map(HeaderName::as_str)),
        };
        if let Some(exposed) = exposed {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    /// Whether pages of `origin` may use the response, and says so.
    fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) -> bool {
        let Some(origin) = origin else { return false };
        let Ok(text) = origin.to_str() else { return false };
        if !self.allow_origins.iter().any(|allowed| allowed.matches(text)) {
            return false;
        }
        let any = self.allow_origins.contains(&Origin::Any) && !self.credentials;
        let said = if any { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, said);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}

impl Origin {
    fn matches(&self, origin: &str) -> bool {
        match self {
            Origin::Any => true,
            Origin::Exact(exact) => **exact == *origin,
            Origin::Wildcard { before, behind } => {
                let between = origin.strip_prefix(&**before).and_then(|rest| rest.strip_suffix(&**behind));
                // A port is part of the origin, and of none that the wildcard means.
                between.is_some_and(|between| !between.is_empty() && !between.contains([':', '/']))
            }
            Origin::Regex(regex) => regex.matches(origin),
        }
    }
}

/// A list as a header; an empty one is none.
fn list<'a>(elements: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let mut text = String::new();
    for element in elements {
        let separator = if text.is_empty() { "" } else { ", " };
        write!(text, "{separator}{element}").ok()?;
    }
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::pattern::Regex;

    fn cors(origins: Vec<Origin>, credentials: bool) -> Cors {
        Cors {
            allow_origins: origins,
            allow_methods: Allowed::These(vec![Method::GET, Method::PUT]),
            allow_headers: Allowed::These(vec![header::AUTHORIZATION, HeaderName::from_static("x-a")]),
            expose_headers: Allowed::These(vec![HeaderName::from_static("x-b")]),
            max_age: Some(Duration::from_secs(60)),
            credentials,
        }
    }

    fn wildcard(before: &str, behind: &str) -> Origin {
        Origin::Wildcard { before: before.into(), behind: behind.into() }
    }

    fn text(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n").replace("access-control-", "")
    }

    fn question(origin: &'static str, more: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::from_iter(more.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))));
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers
    }

    fn answered(cors: &Cors, headers: &HeaderMap) -> String {
        let target = crate::http::target::tests::target("/", &[("host", "a")]).unwrap();
        let (status, answer) = cors.answer(&Request { method: &Method::OPTIONS, target: &target, headers });
        assert_eq!(status, StatusCode::NO_CONTENT);
        text(&answer)
    }

    #[test]
    fn origins_are_matched_whole() {
        let regex = Origin::Regex(Regex::new("https://(a|b)[.]org").unwrap());
        for (allowed, origin, fits) in [
            (Origin::Any, "https://a.org", true),
            (Origin::Exact("https://a.org".into()), "https://a.org", true),
            (Origin::Exact("https://a.org".into()), "https://a.org:8443", false),
            (Origin::Exact("https://a.org".into()), "http://a.org", false),
            (wildcard("https://", ".a.org"), "https://b.a.org", true),
            (wildcard("https://", ".a.org"), "https://c.b.a.org", true),
            (wildcard("https://", ".a.org"), "https://.a.org", false),
            (wildcard("https://", ".a.org"), "https://a.org", false),
            (wildcard("https://", ".a.org"), "https://evil/.a.org", false),
            (wildcard("https://", ".a.org:8443"), "https://b.a.org:8443", true),
            (wildcard("https://", ""), "https://a.org", true),
            (wildcard("https://", ""), "https://a.org:8443", false),
            (regex.clone(), "https://b.org", true),
            (regex, "https://b.org.evil", false),
        ] {
            assert_eq!(allowed.matches(origin), fits, "{allowed:?} {origin}");
        }
    }

    #[test]
    fn a_preflight_request_is_told_from_others() {
        let asks = [(header::ACCESS_CONTROL_REQUEST_METHOD, "PUT")];
        let asked = question("https://a.org", &asks);
        assert_eq!(preflight(&Method::OPTIONS, &asked), Some(Method::PUT));
        assert_eq!(preflight(&Method::GET, &asked), None);
        assert_eq!(preflight(&Method::OPTIONS, &question("https://a.org", &[])), None);
        let no_origin =
            HeaderMap::from_iter([(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"))]);
        assert_eq!(preflight(&Method::OPTIONS, &no_origin), None);
    }

    #[test]
    fn an_allowed_origin_learns_what_it_may() {
        let vary = "vary: origin, access-control-request-method, access-control-request-headers";
        let vary = vary.replace("access-control-", "");
        let exact = || vec![Origin::Exact("https://a.org".into())];
        let (known, foreign) = (question("https://a.org", &[]), question("https://b.org", &[]));
        assert_eq!(
            answered(&cors(exact(), true), &known),
            format!(
                "allow-credentials: true\nallow-headers: authorization, x-a\nallow-methods: GET, PUT\n\
                 allow-origin: https://a.org\nmax-age: 60\n{vary}"
            )
        );
        assert_eq!(answered(&cors(exact(), true), &foreign), vary);
        let plain = answered(&cors(vec![Origin::Any], false), &foreign);
        assert!(plain.contains("allow-origin: *\n") && !plain.contains("credentials"), "{plain}");
        let default = Cors { max_age: None, ..cors(exact(), false) };
        assert!(answered(&default, &known).contains("max-age: 5\n"));
    }

    #[test]
    fn with_credentials_what_was_asked_stands_for_an_asterisk() {
        let all = |credentials| Cors {
            allow_methods: Allowed::All,
            allow_headers: Allowed::All,
            expose_headers: Allowed::All,
            ..cors(vec![Origin::Any], credentials)
        };
        let asks =
            [(header::ACCESS_CONTROL_REQUEST_METHOD, "PATCH"), (header::ACCESS_CONTROL_REQUEST_HEADERS, "x-one,x-two")];
        let asked = question("https://b.org", &asks);
        let plain = answered(&all(false), &asked);
        assert!(plain.starts_with("allow-headers: *\nallow-methods: *\nallow-origin: *\n"), "{plain}");
        let with = answered(&all(true), &asked);
        let echoed = "allow-credentials: true\nallow-headers: x-one,x-two\nallow-methods: PATCH\n\
                      allow-origin: https://b.org\n";
        assert!(with.starts_with(echoed), "{with}");
        let less = answered(&all(true), &question("https://b.org", &asks[..1]));
        assert!(!less.contains("allow-headers"), "{less}");

        let mut response = question("x", &[(header::SET_COOKIE, "a=b"), (header::ETAG, "1")]);
        response.remove(header::ORIGIN);
        all(true).apply(Some(&HeaderValue::from_static("https://b.org")), &mut response);
        assert!(text(&response).contains("expose-headers: etag, vary"), "{}", text(&response));
    }

    #[test]
    fn the_filter_speaks_in_place_of_the_backend() {
        let backend = || {
            HeaderMap::from_iter([
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
                (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("DELETE")),
                (header::ETAG, HeaderValue::from_static("1")),
            ])
        };
        let after = |cors: &Cors, origin: Option<&'static str>| {
            let mut headers = backend();
            cors.apply(origin.map(HeaderValue::from_static).as_ref(), &mut headers);
            text(&headers)
        };
        let exact = cors(vec![Origin::Exact("https://a.org".into())], false);
        let allowed = "allow-origin: https://a.org\nexpose-headers: x-b\netag: 1\nvary: origin";
        assert_eq!(after(&exact, Some("https://a.org")), allowed);
        assert_eq!(after(&exact, Some("https://b.org")), "etag: 1\nvary: origin");
        assert_eq!(after(&exact, None), "etag: 1\nvary: origin");
        assert_eq!(after(&cors(vec![Origin::Any], false), Some("x")), "allow-origin: *\nexpose-headers: x-b\netag: 1");
    }
}
