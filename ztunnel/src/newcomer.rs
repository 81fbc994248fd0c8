//! A pod that the mesh configuration does not have yet, as its node knows it: enough to open connections with.
//!
//! Who it is comes from the node, and so does where it is. What only the control plane knows is not guessed: which
//! policies select it, so nothing is delivered to it; and whether it may reach what nobody declared, so it may not.

use std::sync::Arc;

use loam_core::egress::Egress;
use loam_core::ids::{Identity, TrustDomain, WorkloadUid};
use loam_core::snapshot::Snapshot;
use loam_core::workload::{TunnelProtocol, Workload};
use loam_node::PodInfo;

/// What all pods of a node have in common.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// Name of the node.
    pub node: &'a Arc<str>,
    /// Name of the cluster.
    pub cluster: &'a Arc<str>,
    /// The network of its addresses.
    pub network: &'a Arc<str>,
    /// Trust domain of the mesh.
    pub trust_domain: &'a TrustDomain,
}

/// The identity of a pod; none if its names cannot be part of one.
fn identity(info: &PodInfo, home: Home<'_>) -> Option<Identity> {
    Identity::new(home.trust_domain.clone(), &info.namespace, &info.service_account).ok()
}

/// The pod as a workload. None while connections could be taken for ones that leave the mesh: before `snapshot` has the
/// addresses of all workloads.
pub fn newcomer(info: &PodInfo, home: Home<'_>, snapshot: &Snapshot) -> Option<Workload> {
    if !snapshot.has_addresses() {
        return None;
    }
    let neighbour = snapshot.workloads().find(|workload| workload.node == *home.node);
    let uid = WorkloadUid::of_pod(home.cluster, &info.namespace, &info.name);
    Some(Workload {
        addresses: info.ips().collect(),
        network: home.network.clone(),
        protocol: TunnelProtocol::Hbone,
        node: home.node.clone(),
        cluster: home.cluster.clone(),
        locality: neighbour.map(|workload| workload.locality.clone()).unwrap_or_default(),
        egress: Egress::RegistryOnly { origin: "the mesh configuration, which does not have this pod yet,".into() },
        ..Workload::new(uid, &*info.name, identity(info, home)?)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use loam_core::addr::OrigDst;
    use loam_core::outbound::{Plan, Query, Unplanned, plan};
    use loam_core::reason::Reason;
    use loam_core::snapshot::Change;
    use loam_core::workload::Locality;

    use super::*;

    fn info() -> PodInfo {
        let [name, namespace, service_account] = ["late", "shop", "web"].map(String::from);
        let pod = PodInfo { name, namespace, service_account, starting: true, ..PodInfo::default() };
        pod.with_ips(["10.0.0.9".parse().unwrap()])
    }

    /// The pod `shop/late` of node `n1`, as the mesh `snapshot` sees it.
    fn late(snapshot: &Snapshot) -> Option<Workload> {
        let (node, cluster, network) = ("n1".into(), "c1".into(), "net".into());
        let home = Home { node: &node, cluster: &cluster, network: &network, trust_domain: &TrustDomain::default() };
        newcomer(&info(), home, snapshot)
    }

    /// A mesh with a peer at 10.0.0.2 that stands on the node `n1` in zone `z`.
    fn mesh() -> Snapshot {
        let peer: WorkloadUid = WorkloadUid::of_pod("c1", "shop", "api");
        let identity = Identity::new(TrustDomain::default(), "shop", "api").unwrap();
        let peer = Workload {
            addresses: vec!["10.0.0.2".parse().unwrap()],
            network: "net".into(),
            protocol: TunnelProtocol::Hbone,
            node: "n1".into(),
            locality: Arc::new(Locality { zone: "z".into(), ..Locality::default() }),
            ..Workload::new(peer, "api", identity)
        };
        Snapshot::awaited().apply(vec![Change::Workload(peer)])
    }

    #[test]
    fn it_speaks_as_its_node_knows_it_from_where_its_node_is() {
        let late = late(&mesh().apply(vec![Change::AddressesArrived])).unwrap();
        assert_eq!(late.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(late.uid.as_str(), "c1//Pod/shop/late");
        assert_eq!(&*late.locality.zone, "z");
        assert!(late.owns("10.0.0.9".parse().unwrap()));
    }

    #[test]
    fn it_says_nothing_while_a_peer_could_be_taken_for_a_stranger() {
        assert_eq!(late(&mesh()), None);
    }

    #[test]
    fn a_known_peer_is_reached_in_a_tunnel_and_a_stranger_is_not_reached() {
        let snapshot = mesh().apply(vec![Change::AddressesArrived]);
        let late = late(&snapshot).unwrap();
        let ask = |to: &str| plan(&snapshot, &Query::new(&late, OrigDst::new(to.parse::<SocketAddr>().unwrap()), 0));
        assert!(matches!(ask("10.0.0.2:80"), Ok(Plan::Tunnel { .. })), "{:?}", ask("10.0.0.2:80"));
        assert!(matches!(ask("10.0.0.9:80"), Ok(Plan::Direct { .. })), "itself");
        let stranger = ask("192.0.2.1:443");
        assert!(matches!(&stranger, Err(Unplanned::Refused(r)) if r.reason == Reason::NotRegistered), "{stranger:?}");
    }
}
