//! The index at the size of a large cluster: how long it takes, what it keeps, and what one change costs.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::time::{Duration, Instant};

use loam_controller::index::{Index, Mesh};
use loam_controller::publish::Published;
use loam_core::ids::TrustDomain;

const PODS: usize = 50_000;
const SERVICES: usize = 5_000;

/// Far more than it takes on an ordinary machine, far less than anything quadratic would.
const MAX_TIME: Duration = Duration::from_secs(30);
const MAX_MEMORY_KIB: u64 = 300 << 10;

fn services(range: std::ops::Range<usize>) -> String {
    range.fold(String::new(), |mut yaml, i| {
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app{i}, namespace: ns{}}}\n\
             spec: {{clusterIP: 172.16.{}.{}, selector: {{app: app{i}}}, ports: [{{port: 80, targetPort: http}}]}}\n",
            i % 50,
            i / 250,
            i % 250 + 1
        );
        yaml
    })
}

fn pods(range: std::ops::Range<usize>, version: &str) -> String {
    range.fold(String::new(), |mut yaml, i| {
        let app = i % SERVICES;
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: app{app}-5d8f-{i}, namespace: ns{}, labels: \
             {{app: app{app}, version: {version}, pod-template-hash: 5d8f, team: blue}}}}\n\
             spec: {{nodeName: node{}, serviceAccountName: app{app}, containers: [{{name: c, ports: \
             [{{name: http, containerPort: 8080}}]}}]}}\nstatus: {{phase: Running, podIP: 10.{}.{}.{}}}\n",
            app % 50,
            i % 500,
            i / 62_500,
            i / 250 % 250,
            i % 250 + 1
        );
        yaml
    })
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Applies manifests and returns how long the index took, without the reading.
fn apply(index: &mut Index, yaml: &str) -> Duration {
    let state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
    assert!(state.problems.is_empty());
    let started = Instant::now();
    state.objects.into_iter().for_each(|object| index.apply(object));
    started.elapsed()
}

#[test]
fn a_large_mesh_is_indexed_quickly_within_bounded_memory_and_one_change_stays_one_change() {
    let mesh = Mesh {
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        trust_domain: TrustDomain::default(),
        trust_domain_aliases: Default::default(),
        root_namespace: "istio-system".into(),
        network: "".into(),
        egress: Default::default(),
    };
    let (mut index, published) = (Index::new(mesh), Published::default());
    let mut took = apply(&mut index, &services(0..SERVICES));
    for from in (0..PODS).step_by(2_500) {
        took += apply(&mut index, &pods(from..from + 2_500, "v1"));
    }
    let started = Instant::now();
    assert_eq!(published.publish(index.compile()), PODS + SERVICES);
    took += started.elapsed();
    assert!(took < MAX_TIME, "took {took:?}");
    assert!(index.problems().is_empty());
    let memory = memory_kib();
    assert!(memory < MAX_MEMORY_KIB, "{memory} KiB in use");

    apply(&mut index, &pods(7..8, "v2"));
    let compiled = index.compile();
    assert_eq!(compiled.changes.len(), 1);
    assert_eq!(published.publish(compiled), 1);
    println!("indexed in {took:?}, {} MiB in use", memory >> 10);
}
