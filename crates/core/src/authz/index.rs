//! Policies arranged so that a connection meets few of them.
//!
//! A rule fits only if in each of its clauses one match holds, and a match holds only if each field it gives has a
//! value that the connection has. So a policy is kept under what a connection must have for one of its rules to fit:
//! a caller (as one of several kinds of key), a port, or both. A connection then looks up one bucket per *shape* of
//! key that is in use, of which there are few. What is found is only a candidate: whether it fits is asked of
//! [`Connection`], and of nobody else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::fit::{Connection, is_void};
use crate::map::{Entry, Map};
use crate::policy::{Action, Clause, Match, Policy, Rule, StringMatch};

/// Up to this many policies are asked one by one: that is cheaper than looking them up.
const FEW: usize = 8;

/// Most keys made from the callers and the ports of one rule together. With more, its ports are left out.
const MAX_PAIRS: usize = 64;

/// Most ports by which a rule without callers is found. One with more is asked about every connection.
const MAX_PORTS: usize = 64;

/// Lengths of address prefixes and of patterns are rounded down to a multiple of these, so that there are few shapes.
const V4_STEP: u8 = 4;
/// See [`V4_STEP`].
const V6_STEP: u8 = 8;
/// See [`V4_STEP`].
const TEXT_STEP: usize = 2;
/// Longest piece of a pattern that is part of a key.
const MAX_TEXT: usize = 64;

/// Policies that apply together, by what they do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Set {
    /// Changes with the set, and no two sets ever have the same, unless both are empty.
    pub(crate) version: u64,
    pub(crate) deny: Index,
    pub(crate) allow: Index,
    /// Those that are only watched, in the same two kinds.
    pub(crate) watched_deny: Index,
    pub(crate) watched_allow: Index,
}

impl Set {
    pub(crate) fn insert(&mut self, policy: &Arc<Policy>) {
        self.index(policy).insert(policy);
    }

    pub(crate) fn remove(&mut self, policy: &Policy) {
        self.index(policy).remove(&policy.key);
    }

    pub(crate) fn is_empty(&self) -> bool {
        [&self.deny, &self.allow, &self.watched_deny, &self.watched_allow].iter().all(|index| index.len() == 0)
    }

    /// All of them, in an order that depends on their keys alone.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        let Self { deny, allow, watched_deny, watched_allow, .. } = self;
        deny.iter().chain(allow.iter()).chain(watched_deny.iter()).chain(watched_allow.iter())
    }

    fn index(&mut self, policy: &Policy) -> &mut Index {
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Deny, true) => &mut self.watched_deny,
            (Action::Allow, true) => &mut self.watched_allow,
        }
    }
}

/// Policies of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    members: Map<Member>,
    buckets: Map<Bucket>,
    /// How many keys there are of each shape, sorted.
    shapes: Arc<Vec<(Shape, usize)>>,
}

#[derive(Debug, Clone)]
struct Member {
    policy: Arc<Policy>,
    /// Where it is found.
    keys: Arc<[Key]>,
}

impl Entry for Member {
    type Key = str;

    fn key(&self) -> &str {
        &self.policy.key
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policy, &other.policy)
    }
}

/// Policies with one key, sorted by name.
#[derive(Debug, Clone)]
struct Bucket {
    hash: u64,
    policies: Arc<Vec<Arc<Policy>>>,
}

impl Entry for Bucket {
    type Key = u64;

    fn key(&self) -> &u64 {
        &self.hash
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policies, &other.policies)
    }
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.members.iter().map(|member| &member.policy)
    }

    /// The first by name of the policies that fit.
    pub(crate) fn first(&self, connection: &Connection<'_>) -> Option<&Arc<Policy>> {
        if self.len() <= FEW {
            return self.iter().filter(|policy| connection.fits(policy)).min_by_key(|policy| &policy.key);
        }
        let mut first: Option<&Arc<Policy>> = None;
        for bucket in self.buckets_of(connection) {
            // One that fits and is found elsewhere too is found here as well: the first of each bucket is enough.
            let earlier = bucket.iter().take_while(|policy| first.is_none_or(|first| policy.key < first.key));
            first = earlier.into_iter().find(|policy| connection.fits(policy)).or(first);
        }
        first
    }

    /// Whether a policy fits.
    pub(crate) fn any(&self, connection: &Connection<'_>) -> bool {
        match self.len() <= FEW {
            true => self.iter().any(|policy| connection.fits(policy)),
            false => self.buckets_of(connection).any(|bucket| bucket.iter().any(|policy| connection.fits(policy))),
        }
    }

    /// Policies that have something in common with a connection, nearest first, then all others; some twice.
    pub(crate) fn nearest<'a>(&'a self, connection: &Connection<'_>) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.buckets_of(connection).flatten().chain(self.iter())
    }

    /// How many policies are asked about a connection that none of them fits.
    #[cfg(test)]
    pub(crate) fn candidates(&self, connection: &Connection<'_>) -> usize {
        self.buckets_of(connection).map(<[_]>::len).sum()
    }

    /// The buckets in which every policy that fits is found at least once.
    fn buckets_of<'a>(&'a self, connection: &Connection<'_>) -> impl Iterator<Item = &'a [Arc<Policy>]> {
        let mut last = None;
        self.shapes.iter().filter_map(move |(shape, _)| {
            // Shapes that differ in the port alone stand together.
            let caller = match last {
                Some((kind, caller)) if kind == shape.caller => caller,
                _ => connection.hash(shape.caller),
            };
            last = Some((shape.caller, caller));
            let port = shape.port.then_some(connection.facts.destination_port);
            let bucket = self.buckets.get(&combine(caller?, port))?;
            Some(&bucket.policies[..])
        })
    }

    pub(crate) fn insert(&mut self, policy: &Arc<Policy>) {
        self.remove(&policy.key);
        let mut keys = Vec::new();
        for rule in &policy.rules {
            let choices = choices(rule);
            // Where fewest others are.
            let crowd = |keys: &Vec<Key>| keys.iter().map(|key| self.crowd(key)).max();
            keys.extend(choices.into_iter().min_by_key(crowd).unwrap_or_default());
        }
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            let mut bucket =
                self.buckets.remove(&key.hash).unwrap_or(Bucket { hash: key.hash, policies: Arc::default() });
            let policies = Arc::make_mut(&mut bucket.policies);
            let at = policies.partition_point(|other| other.key < policy.key);
            policies.insert(at, policy.clone());
            self.buckets.insert(bucket);
            count(&mut self.shapes, key.shape, true);
        }
        self.members.insert(Member { policy: policy.clone(), keys: keys.into() });
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let Some(member) = self.members.remove(name) else { return };
        for key in member.keys.iter() {
            let Some(mut bucket) = self.buckets.remove(&key.hash) else { continue };
            let policies = Arc::make_mut(&mut bucket.policies);
            policies.retain(|policy| !Arc::ptr_eq(policy, &member.policy));
            if !policies.is_empty() {
                self.buckets.insert(bucket);
            }
            count(&mut self.shapes, key.shape, false);
        }
    }

    fn crowd(&self, key: &Key) -> usize {
        self.buckets.get(&key.hash).map_or(0, |bucket| bucket.policies.len())
    }
}

fn count(shapes: &mut Arc<Vec<(Shape, usize)>>, shape: Shape, more: bool) {
    let shapes = Arc::make_mut(shapes);
    match (shapes.binary_search_by_key(&shape, |(shape, _)| *shape), more) {
        (Ok(at), true) => shapes[at].1 += 1,
        (Err(at), true) => shapes.insert(at, (shape, 1)),
        (Ok(at), false) => {
            shapes[at].1 -= 1;
            if shapes[at].1 == 0 {
                shapes.remove(at);
            }
        }
        (Err(_), false) => {}
    }
}

/// What a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Shape {
    caller: Caller,
    port: bool,
}

/// What a key says of the two ends beside the port. (Most of it is about who calls.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Caller {
    Anyone,
    Principal,
    Account,
    Namespace,
    /// The beginning of the principal, so many bytes.
    Beginning(usize),
    /// Its end.
    Ending(usize),
    Source(Prefix),
    Destination(Prefix),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Prefix {
    v6: bool,
    bits: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    shape: Shape,
    hash: u64,
}

impl Key {
    fn new(caller: (Caller, u64), port: Option<u16>) -> Self {
        Self { shape: Shape { caller: caller.0, port: port.is_some() }, hash: combine(caller.1, port) }
    }
}

/// Two that are equal by accident cost a candidate too many, and nothing else.
fn combine(caller: u64, port: Option<u16>) -> u64 {
    // An odd factor without pattern, as in Fibonacci hashing.
    port.map_or(caller, |port| (caller ^ (u64::from(port) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn hash(caller: Caller, value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (caller, value).hash(&mut hasher);
    hasher.finish()
}

impl Connection<'_> {
    /// What it has of a kind of key.
    fn hash(&self, caller: Caller) -> Option<u64> {
        let principal = || self.principal.as_deref().map(str::as_bytes);
        Some(match caller {
            Caller::Anyone => hash(caller, ()),
            Caller::Principal => hash(caller, principal()?),
            Caller::Account => {
                let source = self.facts.source?;
                hash(caller, (source.namespace(), source.service_account()))
            }
            Caller::Namespace => hash(caller, self.facts.source?.namespace()),
            Caller::Beginning(bytes) => hash(caller, principal()?.get(..bytes)?),
            Caller::Ending(bytes) => {
                let principal = principal()?;
                hash(caller, principal.get(principal.len().checked_sub(bytes)?..)?)
            }
            Caller::Source(prefix) => hash(caller, prefix.of(self.facts.source_ip)?),
            Caller::Destination(prefix) => hash(caller, prefix.of(self.facts.destination_ip)?),
        })
    }
}

impl Prefix {
    /// The prefix under which a range is found; none where the range is too wide to tell connections apart.
    fn around(net: &IpNet) -> Option<Self> {
        let (v6, step) = if net.addr().is_ipv6() { (true, V6_STEP) } else { (false, V4_STEP) };
        let bits = net.prefix_len() / step * step;
        (bits > 0).then_some(Self { v6, bits })
    }

    /// The beginning of an address of its family.
    fn of(self, ip: IpAddr) -> Option<IpAddr> {
        let net = IpNet::new(ip, self.bits).ok()?;
        (ip.is_ipv6() == self.v6).then(|| net.network())
    }
}

/// Each choice has keys of which every connection that fits the rule has at least one; there is always a choice. A
/// rule that fits nothing is found nowhere.
fn choices(rule: &Rule) -> Vec<Vec<Key>> {
    let holdable = |clause: &Clause| clause.matches.iter().any(|m| !is_void(m));
    if !rule.clauses.iter().all(holdable) {
        return vec![Vec::new()];
    }
    let clauses = || rule.clauses.iter().map(|clause| clause.matches.iter().filter(|m| !is_void(m)));
    let ports = clauses().filter_map(|matches| {
        let of_all: Option<Vec<_>> = matches.map(|m| some(&m.destination_ports)).collect();
        of_all.map(|ports| ports.concat())
    });
    let ports = ports.filter(|ports| ports.len() <= MAX_PORTS).min_by_key(Vec::len);
    let mut all = Vec::new();
    for kind in KINDS {
        let of_kind = clauses().filter_map(|matches| {
            let of_all: Option<Vec<_>> = matches.map(kind).collect();
            of_all.map(|callers| callers.concat())
        });
        all.extend(of_kind.map(|callers| keys(&callers, ports.as_deref())));
    }
    // One kind after the other was asked of all matches of a clause; alternatives may each be known by another kind.
    let mixed = clauses().filter_map(|matches| {
        let of_all: Option<Vec<_>> = matches.map(|m| KINDS.iter().find_map(|kind| kind(m))).collect();
        of_all.map(|callers| callers.concat())
    });
    all.extend(mixed.map(|callers| keys(&callers, ports.as_deref())));
    // Every connection meets what stands under nobody in particular.
    if ports.is_some() || all.is_empty() {
        all.push(keys(&[(Caller::Anyone, hash(Caller::Anyone, ()))], ports.as_deref()));
    }
    all
}

fn keys(callers: &[(Caller, u64)], ports: Option<&[u16]>) -> Vec<Key> {
    match ports.filter(|ports| ports.len().saturating_mul(callers.len()) <= MAX_PAIRS) {
        Some(ports) => callers.iter().flat_map(|c| ports.iter().map(|port| Key::new(*c, Some(*port)))).collect(),
        None => callers.iter().map(|caller| Key::new(*caller, None)).collect(),
    }
}

/// The callers that a match asks for with one of its fields; `None` where the field is not given or says too little.
type Kind = fn(&Match) -> Option<Vec<(Caller, u64)>>;

/// The kinds of callers, those that tell most first.
const KINDS: [Kind; 5] = [
    |m| each(&m.principals, by_principal),
    |m| {
        each(&m.service_accounts, |account| {
            Some((Caller::Account, hash(Caller::Account, (&*account.namespace, &*account.name))))
        })
    },
    |m| each(&m.source_ips, |net| by_prefix(net, Caller::Source)),
    |m| each(&m.destination_ips, |net| by_prefix(net, Caller::Destination)),
    |m| {
        each(&m.namespaces, |namespace| match namespace {
            StringMatch::Exact(exact) => Some((Caller::Namespace, hash(Caller::Namespace, &**exact))),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
        })
    },
];

fn by_principal(principal: &StringMatch) -> Option<(Caller, u64)> {
    let piece = |text: &str| text.len().min(MAX_TEXT) / TEXT_STEP * TEXT_STEP;
    let (caller, part) = match principal {
        StringMatch::Exact(exact) => (Caller::Principal, exact.as_bytes()),
        StringMatch::Prefix(prefix) => (Caller::Beginning(piece(prefix)), &prefix.as_bytes()[..piece(prefix)]),
        StringMatch::Suffix(suffix) => {
            (Caller::Ending(piece(suffix)), &suffix.as_bytes()[suffix.len() - piece(suffix)..])
        }
        StringMatch::Presence => return None,
    };
    // A piece of no length is in every principal.
    (!matches!(caller, Caller::Beginning(0) | Caller::Ending(0))).then(|| (caller, hash(caller, part)))
}

fn by_prefix(net: &IpNet, kind: fn(Prefix) -> Caller) -> Option<(Caller, u64)> {
    let prefix = Prefix::around(net)?;
    let caller = kind(prefix);
    Some((caller, hash(caller, prefix.of(net.addr())?)))
}

fn each<T, K>(values: &[T], key: impl Fn(&T) -> Option<K>) -> Option<Vec<K>> {
    some(values)?.iter().map(key).collect()
}

fn some<T>(values: &[T]) -> Option<&[T]> {
    (!values.is_empty()).then_some(values)
}
