//! From WorkloadEntries to workloads.

use std::sync::Arc;

use loam_core::ids::{Identity, WorkloadUid};
use loam_core::workload::{ServicePorts, TunnelProtocol, Workload};

use super::Resource;
use crate::index::Index;
use crate::index::entries::ports_at;
use crate::index::waypoints::User;
use crate::resource::Name;
use crate::resource::workload_entry::{Address, WorkloadEntry};

impl Index {
    /// The workload of a WorkloadEntry, unless its address is somebody else's.
    pub(super) fn machine_workload(&mut self, name: &Name) -> Option<(Arc<str>, Option<Resource>)> {
        self.entries.refused.remove(name);
        let cluster = &self.mesh.cluster;
        let uid: WorkloadUid = format!("{cluster}/networking.istio.io/WorkloadEntry/{name}").parse().ok()?;
        let resource = Arc::clone(uid.as_shared());
        let user = User::Machine(name.clone());
        let Some(machine) = self.entries.machines.get(name) else {
            self.waypoints.bind(user, None);
            return Some((resource, None));
        };
        if let Address::Ip(ip) = machine.address {
            let pod = self.pod_addresses.owner(ip).map(|pod| format!("pod {pod}"));
            let other = self.entries.machine_addresses.owner(ip).filter(|owner| *owner != name);
            if let Some(owner) = pod.or_else(|| other.map(|other| format!("WorkloadEntry {other}"))) {
                let message = format!("is left out: its address {ip} belongs to {owner}");
                self.entries.refused.insert(name.clone(), message);
                return Some((resource, None));
            }
        }
        let services = self.machine_services(name, machine);
        let mut workload = self.machine(uid, name, machine, services);
        let binding = self.binding(&user, &machine.waypoint);
        let way = binding.waypoint.clone();
        self.waypoints.bind(user.clone(), Some(binding));
        if let Some(workload) = &mut workload {
            workload.waypoint = way;
            workload.traversal = self.traversal(&user, &[]);
        }
        Some((resource, workload.map(Resource::Workload)))
    }

    fn machine_services(&self, name: &Name, machine: &WorkloadEntry) -> Arc<[ServicePorts]> {
        let mut served = self.selected(&name.namespace, &machine.labels, |ports| ports_at(machine, ports));
        served.sort_by(|a, b| a.service.cmp(&b.service));
        served.into()
    }

    /// Something outside Kubernetes as a workload.
    pub(super) fn machine(
        &self,
        uid: WorkloadUid,
        name: &Name,
        machine: &WorkloadEntry,
        services: Arc<[ServicePorts]>,
    ) -> Option<Workload> {
        let account = Arc::clone(&machine.service_account);
        let identity = Identity::shared(self.mesh.trust_domain.clone(), Arc::clone(&name.namespace), account).ok()?;
        let (addresses, hostname) = match &machine.address {
            Address::Ip(ip) => (vec![*ip], None),
            Address::Name(name) => (Vec::new(), Some(name.clone())),
        };
        let label = |keys: &[&str]| keys.iter().find_map(|key| machine.labels.get(key)).map(Arc::from);
        Some(Workload {
            addresses,
            hostname,
            network: machine.network.clone().unwrap_or_else(|| Arc::clone(&self.mesh.network)),
            protocol: if machine.in_mesh { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            canonical_name: label(&crate::resource::pod::NAME_LABELS).unwrap_or_else(|| Arc::clone(&name.name)),
            canonical_revision: label(&crate::resource::pod::REVISION_LABELS).unwrap_or_else(|| "latest".into()),
            owner: Arc::clone(&name.name),
            cluster: Arc::clone(&self.mesh.cluster),
            locality: Arc::clone(&machine.locality),
            capacity: machine.weight,
            services,
            // Whoever is not in the mesh judges nobody.
            policies: match machine.in_mesh {
                true => self.policies.names(&self.policies.listed_by(&name.namespace, &machine.labels)),
                false => Arc::default(),
            },
            egress: if machine.in_mesh { self.egress(&name.namespace) } else { Default::default() },
            ..Workload::new(uid, Arc::clone(&name.name), identity)
        })
    }
}
