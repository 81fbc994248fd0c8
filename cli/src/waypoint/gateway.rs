//! The Gateway that a waypoint is, and what its conditions say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::{NamespaceResourceScope, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::waypoint::Wanted;

/// The class of waypoints.
pub const CLASS: &str = "istio-waypoint";
/// Says whose traffic a waypoint takes.
const FOR_LABEL: &str = "istio.io/waypoint-for";
/// Says which control plane makes it.
const REVISION_LABEL: &str = "istio.io/rev";
/// Where waypoints listen.
const HBONE_PORT: u16 = 15008;

const ACCEPTED: &str = "Accepted";
const PROGRAMMED: &str = "Programmed";

/// Reasons with which a Gateway is not accepted only until its controller has looked at it.
const NOT_LOOKED_AT: [&str; 2] = ["NotReconciled", "Pending"];
/// Reasons with which an accepted Gateway stays unprogrammed until somebody changes something. With others, such as
/// `Pending`, `NoResources` and `AddressNotAssigned`, it may come to be programmed by itself.
const NEEDS_A_CHANGE: [&str; 2] = ["AddressNotUsable", "Invalid"];

/// A Gateway, as far as it is about waypoints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gateway {
    /// Its name, its labels.
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    gateway_class_name: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Resource for Gateway {
    const API_VERSION: &'static str = "gateway.networking.k8s.io/v1";
    const GROUP: &'static str = "gateway.networking.k8s.io";
    const KIND: &'static str = "Gateway";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "gateways";
    type Scope = NamespaceResourceScope;
}

/// The Gateway that is asked for.
pub fn manifest(namespace: Option<&str>, wanted: &Wanted) -> Value {
    let mut metadata = json!({"name": wanted.name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    // What is left out is decided by the class.
    if let Some(traffic) = wanted.traffic {
        metadata["labels"][FOR_LABEL] = json!(traffic.as_str());
    }
    if !wanted.revision.is_empty() {
        metadata["labels"][REVISION_LABEL] = json!(wanted.revision);
    }
    json!({
        "apiVersion": Gateway::API_VERSION,
        "kind": Gateway::KIND,
        "metadata": metadata,
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{"name": "mesh", "port": HBONE_PORT, "protocol": "HBONE"}],
        },
    })
}

/// What keeps a waypoint from being programmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What its conditions say.
    pub why: String,
    /// Whether it stays until somebody changes something.
    pub lasts: bool,
    /// What to type.
    pub remedy: String,
}

impl Gateway {
    /// Whether it is of the class of waypoints.
    pub fn is_waypoint(&self) -> bool {
        self.class() == CLASS
    }

    /// Its class.
    pub fn class(&self) -> &str {
        &self.spec.gateway_class_name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The revision that it asks for.
    pub fn revision(&self) -> Option<&str> {
        self.label(REVISION_LABEL)
    }

    /// Whose traffic it asks for.
    pub fn traffic(&self) -> Option<&str> {
        self.label(FOR_LABEL)
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Its conditions, as they are.
    pub fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }

    /// `True`, `False` or `Unknown`: whether it is programmed as its latest version says.
    pub fn programmed(&self) -> &str {
        self.condition(PROGRAMMED).map_or("Unknown", |condition| &condition.status)
    }

    /// A condition, unless it is about an earlier version.
    fn condition(&self, kind: &str) -> Option<&Condition> {
        let latest = |seen: i64| self.metadata.generation.is_none_or(|generation| seen >= generation);
        let of_kind = |condition: &&Condition| condition.type_ == kind;
        self.status.conditions.iter().find(of_kind).filter(|found| found.observed_generation.is_none_or(latest))
    }

    /// What keeps it from being programmed; `None` where it is.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let (accepted, programmed) = (self.condition(ACCEPTED), self.condition(PROGRAMMED));
        if self.programmed() == "True" {
            return None;
        }
        let refused = accepted.filter(|condition| condition.status == "False");
        let Some(condition) = refused.or(programmed).or(accepted) else {
            let why = "nobody has looked at its latest version yet".to_owned();
            return Some(Obstacle { why, lasts: false, remedy: "loam check".to_owned() });
        };
        let Condition { type_, status, reason, message, .. } = condition;
        let reason = reason.as_str();
        let lasts = match refused.is_some() {
            true => !NOT_LOOKED_AT.contains(&reason),
            false => status == "False" && NEEDS_A_CHANGE.contains(&reason),
        };
        let why = format!("{type_} is {status} ({reason}): {message}");
        Some(Obstacle { why, lasts, remedy: self.remedy(status, reason, lasts) })
    }

    fn remedy(&self, status: &str, reason: &str, lasts: bool) -> String {
        let (namespace, name) = (self.namespace(), self.name());
        match (status, reason) {
            ("False", "InvalidParameters") => format!("kubectl get configmaps --namespace {namespace}"),
            // The name alone may also mean the Gateways of Istio's own API.
            ("False", _) if lasts => {
                format!("kubectl describe {}.{} --namespace {namespace} {name}", Self::URL_PATH_SEGMENT, Self::GROUP)
            }
            ("False", _) => format!(
                "kubectl get pods --namespace {namespace} --selector gateway.networking.k8s.io/gateway-name={name}\n\
                 kubectl get events --namespace {namespace}"
            ),
            _ => "loam check".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::waypoint::Traffic;

    fn wanted(traffic: Option<Traffic>, revision: &str) -> Wanted {
        Wanted { name: "w".into(), traffic, revision: revision.into() }
    }

    /// `TYPE STATUS REASON`, and `TYPE STATUS REASON GENERATION` of conditions that are about another than the third.
    fn gateway(conditions: &[&str]) -> Gateway {
        let condition = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            let seen: i64 = words.get(3).map_or(3, |seen| seen.parse().unwrap());
            json!({"type": words[0], "status": words[1], "reason": words[2], "message": "m", "observedGeneration": seen,
                   "lastTransitionTime": "2026-01-02T03:04:05Z"})
        };
        let conditions: Vec<Value> = conditions.iter().map(condition).collect();
        let mut gateway = manifest(Some("shop"), &wanted(None, ""));
        gateway["metadata"]["generation"] = json!(3);
        gateway["status"]["conditions"] = json!(conditions);
        serde_json::from_value(gateway).unwrap()
    }

    #[test]
    fn labels_are_set_when_they_are_asked_for() {
        let metadata = |traffic, revision| manifest(None, &wanted(traffic, revision))["metadata"].clone();
        assert_eq!(metadata(None, ""), json!({"name": "w"}));
        assert_eq!(
            metadata(Some(Traffic::All), "v1"),
            json!({"name": "w", "labels": {"istio.io/waypoint-for": "all", "istio.io/rev": "v1"}})
        );
        assert_eq!(manifest(Some("shop"), &wanted(None, ""))["metadata"]["namespace"], "shop");
    }

    #[test]
    fn a_condition_tells_whether_waiting_helps() {
        let accepted = "Accepted True Accepted";
        for (conditions, expected) in [
            (&[accepted, "Programmed True Programmed"][..], None),
            (&[accepted, "Programmed False Pending"], Some(("Programmed is False (Pending): m", false))),
            (&[accepted, "Programmed False NoResources"], Some(("Programmed is False (NoResources): m", false))),
            (
                &[accepted, "Programmed False AddressNotAssigned"],
                Some(("Programmed is False (AddressNotAssigned): m", false)),
            ),
            (&[accepted, "Programmed False SomethingElse"], Some(("Programmed is False (SomethingElse): m", false))),
            (&[accepted, "Programmed False Invalid"], Some(("Programmed is False (Invalid): m", true))),
            (
                &[accepted, "Programmed False AddressNotUsable"],
                Some(("Programmed is False (AddressNotUsable): m", true)),
            ),
            (&[accepted, "Programmed Unknown Pending"], Some(("Programmed is Unknown (Pending): m", false))),
            (&[accepted], Some(("Accepted is True (Accepted): m", false))),
            (
                &["Accepted False InvalidParameters", "Programmed False Invalid"],
                Some(("Accepted is False (InvalidParameters): m", true)),
            ),
            (&["Accepted False UnsupportedAddress"], Some(("Accepted is False (UnsupportedAddress): m", true))),
            (&["Accepted False Invalid"], Some(("Accepted is False (Invalid): m", true))),
            (&["Accepted False Pending"], Some(("Accepted is False (Pending): m", false))),
            (
                &["Accepted Unknown Pending", "Programmed Unknown Pending"],
                Some(("Programmed is Unknown (Pending): m", false)),
            ),
            (&[], Some(("nobody has looked at its latest version yet", false))),
            // What was said about an earlier version neither ends the wait nor makes it fail.
            (
                &["Accepted True Accepted 2", "Programmed True Programmed 2"],
                Some(("nobody has looked at its latest version yet", false)),
            ),
            (&["Accepted False Invalid 2", accepted, "Programmed True Programmed"], None),
            (&["Accepted False Invalid 2"], Some(("nobody has looked at its latest version yet", false))),
        ] {
            let obstacle = gateway(conditions).obstacle();
            let told = obstacle.as_ref().map(|obstacle| (obstacle.why.as_str(), obstacle.lasts));
            assert_eq!(told, expected, "{conditions:?}");
        }
    }

    #[test]
    fn every_obstacle_has_a_command_that_helps() {
        for (conditions, expected) in [
            (&["Accepted False InvalidParameters"][..], "kubectl get configmaps --namespace shop"),
            (
                &["Accepted False ListenersNotValid"],
                "kubectl describe gateways.gateway.networking.k8s.io --namespace shop w",
            ),
            (&["Programmed False Invalid"], "kubectl describe gateways.gateway.networking.k8s.io --namespace shop w"),
            (
                &["Programmed False Pending"],
                "kubectl get pods --namespace shop --selector gateway.networking.k8s.io/gateway-name=w\n\
                 kubectl get events --namespace shop",
            ),
            (&["Programmed Unknown Pending"], "loam check"),
            (&[], "loam check"),
        ] {
            assert_eq!(gateway(conditions).obstacle().unwrap().remedy, expected, "{conditions:?}");
        }
    }
}
