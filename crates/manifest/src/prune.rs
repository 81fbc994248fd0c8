//! Drops the parts of an object that no mesh needs: with them, fifty thousand pods would fill the memory.

use k8s_openapi::api::core::v1::{Container, NodeSpec, NodeStatus, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::Object;

/// A whole copy of the object, which `kubectl apply` leaves behind.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(crate) fn prune(object: &mut Object) {
    match object {
        Object::Namespace(o) => metadata(&mut o.metadata),
        Object::Node(o) => {
            metadata(&mut o.metadata);
            o.spec =
                o.spec.take().map(|s| NodeSpec { pod_cidr: s.pod_cidr, pod_cidrs: s.pod_cidrs, ..NodeSpec::default() });
            o.status = o.status.take().map(|s| NodeStatus { addresses: s.addresses, ..NodeStatus::default() });
        }
        Object::ServiceAccount(o) => {
            metadata(&mut o.metadata);
            (o.secrets, o.image_pull_secrets) = (None, None);
        }
        Object::PeerAuthentication(o) => metadata(&mut o.metadata),
        Object::AuthorizationPolicy(o) => metadata(&mut o.metadata),
        Object::Sidecar(o) => metadata(&mut o.metadata),
        Object::NetworkPolicy(o) => metadata(&mut o.metadata),
        Object::Service(o) => metadata(&mut o.metadata),
        Object::ServiceEntry(o) => metadata(&mut o.metadata),
        Object::WorkloadEntry(o) => metadata(&mut o.metadata),
        Object::GatewayClass(o) => metadata(&mut o.metadata),
        Object::Gateway(o) => metadata(&mut o.metadata),
        Object::ReferenceGrant(o) => metadata(&mut o.metadata),
        Object::HttpRoute(o) => metadata(&mut o.metadata),
        Object::GrpcRoute(o) => metadata(&mut o.metadata),
        Object::TlsRoute(o) => metadata(&mut o.metadata),
        Object::TcpRoute(o) => metadata(&mut o.metadata),
        Object::BackendTlsPolicy(o) => metadata(&mut o.metadata),
        Object::BackendTrafficPolicy(o) => metadata(&mut o.metadata),
        Object::EndpointSlice(o) => metadata(&mut o.metadata),
        Object::Pod(o) => {
            metadata(&mut o.metadata);
            o.spec = o.spec.take().map(pod_spec);
            o.status = o.status.take().map(pod_status);
        }
    }
}

fn metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn pod_spec(spec: PodSpec) -> PodSpec {
    PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        dns_config: spec.dns_config,
        dns_policy: spec.dns_policy,
        host_network: spec.host_network,
        hostname: spec.hostname,
        init_containers: spec.init_containers.map(|all| all.into_iter().map(container).collect()),
        node_name: spec.node_name,
        service_account: spec.service_account,
        service_account_name: spec.service_account_name,
        subdomain: spec.subdomain,
        ..PodSpec::default()
    }
}

fn container(container: Container) -> Container {
    Container {
        name: container.name,
        lifecycle: container.lifecycle,
        ports: container.ports,
        restart_policy: container.restart_policy,
        liveness_probe: container.liveness_probe,
        readiness_probe: container.readiness_probe,
        startup_probe: container.startup_probe,
        ..Container::default()
    }
}

fn pod_status(status: PodStatus) -> PodStatus {
    PodStatus {
        conditions: status.conditions,
        host_ip: status.host_ip,
        host_ips: status.host_ips,
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        reason: status.reason,
        ..PodStatus::default()
    }
}
