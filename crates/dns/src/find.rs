//! Which names belong to the mesh, and what they stand for.

use std::net::IpAddr;

use loam_core::ids::MAX_NAME_BYTES;
use loam_core::service::{IpFamilies, Service};
use loam_core::snapshot::Snapshot;
use loam_core::workload::{Health, Workload, WorkloadKind};

use crate::client::Client;

/// How long a virtual address may be kept, in seconds: it stays the same as long as its service.
pub(crate) const VIRTUAL_TTL: u32 = 30;

/// How long the address of an endpoint may be kept. Short: who dials it directly has no mesh to pick another.
pub(crate) const ENDPOINT_TTL: u32 = 5;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

/// A name that the mesh has.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// The name in full, where the client asked for it with one of its search domains appended by mistake.
    pub(crate) alias: Option<String>,
    pub(crate) target: Target<'a>,
}

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    /// A service with virtual addresses.
    Service(&'a Service),
    /// A headless service: its endpoints.
    Endpoints(&'a Service),
    /// One pod of a StatefulSet, by its name beneath a headless service.
    Pod(&'a Service, String),
}

/// What `name`, in lower case and without final dot, means to `client`; none if it is not the mesh's to answer.
///
/// The client's resolver turns a short name into a series of full ones. All of them that are the mesh's have one
/// meaning here: so a name of the mesh resolves at the resolver's first try, and also while the pod's servers are down.
pub(crate) fn find<'a>(snapshot: &'a Snapshot, client: &Client, name: &str) -> Option<Found<'a>> {
    if let Some(target) = full(snapshot, client, name).or_else(|| wildcard(snapshot, client, name)) {
        return Some(Found { alias: None, target });
    }
    if client.is_short(name)
        && let Some((_, target)) = searched(snapshot, client, name)
    {
        return Some(Found { alias: None, target });
    }
    if beneath_a_service(snapshot, client, name) {
        return None;
    }
    client.search().iter().find_map(|domain| {
        let short = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        if short.is_empty() || !client.is_short(short) {
            return None;
        }
        if let Some((alias, target)) = searched(snapshot, client, short) {
            return Some(Found { alias: Some(alias), target });
        }
        let target = full(snapshot, client, short).or_else(|| wildcard(snapshot, client, short))?;
        Some(Found { alias: Some(short.to_owned()), target })
    })
}

/// A full name: a service's, or that of a pod beneath a headless service.
fn full<'a>(snapshot: &'a Snapshot, client: &Client, name: &str) -> Option<Target<'a>> {
    let answered = |service: &Service| is_virtual(service, client) || is_headless(service);
    if let Some(service) = snapshot.service_spelled(name, &client.namespace, answered) {
        return Some(if is_headless(service) { Target::Endpoints(service) } else { Target::Service(service) });
    }
    let (pod, rest) = name.split_once('.')?;
    let service = snapshot.service_spelled(rest, &client.namespace, is_headless)?;
    // Pods that chose a hostname of their own are not known by it here, so a name that is not found may still exist.
    let known = snapshot.pods_named(&service.key.namespace, pod).any(|w| is_ordinal(w) && serves(w, service));
    known.then(|| Target::Pod(service, pod.to_owned()))
}

/// A name beneath a wildcard; the longest wildcard counts.
fn wildcard<'a>(snapshot: &'a Snapshot, client: &Client, name: &str) -> Option<Target<'a>> {
    let dots = name.bytes().enumerate().filter(|(_, b)| *b == b'.').map(|(at, _)| at);
    let mut spelled = String::with_capacity(name.len() + 1);
    for at in dots {
        spelled.clear();
        spelled.push('*');
        spelled.push_str(&name[at..]);
        let service = snapshot.service_spelled(&spelled, &client.namespace, |service| is_virtual(service, client));
        if let Some(service) = service {
            return Some(Target::Service(service));
        }
    }
    None
}

/// A short name with the search domain that makes it a name of the mesh, in full.
fn searched<'a>(snapshot: &'a Snapshot, client: &Client, short: &str) -> Option<(String, Target<'a>)> {
    client.search().iter().find_map(|domain| {
        if short.len() + 1 + domain.len() > MAX_NAME_BYTES {
            return None;
        }
        let name = format!("{short}.{domain}");
        let target = full(snapshot, client, &name)?;
        Some((name, target))
    })
}

/// Whether a service of the cluster has the domain just above `name`: then it names a pod, known or not, and is no
/// short name with a search domain behind it.
fn beneath_a_service(snapshot: &Snapshot, client: &Client, name: &str) -> bool {
    let parent = name.split_once('.').map_or("", |(_, parent)| parent);
    snapshot.service_spelled(parent, &client.namespace, is_of_cluster).is_some()
}

/// Whether it has an address that `client` can dial. A range is not one.
fn is_virtual(service: &Service, client: &Client) -> bool {
    virtual_addresses(service, client).next().is_some()
}

fn virtual_addresses<'a>(service: &'a Service, client: &'a Client) -> impl Iterator<Item = IpAddr> + 'a {
    let single = service.addresses.iter().filter(|addr| addr.range.prefix_len() == addr.range.max_prefix_len());
    single.filter(|addr| addr.network == client.network).map(|addr| addr.range.addr())
}

/// Whether it is a Kubernetes service without virtual addresses.
fn is_headless(service: &Service) -> bool {
    service.addresses.is_empty() && is_of_cluster(service)
}

/// Whether its hostname is the one that Kubernetes gives: `<name>.<namespace>.svc.<domain>`.
fn is_of_cluster(service: &Service) -> bool {
    let rest = service.key.hostname.as_str().strip_prefix(&*service.name).and_then(|rest| rest.strip_prefix('.'));
    let rest = rest.and_then(|rest| rest.strip_prefix(&*service.key.namespace));
    rest.is_some_and(|rest| rest.starts_with(".svc"))
}

/// Whether its name ends in a number, as a StatefulSet's pods are named.
fn is_ordinal(pod: &Workload) -> bool {
    let number = pod.name.rsplit_once('-').map_or("", |(_, number)| number);
    pod.kind == WorkloadKind::Pod && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

fn serves(workload: &Workload, service: &Service) -> bool {
    workload.ports_of(&service.key).is_some()
}

impl Target<'_> {
    /// How long its addresses may be kept, in seconds.
    pub(crate) fn ttl(&self) -> u32 {
        match self {
            Target::Service(_) => VIRTUAL_TTL,
            Target::Endpoints(_) | Target::Pod(..) => ENDPOINT_TTL,
        }
    }

    /// At most `max` of its addresses, in an order that `entropy` decides.
    pub(crate) fn addresses(
        &self,
        snapshot: &Snapshot,
        client: &Client,
        wanted: Wanted,
        max: usize,
        entropy: u64,
    ) -> Vec<IpAddr> {
        let usable = |w: &Workload, service: &Service| {
            (w.health == Health::Healthy || service.balancing.allow_unhealthy) && w.network == client.network
        };
        let mut addresses: Vec<IpAddr> = match self {
            Target::Service(service) => {
                let addresses = virtual_addresses(service, client);
                addresses.filter(|ip| wanted.has(*ip) && offers(service, *ip)).take(max).collect()
            }
            Target::Endpoints(service) => {
                let workloads = snapshot.members(&service.key).map(|members| members.workloads()).unwrap_or_default();
                // From a random place on, since only some of very many may fit.
                let (before, after) = workloads.split_at(below(entropy, workloads.len()));
                let workloads = after.iter().chain(before).filter(|w| usable(w, service));
                let addresses = workloads.flat_map(|w| w.addresses.iter().copied());
                addresses.filter(|ip| wanted.has(*ip) && offers(service, *ip)).take(max).collect()
            }
            Target::Pod(service, name) => {
                let pods = snapshot.pods_named(&service.key.namespace, name);
                let pods = pods.filter(|w| serves(w, service) && usable(w, service));
                pods.flat_map(|w| w.addresses.iter().copied()).filter(|ip| wanted.has(*ip)).take(max).collect()
            }
        };
        shuffle(&mut addresses, entropy);
        addresses
    }
}

impl Wanted {
    fn has(self, ip: IpAddr) -> bool {
        if ip.is_ipv6() { self.v6 } else { self.v4 }
    }
}

fn offers(service: &Service, ip: IpAddr) -> bool {
    match service.ip_families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
    }
}

fn below(random: u64, bound: usize) -> usize {
    match u64::try_from(bound) {
        Ok(bound) if bound > 0 => usize::try_from(random % bound).unwrap_or(0),
        Ok(_) | Err(_) => 0,
    }
}

fn shuffle<T>(items: &mut [T], mut entropy: u64) {
    for at in (1..items.len()).rev() {
        // One step of a linear congruential generator; its high bits are the good ones.
        entropy = entropy.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(at, below(entropy >> 33, at + 1));
    }
}
