//! What DNS asks of a snapshot: who is meant by a name as it was spelled.

use std::sync::Arc;

use super::{Snapshot, index};
use crate::ids::WorkloadUid;
use crate::service::Service;
use crate::workload::Workload;

impl Snapshot {
    /// The service that a caller of `namespace` means by exactly `name`, in lower case and without final dot, among
    /// those that `fit`. A wildcard is found by its own spelling, `*.example.org`.
    pub fn service_spelled(
        &self,
        name: &str,
        namespace: &str,
        fit: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        index::preferred(self.hostnames.get(name)?.services().filter(|service| fit(service)), namespace)
    }

    /// The pods `namespace/name`, one for each cluster that has it.
    pub fn pods_named(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.clusters.keys().map(move |cluster| WorkloadUid::of_pod(cluster, namespace, name));
        uids.filter_map(|uid| self.workloads.get(&uid))
    }
}

#[cfg(test)]
mod tests {
    use crate::testmesh::mesh;

    #[test]
    fn a_service_is_found_by_its_spelling_if_it_fits() {
        let mesh = mesh("svc shop/web 10.1.0.1\nsvc bank/vault 10.1.0.2 private");
        let found = |name, namespace| mesh.service_spelled(name, namespace, |s| !s.addresses.is_empty()).is_some();
        assert!(found("web.shop.svc", "bank"));
        assert!(!found("Web.shop.svc", "bank"), "spellings are compared as they are");
        assert!(found("vault.bank.svc", "bank"));
        assert!(!found("vault.bank.svc", "shop"), "it is not visible there");
        assert!(mesh.service_spelled("web.shop.svc", "bank", |_| false).is_none());
    }

    #[test]
    fn pods_of_one_name_are_found_in_every_cluster() {
        let mesh = mesh("pod shop/db-0 10.0.0.1\npod shop/db-1 10.0.0.2");
        let addresses: Vec<_> = mesh.pods_named("shop", "db-0").map(|pod| pod.addresses[0].to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1"]);
        assert_eq!(mesh.pods_named("bank", "db-0").count(), 0);
    }
}
