//! Filters: what a rule or a backend does to a request and its response.

use std::sync::Arc;
use std::time::Duration;

mod cors;
mod edit;
mod redirect;
mod rewrite;

pub use cors::preflight;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::backend::Upstream;
use super::target::Scheme;
use crate::balance::mix;

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Edits headers of the request.
    RequestHeaders(HeaderEdits),
    /// Edits headers of the response.
    ResponseHeaders(HeaderEdits),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Sends the request on under another host or path.
    Rewrite(Rewrite),
    /// Sends a copy of the request elsewhere too.
    Mirror(Mirror),
    /// Tells browsers which pages of other origins may use the response.
    Cors(Cors),
    /// Answers with a fixed response (Istio's `directResponse`).
    Respond {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Arc<str>,
    },
    /// Delays or fails a share of requests (Istio's `fault`).
    Fault(Fault),
    /// A filter that is not known here. Requests that meet it are answered 500: without it they would be treated
    /// differently from what was asked for.
    Unknown(Arc<str>),
}

/// Edits of headers. A name stands in one of the lists only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Headers that have this one value afterwards.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that have this value too.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are gone.
    pub remove: Vec<HeaderName>,
}

/// A redirect. What is absent stays as it is in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Another scheme.
    pub scheme: Option<Scheme>,
    /// Another host.
    pub host: Option<Arc<str>>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A rewrite. What is absent stays as it is in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// Another host.
    pub host: Option<Arc<str>>,
    /// Another path.
    pub path: Option<PathEdit>,
}

/// Another path; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// This path.
    Full(Arc<str>),
    /// The path with this in place of the prefix that the match names.
    Prefix(Arc<str>),
}

/// A copy of requests to another backend, whose responses nobody sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes.
    pub upstream: Upstream,
    /// Which share of requests is copied.
    pub share: Share,
}

/// A share of requests: `parts` of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Share {
    /// How many.
    pub parts: u32,
    /// Of how many; never 0.
    pub of: u32,
}

impl Share {
    /// All requests.
    pub const ALL: Self = Self { parts: 1, of: 1 };

    /// Whether it has request number `turn`. Of any number of requests in a row it has as many as it should, give or
    /// take few; shares of different `number` are independent of each other.
    pub fn has(self, turn: u64, number: usize) -> bool {
        // Multiples of such irrational numbers fall evenly between 0 and 1 (Weyl): the golden ratio and the roots of 2,
        // 3 and 7, behind the point.
        const STEPS: [u64; 4] =
            [0x9E37_79B9_7F4A_7C15, 0x6A09_E667_F3BC_C909, 0xBB67_AE85_84CA_A73B, 0xA54F_F53A_5F1D_36F1];
        let place = turn.wrapping_mul(STEPS[number % STEPS.len()]).wrapping_add(mix(number as u64));
        u128::from(place) * u128::from(self.of) < u128::from(self.parts) << 64
    }
}

/// Cross-origin resource sharing (Fetch standard, "CORS protocol"; GEP-1767).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// Origins whose pages may use the response.
    pub allow_origins: Vec<Origin>,
    /// Methods they may use.
    pub allow_methods: Allowed<Method>,
    /// Headers of the request they may set.
    pub allow_headers: Allowed<HeaderName>,
    /// Headers of the response they may read.
    pub expose_headers: Allowed<HeaderName>,
    /// How long a browser may remember the answer.
    pub max_age: Option<Duration>,
    /// Whether cookies and the like go with it.
    pub credentials: bool,
}

/// Which origins are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Every origin.
    Any,
    /// This one.
    Exact(Arc<str>),
    /// Those that begin and end like that, with at least one character between: `https://*.example.org`.
    Wildcard {
        /// What is before the `*`.
        before: Arc<str>,
        /// What is behind it.
        behind: Arc<str>,
    },
    /// Those that match (Istio's `allowOrigins`).
    Regex(super::pattern::Regex),
}

/// A list that may be everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed<T> {
    /// `*`.
    All,
    /// These.
    These(Vec<T>),
}

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Allowed::These(Vec::new())
    }
}

/// Failures on purpose. Delay comes first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fault {
    /// Requests that wait, and how long.
    pub delay: Option<(Share, Duration)>,
    /// Requests that are answered with a status.
    pub abort: Option<(Share, StatusCode)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_its_part_of_every_window() {
        for (parts, of) in [(0, 1), (1, 1), (1, 2), (10, 100), (999, 1000), (1, 100), (5, 4)] {
            for number in 0..6 {
                let has: Vec<bool> = (0..3000).map(|turn| Share { parts, of }.has(turn, number)).collect();
                let wanted = (f64::from(parts) / f64::from(of)).min(1.0);
                for window in [100, 1000, 3000] {
                    for turns in has.windows(window).step_by(7) {
                        let got = turns.iter().filter(|has| **has).count() as f64;
                        let off = (got - wanted * window as f64).abs();
                        assert!(off <= 6.0, "{parts} of {of}, share {number}: {got} of {window}");
                    }
                }
            }
        }
    }

    #[test]
    fn shares_are_independent_of_each_other() {
        let half = Share { parts: 1, of: 2 };
        for (a, b) in [(0, 1), (0, 2), (1, 2), (2, 3), (1, 3)] {
            let both = (0..4000).filter(|turn| half.has(*turn, a) && half.has(*turn, b)).count();
            assert!((900..1100).contains(&both), "{a} and {b}: {both} of 4000");
        }
    }
}
