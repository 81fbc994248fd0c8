//! Hosts by name or by wildcard: `*.example.org` means every name below `example.org`, not that one itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ids::{Hostname, NameError};

/// A hostname, or a wildcard for those below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host.
    Exact(Hostname),
    /// Hosts below this one, with its leading dot: `.example.org`.
    Below(Arc<str>),
}

impl HostPattern {
    /// Whether `host`, in lower case and without a final dot, is meant.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(exact) => exact.as_str() == host,
            HostPattern::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }

    /// The hosts that both mean, if there are any: what a route's hostname leaves of a listener's.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let narrower = |narrow: &Self, wide: &Self| match (narrow, wide) {
            (HostPattern::Exact(exact), _) => wide.matches(exact.as_str()),
            (HostPattern::Below(narrow), HostPattern::Below(wide)) => narrow.ends_with(&**wide),
            (HostPattern::Below(_), HostPattern::Exact(_)) => false,
        };
        match (narrower(self, other), narrower(other, self)) {
            (true, _) => Some(self.clone()),
            (false, true) => Some(other.clone()),
            (false, false) => None,
        }
    }

    /// Its place among patterns that mean one host: the exact one first, then the longest.
    pub(super) fn specificity(&self) -> (bool, usize) {
        match self {
            HostPattern::Exact(exact) => (true, exact.as_str().len()),
            HostPattern::Below(suffix) => (false, suffix.len()),
        }
    }
}

/// The hostnames under which a route is served by a listener, of which either may have none, which means all. An empty
/// list for the outcome means all, too; `None` that they have nothing in common.
pub fn intersection(listener: Option<&HostPattern>, route: &[HostPattern]) -> Option<Vec<HostPattern>> {
    let Some(listener) = listener else { return Some(route.to_vec()) };
    if route.is_empty() {
        return Some(vec![listener.clone()]);
    }
    let common: Vec<HostPattern> = route.iter().filter_map(|host| host.intersect(listener)).collect();
    (!common.is_empty()).then_some(common)
}

impl FromStr for HostPattern {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let name: Hostname = s.parse()?;
        Ok(match name.as_str().strip_prefix('*') {
            Some(suffix) => HostPattern::Below(suffix.into()),
            None => HostPattern::Exact(name),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(exact) => exact.fmt(f),
            HostPattern::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_means_every_name_below_and_not_the_name_itself() {
        for (pattern, name, fits) in [
            ("a.example.org", "a.example.org", true),
            ("A.Example.org.", "a.example.org", true),
            ("a.example.org", "b.a.example.org", false),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*.example.org", "badexample.org", false),
        ] {
            assert_eq!(host(pattern).matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn listener_and_route_share_the_narrower_of_their_hosts() {
        let all = |texts: &[&str]| texts.iter().map(|t| host(t)).collect::<Vec<_>>();
        for (listener, route, common) in [
            (None, &[][..], Some(&[][..])),
            (None, &["a.org"], Some(&["a.org"])),
            (Some("a.org"), &[], Some(&["a.org"])),
            (Some("a.org"), &["a.org", "b.org"], Some(&["a.org"])),
            (Some("a.org"), &["*.org"], Some(&["a.org"])),
            (Some("*.org"), &["a.org", "*.b.org", "c.com"], Some(&["a.org", "*.b.org"])),
            (Some("*.b.org"), &["*.org"], Some(&["*.b.org"])),
            (Some("*.b.org"), &["b.org", "*.bb.org"], None),
            (Some("a.org"), &["b.org"], None),
        ] {
            let listener = listener.map(host);
            assert_eq!(intersection(listener.as_ref(), &all(route)), common.map(all), "{listener:?} {route:?}");
        }
    }
}
