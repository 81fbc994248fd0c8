//! Ports that only a waypoint may reach: what it protects is protected from those who go past it, too.
//!
//! A rule of its own, and not a policy: who is refused is told which waypoint it should have come by.

use std::sync::Arc;

use crate::ids::Identity;
use crate::workload::Workload;

/// One waypoint by which ports of a workload are reached. Several that name one port stand side by side: any of them
/// may come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Traversal {
    /// The waypoint, `namespace/name`, for people.
    pub waypoint: Arc<str>,
    /// Who it is: one of these. Without any nobody may come.
    pub identities: Arc<[Identity]>,
    /// Ports of the workload; empty stands for all.
    pub ports: Arc<[u16]>,
}

impl Traversal {
    fn covers(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// Whether `source` goes past the waypoints by which `port` of `workload` is reached.
pub fn is_past(workload: &Workload, port: u16, source: Option<&Identity>) -> bool {
    let comes_from = |t: &Traversal| source.is_some_and(|source| t.identities.contains(source));
    let mut covering = workload.traversal.iter().filter(|t| t.covers(port)).peekable();
    covering.peek().is_some() && !covering.any(comes_from)
}

/// Whether `port` of `workload` is reached by the waypoint `identity`, and by others like it, only.
pub fn is_by(workload: &Workload, port: u16, identity: &Identity) -> bool {
    workload.traversal.iter().any(|t| t.covers(port) && t.identities.contains(identity))
}

/// The waypoints by which `port` of `workload` is reached.
pub fn waypoints(workload: &Workload, port: u16) -> impl Iterator<Item = &Arc<str>> {
    workload.traversal.iter().filter(move |t| t.covers(port)).map(|t| &t.waypoint)
}

#[cfg(test)]
mod tests {
    use crate::testmesh::{mesh, uid};

    use super::*;

    const SHOP: &str = "
        pod shop/api-1  10.0.0.2 hbone by=shop/one:80+81,shop/two:81,bank/three:90
        pod shop/all-1  10.0.0.3 hbone by=shop/one
        pod shop/open-1 10.0.0.4 hbone";

    /// `account` connects to a port of `pod`.
    #[track_caller]
    fn check(pod: &str, port: u16, account: Option<&str>, expected: &str) {
        let mesh = mesh(SHOP);
        let workload = mesh.workload(&uid(pod)).unwrap();
        let (namespace, name) = account.unwrap_or("/").split_once('/').unwrap();
        let source = account.map(|_| format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").parse().unwrap());
        let missed: Vec<&str> = match is_past(workload, port, source.as_ref()) {
            true => waypoints(workload, port).map(|name| &**name).collect(),
            false => vec!["passes"],
        };
        assert_eq!(missed.join(" "), expected, "{account:?} to {port}");
    }

    #[test]
    fn a_port_behind_a_waypoint_is_for_that_waypoint_alone() {
        check("shop/api-1", 80, Some("shop/one"), "passes");
        check("shop/api-1", 80, Some("shop/two"), "shop/one");
        check("shop/api-1", 80, Some("bank/one"), "shop/one");
        check("shop/api-1", 80, None, "shop/one");
        check("shop/api-1", 90, Some("bank/three"), "passes");
        check("shop/api-1", 90, Some("shop/one"), "bank/three");
    }

    #[test]
    fn of_several_waypoints_in_front_of_one_port_each_may_come() {
        check("shop/api-1", 81, Some("shop/one"), "passes");
        check("shop/api-1", 81, Some("shop/two"), "passes");
        check("shop/api-1", 81, Some("shop/web"), "shop/one shop/two");
    }

    #[test]
    fn ports_that_nobody_names_are_open_unless_all_are_meant() {
        check("shop/api-1", 82, None, "passes");
        check("shop/open-1", 80, None, "passes");
        check("shop/all-1", 1, None, "shop/one");
        check("shop/all-1", 1, Some("shop/one"), "passes");
    }
}
