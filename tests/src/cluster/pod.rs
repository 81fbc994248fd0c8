//! How a pod of a cluster is, in the words of its object.

use std::net::IpAddr;

use serde_json::Value;

/// What the agent writes on a pod that is captured.
const CAPTURED: &str = "ambient.istio.io/redirection";

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodState {
    /// Its name.
    pub name: String,
    /// Tells it from another one of the same name.
    pub uid: String,
    /// The node that it is on.
    pub node: String,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// All its addresses, the one that the kubelet probes first.
    pub addresses: Vec<IpAddr>,
    /// Whether the agent says that it is captured.
    pub captured: bool,
    /// Whether all its probes are content.
    pub ready: bool,
    /// How often its containers were started again.
    pub restarts: u64,
}

impl PodState {
    /// Reads an object.
    pub fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let containers =
            ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|kind| list(&status[kind]));
        Self {
            name: text(&metadata["name"]),
            uid: text(&metadata["uid"]),
            node: text(&pod["spec"]["nodeName"]),
            phase: text(&status["phase"]),
            addresses: list(&status["podIPs"]).iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect(),
            captured: metadata["annotations"][CAPTURED] == "enabled",
            ready: list(&status["conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
            restarts: containers.filter_map(|container| container["restartCount"].as_u64()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_what_its_object_says() {
        let object = json!({
            "metadata": {"name": "web", "uid": "u", "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"nodeName": "node-a"},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "initContainerStatuses": [{"restartCount": 1}],
                "containerStatuses": [{"restartCount": 2}, {"restartCount": 0}],
            },
        });
        let pod = PodState::of(&object);
        assert!(pod.captured && pod.ready);
        assert_eq!((pod.restarts, pod.addresses.len(), &*pod.phase), (3, 2, "Running"));
        let begun = PodState::of(&json!({"metadata": {"name": "web"}}));
        assert!(!begun.captured && !begun.ready && begun.addresses.is_empty());
    }
}
