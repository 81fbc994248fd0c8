//! What is told about gateways and their classes. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

use super::patch::conditions;
use super::{Condition, Reason};
use crate::resource::gateway::{Gateway, HBONE, HBONE_PORT};
use crate::resource::quoted;

/// What our types of conditions are on a gateway, on its listeners and on a class.
const OF_GATEWAY: [&str; 2] = ["Accepted", "Programmed"];
const OF_LISTENER: [&str; 4] = ["Accepted", "Conflicted", "Programmed", "ResolvedRefs"];
const OF_CLASS: [&str; 2] = ["Accepted", "SupportedVersion"];

/// The definitions of the Gateway API within its version 1 that have all kinds of routes for requests in their final form.
const OLDEST_MINOR: u32 = 1;

/// Features of the Gateway API that waypoints have, in their order. Those of meshes have no place on a class.
const FEATURES: [&str; 9] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "TCPRoute",
    "TLSRoute",
];

/// A waypoint, as far as its status depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Waypoint {
    /// The object.
    pub gateway: Gateway,
    /// The name of its service.
    pub hostname: Arc<str>,
    /// Whether a pod of it may receive connections.
    pub ready: bool,
}

/// Why a waypoint is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMade {
    /// In a word.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// The status of a waypoint's Gateway, of which `made` says whether its parts are applied.
pub fn gateway(current: Option<&Value>, waypoint: &Waypoint, made: Result<(), &NotMade>, now: &str) -> Value {
    let generation = waypoint.gateway.generation;
    let of = |field: &str| current.and_then(|current| current.get(field));
    let valid = waypoint.gateway.listeners.iter().filter(|listener| listener.is_hbone()).count();
    let accepted = accepted(waypoint, made, valid);
    let programmed = programmed(waypoint, made, &accepted);
    let is_programmed = programmed.holds;
    let old_listeners = of("listeners").and_then(Value::as_array);
    let listeners = waypoint.gateway.listeners.iter().map(|listener| {
        let old = old_listeners
            .into_iter()
            .flatten()
            .find(|old| old.get("name").and_then(Value::as_str) == Some(&*listener.name));
        let wished = listener_conditions(&listener.protocol, listener.port, is_programmed);
        json!({
            "name": &*listener.name,
            // Routes name services as their parents, and never a waypoint.
            "supportedKinds": [],
            "attachedRoutes": 0,
            "conditions": conditions(old.and_then(|old| old.get("conditions")), &wished, &OF_LISTENER, generation, now),
        })
    });
    let addresses = match is_programmed {
        true => json!([{"type": "Hostname", "value": &*waypoint.hostname}]),
        false => json!([]),
    };
    json!({
        "addresses": addresses,
        "conditions": conditions(of("conditions"), &[accepted, programmed], &OF_GATEWAY, generation, now),
        "listeners": listeners.collect::<Vec<_>>(),
    })
}

fn accepted(waypoint: &Waypoint, made: Result<(), &NotMade>, valid: usize) -> Condition {
    match made {
        Err(NotMade { reason: Reason::InvalidParameters, message }) => {
            Condition::is_not("Accepted", Reason::InvalidParameters, message.as_str())
        }
        _ if valid == 0 => {
            let message = format!("no listener has port {HBONE_PORT} and protocol {HBONE}, as a waypoint needs");
            Condition::is_not("Accepted", Reason::ListenersNotValid, message)
        }
        _ if valid < waypoint.gateway.listeners.len() => {
            Condition::is("Accepted", Reason::ListenersNotValid, "some listeners are not a waypoint's")
        }
        _ => Condition::is("Accepted", Reason::Accepted, "the waypoint is accepted"),
    }
}

fn programmed(waypoint: &Waypoint, made: Result<(), &NotMade>, accepted: &Condition) -> Condition {
    match made {
        _ if !accepted.holds => Condition::is_not("Programmed", Reason::Invalid, "the Gateway is not accepted"),
        Err(NotMade { reason, message }) => Condition::is_not("Programmed", *reason, message.as_str()),
        Ok(()) if !waypoint.ready => Condition::is_not(
            "Programmed",
            Reason::Pending,
            "no pod of the waypoint is ready: see its Deployment and pods",
        ),
        Ok(()) => {
            let message = format!("pods answer at {}", waypoint.hostname);
            Condition::is("Programmed", Reason::Programmed, message)
        }
    }
}

fn listener_conditions(protocol: &str, port: i64, is_programmed: bool) -> [Condition; 4] {
    let fits = protocol == HBONE && port == i64::from(HBONE_PORT);
    let accepted = match fits {
        true => Condition::is("Accepted", Reason::Accepted, "waypoints listen so"),
        false => {
            let message = format!("waypoints listen on port {HBONE_PORT} with protocol {HBONE} only");
            Condition::is_not("Accepted", Reason::UnsupportedProtocol, message)
        }
    };
    let programmed = match (fits, is_programmed) {
        (true, true) => Condition::is("Programmed", Reason::Programmed, "the waypoint listens"),
        (true, false) => Condition::is_not("Programmed", Reason::Pending, "the waypoint is not programmed"),
        (false, _) => Condition::is_not("Programmed", Reason::Invalid, "the listener is not accepted"),
    };
    [
        accepted,
        Condition::is_not("Conflicted", Reason::NoConflicts, "no other listener stands against it"),
        programmed,
        Condition::is("ResolvedRefs", Reason::ResolvedRefs, "it refers to nothing"),
    ]
}

/// The status of a class that is ours. `version` is that of the definitions of the Gateway API, such as `v1.7.0`.
pub fn class(current: Option<&Value>, generation: Option<i64>, version: Option<&str>, now: &str) -> Value {
    let accepted = Condition::is("Accepted", Reason::Accepted, "its gateways are waypoints");
    let supported = supported(version);
    let old = current.and_then(|current| current.get("conditions"));
    json!({
        "conditions": conditions(old, &[accepted, supported], &OF_CLASS, generation, now),
        "supportedFeatures": FEATURES.map(|name| json!({"name": name})),
    })
}

fn supported(version: Option<&str>) -> Condition {
    let minor = |version: &str| version.strip_prefix("v1.")?.split('.').next()?.parse::<u32>().ok();
    match version {
        Some(known) if minor(known).is_some_and(|minor| minor >= OLDEST_MINOR) => {
            Condition::is("SupportedVersion", Reason::SupportedVersion, format!("the Gateway API is {known}"))
        }
        other => {
            let version = quoted(other.unwrap_or_default());
            let message = format!("the Gateway API is {version}, and not v1.{OLDEST_MINOR} or a later v1");
            Condition::is_not("SupportedVersion", Reason::UnsupportedVersion, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::gateway::gateway as read;

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn waypoint(listeners: &str, ready: bool) -> Waypoint {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, generation: 4}}\n\
             spec: {{gatewayClassName: istio-waypoint, listeners: {listeners}}}\n"
        );
        let mut state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
        let Some(loam_manifest::Object::Gateway(object)) = state.objects.pop() else { panic!("{:?}", state.problems) };
        let gateway = read(object.metadata, object.spec, &mut Vec::new());
        Waypoint { gateway, hostname: "w.shop.svc.cluster.local".into(), ready }
    }

    const MESH: &str = "[{name: mesh, port: 15008, protocol: HBONE}]";

    /// `type status reason` of the conditions.
    fn told(conditions: &Value) -> Vec<String> {
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
        let conditions = conditions.as_array().unwrap().iter();
        conditions.map(|c| format!("{} {} {}", text(c, "type"), text(c, "status"), text(c, "reason"))).collect()
    }

    #[test]
    fn a_waypoint_is_programmed_when_a_pod_is_ready() {
        let status = gateway(None, &waypoint(MESH, true), Ok(()), NOW);
        assert_eq!(told(&status["conditions"]), ["Accepted True Accepted", "Programmed True Programmed"]);
        assert_eq!(status["addresses"], json!([{"type": "Hostname", "value": "w.shop.svc.cluster.local"}]));
        assert_eq!(status["conditions"][0]["observedGeneration"], 4);
        let listener = &status["listeners"][0];
        assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("mesh"), &json!(0)));
        let expected = [
            "Accepted True Accepted",
            "Conflicted False NoConflicts",
            "Programmed True Programmed",
            "ResolvedRefs True ResolvedRefs",
        ];
        assert_eq!(told(&listener["conditions"]), expected);
        let status = gateway(Some(&status), &waypoint(MESH, false), Ok(()), NOW);
        assert_eq!(told(&status["conditions"]), ["Accepted True Accepted", "Programmed False Pending"]);
        assert_eq!(status["addresses"], json!([]));
    }

    #[test]
    fn what_keeps_a_waypoint_from_being_made_is_told() {
        let of = |waypoint: &Waypoint, reason| {
            let not_made = NotMade { reason, message: "m".into() };
            told(&gateway(None, waypoint, Err(&not_made), NOW)["conditions"])
        };
        let plain = waypoint(MESH, false);
        assert_eq!(
            of(&plain, Reason::InvalidParameters),
            ["Accepted False InvalidParameters", "Programmed False Invalid"]
        );
        assert_eq!(of(&plain, Reason::NoResources), ["Accepted True Accepted", "Programmed False NoResources"]);
        let none = waypoint("[{name: a, port: 80, protocol: HTTP}]", false);
        let status = gateway(None, &none, Ok(()), NOW);
        assert_eq!(told(&status["conditions"]), ["Accepted False ListenersNotValid", "Programmed False Invalid"]);
        assert_eq!(told(&status["listeners"][0]["conditions"])[0], "Accepted False UnsupportedProtocol");
        let some = waypoint("[{name: mesh, port: 15008, protocol: HBONE}, {name: a, port: 80, protocol: HTTP}]", true);
        let status = gateway(None, &some, Ok(()), NOW);
        assert_eq!(told(&status["conditions"])[0], "Accepted True ListenersNotValid");
    }

    #[test]
    fn a_class_tells_its_features_in_order() {
        let status = class(None, Some(1), Some("v1.7.0"), NOW);
        let expected = ["Accepted True Accepted", "SupportedVersion True SupportedVersion"];
        assert_eq!(told(&status["conditions"]), expected);
        assert!(FEATURES.is_sorted());
    }

    #[test]
    fn a_version_of_the_gateway_api_that_nobody_knows_is_told() {
        for version in [None, Some("v0.8.1"), Some("v1.0.0"), Some("v2.1.0"), Some("1.2.0"), Some("v1.x")] {
            let told = told(&class(None, Some(1), version, NOW)["conditions"]);
            assert_eq!(told[1], "SupportedVersion False UnsupportedVersion", "{version:?}");
        }
        let told = told(&class(None, Some(1), Some("v1.12.0-rc.1"), NOW)["conditions"]);
        assert_eq!(told[1], "SupportedVersion True SupportedVersion");
    }
}
