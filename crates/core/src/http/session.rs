//! What keeps a client with its endpoint: a token in a cookie or a header, which the client sends back (GEP-1619).
//!
//! Here is what a token says and how long it counts. Whoever sends it makes it opaque and proves its integrity.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::backend::BackendService;
use super::traffic::{Session, Token};

/// Longest token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 2048;

/// A session: the endpoint that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The rule it is one of, from [`Found::scope`](super::table::Found::scope).
    pub scope: u64,
    /// The backend.
    pub backend: BackendService,
    /// The endpoint, by its name.
    pub endpoint: Arc<str>,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When its last request came, in seconds since 1970.
    pub used: u64,
}

impl Held {
    /// What a token says, in printable text.
    pub fn encode(&self) -> String {
        let BackendService { service, port, subset } = &self.backend;
        let subset = subset.as_deref().unwrap_or_default();
        let Self { scope, endpoint, began, used, .. } = self;
        // The endpoint is last, since its name may have any character.
        format!("1|{scope:x}|{began}|{used}|{service}|{port}|{subset}|{endpoint}")
    }

    /// Reads what [`Held::encode`] wrote; `None` for anything else.
    pub fn decode(text: &str) -> Option<Self> {
        let mut parts = text.splitn(8, '|');
        let mut next = || parts.next();
        if next()? != "1" {
            return None;
        }
        let scope = u64::from_str_radix(next()?, 16).ok()?;
        let (began, used) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let (service, port) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let subset = Some(next()?).filter(|subset| !subset.is_empty()).map(Arc::from);
        let endpoint = next()?.into();
        Some(Self { scope, backend: BackendService { service, port, subset }, endpoint, began, used })
    }
}

impl Session {
    /// The token that a request brings, of whatever rule and age. Of several the first.
    pub fn token<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let token = match &self.token {
            Token::Header(name) => headers.get(name)?.to_str().ok()?,
            Token::Cookie { name, .. } => cookie(headers, name)?,
        };
        (token.len() <= MAX_TOKEN_BYTES).then_some(token)
    }

    /// Whether `held` counts for a request at `now`, in seconds since 1970, to the rule of `scope`.
    pub fn lasts(&self, held: &Held, scope: u64, now: u64) -> bool {
        let within = |since: u64, limit: Option<std::time::Duration>| {
            limit.is_none_or(|limit| now.saturating_sub(since) < limit.as_secs().max(1))
        };
        // A session from the future comes from a clock that cannot be trusted.
        held.scope == scope
            && held.began <= held.used
            && held.used <= now.saturating_add(MAX_SKEW_SECONDS)
            && within(held.began, self.absolute_timeout)
            && within(held.used, self.idle_timeout)
    }

    /// The session of a request at `now` that was served by `endpoint` of `backend`, and whether the client has to be
    /// told: where nothing was held before, or another endpoint, or where it ends without requests.
    pub fn renewed(
        &self,
        before: Option<&Held>,
        scope: u64,
        backend: &BackendService,
        endpoint: &Arc<str>,
        now: u64,
    ) -> (Held, bool) {
        let same = before.filter(|held| held.backend == *backend && held.endpoint == *endpoint);
        let began = before.map_or(now, |held| held.began);
        let held = Held { scope, backend: backend.clone(), endpoint: endpoint.clone(), began, used: now.max(began) };
        (held, same.is_none() || self.idle_timeout.is_some())
    }

    /// The header of a response that gives `token`, the opaque form of `held`, to the client. `None` if it cannot
    /// stand in a header.
    pub fn header(&self, token: &str, held: &Held, now: u64) -> Option<(HeaderName, HeaderValue)> {
        match &self.token {
            Token::Header(name) => Some((name.clone(), HeaderValue::from_str(token).ok()?)),
            Token::Cookie { name, path, permanent } => {
                let mut cookie = format!("{name}={token}; Path={path}; HttpOnly");
                if let Some(limit) = self.absolute_timeout.filter(|_| *permanent) {
                    let left = held.began.saturating_add(limit.as_secs()).saturating_sub(now);
                    cookie.push_str(&format!("; Max-Age={left}"));
                }
                Some((header::SET_COOKIE, HeaderValue::try_from(cookie).ok()?))
            }
        }
    }
}

/// How far the clocks of two proxies may be apart.
const MAX_SKEW_SECONDS: u64 = 60;

/// The value of a cookie (RFC 6265 4.2). Of several of a name the first.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs =
        lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim_start_matches(' ').split_once('='));
    let value = pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_end_matches(' '))?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn held() -> Held {
        let backend = BackendService { service: "shop/web.shop.svc".parse().unwrap(), port: 80, subset: None };
        Held { scope: 0xfeed, backend, endpoint: "c//Pod/shop/web|0".into(), began: 1000, used: 1100 }
    }

    fn session(token: Token, absolute: Option<u64>, idle: Option<u64>) -> Session {
        let seconds = |limit: Option<u64>| limit.map(Duration::from_secs);
        Session { token, absolute_timeout: seconds(absolute), idle_timeout: seconds(idle) }
    }

    fn by_cookie(permanent: bool) -> Token {
        Token::Cookie { name: "sid".into(), path: "/a".into(), permanent }
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_nothing_else_is_one() {
        let with_subset = BackendService { subset: Some("v2".into()), ..held().backend };
        for held in [held(), Held { backend: with_subset, ..held() }] {
            assert_eq!(Held::decode(&held.encode()), Some(held));
        }
        let good = held().encode();
        for bad in ["", "1", "2|feed", &good.replace("feed", "xyz"), &good.replace("|80|", "|80000|")] {
            assert_eq!(Held::decode(bad), None, "{bad}");
        }
        assert_eq!(Held::decode(&good.replace("shop/web.shop.svc", "web")), None);
        let cut = good.rsplit_once("||").unwrap().0;
        assert_eq!(Held::decode(cut), None);
    }

    #[test]
    fn a_session_ends_with_its_time_and_counts_for_its_rule_only() {
        for (absolute, idle, now, lasts) in [
            (None, None, 1_000_000, true),
            (Some(200), None, 1199, true),
            (Some(200), None, 1200, false),
            (None, Some(50), 1149, true),
            (None, Some(50), 1150, false),
            (Some(200), Some(500), 1200, false),
            (None, None, 1040, true),
            (None, None, 1000, false),
        ] {
            let session = session(by_cookie(false), absolute, idle);
            assert_eq!(session.lasts(&held(), 0xfeed, now), lasts, "{absolute:?} {idle:?} {now}");
            assert!(!session.lasts(&held(), 0xbeef, now));
        }
    }

    #[test]
    fn a_client_is_told_when_its_session_changes() {
        let (eternal, idle) = (session(by_cookie(false), None, None), session(by_cookie(false), None, Some(60)));
        let same = held();
        let renew = |session: &Session, before: Option<&Held>, endpoint: &Arc<str>| {
            let (held, told) = session.renewed(before, 0xfeed, &same.backend, endpoint, 1200);
            (held.began, held.used, told)
        };
        let another: Arc<str> = "other".into();
        assert_eq!(renew(&eternal, None, &same.endpoint), (1200, 1200, true));
        assert_eq!(renew(&eternal, Some(&same), &same.endpoint), (1000, 1200, false));
        assert_eq!(renew(&eternal, Some(&same), &another), (1000, 1200, true));
        assert_eq!(renew(&idle, Some(&same), &same.endpoint), (1000, 1200, true));
    }

    #[test]
    fn tokens_travel_in_cookies_and_headers() {
        let of = |name: &str, value: &str| {
            HeaderMap::from_iter([(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())])
        };
        let by_header = Token::Header(HeaderName::from_static("x-session"));
        let (cookie, header) = (session(by_cookie(false), None, None), session(by_header, None, None));
        for (cookies, token) in [
            ("sid=abc", Some("abc")),
            ("a=b; sid=\"abc\" ; c=d", Some("abc")),
            ("a=b;sid=abc;sid=d", Some("abc")),
            ("sid=", Some("")),
            ("SID=abc; xsid=1", None),
        ] {
            assert_eq!(cookie.token(&of("cookie", cookies)), token, "{cookies}");
        }
        assert_eq!(header.token(&of("x-session", "abc")), Some("abc"));
        assert_eq!(header.token(&of("x-session", &"a".repeat(MAX_TOKEN_BYTES + 1))), None);

        let text = |session: &Session| {
            let (name, value) = session.header("tok", &held(), 1100).unwrap();
            format!("{name}: {}", value.to_str().unwrap())
        };
        assert_eq!(text(&header), "x-session: tok");
        assert_eq!(text(&cookie), "set-cookie: sid=tok; Path=/a; HttpOnly");
        let permanent = session(by_cookie(true), Some(600), None);
        assert_eq!(text(&permanent), "set-cookie: sid=tok; Path=/a; HttpOnly; Max-Age=500");
        assert_eq!(cookie.header("a\nb", &held(), 1100), None);
    }
}
