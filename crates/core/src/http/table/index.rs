//! Where a request finds the matches that may hold: by host, then by path, then by a header that must have one value.
//! Within each place matches stand in the order of precedence, so that the first that holds ends the search there.

use std::collections::BTreeMap;

use http::HeaderName;

use crate::http::host::HostPattern;
use crate::http::pattern::Pattern;
use crate::http::route::{Match, NameMatch, PathMatch};
use crate::http::target::Request;

/// Matches by host.
#[derive(Debug, Default)]
pub(super) struct Index {
    exact: BTreeMap<Box<str>, Paths>,
    /// By what is common to the hosts, with its leading dot.
    below: BTreeMap<Box<str>, Paths>,
    any: Paths,
}

/// Matches by path.
#[derive(Debug, Default)]
struct Paths {
    exact: BTreeMap<Box<str>, Bucket>,
    /// By a prefix of whole segments, without a final slash.
    segments: BTreeMap<Box<str>, Bucket>,
    /// Most segments of such a prefix. What a path has beyond is not looked at, however long it is.
    deepest: usize,
    /// By a prefix of letters.
    text: BTreeMap<Box<str>, Bucket>,
    /// The lengths of these, ascending.
    lengths: Vec<usize>,
    /// Those by expression, and those for every path.
    others: Bucket,
}

/// Matches, by their ranks.
#[derive(Debug, Default)]
struct Bucket {
    /// Those that ask for a value of a header, by header and value.
    by_header: Vec<(HeaderName, ByValue)>,
    /// The others.
    others: Vec<u32>,
}

/// Matches by the value that a header must have.
type ByValue = BTreeMap<Box<str>, Vec<u32>>;

impl Index {
    /// Takes in a match with its rank, which is higher than all before.
    pub(super) fn put(&mut self, host: Option<&HostPattern>, condition: &Match, rank: u32) {
        let paths = match host {
            None => &mut self.any,
            Some(HostPattern::Exact(exact)) => self.exact.entry(exact.as_str().into()).or_default(),
            Some(HostPattern::Below(suffix)) => self.below.entry((**suffix).into()).or_default(),
        };
        paths.put(condition, rank);
    }

    /// The least rank that `holds`, of those that may: under any host that means `host`, and where the request is not
    /// given, of whatever path.
    pub(super) fn first(&self, host: &str, request: Option<&Request<'_>>, holds: impl Fn(u32) -> bool) -> Option<u32> {
        let mut search = Search { request, holds, best: u32::MAX };
        if !self.exact.is_empty()
            && let Some(paths) = self.exact.get(host)
        {
            search.paths(paths);
        }
        if !self.below.is_empty() {
            // Not from the first byte on: a wildcard stands for something.
            let dots = host.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'.');
            dots.filter_map(|(at, _)| self.below.get(&host[at..])).for_each(|paths| search.paths(paths));
        }
        search.paths(&self.any);
        (search.best < u32::MAX).then_some(search.best)
    }
}

impl Paths {
    fn put(&mut self, condition: &Match, rank: u32) {
        let bucket = match &condition.path {
            None | Some(PathMatch::Regex(_)) => &mut self.others,
            Some(PathMatch::Exact(path)) => self.exact.entry((**path).into()).or_default(),
            Some(PathMatch::Prefix(prefix)) => match prefix.trim_end_matches('/') {
                "" => &mut self.others,
                prefix => {
                    self.deepest = self.deepest.max(prefix.bytes().filter(|b| *b == b'/').count());
                    self.segments.entry(prefix.into()).or_default()
                }
            },
            Some(PathMatch::Text(text)) => {
                if let Err(at) = self.lengths.binary_search(&text.len()) {
                    self.lengths.insert(at, text.len());
                }
                self.text.entry((**text).into()).or_default()
            }
            Some(PathMatch::Grpc {
                service: Some(NameMatch::Exact(service)),
                method: Some(NameMatch::Exact(method)),
            }) => self.exact.entry(format!("/{service}/{method}").into()).or_default(),
            Some(PathMatch::Grpc { service: Some(NameMatch::Exact(service)), .. }) => {
                self.deepest = self.deepest.max(1 + service.bytes().filter(|b| *b == b'/').count());
                self.segments.entry(format!("/{service}").into()).or_default()
            }
            Some(PathMatch::Grpc { .. }) => &mut self.others,
        };
        bucket.put(condition, rank);
    }
}

impl Bucket {
    fn put(&mut self, condition: &Match, rank: u32) {
        let exact = condition.headers.iter().find_map(|header| match &header.value {
            Pattern::Exact(value) if !header.absent => Some((&header.name, value)),
            Pattern::Exact(_) | Pattern::Prefix(_) | Pattern::Suffix(_) | Pattern::Regex(_) | Pattern::Present => None,
        });
        let Some((name, value)) = exact else { return self.others.push(rank) };
        let values = match self.by_header.iter().position(|(of, _)| of == name) {
            Some(at) => &mut self.by_header[at].1,
            None => {
                self.by_header.push((name.clone(), ByValue::new()));
                let last = self.by_header.len() - 1;
                &mut self.by_header[last].1
            }
        };
        values.entry((**value).into()).or_default().push(rank);
    }
}

/// A search for the least rank that holds.
struct Search<'a, F> {
    request: Option<&'a Request<'a>>,
    holds: F,
    best: u32,
}

impl<F: Fn(u32) -> bool> Search<'_, F> {
    fn paths(&mut self, paths: &Paths) {
        let path = self.request.map_or("", |request| request.target.path());
        if let Some(bucket) = paths.exact.get(path) {
            self.bucket(bucket);
        }
        if !paths.segments.is_empty() {
            let slashes = path.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'/').map(|(at, _)| at);
            let ends = slashes.chain([path.len()]).take(paths.deepest);
            ends.filter_map(|end| paths.segments.get(&path[..end])).for_each(|bucket| self.bucket(bucket));
        }
        let lengths = paths.lengths.iter().take_while(|length| **length <= path.len());
        let texts = lengths.filter_map(|length| paths.text.get(path.get(..*length)?));
        texts.for_each(|bucket| self.bucket(bucket));
        self.bucket(&paths.others);
    }

    fn bucket(&mut self, bucket: &Bucket) {
        if let Some(request) = self.request {
            for (name, values) in &bucket.by_header {
                let lines = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                lines.filter_map(|line| values.get(line)).for_each(|ranks| self.ranks(ranks));
            }
        }
        self.ranks(&bucket.others);
    }

    fn ranks(&mut self, ranks: &[u32]) {
        let best = self.best;
        let mut better = ranks.iter().copied().take_while(|rank| *rank < best);
        if let Some(rank) = better.find(|rank| (self.holds)(*rank)) {
            self.best = rank;
        }
    }
}
