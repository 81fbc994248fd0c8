//! The ports of a pod that the kubelet dials: of its probes, and of the HTTP requests of its containers' lifecycle.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The ports, in ascending order. One that cannot be a port, or a name that its container does not have, is left out:
/// the kubelet cannot dial it either.
pub fn ports(pod: &Pod) -> Vec<u16> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ports: BTreeSet<u16> = containers.flat_map(of_container).collect();
    ports.into_iter().collect()
}

fn of_container(container: &Container) -> Vec<u16> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let lifecycle = container.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let probed = probes.into_iter().flatten().filter_map(|probe| of_probe(container, probe));
    let hooked = lifecycle.flatten().filter_map(|handler| of_handler(container, handler));
    probed.chain(hooked).collect()
}

fn of_probe(container: &Container, probe: &Probe) -> Option<u16> {
    let grpc = probe.grpc.as_ref().and_then(|grpc| u16::try_from(grpc.port).ok()).filter(|port| *port != 0);
    grpc.or_else(|| dialled(container, probe.http_get.as_ref(), probe.tcp_socket.as_ref()))
}

fn of_handler(container: &Container, handler: &LifecycleHandler) -> Option<u16> {
    dialled(container, handler.http_get.as_ref(), handler.tcp_socket.as_ref())
}

/// The port of whichever is there. One with a host of its own is dialled there and not at the pod.
fn dialled(container: &Container, http: Option<&HTTPGetAction>, tcp: Option<&TCPSocketAction>) -> Option<u16> {
    let (host, port) = match (http, tcp) {
        (Some(http), _) => (&http.host, &http.port),
        (None, Some(tcp)) => (&tcp.host, &tcp.port),
        (None, None) => return None,
    };
    match host.as_deref() {
        None | Some("") => number(container, port),
        Some(_) => None,
    }
}

fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut named = container.ports.iter().flatten().filter(|port| port.name.as_deref() == Some(name));
            match named.next() {
                Some(port) => port.container_port,
                // Kubernetes takes a number in quotes, too.
                None => name.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use loam_manifest::Object;

    use super::*;

    /// The ports of a pod whose first container has this.
    fn of(container: &str) -> Vec<u16> {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop}}, spec: {{containers: [{{name: app, \
             ports: [{{name: health, containerPort: 8081}}, {{containerPort: 80}}], {container}}}, {{name: other, \
             ports: [{{name: elsewhere, containerPort: 9}}]}}]}}}}"
        );
        match loam_manifest::read([("pod.yaml", text.as_bytes())]).objects.into_iter().next() {
            Some(Object::Pod(pod)) => ports(&pod),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_the_kubelet_dials_at_the_pod_is_found() {
        for (container, expected) in [
            ("", &[][..]),
            ("livenessProbe: {httpGet: {port: 8080}}", &[8080]),
            ("readinessProbe: {httpGet: {port: health, scheme: HTTPS}}", &[8081]),
            ("startupProbe: {tcpSocket: {port: '9090'}}", &[9090]),
            ("livenessProbe: {grpc: {port: 9000}}", &[9000]),
            ("livenessProbe: {exec: {command: [true]}}", &[]),
            ("lifecycle: {preStop: {httpGet: {port: 7}}, postStart: {httpGet: {port: health}}}", &[7, 8081]),
            ("livenessProbe: {tcpSocket: {port: 2}}, readinessProbe: {tcpSocket: {port: 1}}", &[1, 2]),
            ("livenessProbe: {tcpSocket: {port: 1}}, readinessProbe: {httpGet: {port: 1}}", &[1]),
        ] {
            assert_eq!(of(container), expected, "{container}");
        }
    }

    #[test]
    fn what_it_dials_elsewhere_or_cannot_dial_is_none_of_the_pods_ports() {
        for container in [
            "livenessProbe: {httpGet: {port: 8080, host: example.com}}",
            "livenessProbe: {tcpSocket: {port: 8080, host: 127.0.0.1}}",
            "livenessProbe: {httpGet: {port: elsewhere}}",
            "livenessProbe: {httpGet: {port: 0}}",
            "livenessProbe: {httpGet: {port: 65536}}",
            "livenessProbe: {grpc: {port: -1}}",
        ] {
            assert_eq!(of(container), [0; 0], "{container}");
        }
    }
}
