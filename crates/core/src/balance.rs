//! Which endpoint of a service a connection goes to: health, locality, weight; randomness is passed in.
//!
//! All work is done when the mesh changes. A pick walks at most one step per routing preference and then draws from a
//! table, however many endpoints there are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{BalancingMode, IpFamilies, Scope, Service};
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

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEndpoint {
    /// There is none that may be used.
    Unusable,
    /// There are some, but in other networks.
    OtherNetwork,
}

impl Picker {
    /// Arranges `members` by what `service` asks for.
    pub fn new(service: &Service, members: &[Arc<Workload>]) -> Self {
        let preference: &[Scope] = match service.balancing.mode {
            BalancingMode::Strict | BalancingMode::Failover => &service.balancing.preference,
            BalancingMode::Any | BalancingMode::Passthrough => &[],
        };
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
                tree: Tree::new(members, indexes, preference),
            };
            (network, groups.into_iter().map(group).collect())
        };
        Self { networks: by_network.into_iter().map(arrange).collect() }
    }

    /// The position of an endpoint that serves `service_port` for `caller`; with `None` of any endpoint.
    pub fn pick(
        &self,
        service: &Service,
        caller: &Workload,
        service_port: Option<u16>,
        entropy: u64,
    ) -> Result<usize, NoEndpoint> {
        let serves = |group: &&Group| service_port.is_none_or(|port| group.service_ports.contains(&port));
        let mut here = self.networks.iter().filter(|(network, _)| *network == caller.network);
        let found = here.find_map(|(_, groups)| groups.iter().find(serves));
        let picked = found.and_then(|group| match service.balancing.mode {
            BalancingMode::Strict => group.tree.nearest(caller, &service.balancing.preference, true),
            BalancingMode::Failover => group.tree.nearest(caller, &service.balancing.preference, false),
            BalancingMode::Any | BalancingMode::Passthrough => Some(&group.tree.pool),
        });
        match picked.and_then(|pool| pool.draw(entropy)) {
            Some(index) => Ok(index as usize),
            None if self.networks.iter().any(|(network, _)| *network != caller.network) => {
                Err(NoEndpoint::OtherNetwork)
            }
            None => Err(NoEndpoint::Unusable),
        }
    }
}

fn may_be_used(service: &Service, member: &Workload) -> bool {
    let healthy = match member.health {
        Health::Healthy => true,
        Health::Unhealthy => service.balancing.allow_unhealthy,
    };
    healthy && member.capacity > 0 && member.addresses.iter().any(|ip| allows(service.ip_families, *ip))
}

fn allows(families: IpFamilies, ip: IpAddr) -> bool {
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

impl Tree {
    fn new(members: &[Arc<Workload>], indexes: Vec<u32>, preference: &[Scope]) -> Self {
        let mut nearer = Vec::new();
        if let Some((scope, rest)) = preference.split_first() {
            let mut parts: BTreeMap<&Arc<str>, Vec<u32>> = BTreeMap::new();
            for i in &indexes {
                parts.entry(place(&members[*i as usize], *scope)).or_default().push(*i);
            }
            nearer = parts.into_iter().map(|(at, part)| (at.clone(), Tree::new(members, part, rest))).collect();
        }
        Self { pool: Pool::new(members, indexes), nearer }
    }

    /// The endpoints that share most leading places with `caller`; all of them when `strict`.
    fn nearest(&self, caller: &Workload, preference: &[Scope], strict: bool) -> Option<&Pool> {
        let mut tree = self;
        for scope in preference {
            let at = place(caller, *scope);
            match tree.nearer.binary_search_by(|(place, _)| place.cmp(at)) {
                Ok(i) => tree = &tree.nearer[i].1,
                Err(_) if strict => return None,
                Err(_) => break,
            }
        }
        Some(&tree.pool)
    }
}

/// Endpoints with their weights. Equal weights, the usual case, need no table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pool {
    indexes: Box<[u32]>,
    /// For each position: below `keep` it stays, else `other` is taken (Walker's alias method).
    table: Option<Box<[Slot]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    keep: u32,
    other: u32,
}

impl Pool {
    fn new(members: &[Arc<Workload>], indexes: Vec<u32>) -> Self {
        let weights: Vec<u32> = indexes.iter().map(|i| members[*i as usize].capacity).collect();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        Self { table: (!equal).then(|| alias_table(&weights)), indexes: indexes.into() }
    }

    fn draw(&self, entropy: u64) -> Option<u32> {
        let n = self.indexes.len() as u64;
        // Two independent halves: which slot, and whether to stay there.
        let (high, low) = (entropy >> 32, entropy as u32);
        let at = ((high * n) >> 32) as usize;
        let at = match self.table.as_deref().and_then(|table| table.get(at)) {
            Some(slot) if low >= slot.keep => slot.other as usize,
            _ => at,
        };
        self.indexes.get(at).copied()
    }
}

/// Vose's construction in whole numbers: a slot's share is `keep / 2^32` of `1/n`.
fn alias_table(weights: &[u32]) -> Box<[Slot]> {
    let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let n = weights.len() as u128;
    let mut share: Vec<u128> = weights.iter().map(|w| u128::from(*w) * n).collect();
    let mut table: Vec<Slot> = (0u32..).take(weights.len()).map(|i| Slot { keep: u32::MAX, other: i }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|i| share[*i] < total);
    while let (Some(less), Some(more)) = (small.pop(), large.pop()) {
        let keep = (share[less] << 32) / total;
        table[less] = Slot { keep: u32::try_from(keep).unwrap_or(u32::MAX), other: more as u32 };
        share[more] -= total - share[less];
        if share[more] < total { small.push(more) } else { large.push(more) }
    }
    table.into()
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
