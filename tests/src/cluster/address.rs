//! Who has which address in the cluster.

use crate::{host, lab};

/// Port of the API server.
pub(super) const API_PORT: u16 = 6443;
/// First address of the services: the API server's own.
pub(super) const API_SERVICE: &str = "10.96.0.1";
/// Service address of the name servers; `tests/cluster/manifests/dns.yaml` says it too.
pub(super) const DNS: &str = "10.96.0.10";

const PODS_V4: &str = "10.244.0.0/16";
const PODS_V6: &str = "fd00:244::/48";
const SERVICES_V4: &str = "10.96.0.0/16";
const SERVICES_V6: &str = "fd00:96::/112";

/// One family, or both with a comma between them.
fn both(v4: &str, v6: &str) -> String {
    if host::has_ipv6() { format!("{v4},{v6}") } else { v4.to_owned() }
}

/// URL of the API server.
pub(super) fn api_url() -> String {
    format!("https://{}:{API_PORT}", lab::FABRIC_V4)
}

/// Addresses of all pods.
pub(super) fn pods() -> String {
    both(PODS_V4, PODS_V6)
}

/// Addresses of all services.
pub(super) fn services() -> String {
    both(SERVICES_V4, SERVICES_V6)
}

/// The IPv4 addresses of all services.
pub(super) fn services_v4() -> &'static str {
    SERVICES_V4
}

/// What one node has.
#[derive(Debug, Clone)]
pub(super) struct NodeAddresses {
    pub(super) v4: String,
    pub(super) v6: Option<String>,
    pub(super) pods_v4: String,
    pub(super) pods_v6: Option<String>,
}

impl NodeAddresses {
    /// Of the node number `index`, from 1.
    pub(super) fn of(index: usize) -> Self {
        let v6 = |text: String| host::has_ipv6().then_some(text);
        Self {
            v4: format!("172.30.0.{index}"),
            v6: v6(format!("fd00:30::{index}")),
            pods_v4: format!("10.244.{index}.0/24"),
            pods_v6: v6(format!("fd00:244:0:{index}::/64")),
        }
    }

    /// As Kubernetes lists them.
    pub(super) fn listed(&self) -> String {
        self.v6.as_ref().map_or_else(|| self.v4.clone(), |v6| both(&self.v4, v6))
    }

    /// Routes to its pods over `device`, for `ip -batch`.
    pub(super) fn routes(&self, device: &str) -> Vec<String> {
        let v4 = format!("route replace {} via {} dev {device}", self.pods_v4, self.v4);
        let v6 = self.pods_v6.iter().zip(&self.v6);
        std::iter::once(v4)
            .chain(v6.map(|(pods, via)| format!("route replace {pods} via {via} dev {device}")))
            .collect()
    }
}
