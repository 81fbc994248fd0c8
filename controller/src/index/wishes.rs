//! What is to be written to an API server: pure, of the index as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use loam_manifest::{Key, Kind};

use super::Index;
use super::waypoints::User;
use crate::provision::hostname;
use crate::resource::Name;
use crate::status::gateway::Waypoint;
use crate::status::{Ancestor, Condition, RouteStatus};

/// What is to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// The waypoints that are ours.
    pub waypoints: BTreeMap<Name, Arc<Waypoint>>,
    /// What is told about other objects.
    pub told: BTreeMap<Key, Arc<Wish>>,
    /// Whether the class of waypoints is there. Of a source that does not know classes it is not.
    pub has_class: bool,
}

/// What is told about an object.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Wish {
    /// A route.
    Route(RouteStatus),
    /// A policy for backends: the version of the object, and what is told to whom.
    Policy(Option<i64>, Vec<Ancestor>),
    /// A class that is ours: the version of the object.
    Class(Option<i64>),
    /// Who names a waypoint: the version of the object, and whether it is bound.
    Bound(Option<i64>, Condition),
}

impl Index {
    /// What is to be written.
    pub fn wishes(&self) -> Wishes {
        let mut told = BTreeMap::new();
        told.extend(self.route_statuses().map(|(key, status)| (key, Arc::new(Wish::Route(status)))));
        for (key, generation, ancestors) in self.backend_policy_statuses() {
            told.insert(key, Arc::new(Wish::Policy(generation, ancestors)));
        }
        for (name, class) in self.waypoints.classes.iter().filter(|(_, class)| class.is_ours) {
            let key = Key { kind: Kind::GatewayClass, namespace: "".into(), name: Arc::clone(name) };
            told.insert(key, Arc::new(Wish::Class(class.generation)));
        }
        for (user, condition) in self.waypoints.conditions() {
            let (kind, name, generation) = match user {
                User::Service(name) => (Kind::Service, name, self.services.get(name).and_then(|s| s.generation)),
                User::Entry(name) => (Kind::ServiceEntry, name, self.entries.all.get(name).and_then(|e| e.generation)),
                // Pods have no such condition, and WorkloadEntries are shown with the rest of the mesh.
                User::Pod(_) | User::Machine(_) => continue,
            };
            let key = Key { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) };
            told.insert(key, Arc::new(Wish::Bound(generation, condition.clone())));
        }
        let waypoints = self.waypoints.gateways.iter().filter_map(|(name, gateway)| {
            let view = self.waypoints.view(name)?;
            let hostname = hostname(name, &self.mesh.cluster_domain);
            Some((name.clone(), Arc::new(Waypoint { gateway: gateway.clone(), hostname, ready: view.ready })))
        });
        let has_class = self.waypoints.classes.contains_key(crate::resource::gateway::CLASS);
        Wishes { waypoints: waypoints.collect(), told, has_class }
    }
}
