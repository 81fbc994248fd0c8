//! Something that runs outside Kubernetes, reduced: a `WorkloadEntry`, or an endpoint within a `ServiceEntry`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use loam_core::ids::{Hostname, Identity, TrustDomain};
use loam_core::workload::Locality;
use loam_manifest::istio::WorkloadEntrySpec;

use super::use_waypoint::UseWaypoint;
use super::{Flaw, Labels, quoted, usable_ip, usable_port, usable_text};

/// Says with the value `http` that a ztunnel of its own answers at the address.
pub(super) const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

/// Most named ports of one entry.
const MAX_PORTS: usize = 1_000;

/// What matters about something that runs outside Kubernetes.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadEntry {
    /// Where it is.
    pub address: Address,
    /// Its labels.
    pub labels: Labels,
    /// By name of a service's port, where it serves that port on another number.
    pub ports: Box<[(Box<str>, u16)]>,
    /// The network of its address; `None` is the mesh's.
    pub network: Option<Arc<str>>,
    /// Where it stands.
    pub locality: Arc<Locality>,
    /// Its share beside others.
    pub weight: u32,
    /// Who it speaks as, within its namespace.
    pub service_account: Arc<str>,
    /// Whether a ztunnel of its own answers at the address.
    pub in_mesh: bool,
    /// What it says about the waypoint in front of it; an endpoint within a `ServiceEntry` has none.
    pub waypoint: UseWaypoint,
}

/// Where something is that runs outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// At an address.
    Ip(IpAddr),
    /// Where a name leads to, which whoever connects finds out.
    Name(Hostname),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(ip) => ip.fmt(f),
            Address::Name(name) => name.fmt(f),
        }
    }
}

impl WorkloadEntry {
    /// Somebody of whom nothing is known but a name.
    pub fn named(host: Hostname) -> Self {
        Self {
            address: Address::Name(host),
            labels: Labels::default(),
            ports: Box::default(),
            network: None,
            locality: Arc::default(),
            weight: 1,
            service_account: "default".into(),
            in_mesh: false,
            waypoint: UseWaypoint::Never,
        }
    }

    /// Where it serves the port of a service that goes by a name, if it says so.
    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| **n == *name).map(|(_, port)| *port)
    }
}

/// Reads it; `None` for one that nothing can reach, or that would be somebody it cannot be.
pub fn read(spec: WorkloadEntrySpec, flaws: &mut Vec<Flaw>) -> Option<WorkloadEntry> {
    let address = match address(spec.address.as_deref().unwrap_or_default()) {
        Ok(address) => address,
        Err(flaw) => {
            flaws.push(format!("is left out: {flaw}"));
            return None;
        }
    };
    let service_account = spec.service_account.filter(|a| !a.is_empty()).unwrap_or_else(|| "default".to_owned());
    if let Err(error) = Identity::new(TrustDomain::default(), "any", &service_account) {
        flaws.push(format!("{address} is left out: {error}"));
        return None;
    }
    let labels: Labels = spec.labels.unwrap_or_default().into();
    Some(WorkloadEntry {
        ports: ports(spec.ports.unwrap_or_default(), flaws),
        network: spec.network.filter(|n| !n.is_empty()).map(|n| usable_text("network", &n, flaws).into()),
        locality: locality(spec.locality.as_deref().unwrap_or_default(), flaws),
        weight: weight(spec.weight, flaws),
        service_account: service_account.into(),
        in_mesh: labels.get(TUNNEL_LABEL) == Some("http"),
        waypoint: UseWaypoint::Never,
        labels,
        address,
    })
}

fn address(text: &str) -> Result<Address, Flaw> {
    if text.is_empty() {
        return Err("it has no address, and gateways to other networks are not built: give it one".to_owned());
    }
    if text.starts_with("unix:") {
        return Err(format!("{} is a Unix socket, which is no place on a network", quoted(text)));
    }
    if text.parse::<IpAddr>().is_ok() {
        return usable_ip(text).map(Address::Ip);
    }
    match text.parse::<Hostname>() {
        // A name of digits is an address that went wrong, and never a name that anybody has.
        Ok(name) if !name.as_str().starts_with("*.") && !is_numeric(&name) => Ok(Address::Name(name)),
        Ok(_) | Err(_) => Err(format!("{} is neither an IP address nor a name that can be resolved", quoted(text))),
    }
}

fn is_numeric(name: &Hostname) -> bool {
    name.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn ports(given: BTreeMap<String, i64>, flaws: &mut Vec<Flaw>) -> Box<[(Box<str>, u16)]> {
    let mut ports = Vec::new();
    for (name, number) in given.into_iter().take(MAX_PORTS) {
        match usable_port(&format!("port {}", quoted(&name)), number) {
            Ok(port) => ports.push((name.into(), port)),
            Err(flaw) => flaws.push(flaw),
        }
    }
    ports.into()
}

/// `region/zone/subzone`, of which the end may be left out.
fn locality(text: &str, flaws: &mut Vec<Flaw>) -> Arc<Locality> {
    let text = usable_text("locality", text, flaws);
    let mut parts = text.splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default().into();
    Arc::new(Locality { region: part(), zone: part(), subzone: part() })
}

/// Unset is 1, and so is 0: whoever should get nothing is taken away.
fn weight(given: Option<i64>, flaws: &mut Vec<Flaw>) -> u32 {
    match given.map(u32::try_from) {
        None | Some(Ok(0)) => 1,
        Some(Ok(weight)) => weight,
        Some(Err(_)) => {
            flaws.push(format!("weight {} is not between 0 and {}: 1 is used", given.unwrap_or_default(), u32::MAX));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(spec: &str) -> (Option<WorkloadEntry>, Vec<Flaw>) {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm}}\nspec: {{{spec}}}\n"
        );
        let mut state = loam_manifest::read([("m.yaml", text.as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        let Some(loam_manifest::Object::WorkloadEntry(entry)) = state.objects.pop() else { panic!("no entry") };
        let mut flaws = Vec::new();
        (read(entry.spec, &mut flaws), flaws)
    }

    #[test]
    fn a_machine_says_where_and_who_it_is() {
        let (vm, flaws) = entry(
            "address: 192.0.2.7, serviceAccount: db, network: west, weight: 3, locality: r1/z1/rack/7, \
             labels: {app: db, networking.istio.io/tunnel: http}, ports: {sql: 15432}",
        );
        let vm = vm.unwrap();
        assert_eq!(flaws, [""; 0]);
        assert_eq!(vm.address, Address::Ip("192.0.2.7".parse().unwrap()));
        assert_eq!((&*vm.service_account, vm.network.as_deref(), vm.weight), ("db", Some("west"), 3));
        assert_eq!((&*vm.locality.region, &*vm.locality.zone, &*vm.locality.subzone), ("r1", "z1", "rack/7"));
        assert_eq!((vm.in_mesh, vm.port("sql"), vm.port("http")), (true, Some(15432), None));
        assert_eq!(entry("address: DB.example.org").0.unwrap().address.to_string(), "db.example.org");
    }

    #[test]
    fn what_nothing_can_reach_is_left_out_and_told() {
        let cases = [
            ("", "has no address"),
            ("address: ''", "has no address"),
            ("address: unix:///run/db.sock", "Unix socket"),
            ("address: 300.1.1.1", "neither an IP address nor a name"),
            ("address: '*.example.org'", "neither an IP address nor a name"),
            ("address: fe80::1%eth0", "neither an IP address nor a name"),
            ("address: a b", "neither an IP address nor a name"),
            ("address: 127.0.0.1", "cannot be the address"),
            ("address: 224.0.0.1", "cannot be the address"),
            ("address: 192.0.2.1, serviceAccount: a/b", "service account"),
        ];
        for (spec, expected) in cases {
            let (entry, flaws) = entry(spec);
            assert!(entry.is_none() && flaws.len() == 1, "{spec}: {entry:?} {flaws:?}");
            assert!(flaws[0].contains("left out") && flaws[0].contains(expected), "{spec}: {flaws:?}");
        }
    }

    #[test]
    fn a_wrong_part_is_told_and_the_rest_counts() {
        let (vm, flaws) =
            entry("address: 192.0.2.7, weight: -1, ports: {a: 0, b: 65536, c: 80}, locality: \"r\\u0007\"");
        let vm = vm.unwrap();
        assert_eq!((vm.weight, vm.port("a"), vm.port("b"), vm.port("c")), (1, None, None, Some(80)));
        assert_eq!(&*vm.locality.region, "");
        assert_eq!(flaws.len(), 4, "{flaws:?}");
        assert_eq!(entry("address: 192.0.2.7, weight: 0").0.unwrap().weight, 1);
    }
}
