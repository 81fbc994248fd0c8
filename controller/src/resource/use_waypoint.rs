//! What an object says about the waypoint in front of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Flaw, Name, quoted};

/// Names the waypoint, or `none`.
const LABEL: &str = "istio.io/use-waypoint";
/// The namespace of it, where it is another.
const NAMESPACE_LABEL: &str = "istio.io/use-waypoint-namespace";
/// Names another waypoint that takes a share.
const CANARY_LABEL: &str = "istio.io/use-waypoint-canary";
/// The namespace of that one, where it is another.
const CANARY_NAMESPACE_LABEL: &str = "istio.io/use-waypoint-canary-namespace";
/// Its share in percent.
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// Says with the value `pass` that connections may go past a waypoint that is missing or not ready.
pub const UNAVAILABLE: &str = "loam.dev/waypoint-unavailable";

/// What an object says about the waypoint in front of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum UseWaypoint {
    /// Nothing: as its namespace says.
    #[default]
    Inherit,
    /// There shall be none.
    Never,
    /// This one.
    Named(Box<Named>),
}

/// A waypoint that shall be passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The Gateway.
    pub gateway: Name,
    /// Another Gateway that takes a share, and the share in percent: 0 to 100. An error says what is wrong with it.
    pub canary: Option<Result<(Name, u32), CanaryFlaw>>,
    /// Whether connections may go past it while it is missing or not ready.
    pub passes: bool,
}

/// Why a canary takes no share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryFlaw {
    /// Its weight is no number from 0 to 100.
    Weight,
    /// It is the waypoint itself.
    Same,
}

impl UseWaypoint {
    /// Reads labels and annotations of an object in `namespace`.
    pub fn read(metadata: &ObjectMeta, namespace: &str, flaws: &mut Vec<Flaw>) -> Self {
        let label = |key: &str| text(metadata.labels.as_ref(), key);
        let annotation = |key: &str| text(metadata.annotations.as_ref(), key);
        let name = match label(LABEL) {
            None => return Self::Inherit,
            Some("none") => return Self::Never,
            Some(name) => name,
        };
        let named = |name: &str, namespace_label| Name::new(label(namespace_label).unwrap_or(namespace), name);
        let gateway = named(name, NAMESPACE_LABEL);
        let canary = label(CANARY_LABEL).map(|name| {
            let canary = named(name, CANARY_NAMESPACE_LABEL);
            let weight = annotation(CANARY_WEIGHT).and_then(|w| w.parse().ok()).filter(|weight| *weight <= 100);
            match weight {
                _ if canary == gateway => Err(CanaryFlaw::Same),
                Some(weight) => Ok((canary, weight)),
                None => Err(CanaryFlaw::Weight),
            }
        });
        let passes = match annotation(UNAVAILABLE) {
            None | Some("refuse") => false,
            Some("pass") => true,
            Some(other) => {
                let other = quoted(other);
                flaws.push(format!("annotation {UNAVAILABLE} {other} is neither pass nor refuse: refuse is used"));
                false
            }
        };
        Self::Named(Box::new(Named { gateway, canary, passes }))
    }
}

fn text<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str).filter(|text| !text.is_empty())
}

/// Labels that name the Gateway whose pod, Service or Deployment something is.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Whether something with these labels is a Gateway's own pod or Service.
pub fn is_of_gateway(labels: Option<&BTreeMap<String, String>>) -> bool {
    text(labels, GATEWAY_NAME).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> (UseWaypoint, Vec<Flaw>) {
        let map = |pairs: &[(&str, &str)]| Some(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
        let metadata = ObjectMeta { labels: map(labels), annotations: map(annotations), ..ObjectMeta::default() };
        let mut flaws = Vec::new();
        (UseWaypoint::read(&metadata, "shop", &mut flaws), flaws)
    }

    fn named(gateway: (&str, &str)) -> Named {
        Named { gateway: Name::new(gateway.0, gateway.1), canary: None, passes: false }
    }

    #[test]
    fn labels_name_a_waypoint_of_the_own_or_another_namespace_or_none() {
        let says = |labels: &[(&str, &str)]| read(labels, &[]).0;
        assert_eq!(says(&[]), UseWaypoint::Inherit);
        assert_eq!(says(&[(LABEL, "none"), (NAMESPACE_LABEL, "infra")]), UseWaypoint::Never);
        assert_eq!(says(&[(LABEL, "w")]), UseWaypoint::Named(Box::new(named(("shop", "w")))));
        let other = says(&[(LABEL, "w"), (NAMESPACE_LABEL, "infra")]);
        assert_eq!(other, UseWaypoint::Named(Box::new(named(("infra", "w")))));
        assert_eq!(says(&[(NAMESPACE_LABEL, "infra")]), UseWaypoint::Inherit);
    }

    #[test]
    fn a_canary_has_a_share_or_a_flaw() {
        let canary = |labels: &[(&str, &str)], weight: &str| {
            let labels = [&[(LABEL, "w")], labels].concat();
            let UseWaypoint::Named(named) = read(&labels, &[(CANARY_WEIGHT, weight)]).0 else { panic!("no waypoint") };
            named.canary
        };
        let other = [(CANARY_LABEL, "w"), (CANARY_NAMESPACE_LABEL, "infra")];
        assert_eq!(canary(&other, "10"), Some(Ok((Name::new("infra", "w"), 10))));
        assert_eq!(canary(&other, "101"), Some(Err(CanaryFlaw::Weight)));
        assert_eq!(canary(&[(CANARY_LABEL, "w")], "10"), Some(Err(CanaryFlaw::Same)));
        assert_eq!(canary(&[], "10"), None);
    }

    #[test]
    fn only_a_known_word_lets_connections_pass() {
        let passes = |word: &str| {
            let (UseWaypoint::Named(named), flaws) = read(&[(LABEL, "w")], &[(UNAVAILABLE, word)]) else {
                panic!("no waypoint")
            };
            (named.passes, flaws.len())
        };
        assert_eq!([passes("pass"), passes("refuse"), passes("maybe")], [(true, 0), (false, 0), (false, 1)]);
    }
}
