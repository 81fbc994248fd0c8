//! Which of two matches comes first, where both hold.

use std::cmp::Reverse;

use crate::http::host::HostPattern;
use crate::http::route::{Match, NameMatch, Order, PathMatch, Route};

/// Where a match is written.
#[derive(Debug)]
pub(super) struct Position<'a> {
    pub(super) route: &'a Route,
    /// The number of the rule in the route.
    pub(super) rule: usize,
    /// The number of the match in the rule.
    pub(super) condition: usize,
}

/// What decides, most important first; the least comes first.
pub(super) type Rank = (Host, bool, Reverse<Specificity>, Written);

/// An exact host before a wildcard, the longer before the shorter, and no host last.
type Host = Reverse<(bool, usize)>;

/// How specific a match is: its path, then whether it names a method, then its headers and parameters.
type Specificity = ([usize; 4], bool, usize, usize);

/// The older route first, then by `namespace/name`, then as written.
type Written = (u64, String, usize, usize);

/// The rank of a match of a route under one of its hosts.
pub(super) fn rank(condition: &Match, host: Option<&HostPattern>, position: &Position<'_>) -> Rank {
    let route = position.route;
    let listed = route.order == Order::Listed;
    let specificity = match route.order {
        Order::Specific => specificity(condition),
        Order::Listed => Specificity::default(),
    };
    let written =
        (route.created, format!("{}/{}", route.key.namespace, route.key.name), position.rule, position.condition);
    (Reverse(host.map_or((false, 0), HostPattern::specificity)), !listed, Reverse(specificity), written)
}

fn specificity(condition: &Match) -> Specificity {
    let path = condition.path.as_ref().map_or([0; 4], of_path);
    (path, condition.method.is_some(), condition.headers.len(), condition.query.len())
}

/// Gateway API, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`. Where expressions stand is left to us: behind
/// every path or name that is given in letters, save the prefix `/`, which matches everything; the longer first.
fn of_path(path: &PathMatch) -> [usize; 4] {
    const EXACT: usize = 3;
    const PREFIX: usize = 2;
    const REGEX: usize = 1;
    let letters = |name: &Option<NameMatch>| match name {
        Some(NameMatch::Exact(exact)) => exact.chars().count(),
        Some(NameMatch::Regex(_)) | None => 0,
    };
    let expression = |name: &Option<NameMatch>| match name {
        Some(NameMatch::Regex(regex)) => regex.as_str().chars().count(),
        Some(NameMatch::Exact(_)) | None => 0,
    };
    match path {
        PathMatch::Exact(exact) => [EXACT, exact.chars().count(), 0, 0],
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => [0; 4],
            prefix => [PREFIX, prefix.chars().count(), 0, 0],
        },
        PathMatch::Text(text) => match &**text {
            "" | "/" => [0; 4],
            text => [PREFIX, text.chars().count(), 0, 0],
        },
        PathMatch::Regex(regex) => [REGEX, regex.as_str().chars().count(), 0, 0],
        PathMatch::Grpc { service, method } => {
            [letters(service), letters(method), expression(service), expression(method)]
        }
    }
}
