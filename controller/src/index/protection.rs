//! Which pods only their waypoint may reach: those of which a policy at the waypoint decides. Without that, whoever
//! dials a pod's own address would go past the policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use loam_core::ids::{Identity, ServiceKey};
use loam_core::traversal::Traversal;
use loam_core::workload::ServicePorts;

use super::Index;
use super::waypoints::User;
use crate::resource::Name;

/// What policies at waypoints are about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Protected {
    users: BTreeSet<User>,
    gateways: BTreeSet<Name>,
    /// All gateways of these classes.
    classes: BTreeSet<Arc<str>>,
}

impl Protected {
    /// Adds what a policy of `namespace` names, such as `Service web`. A class is the root namespace's to name.
    pub(super) fn add(&mut self, namespace: &Arc<str>, target: &str, is_root: bool) {
        let Some((kind, name)) = target.split_once(' ') else { return };
        let own = Name::new(Arc::clone(namespace), name);
        match kind {
            "Service" => drop(self.users.insert(User::Service(own))),
            "ServiceEntry" => drop(self.users.insert(User::Entry(own))),
            "Gateway" => drop(self.gateways.insert(own)),
            "GatewayClass" if is_root => drop(self.classes.insert(name.into())),
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Index {
    /// Takes in that policies may be about others than before.
    pub(super) fn protection_moved(&mut self) {
        let now = self.policies.protected();
        if now == self.protected {
            return;
        }
        let old = std::mem::replace(&mut self.protected, now);
        let mut users: BTreeSet<User> = old.users.symmetric_difference(&self.protected.users).cloned().collect();
        let gateways: BTreeSet<&Name> = old.gateways.symmetric_difference(&self.protected.gateways).collect();
        let classes: BTreeSet<_> = old.classes.symmetric_difference(&self.protected.classes).collect();
        for (name, gateway) in &self.waypoints.gateways {
            if gateways.contains(name) || classes.contains(&gateway.class) {
                users.extend(self.waypoints.users(name).cloned());
            }
        }
        for user in users {
            self.dirty.pods.extend(self.pods_in.of(&user.name().namespace).cloned());
            match user {
                User::Service(_) | User::Entry(_) => self.parent_touched(user),
                User::Machine(name) => drop(self.dirty.machines.insert(name)),
                User::Pod(_) => {}
            }
        }
    }

    /// Whether what is in front of somebody decides about what only waypoints see.
    pub(super) fn is_protected(&self, user: &User) -> bool {
        let binding = self.waypoints.binding(user);
        !self.protected.is_empty()
            && binding.is_some_and(|binding| binding.gateways.iter().any(|gateway| self.protects(user, gateway)))
    }

    /// Whether a policy at the waypoint decides about somebody. Waypoints do not evaluate policies, so they must not serve
    /// whom one is about.
    pub(super) fn is_judged(&self, user: &User, gateway: &Name) -> bool {
        let of_class = || self.waypoints.view(gateway).is_some_and(|view| self.protected.classes.contains(&view.class));
        self.protected.users.contains(user) || self.protected.gateways.contains(gateway) || of_class()
    }

    fn protects(&self, user: &User, gateway: &Name) -> bool {
        // Without an own word a waypoint must be passed. By the rule of a workload the waypoint knows not to serve it.
        let must_be_passed = || match user {
            User::Service(_) | User::Entry(_) => self.waypoints.view(gateway).is_none_or(|view| view.must_be_passed),
            User::Pod(_) | User::Machine(_) => true,
        };
        self.is_judged(user, gateway) && must_be_passed()
    }

    /// The waypoints by which alone a pod or a WorkloadEntry is reached, as itself and for `services`.
    pub(super) fn traversal(&self, workload: &User, services: &[ServicePorts]) -> Arc<[Traversal]> {
        if self.protected.is_empty() {
            return Arc::default();
        }
        let mut rules = Vec::new();
        for served in services {
            let Some(user) = self.user_of(&served.service) else { continue };
            let ports: Arc<[u16]> = served.ports.iter().map(|port| port.target_port).filter(|port| *port > 0).collect();
            // No port would mean all of them.
            if !ports.is_empty() {
                rules.extend(self.rules_for(&user, &ports));
            }
        }
        rules.extend(self.rules_for(workload, &Arc::default()));
        rules.into()
    }

    fn rules_for(&self, user: &User, ports: &Arc<[u16]>) -> Vec<Traversal> {
        let Some(binding) = self.waypoints.binding(user) else { return Vec::new() };
        // Who lets connections pass a waypoint that is missing lets them arrive.
        let passes = binding.waypoint.as_ref().is_some_and(|waypoint| waypoint.bypass);
        let ready = |gateway: &Name| self.waypoints.view(gateway).is_some_and(|view| view.ready);
        let gateways =
            binding.gateways.iter().filter(|gateway| self.protects(user, gateway) && (ready(gateway) || !passes));
        let rule = |gateway: &Name| Traversal {
            waypoint: gateway.to_string().into(),
            identities: self.identities(gateway),
            ports: Arc::clone(ports),
        };
        gateways.map(rule).collect()
    }

    /// Who a waypoint is: the accounts of its pods.
    fn identities(&self, gateway: &Name) -> Arc<[Identity]> {
        let identity = |account: Arc<str>| {
            let (domain, namespace) = (self.mesh.trust_domain.clone(), Arc::clone(&gateway.namespace));
            Identity::shared(domain, namespace, account).ok()
        };
        self.accounts(gateway).into_iter().filter_map(identity).collect()
    }

    fn user_of(&self, service: &ServiceKey) -> Option<User> {
        if let Some(name) = self.kubernetes_service(&service.hostname).filter(|n| n.namespace == service.namespace) {
            return Some(User::Service(name));
        }
        let mut entries = self.entries.of_host(&service.hostname).filter(|name| name.namespace == service.namespace);
        entries.next().map(|name| User::Entry(name.clone()))
    }
}
