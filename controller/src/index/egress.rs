//! What the workloads of a namespace may do with destinations that nobody declared: the first of these that says
//! something. A `Sidecar` of the namespace; the namespace's annotation; a `Sidecar` of the root namespace; the flag.

use std::collections::BTreeMap;
use std::sync::Arc;

use loam_core::egress::Egress;
use loam_manifest::{Key, Kind};

use super::{Index, Problem};
use crate::resource::Name;
use crate::resource::egress::{Mode, OUTBOUND_TRAFFIC_POLICY};

/// The `Sidecar`s that say something about it, by namespace.
#[derive(Debug, Default)]
pub(super) struct Sidecars(BTreeMap<Arc<str>, BTreeMap<Arc<str>, Mode>>);

impl Sidecars {
    /// The one of a namespace that counts: the first by name.
    fn of(&self, namespace: &str) -> Option<(&Arc<str>, Mode)> {
        self.0.get(namespace)?.first_key_value().map(|(name, mode)| (name, *mode))
    }

    /// Those that do not count.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.0.iter().flat_map(|(namespace, sidecars)| {
            let first = sidecars.keys().next().cloned().unwrap_or_default();
            sidecars.keys().skip(1).map(move |name| {
                let object = Key { kind: Kind::Sidecar, namespace: Arc::clone(namespace), name: Arc::clone(name) };
                let message = format!("outboundTrafficPolicy is ignored: Sidecar {namespace}/{first} sets it already");
                Problem::of(object, message)
            })
        })
    }
}

impl Index {
    pub(super) fn set_sidecar(&mut self, name: &Name, mode: Option<Mode>) {
        let before = self.egress(&name.namespace);
        let sidecars = self.sidecars.0.entry(Arc::clone(&name.namespace)).or_default();
        match mode {
            Some(mode) => sidecars.insert(Arc::clone(&name.name), mode),
            None => sidecars.remove(&name.name),
        };
        if sidecars.is_empty() {
            self.sidecars.0.remove(&name.namespace);
        }
        if before != self.egress(&name.namespace) {
            match *name.namespace == *self.mesh.root_namespace {
                true => {
                    self.dirty.pods.extend(self.pods.keys().cloned());
                    self.dirty.machines.extend(self.entries.machines.keys().cloned());
                }
                false => self.egress_touched(&name.namespace),
            }
        }
    }

    /// Pods of a namespace may have to do with other destinations than before.
    pub(super) fn egress_touched(&mut self, namespace: &Arc<str>) {
        self.dirty.pods.extend(self.pods_in.of(namespace).cloned());
        let machines = self.entries.machines.keys().filter(|m| m.namespace == *namespace);
        self.dirty.machines.extend(machines.cloned());
    }

    /// What workloads of `namespace` may do.
    pub(super) fn egress(&self, namespace: &Arc<str>) -> Egress {
        let sidecar = |namespace: &str| {
            let (name, mode) = self.sidecars.of(namespace)?;
            Some((mode, format!("Sidecar {namespace}/{name}")))
        };
        let annotation = || {
            let mode = self.namespaces.get(namespace)?.egress?;
            Some((mode, format!("annotation {OUTBOUND_TRAFFIC_POLICY} of namespace {namespace}")))
        };
        let flag = || (self.mesh.egress, "flag --outbound-traffic-policy of the controller".to_owned());
        let said = sidecar(namespace).or_else(annotation).or_else(|| sidecar(&self.mesh.root_namespace));
        match said.unwrap_or_else(flag) {
            (Mode::AllowAny, _) => Egress::AllowAny,
            (Mode::RegistryOnly, origin) => Egress::RegistryOnly { origin: origin.into() },
        }
    }
}
