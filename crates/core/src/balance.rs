//! Which endpoint of a service a connection goes to: health, locality, weight, and how many connections it has.
//!
//! All work is done when the mesh changes. A pick walks at most one step per routing preference and then draws from a
//! table, however many endpoints there are; it allocates nothing. Randomness, and what is known of endpoints beyond the
//! mesh configuration, are passed in.

pub mod ejection;
mod maglev;
mod pool;
mod ring;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pool::Pool;
pub(crate) use pool::{hash, mix};

use crate::service::{Affinity, BalancingMode, IpFamilies, Scope, Service};
use crate::workload::{Health, Workload};

/// The endpoints of a service, arranged for picking. Numbers are positions in the service's list of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picker {
    networks: Vec<(Arc<str>, Vec<Group>)>,
}

/// Endpoints of one network that serve the same service ports. The first group of a network has all its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    service_ports: Box<[u16]>,
    tree: Tree,
}

/// Endpoints, and below them those that share one more place with the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    pool: Pool,
    nearer: Vec<(Arc<str>, Tree)>,
}

/// What is known of an endpoint here beyond the mesh configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Its connections from here, also those that are being opened.
    pub connections: u32,
    /// Whether connections to it keep failing. It is picked only when every other one is like that, too.
    pub aside: bool,
    /// How much of its weight it lacks because it has just come, in parts of 2^16; see [`cold`].
    pub cold: u16,
}

impl Standing {
    /// What it has of its weight, in parts of 2^16.
    fn warmth(self) -> u32 {
        (1 << 16) - u32::from(self.cold)
    }

    /// Whether one that was drawn with `number` is taken: as often as it has of its weight.
    fn is_up(self, number: u64) -> bool {
        self.cold == 0 || (mix(number) & 0xffff) >= u64::from(self.cold)
    }
}

/// How much of its weight an endpoint lacks that came `age` ago, where it gets all of it after `window`: at first nine
/// tenths, then less and less.
pub fn cold(age: Duration, window: Duration) -> u16 {
    let left = window.saturating_sub(age).as_millis();
    let lacks = (left * 9 * (1 << 16)) / (window.as_millis().max(1) * 10);
    u16::try_from(lacks).unwrap_or(u16::MAX)
}

/// By what an endpoint is chosen among those that are equally good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// As the service says: the caller's own where callers stay with theirs, else the less busy of two.
    #[default]
    Service,
    /// Of two drawn by weight, the one with fewer connections for its weight.
    LessBusy,
    /// Drawn by weight.
    Random,
    /// In turn; the number of the turn.
    Turn(u64),
    /// By a key, on a circle. Where none was prepared, as by [`By::LessBusy`].
    Ring(u64),
    /// By a key, in a table. Where none was prepared, as by [`By::LessBusy`].
    Maglev(u64),
}

/// What is prepared to find endpoints by keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tables {
    /// For [`By::Ring`].
    pub ring: bool,
    /// For [`By::Maglev`].
    pub maglev: bool,
}

/// Where the standing of endpoints is found, by the address and port that serve.
pub trait Standings: fmt::Debug {
    /// How `endpoint` stands.
    fn of(&self, endpoint: SocketAddr) -> Standing;
}

/// Knows nothing beyond the mesh configuration: every endpoint is as good as the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alike;

impl Standings for Alike {
    fn of(&self, _: SocketAddr) -> Standing {
        Standing::default()
    }
}

/// Who wants an endpoint of a service, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who.
    pub caller: &'a Workload,
    /// The service port it shall serve; with `None` any.
    pub service_port: Option<u16>,
    /// By what it is chosen.
    pub by: By,
    /// Decides among equals.
    pub entropy: u64,
}

/// The endpoint that was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its position in the service's list of members.
    pub member: usize,
    /// Whether it is set aside and was picked for want of a better one.
    pub doubtful: bool,
}

/// Most places that a preference compares, which is how many kinds there are.
const MAX_SCOPES: usize = 6;

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// There is none that may be used.
    Unusable,
    /// There are some, but in other networks.
    OtherNetwork,
}

impl Picker {
    /// Arranges `members` by what `service` asks for, with `tables` beside.
    pub fn new(service: &Service, members: &[Arc<Workload>], tables: Tables) -> Self {
        let tables = match service.balancing.affinity {
            Affinity::None => tables,
            Affinity::ClientAddress => Tables { ring: true, ..tables },
        };
        let preference = preference(service);
        let mut by_network: Vec<(Arc<str>, Vec<u32>)> = Vec::new();
        for (i, member) in (0u32..).zip(members) {
            if !may_be_used(service, member) {
                continue;
            }
            match by_network.iter_mut().find(|(network, _)| *network == member.network) {
                Some((_, indexes)) => indexes.push(i),
                None => by_network.push((member.network.clone(), vec![i])),
            }
        }
        let arrange = |(network, all): (Arc<str>, Vec<u32>)| {
            let mut groups: Vec<(Vec<u16>, Vec<u32>)> = vec![(Vec::new(), all.clone())];
            for port in &service.ports {
                let serves = |i: &u32| target_port(service, &members[*i as usize], port.service_port).is_some();
                let serving: Vec<u32> = all.iter().copied().filter(serves).collect();
                match groups.iter_mut().find(|(_, indexes)| *indexes == serving) {
                    Some((ports, _)) => ports.push(port.service_port),
                    None => groups.push((vec![port.service_port], serving)),
                }
            }
            let group = |(service_ports, indexes): (Vec<u16>, Vec<u32>)| Group {
                service_ports: service_ports.into(),
                tree: Tree::new(members, indexes, preference, tables),
            };
            (network, groups.into_iter().map(group).collect())
        };
        Self { networks: by_network.into_iter().map(arrange).collect() }
    }

    /// An endpoint that serves what is asked for. `standing` is asked about members by their position; those for which
    /// it knows none are out of the question.
    pub fn pick(
        &self,
        service: &Service,
        ask: &Ask<'_>,
        standing: impl Fn(usize) -> Option<Standing>,
    ) -> Result<Choice, NoEndpoint> {
        let serves = |group: &&Group| ask.service_port.is_none_or(|port| group.service_ports.contains(&port));
        let mut here = self.networks.iter().filter(|(network, _)| *network == ask.caller.network);
        let found = here.find_map(|(_, groups)| groups.iter().find(serves));
        let way = Way {
            caller: ask.caller,
            strict: service.balancing.mode == BalancingMode::Strict,
            by: match (ask.by, service.balancing.affinity) {
                (By::Service, Affinity::None) => By::LessBusy,
                (By::Service, Affinity::ClientAddress) => By::Ring(client(ask.caller)),
                (by, _) => by,
            },
            entropy: ask.entropy,
        };
        let among = |doubtful: bool| {
            let may = |member: u32| standing(member as usize).filter(|standing| doubtful || !standing.aside);
            let member = found?.tree.choose(&way, preference(service), &may)? as usize;
            Some(Choice { member, doubtful })
        };
        match among(false).or_else(|| among(true)) {
            Some(picked) => Ok(picked),
            None if self.networks.iter().any(|(network, _)| *network != ask.caller.network) => {
                Err(NoEndpoint::OtherNetwork)
            }
            None => Err(NoEndpoint::Unusable),
        }
    }
}

/// What endpoints should share with their callers, as far as the mode asks for it.
fn preference(service: &Service) -> &[Scope] {
    match service.balancing.mode {
        BalancingMode::Strict | BalancingMode::Failover => {
            let all = &service.balancing.preference;
            &all[..all.len().min(MAX_SCOPES)]
        }
        BalancingMode::Any | BalancingMode::Passthrough => &[],
    }
}

/// What keeps a caller with its endpoint: its first address, whichever family it calls with.
fn client(caller: &Workload) -> u64 {
    match caller.addresses.first() {
        Some(IpAddr::V4(ip)) => pool::hash(&ip.octets()),
        Some(IpAddr::V6(ip)) => pool::hash(&ip.octets()),
        None => pool::hash(caller.uid.as_str().as_bytes()),
    }
}

/// Whether `member` may be picked: it is healthy or need not be, has a weight, and has an address.
pub(crate) fn may_be_used(service: &Service, member: &Workload) -> bool {
    let healthy = match member.health {
        Health::Healthy => true,
        Health::Unhealthy => service.balancing.allow_unhealthy,
    };
    let reachable = member.known_as().is_some() || member.addresses.iter().any(|ip| allows(service.ip_families, *ip));
    healthy && member.capacity > 0 && reachable
}

/// Whether callers of a service may be given `ip`.
pub(crate) fn allows(families: IpFamilies, ip: IpAddr) -> bool {
    match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
    }
}

/// The port on which `member` serves `service_port` of `service`: as the endpoint says, else as the service says.
pub fn target_port(service: &Service, member: &Workload, service_port: u16) -> Option<u16> {
    let own = member.ports_of(&service.key).and_then(|ports| ports.iter().find(|p| p.service_port == service_port));
    own.or_else(|| service.port(service_port)).map(|p| p.target_port).filter(|port| *port != 0)
}

/// The address of `member` to dial for a caller that spoke to `asked`: of the same family when the service allows and
/// the member has one.
pub fn address(families: IpFamilies, member: &Workload, asked: IpAddr) -> Option<IpAddr> {
    let mut allowed = member.addresses.iter().copied().filter(|ip| allows(families, *ip));
    let first = allowed.clone().next();
    allowed.find(|ip| ip.is_ipv4() == asked.is_ipv4()).or(first)
}

fn place(workload: &Workload, scope: Scope) -> &Arc<str> {
    match scope {
        Scope::Region => &workload.locality.region,
        Scope::Zone => &workload.locality.zone,
        Scope::Subzone => &workload.locality.subzone,
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster,
        Scope::Network => &workload.network,
    }
}

/// How a caller goes through a [`Tree`].
struct Way<'a> {
    caller: &'a Workload,
    /// Only to endpoints that share everything.
    strict: bool,
    by: By,
    entropy: u64,
}

impl Tree {
    fn new(members: &[Arc<Workload>], indexes: Vec<u32>, preference: &[Scope], tables: Tables) -> Self {
        let mut nearer = Vec::new();
        if let Some((scope, rest)) = preference.split_first() {
            let mut parts: BTreeMap<&Arc<str>, Vec<u32>> = BTreeMap::new();
            for i in &indexes {
                parts.entry(place(&members[*i as usize], *scope)).or_default().push(*i);
            }
            let part = |(at, part): (&Arc<str>, Vec<u32>)| (at.clone(), Tree::new(members, part, rest, tables));
            nearer = parts.into_iter().map(part).collect();
        }
        Self { pool: Pool::new(members, indexes, tables), nearer }
    }

    /// An endpoint that `may` be taken, among those that share most leading places with the caller.
    fn choose(&self, way: &Way<'_>, preference: &[Scope], may: &impl Fn(u32) -> Option<Standing>) -> Option<u32> {
        if let Some((scope, rest)) = preference.split_first() {
            let at = place(way.caller, *scope);
            let nearer = self.nearer.binary_search_by(|(place, _)| place.cmp(at)).ok().map(|i| &self.nearer[i].1);
            let found = nearer.and_then(|tree| tree.choose(way, rest, may));
            if found.is_some() || way.strict {
                return found;
            }
        }
        self.pool.choose(way.by, way.entropy, may)
    }
}

/// Draws one of `weights`; used for few alternatives that do not deserve a table.
pub fn draw_weighted(weights: impl Iterator<Item = u32> + Clone, entropy: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    // Stirred (by the golden ratio), because the same number then picks the endpoint behind the alternative.
    let stirred = (entropy ^ (entropy >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut at = ((u128::from(stirred) * u128::from(total)) >> 64) as u64;
    for (i, weight) in weights.enumerate() {
        match at.checked_sub(u64::from(weight)) {
            Some(rest) => at = rest,
            None => return Some(i),
        }
    }
    None
}

#[cfg(test)]
mod tests;
