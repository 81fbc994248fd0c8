//! The configuration of a large mesh that does not exist, from a control plane that does nothing else: what a proxy
//! takes to learn and to hold it can be measured without the cost of making it. It also signs certificates, for proxies
//! of others that are measured.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use ipnet::IpNet;
use loam_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use loam_api::encode;
use loam_controller::ca::authority::Authority;
use loam_controller::publish::Published;
use loam_controller::serve;
use loam_core::ids::{Identity, ServiceKey, TrustDomain, WorkloadUid};
use loam_core::service::{AppProtocol, Port, Service, ServiceAddr};
use loam_core::workload::{ServicePorts, TunnelProtocol, Workload, WorkloadKind};
use loam_xds::server::{Ads, Authenticating, Quiet};
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;

use crate::signer::Signer;

const CLUSTER: &str = "Kubernetes";
const WORKLOADS_PER_SERVICE: u32 = 10;
const SERVICES_PER_NAMESPACE: u32 = 20;
const WORKLOADS_PER_NODE: u32 = 50;
/// Workloads have addresses from here on, up to 16 million of them.
const FIRST_WORKLOAD: u32 = u32::from_be_bytes([11, 0, 0, 1]);
/// Services have addresses from here on.
const FIRST_SERVICE: u32 = u32::from_be_bytes([12, 0, 0, 1]);
const PORT: Port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Unknown };

/// Serves `workloads` workloads for ever; says so, with the bytes of all resources, when it is ready.
pub(crate) async fn run(listen: SocketAddr, data_dir: &Path, workloads: u32) -> Result<()> {
    let published = Published::default();
    let mut bytes = 0;
    for first in (0..workloads).step_by(WORKLOADS_PER_SERVICE as usize) {
        let resources = service(first / WORKLOADS_PER_SERVICE, workloads.min(first + WORKLOADS_PER_SERVICE))?;
        bytes += resources.iter().map(|(_, body)| body.len()).sum::<usize>();
        published.addresses.apply(resources.into_iter().map(|(name, body)| (name.into(), Some(body))));
    }
    let authority = Arc::new(Authority::open(data_dir, TrustDomain::default(), SystemTime::now())?);
    let tls = Arc::new(authority.serving_config(&[listen.ip().to_string()])?);
    let anybody = |_: &MetadataMap| -> Authenticating { Box::pin(std::future::ready(Ok("bench".to_owned()))) };
    let router = Server::builder()
        .add_service(Ads::new(published.stores(), anybody, Quiet).into_server())
        .add_service(IstioCertificateServiceServer::new(Signer(authority)));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind {listen}"))?;
    println!("serving {bytes} bytes");
    serve::serve(listener, tls, router, std::future::pending()).await.context("serve")
}

/// The resources of one service: itself and its workloads, which are those from ten times its number to `end`.
fn service(number: u32, end: u32) -> Result<Vec<(String, bytes::Bytes)>> {
    let namespace: Arc<str> = format!("namespace-{}", number / SERVICES_PER_NAMESPACE).into();
    let name = format!("service-{number}");
    let key: ServiceKey = format!("{namespace}/{name}.{namespace}.svc.cluster.local").parse()?;
    let mut service = Service::new(key.clone(), name.as_str());
    let address = IpAddr::V4(Ipv4Addr::from_bits(FIRST_SERVICE + number));
    service.addresses = vec![ServiceAddr { network: Arc::default(), range: IpNet::from(address) }];
    service.ports = vec![PORT];
    let mut resources = vec![encode::service(&service)];

    let identity = Identity::new(TrustDomain::default(), &namespace, &name)?;
    let serves: Arc<[ServicePorts]> = [ServicePorts { service: key, ports: [PORT].into() }].into();
    for workload in number * WORKLOADS_PER_SERVICE..end {
        let mut pod = format!("{name}-7d9f8c6b5-");
        let _ = write!(pod, "{workload:05x}");
        let mut value = Workload::new(WorkloadUid::of_pod(CLUSTER, &namespace, &pod), pod.as_str(), identity.clone());
        value.addresses = vec![Ipv4Addr::from_bits(FIRST_WORKLOAD + workload).into()];
        value.protocol = TunnelProtocol::Hbone;
        value.node = format!("node-{}", workload / WORKLOADS_PER_NODE).into();
        value.canonical_name = name.as_str().into();
        value.canonical_revision = "v1".into();
        value.kind = WorkloadKind::Deployment;
        value.owner = name.as_str().into();
        value.cluster = CLUSTER.into();
        value.services = serves.clone();
        resources.push(encode::workload(&value));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_its_workloads_and_they_have_names_of_their_own() {
        let (first, second) = (service(0, 10).unwrap(), service(1, 15).unwrap());
        assert_eq!((first.len(), second.len()), (11, 6));
        let names: std::collections::BTreeSet<_> = first.iter().chain(&second).map(|(name, _)| name).collect();
        assert_eq!(names.len(), 17);
    }
}
