//! A `ServiceEntry`, reduced: hosts that are no service of Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_core::ids::{Hostname, Identity};
use loam_core::service::Visibility;
use loam_manifest::istio::{EntryPort, ServiceEntrySpec};

use super::service::{Distribution, Membership, Port, TRAFFIC_DISTRIBUTION, Target, distribution, protocol};
use super::use_waypoint::UseWaypoint;
use super::workload_entry::{self, Address, WorkloadEntry};
use super::{Flaw, quoted, usable_ip, usable_port};

/// Says with the value `false` that no address is to be made up for the hosts.
const ALLOCATE_LABEL: &str = "networking.istio.io/enable-autoallocate-ip";

/// Bounds of one entry, each several times what anybody writes by hand.
const MAX_HOSTS: usize = 256;
const MAX_ADDRESSES: usize = 256;
const MAX_PORTS: usize = 1_000;
const MAX_ENDPOINTS: usize = 1_000;
const MAX_EXPORTS: usize = 256;

/// What matters about a `ServiceEntry`.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// When it was made, if that is known: who came first counts.
    pub created: Option<Timestamp>,
    /// Names that callers know, each a service of its own.
    pub hosts: Box<[Hostname]>,
    /// Their virtual addresses.
    pub addresses: Addresses,
    /// How their endpoints are found.
    pub resolution: Resolution,
    /// Which workloads serve them, and on which ports.
    pub membership: Membership,
    /// Endpoints that are written down here.
    pub endpoints: Box<[WorkloadEntry]>,
    /// Who sees them; `None` is nobody.
    pub visibility: Option<Visibility>,
    /// Identities of endpoints beside their own.
    pub subject_alt_names: Vec<Identity>,
    /// Where traffic goes first, if it says so itself.
    pub distribution: Option<Distribution>,
    /// What it says about the waypoint in front of it.
    pub waypoint: UseWaypoint,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// Virtual addresses of the hosts of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Addresses {
    /// These, for every host.
    Given(Box<[IpNet]>),
    /// Each host is given its own.
    Allocated,
    /// None: hosts are reached through their endpoints' addresses only.
    None,
}

/// How endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Not at all: connections go where the caller's own resolver sent them.
    None,
    /// They are written down, or selected.
    Static,
    /// As with [`Resolution::Static`]; endpoints may also be names, which whoever connects resolves.
    Dns,
    /// Each host is the name of its one endpoint, which whoever connects resolves.
    Hosts,
}

impl ServiceEntry {
    /// Single virtual addresses that it asks for.
    pub fn single_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let given = match &self.addresses {
            Addresses::Given(given) => &given[..],
            Addresses::Allocated | Addresses::None => &[],
        };
        given.iter().filter(|range| range.prefix_len() == range.max_prefix_len()).map(IpNet::addr)
    }
}

/// Reads it; `None` when nothing of it can be in force.
pub fn read(metadata: &ObjectMeta, spec: ServiceEntrySpec, flaws: &mut Vec<Flaw>) -> Option<ServiceEntry> {
    let own_namespace = metadata.namespace.as_deref().unwrap_or_default();
    let hosts = hosts(spec.hosts.unwrap_or_default(), flaws);
    let ports = ports(spec.ports.unwrap_or_default(), flaws);
    if hosts.is_empty() || ports.is_empty() {
        let missing = if hosts.is_empty() { "host" } else { "TCP port" };
        flaws.push(format!("is left out: it has no {missing} that can be used"));
        return None;
    }
    let external = location(spec.location.as_deref().unwrap_or_default(), flaws);
    let resolution = match spec.resolution.as_deref().unwrap_or_default() {
        "" | "NONE" => Resolution::None,
        "STATIC" => Resolution::Static,
        "DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS" => Resolution::Dns,
        other => {
            let other = quoted(other);
            flaws.push(format!("is left out: resolution {other} is not NONE, STATIC, DNS or DNS_ROUND_ROBIN"));
            return None;
        }
    };
    let selector: super::Labels = spec.workload_selector.and_then(|s| s.labels).unwrap_or_default().into();
    let given = spec.endpoints.unwrap_or_default();
    let (resolution, hosts) = match resolution {
        Resolution::Dns if selector.is_empty() && given.is_empty() => resolved_hosts(hosts, flaws),
        other => (other, hosts),
    };
    if !selector.is_empty() && !given.is_empty() {
        flaws.push("endpoints are ignored beside workloadSelector: write down one of them".to_owned());
    }
    let mut endpoints = Endpoints { resolution, external, read: BTreeMap::new() };
    if selector.is_empty() {
        for (i, endpoint) in given.into_iter().enumerate() {
            endpoints.add(i, endpoint, flaws);
        }
    }
    let addresses = addresses(spec.addresses.unwrap_or_default(), resolution, metadata, flaws);
    if matches!(addresses, Addresses::None) && resolution == Resolution::None {
        flaws.push(
            "has resolution NONE and no addresses, so nothing of a connection tells that it is meant: give it the \
             addresses or ranges that its hosts have"
                .to_owned(),
        );
    }
    let annotation = metadata.annotations.as_ref().and_then(|a| a.get(TRAFFIC_DISTRIBUTION));
    Some(ServiceEntry {
        created: metadata.creation_timestamp.as_ref().map(|t| t.0),
        hosts,
        addresses,
        resolution,
        membership: Membership { selector, ports },
        endpoints: endpoints.read.into_values().collect(),
        visibility: visibility(&spec.export_to.unwrap_or_default(), own_namespace, flaws),
        // Other forms of names mean something to those who speak TLS to the endpoint, which we do not.
        subject_alt_names: spec.subject_alt_names.iter().flatten().filter_map(|san| san.parse().ok()).collect(),
        distribution: annotation.and_then(|text| distribution(text, flaws)),
        waypoint: UseWaypoint::read(metadata, own_namespace, flaws),
        generation: metadata.generation,
    })
}

fn hosts(given: Vec<String>, flaws: &mut Vec<Flaw>) -> Box<[Hostname]> {
    let mut hosts: Vec<Hostname> = Vec::new();
    for text in given {
        // An address in the place of a name would be a name that nobody asks for.
        let is_ip = text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
        match text.parse::<Hostname>() {
            Ok(_) | Err(_) if is_ip => {
                flaws.push(format!(
                    "host {} is left out: it is an address, which belongs under addresses",
                    quoted(&text)
                ));
            }
            Ok(host) if hosts.contains(&host) => {}
            Ok(host) if hosts.len() < MAX_HOSTS => hosts.push(host),
            Ok(host) => flaws.push(format!("host {host} is left out: there are {MAX_HOSTS} already")),
            Err(error) => flaws.push(format!("a host is left out: {error}")),
        }
    }
    hosts.into()
}

/// Hosts whose names are to be resolved. A pattern cannot be; where there is nothing else, connections pass.
fn resolved_hosts(hosts: Box<[Hostname]>, flaws: &mut Vec<Flaw>) -> (Resolution, Box<[Hostname]>) {
    let is_pattern = |host: &Hostname| host.as_str().starts_with("*.");
    if hosts.iter().all(is_pattern) {
        flaws.push(
            "resolution DNS is read as NONE, because a pattern cannot be resolved: connections go where the caller's \
             own resolver sends them; declare the names themselves, or endpoints"
                .to_owned(),
        );
        return (Resolution::None, hosts);
    }
    let (patterns, names): (Vec<_>, Vec<_>) = hosts.into_iter().partition(is_pattern);
    for pattern in patterns {
        flaws.push(format!(
            "host {pattern} is left out, because a pattern cannot be resolved: declare the names themselves, or endpoints"
        ));
    }
    (Resolution::Hosts, names.into())
}

fn ports(given: Vec<EntryPort>, flaws: &mut Vec<Flaw>) -> Box<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for port in given {
        let declared = port.protocol.as_deref().unwrap_or_default().to_ascii_uppercase();
        if declared == "UDP" {
            flaws.push(format!("port {} is left out: only TCP is carried", port.number.unwrap_or_default()));
            continue;
        }
        let name = port.name.unwrap_or_default();
        let read = usable_port("port", port.number.unwrap_or_default()).and_then(|number| {
            let target = port.target_port.filter(|t| *t != 0).map_or(Ok(number), |t| usable_port("target port", t))?;
            Ok((number, target))
        });
        match read {
            Ok((number, _)) if ports.iter().any(|p| p.number == number) => {
                flaws.push(format!("port {number} is there twice: the first counts"));
            }
            Ok((number, _)) if ports.len() >= MAX_PORTS => {
                flaws.push(format!("port {number} is left out: there are {MAX_PORTS} already"));
            }
            Ok((number, target)) => ports.push(Port {
                // HTTPS is TLS that callers speak themselves.
                protocol: protocol(Some(&declared), &name),
                name: name.into(),
                number,
                target: Target::Number(target),
            }),
            Err(flaw) => flaws.push(flaw),
        }
    }
    ports.into()
}

/// Whether what is declared is outside the mesh.
fn location(text: &str, flaws: &mut Vec<Flaw>) -> bool {
    match text {
        "" | "MESH_EXTERNAL" => true,
        "MESH_INTERNAL" => false,
        other => {
            flaws.push(format!("location {} is read as MESH_EXTERNAL: the other is MESH_INTERNAL", quoted(other)));
            true
        }
    }
}

/// Endpoints that are written down, by address.
struct Endpoints {
    resolution: Resolution,
    external: bool,
    read: BTreeMap<Address, WorkloadEntry>,
}

impl Endpoints {
    fn add(&mut self, at: usize, spec: loam_manifest::istio::WorkloadEntrySpec, flaws: &mut Vec<Flaw>) {
        let mut own = Vec::new();
        let endpoint = workload_entry::read(spec, &mut own);
        flaws.extend(own.into_iter().map(|flaw| format!("endpoints[{at}]: {flaw}")));
        let Some(mut endpoint) = endpoint else { return };
        let why = match (&endpoint.address, self.resolution) {
            (_, Resolution::None) => Some("resolution NONE picks no endpoints: set STATIC or DNS"),
            (Address::Name(_), Resolution::Static) => {
                Some("it is a name, and resolution STATIC takes addresses: set DNS")
            }
            _ if self.read.len() >= MAX_ENDPOINTS => Some("there are too many"),
            _ if self.read.contains_key(&endpoint.address) => Some("the address is there twice, and the first counts"),
            _ => None,
        };
        if let Some(why) = why {
            flaws.push(format!("endpoints[{at}]: {} is left out: {why}", endpoint.address));
            return;
        }
        if self.external && endpoint.in_mesh {
            endpoint.in_mesh = false;
            let address = &endpoint.address;
            flaws.push(format!(
                "endpoints[{at}]: {address} is reached in the clear although its label asks for a tunnel: what is \
                 MESH_EXTERNAL has no ztunnel, so set MESH_INTERNAL"
            ));
        }
        self.read.insert(endpoint.address.clone(), endpoint);
    }
}

fn addresses(given: Vec<String>, resolution: Resolution, metadata: &ObjectMeta, flaws: &mut Vec<Flaw>) -> Addresses {
    if given.is_empty() {
        let refused = metadata.labels.as_ref().and_then(|l| l.get(ALLOCATE_LABEL)).is_some_and(|v| v == "false");
        // Without endpoints there is nobody to whom a made-up address could lead.
        return if refused || resolution == Resolution::None { Addresses::None } else { Addresses::Allocated };
    }
    let mut addresses: Vec<IpNet> = Vec::new();
    for text in given {
        match range(&text) {
            Ok(range) if addresses.contains(&range) => {}
            Ok(range) if addresses.len() < MAX_ADDRESSES => addresses.push(range),
            Ok(range) => flaws.push(format!("address {range} is left out: there are {MAX_ADDRESSES} already")),
            Err(flaw) => flaws.push(format!("an address is left out: {flaw}")),
        }
    }
    Addresses::Given(addresses.into())
}

fn range(text: &str) -> Result<IpNet, Flaw> {
    let Some((address, length)) = text.split_once('/') else { return usable_ip(text).map(IpNet::from) };
    let wrong = || format!("{} is neither an IP address nor a range such as 192.0.2.0/24", quoted(text));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    let range = IpNet::new(address, length).map_err(|_| wrong())?.trunc();
    if length == 0 {
        return Err(format!("{range} is every address there is"));
    }
    if length == range.max_prefix_len() {
        return usable_ip(&address.to_string()).map(IpNet::from);
    }
    Ok(range)
}

/// Who sees an entry. What is not understood shows it to nobody else.
fn visibility(export_to: &[String], own: &str, flaws: &mut Vec<Flaw>) -> Option<Visibility> {
    if export_to.is_empty() || export_to.iter().any(|e| e == "*") {
        return Some(Visibility::Public);
    }
    if export_to.iter().any(|e| e == "~") {
        if export_to.len() > 1 {
            flaws.push(
                "exportTo \"~\" shows it to nobody, whatever stands beside it: write one or the other".to_owned(),
            );
        }
        return None;
    }
    let mut shown: Vec<Arc<str>> = Vec::new();
    for namespace in export_to.iter().map(|e| if e == "." { own } else { e.as_str() }) {
        if !is_namespace(namespace) {
            let namespace = quoted(namespace);
            flaws.push(format!("exportTo {namespace} is left out: it is neither \".\", \"*\", \"~\" nor a namespace"));
            continue;
        }
        shown.push(namespace.into());
    }
    shown.sort();
    shown.dedup();
    if shown.len() > MAX_EXPORTS {
        flaws.push(format!("exportTo has {} namespaces, and {MAX_EXPORTS} count: export it to \"*\"", shown.len()));
        shown.truncate(MAX_EXPORTS);
    }
    match &shown[..] {
        [] => None,
        [only] if **only == *own => Some(Visibility::Namespace),
        _ => Some(Visibility::Namespaces(shown.into())),
    }
}

/// The form of the name of a namespace (RFC 1123 label).
fn is_namespace(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(valid) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
