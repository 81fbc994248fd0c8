//! The waypoints that services and workloads stand behind, and whether they are there.

use std::collections::BTreeMap;

use serde::Serialize;

use super::GatewayView;
use crate::reason::Reason;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddr, GatewayDestination, Health, Workload};

/// A waypoint that somebody stands behind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaypointView {
    /// How it is named.
    #[serde(flatten)]
    pub waypoint: GatewayView,
    /// `ready`, or the reason for which connections to it are refused.
    pub state: &'static str,
    /// Its endpoints.
    pub endpoints: usize,
    /// Those of them that may be used.
    pub ready: usize,
    /// How many services stand behind it.
    pub services: usize,
    /// How many workloads do, by their own addresses.
    pub workloads: usize,
}

/// All waypoints that services and workloads of the mesh stand behind, by name.
pub fn waypoints(snapshot: &Snapshot) -> Vec<WaypointView> {
    let mut all: BTreeMap<String, WaypointView> = BTreeMap::new();
    let mut count = |gateway: &GatewayAddr, services: usize, workloads: usize| {
        let view = all.entry(gateway.to_string()).or_insert_with(|| WaypointView::of(snapshot, gateway));
        view.services += services;
        view.workloads += workloads;
        view.waypoint.bypass_when_absent |= gateway.bypass;
    };
    for service in snapshot.services().filter_map(|members| members.service()) {
        let weighted = service.weighted_waypoints.iter().map(|w| &w.gateway);
        let alone = service.waypoint.iter().filter(|w| weighted.clone().all(|other| other != *w));
        alone.chain(weighted.clone()).for_each(|gateway| count(gateway, 1, 0));
    }
    for gateway in snapshot.workloads().filter_map(|workload| workload.waypoint.as_ref()) {
        count(gateway, 0, 1);
    }
    all.into_values().collect()
}

impl WaypointView {
    fn of(snapshot: &Snapshot, gateway: &GatewayAddr) -> Self {
        let mut endpoints: Vec<&Workload> = Vec::new();
        let mut any_health = false;
        let service = match &gateway.destination {
            GatewayDestination::Service(key) => snapshot.service(key),
            // Its namespace is not known; where several services claim one address, any of them is shown.
            GatewayDestination::Address(addr) => snapshot.service_at(addr, ""),
        };
        match (service, &gateway.destination) {
            (Some(service), _) => {
                any_health = service.balancing.allow_unhealthy;
                let members = snapshot.members(&service.key);
                endpoints.extend(members.into_iter().flat_map(|m| m.workloads()).map(|w| &**w));
            }
            (None, GatewayDestination::Address(addr)) => {
                endpoints.extend(snapshot.workload_at(addr).map(|workload| &**workload));
            }
            (None, GatewayDestination::Service(_)) => {}
        }
        let is_ready = |w: &&&Workload| any_health || w.health == Health::Healthy;
        let ready = endpoints.iter().filter(is_ready).count();
        let state = match (service.is_some() || !endpoints.is_empty(), ready) {
            (false, _) => Reason::WaypointMissing.as_str(),
            (true, 0) => Reason::WaypointNotReady.as_str(),
            (true, _) => "ready",
        };
        let endpoints = endpoints.len();
        Self { waypoint: GatewayView::of(gateway), state, endpoints, ready, services: 0, workloads: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testmesh::mesh;

    #[test]
    fn waypoints_are_listed_with_their_state_and_who_stands_behind_them() {
        let mesh = mesh(
            "
            pod shop/wp-1   10.0.0.5 hbone serves=shop/wp
            pod shop/wp-2   10.0.0.6 hbone serves=shop/wp unhealthy
            pod shop/ill-1  10.0.0.7 hbone serves=shop/ill unhealthy
            pod shop/api-1  10.0.0.8 hbone waypoint=shop/wp
            svc shop/wp     10.1.0.4 ports=15008>15008
            svc shop/ill    10.1.0.5 ports=15008>15008
            svc shop/a      10.1.0.1 ports=80>80 waypoint=shop/wp
            svc shop/b      10.1.0.2 ports=80>80 waypoint=shop/wp waypoints=shop/wp:1,shop/ill:2
            svc shop/c      10.1.0.3 ports=80>80 waypoint=shop/none!bypass
            svc shop/d      10.1.0.6 ports=80>80 waypoint=10.0.0.5",
        );
        let line = |w: &WaypointView| {
            let bypass = if w.waypoint.bypass_when_absent { " bypass" } else { "" };
            let name = &w.waypoint.destination;
            format!("{name} {} {}/{} {}+{}{bypass}", w.state, w.ready, w.endpoints, w.services, w.workloads)
        };
        let lines: Vec<_> = waypoints(&mesh).iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "/10.0.0.5 ready 1/1 1+0",
                "shop/ill.shop.svc waypoint_not_ready 0/1 1+0",
                "shop/none.shop.svc waypoint_missing 0/0 1+0 bypass",
                "shop/wp.shop.svc ready 1/2 2+1",
            ]
        );
    }
}
