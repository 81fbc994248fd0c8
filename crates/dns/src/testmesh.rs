//! A small mesh written as text, and messages to ask it with.
//!
//! ```text
//! svc shop/web 10.1.0.1          the Kubernetes service web.shop.svc.cluster.local; without an address it is headless
//! entry shop/api.example.org 240.240.0.1 private
//! pod shop/db-0 10.0.0.1 serves=db unhealthy
//! ```

use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use loam_core::ids::{Identity, ServiceKey, TrustDomain, WorkloadUid};
use loam_core::service::{IpFamilies, Service, ServiceAddr, Visibility};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::{Health, ServicePorts, Workload, WorkloadKind};

use crate::Client;

pub(crate) fn mesh(text: &str) -> Snapshot {
    Snapshot::default().apply(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(line).collect())
}

/// A pod of namespace `shop` with the resolv.conf that Kubernetes writes.
pub(crate) fn client() -> Client {
    Client::new("shop", "", true, &["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"], 5)
}

/// The bytes of a question. Labels may be of any bytes, a name ends with a dot.
pub(crate) fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    message.add_query(Question::query(Name::from_labels(labels).unwrap(), kind));
    if let Some(bytes) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn line(text: &str) -> Change {
    let mut words = text.split_whitespace();
    let (kind, name) = (words.next().unwrap(), words.next().unwrap());
    let (namespace, short) = name.split_once('/').unwrap();
    match kind {
        "svc" => {
            let key = service_key(namespace, short);
            Change::Service(service(Service::new(key, short), words))
        }
        "entry" => {
            let key: ServiceKey = format!("{namespace}/{short}").parse().unwrap();
            Change::Service(service(Service::new(key, "entry"), words))
        }
        "pod" => {
            let uid = WorkloadUid::of_pod("c", namespace, short);
            let identity = Identity::new(TrustDomain::default(), namespace, "default").unwrap();
            let mut w = Workload { cluster: "c".into(), ..Workload::new(uid, short, identity) };
            for word in words {
                match word.split_once('=').unwrap_or((word, "")) {
                    ("unhealthy", _) => w.health = Health::Unhealthy,
                    ("deployment", _) => w.kind = WorkloadKind::Deployment,
                    ("network", value) => w.network = value.into(),
                    ("serves", value) => {
                        let served = ServicePorts { service: service_key(namespace, value), ports: Arc::default() };
                        w.services = [served].into();
                    }
                    (ips, _) => w.addresses = ips.split(',').map(|ip| ip.parse().unwrap()).collect(),
                }
            }
            Change::Workload(w)
        }
        _ => panic!("{text}"),
    }
}

fn service_key(namespace: &str, name: &str) -> ServiceKey {
    format!("{namespace}/{name}.{namespace}.svc.cluster.local").parse().unwrap()
}

fn service<'a>(mut service: Service, words: impl Iterator<Item = &'a str>) -> Service {
    let mut network: Arc<str> = "".into();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("private", _) => service.visibility = Visibility::Namespace,
            ("shown", value) => service.visibility = Visibility::Namespaces(value.split(',').map(Into::into).collect()),
            ("canonical", _) => service.canonical = true,
            ("v4", _) => service.ip_families = IpFamilies::Ipv4Only,
            ("unready-too", _) => service.balancing.allow_unhealthy = true,
            ("network", value) => network = value.into(),
            (vips, _) => {
                let range =
                    |text: &str| text.parse().unwrap_or_else(|_| text.parse::<std::net::IpAddr>().unwrap().into());
                let addresses = vips.split(',').map(|vip| ServiceAddr { network: network.clone(), range: range(vip) });
                service.addresses = addresses.collect();
            }
        }
    }
    service
}
