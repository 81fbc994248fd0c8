//! From compiled resources to the stores that proxies are served from.

use std::sync::Arc;

use loam_api::convert::Decoder;
use loam_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, ROUTES_TYPE, TRAFFIC_TYPE, encode};
use loam_core::policy::Policy;
use loam_core::snapshot::{Change, Snapshot};
use loam_xds::store::Store;

use crate::index::{Compiled, Resource};

/// What proxies may know: one store per type of resource.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Workloads and services.
    pub addresses: Arc<Store>,
    /// Policies.
    pub authorizations: Arc<Store>,
    /// Routes, for waypoints.
    pub routes: Arc<Store>,
    /// How services are spoken to, for waypoints.
    pub traffic: Arc<Store>,
}

impl Published {
    /// The stores by type.
    pub fn stores(&self) -> [(&'static str, Arc<Store>); 4] {
        [
            (ADDRESS_TYPE, Arc::clone(&self.addresses)),
            (AUTHORIZATION_TYPE, Arc::clone(&self.authorizations)),
            (ROUTES_TYPE, Arc::clone(&self.routes)),
            (TRAFFIC_TYPE, Arc::clone(&self.traffic)),
        ]
    }

    /// Puts compiled resources in force. Returns how many really are different.
    pub fn publish(&self, compiled: Compiled) -> usize {
        let body = |resource: Resource| match resource {
            Resource::Workload(workload) => encode::workload(&workload).1,
            Resource::Service(service) => encode::service(&service).1,
        };
        let policy = |(name, policy): (Arc<str>, Option<Policy>)| (name, policy.map(|p| encode::policy(&p).1));
        let routes = compiled.routes.into_iter().map(|(name, told)| {
            let body = told.map(|(gateway, routes)| encode::routes(&gateway, &routes).1);
            (name, body)
        });
        let traffic = compiled.traffic.into_iter().map(|(name, told)| {
            let body = told.map(|(gateway, traffic)| encode::traffic(&gateway, &traffic).1);
            (name, body)
        });
        // Routes before the services that are bound to a waypoint: it refuses what it does not know.
        self.routes.apply(routes)
            + self.traffic.apply(traffic)
            + self.authorizations.apply(compiled.policies.into_iter().map(policy))
            + self.addresses.apply(compiled.changes.into_iter().map(|(name, resource)| (name, resource.map(body))))
            + self.authorizations.apply(compiled.last.into_iter().map(policy))
    }

    /// The mesh as a proxy sees it.
    pub fn snapshot(&self) -> Snapshot {
        let mut decoder = Decoder::default();
        let mut changes = vec![Change::PoliciesArrived];
        for (type_url, store) in self.stores() {
            let all = store.since(0, usize::MAX).unwrap_or_default().resources;
            // What does not decode here is refused by every proxy, with a nack that is logged.
            changes.extend(all.iter().filter_map(|r| decoder.decode(type_url, &r.name, &r.body).ok()));
        }
        Snapshot::default().apply(changes)
    }
}
