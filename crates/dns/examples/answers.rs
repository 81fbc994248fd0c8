//! Answers per second of one thread, and how long an answer takes: names of a mesh of 10,000 services, as a pod asks
//! for them. Prints one line of JSON.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loam_core::ids::ServiceKey;
use loam_core::service::{Service, ServiceAddr};
use loam_core::snapshot::{Change, Snapshot};
use loam_dns::{Client, Outcome, Query, Transport};

const SERVICES: u32 = 10_000;
const RUN: Duration = Duration::from_secs(2);

fn main() {
    let mesh = Snapshot::default().apply((0..SERVICES).map(service).collect());
    let client = Client::new("ns1", "", true, &["ns1.svc.cluster.local", "svc.cluster.local", "cluster.local"], 5);
    let questions: Vec<Vec<u8>> = (0..SERVICES).map(|n| question(&hostname(n))).collect();
    let mut times = Vec::new();
    let began = Instant::now();
    for (entropy, question) in (0u64..).zip(questions.iter().cycle()) {
        let at = Instant::now();
        let query = Query::read(question, Transport::Udp).expect("the question is well-formed");
        let outcome = black_box(query.decide(&mesh, &client, entropy));
        times.push(at.elapsed());
        assert!(matches!(outcome, Outcome::Answer { addresses: 1, .. }), "the mesh does not have its name");
        if began.elapsed() >= RUN {
            break;
        }
    }
    let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100].as_secs_f64() * 1e6;
    println!("{{\"answers_per_second\": {per_second:.0}, \"p99_us\": {p99:.2}}}");
}

fn hostname(n: u32) -> String {
    format!("service-{n}.ns{}.svc.cluster.local", n % 100)
}

fn service(n: u32) -> Change {
    let key: ServiceKey = format!("ns{}/{}", n % 100, hostname(n)).parse().expect("the key is a service's");
    let ip = std::net::Ipv4Addr::from(0x0a60_0000 + n);
    let addresses = vec![ServiceAddr { network: Arc::default(), range: std::net::IpAddr::from(ip).into() }];
    Change::Service(Service { addresses, ..Service::new(key, format!("service-{n}")) })
}

/// A question for A records, with EDNS as the C library's resolver sends it when told to.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}
