//! Routes of a service as they are looked up: sorted and indexed once, so that a request finds the first of its matches
//! without meeting the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;

use super::filter::{Filter, preflight};
use super::route::{Kind, Match, PathMatch, Route, RouteKey, Rule, ServiceRoutes};
use super::target::Request;
use crate::balance::hash;
use crate::ids::ServiceKey;

mod index;
mod order;

use index::Index;

/// The routes of a service by port and by who calls.
#[derive(Debug)]
pub struct ServiceTable {
    service: ServiceKey,
    ports: BTreeMap<u16, Port>,
    conflicts: Vec<Conflict>,
}

#[derive(Debug, Default)]
struct Port {
    /// For callers that have no routes of their own.
    producer: Option<Arc<Table>>,
    /// By the callers' namespace.
    consumers: BTreeMap<Arc<str>, Arc<Table>>,
}

/// A route that does not count on a port, because one of a stronger kind is there (GEP-1294).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The port.
    pub port: u16,
    /// The route.
    pub route: RouteKey,
    /// The kind that prevails.
    pub prevails: Kind,
}

/// Routes of one kind for one port and one audience.
#[derive(Debug)]
pub struct Table {
    kind: Kind,
    rules: Box<[Slot]>,
    /// By precedence.
    entries: Box<[Entry]>,
    index: Index,
}

/// A rule, and how many requests came to it.
#[derive(Debug)]
struct Slot {
    route: Arc<Route>,
    rule: Arc<Rule>,
    /// Its number in the route.
    number: usize,
    turns: AtomicU64,
}

/// A match of a rule.
#[derive(Debug)]
struct Entry {
    slot: u32,
    condition: Match,
    /// Whether the rule has a [`Filter::Cors`]: then a preflight request counts as what it asks for.
    cors: bool,
}

/// The rule that is taken for a request.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its route.
    pub route: &'a Arc<Route>,
    /// The rule.
    pub rule: &'a Arc<Rule>,
    slot: &'a Slot,
    condition: &'a Match,
}

/// The beginning of a path by which a match was found, which a filter may replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefix {
    /// Whole segments.
    Segments(Arc<str>),
    /// Letters.
    Text(Arc<str>),
}

impl ServiceTable {
    /// Sorts and indexes `routes`.
    pub fn new(routes: &ServiceRoutes) -> Self {
        let service = routes.service.clone();
        let mut groups: BTreeMap<_, Vec<Arc<Route>>> = BTreeMap::new();
        for route in &routes.routes {
            let audience = Some(&route.key.namespace).filter(|namespace| **namespace != service.namespace);
            for port in &route.ports {
                groups.entry((*port, audience.cloned())).or_default().push(route.clone());
            }
        }
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for ((port, audience), routes) in groups {
            let Some(prevails) = routes.iter().map(|route| route.key.kind).min() else { continue };
            let (routes, others): (Vec<_>, Vec<_>) = routes.into_iter().partition(|r| r.key.kind == prevails);
            conflicts.extend(others.iter().map(|route| Conflict { port, route: route.key.clone(), prevails }));
            let table = Arc::new(Table::new(prevails, &routes));
            let of_port = ports.entry(port).or_default();
            match audience {
                Some(namespace) => drop(of_port.consumers.insert(namespace, table)),
                None => of_port.producer = Some(table),
            }
        }
        Self { service, ports, conflicts }
    }

    /// The service.
    pub fn service(&self) -> &ServiceKey {
        &self.service
    }

    /// The routes on `port` for a caller of `caller_namespace`, as its identity says: those of its own namespace if
    /// there are any, else those of the service's. `None` if there are none either: then all goes to the service.
    pub fn find(&self, port: u16, caller_namespace: Option<&str>) -> Option<&Arc<Table>> {
        let port = self.ports.get(&port)?;
        caller_namespace.and_then(|namespace| port.consumers.get(namespace)).or(port.producer.as_ref())
    }

    /// Routes that do not count, because one of a stronger kind is there.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

impl Table {
    /// Sorts and indexes `routes`, all of `kind`.
    pub fn new(kind: Kind, routes: &[Arc<Route>]) -> Self {
        let mut rules = Vec::new();
        let mut unsorted = Vec::new();
        for route in routes {
            for (number, rule) in route.rules.iter().enumerate() {
                let slot = rules.len() as u32;
                rules.push(Slot { route: route.clone(), rule: rule.clone(), number, turns: AtomicU64::new(0) });
                let cors = rule.filters.iter().any(|filter| matches!(filter, Filter::Cors(_)));
                let always = [Match::default()];
                let conditions = if rule.matches.is_empty() { &always[..] } else { &rule.matches };
                for (at, condition) in conditions.iter().enumerate() {
                    let condition = condition.in_canonical_form();
                    let position = order::Position { route, rule: number, condition: at };
                    let any = route.hostnames.is_empty().then_some(None);
                    for host in route.hostnames.iter().map(Some).chain(any) {
                        let rank = order::rank(&condition, host, &position);
                        unsorted.push((rank, host, Entry { slot, condition: condition.clone(), cors }));
                    }
                }
            }
        }
        unsorted.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut index = Index::default();
        for (rank, (_, host, entry)) in (0u32..).zip(&unsorted) {
            index.put(*host, &entry.condition, rank);
        }
        let entries = unsorted.into_iter().map(|(_, _, entry)| entry).collect();
        Self { kind, rules: rules.into(), entries, index }
    }

    /// What its routes are about.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The rule for `request`. `None` if no match holds: it is answered 404.
    pub fn find(&self, request: &Request<'_>) -> Option<Found<'_>> {
        let asked = preflight(request.method, request.headers);
        let holds = |rank: u32| {
            let Some(entry) = self.entries.get(rank as usize) else { return false };
            let method = asked.as_ref().filter(|_| entry.cors).unwrap_or(request.method);
            entry.condition.holds(request, method)
        };
        self.found(self.index.first(request.target.host(), Some(request), holds))
    }

    /// The rule for a connection that is not looked into. `server_name`, in lower case and without a final dot, is what
    /// a TLS client indicates.
    pub fn find_opaque(&self, server_name: Option<&str>) -> Option<Found<'_>> {
        self.found(self.index.first(server_name.unwrap_or_default(), None, |_| true))
    }

    fn found(&self, rank: Option<u32>) -> Option<Found<'_>> {
        let entry = self.entries.get(rank? as usize)?;
        let slot = self.rules.get(entry.slot as usize)?;
        Some(Found { route: &slot.route, rule: &slot.rule, slot, condition: &entry.condition })
    }
}

impl Found<'_> {
    /// Tells the rule from others, in every process.
    pub fn scope(&self) -> u64 {
        hash(format!("{} {}", self.route.key, self.slot.number).as_bytes())
    }

    /// The number of a request among those for its rule. Shares are dealt out by it.
    pub fn turn(&self) -> u64 {
        self.slot.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// The beginning of the path that the match names. A match that names none has matched `/`.
    pub fn prefix(&self) -> Option<Prefix> {
        match &self.condition.path {
            Some(PathMatch::Prefix(prefix)) => Some(Prefix::Segments(prefix.clone())),
            Some(PathMatch::Text(text)) => Some(Prefix::Text(text.clone())),
            None => Some(Prefix::Segments("/".into())),
            Some(PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Grpc { .. }) => None,
        }
    }
}

impl Match {
    /// The match as requests are compared with it: its path in the form that theirs has, and of several conditions for
    /// one header or parameter only the first (Gateway API, `HTTPRouteMatch`).
    fn in_canonical_form(&self) -> Self {
        let mut headers = self.headers.clone();
        let mut at = 0;
        headers.retain(|header| {
            at += 1;
            header.absent || !self.headers[..at - 1].iter().any(|h| !h.absent && h.name == header.name)
        });
        let mut query = self.query.clone();
        let mut at = 0;
        query.retain(|parameter| {
            at += 1;
            !self.query[..at - 1].iter().any(|q| q.name == parameter.name)
        });
        let path = self.path.as_ref().map(PathMatch::in_canonical_form);
        Self { path, method: self.method.clone(), headers, query }
    }

    /// Whether it holds for `request`, taken for one with `method`.
    fn holds(&self, request: &Request<'_>, method: &Method) -> bool {
        self.path.as_ref().is_none_or(|path| path.holds(request.target.path()))
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.headers.iter().all(|header| header.holds(request.headers))
            && self.query.iter().all(|parameter| parameter.holds(request.target))
    }
}

#[cfg(test)]
pub(crate) mod tests;
