//! What the pick of an endpoint costs: nanoseconds for each kind of service, as one line of JSON.
//!
//! `pick [ENDPOINTS] [PICKS]`; 10,000 endpoints unless told otherwise.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures and reports")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use loam_core::addr::OrigDst;
use loam_core::balance::{Standing, Standings};
use loam_core::ids::{Identity, ServiceKey, TrustDomain, WorkloadUid};
use loam_core::outbound::{Query, plan};
use loam_core::service::{Affinity, AppProtocol, Balancing, BalancingMode, Port, Scope, Service, ServiceAddr};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::{Locality, ServicePorts, TunnelProtocol, Workload};

/// A load that differs from endpoint to endpoint, so that the comparison of two has something to decide.
#[derive(Debug)]
struct Load;

impl Standings for Load {
    fn of(&self, endpoint: SocketAddr) -> Standing {
        let IpAddr::V4(ip) = endpoint.ip() else { return Standing::default() };
        Standing { connections: ip.to_bits() % 7, ..Standing::default() }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u32>().ok());
    let (endpoints, picks) = (arguments.next().unwrap_or(10_000), arguments.next().unwrap_or(1_000_000));
    let near = vec![Scope::Network, Scope::Region, Scope::Zone];
    let kinds = [
        ("any", Balancing::default(), 1),
        ("weighted", Balancing::default(), 100),
        ("failover", Balancing { mode: BalancingMode::Failover, preference: near, ..Balancing::default() }, 1),
        ("affinity", Balancing { affinity: Affinity::ClientAddress, ..Balancing::default() }, 1),
    ];
    let measured: Vec<String> = kinds
        .into_iter()
        .map(|(name, balancing, weights)| {
            format!("\"{name}_ns\":{:.1}", nanoseconds(endpoints, picks.max(1), balancing, weights))
        })
        .collect();
    println!("{{\"endpoints\":{endpoints},{}}}", measured.join(","));
}

/// A whole decision about a connection to a service, of which the pick is the greater part.
fn nanoseconds(endpoints: u32, picks: u32, balancing: Balancing, weights: u32) -> f64 {
    let vip: IpAddr = Ipv4Addr::new(10, 255, 0, 1).into();
    let snapshot = mesh(endpoints, balancing, weights, vip);
    let caller = WorkloadUid::of_pod("c", "shop", "web-0");
    let source = snapshot.workload(&caller).expect("the mesh has its caller");
    let original_dst = OrigDst::new(SocketAddr::new(vip, 80));
    let mut entropy = 1u64;
    let began = Instant::now();
    for _ in 0..picks {
        entropy = entropy.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let query = Query { standings: &Load, ..Query::new(source, original_dst, entropy) };
        std::hint::black_box(plan(&snapshot, &query).is_ok());
    }
    began.elapsed().as_nanos() as f64 / f64::from(picks)
}

fn mesh(endpoints: u32, balancing: Balancing, weights: u32, vip: IpAddr) -> Snapshot {
    let key: ServiceKey = "shop/api.shop.svc".parse().expect("a key");
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Tcp };
    let service = Service {
        addresses: vec![ServiceAddr { network: "".into(), range: vip.into() }],
        ports: vec![port],
        balancing,
        ..Service::new(key.clone(), "api")
    };
    let served: Arc<[ServicePorts]> = [ServicePorts { service: key, ports: [port].into() }].into();
    let identity = Identity::new(TrustDomain::default(), "shop", "api").expect("an identity");
    let zones: Vec<Arc<Locality>> = (0..3)
        .map(|zone| Arc::new(Locality { region: "r".into(), zone: format!("z{zone}").into(), subzone: "".into() }))
        .collect();
    let workload = |kind: &str, i: u32, services: Arc<[ServicePorts]>| {
        let name = format!("{kind}-{i}");
        Workload {
            addresses: vec![Ipv4Addr::from(0x0A00_0000 + i).into()],
            protocol: TunnelProtocol::Hbone,
            capacity: 1 + i % weights,
            locality: zones[i as usize % zones.len()].clone(),
            services,
            ..Workload::new(WorkloadUid::of_pod("c", "shop", &name), name, identity.clone())
        }
    };
    let mut changes = vec![Change::Service(service), Change::Workload(workload("web", 0, Arc::default()))];
    changes.extend((1..=endpoints).map(|i| Change::Workload(workload("api", i, served.clone()))));
    Snapshot::default().apply(changes)
}
