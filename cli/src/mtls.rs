//! Whether a namespace demands mutual TLS, as its PeerAuthentications say.

use serde::Serialize;
use serde_json::Value;

/// Where PeerAuthentications are found, the newest version first.
pub const PATHS: [&str; 2] =
    ["/apis/security.istio.io/v1/peerauthentications", "/apis/security.istio.io/v1beta1/peerauthentications"];

/// What a namespace demands of who connects. Between captured pods there is mutual TLS in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Demand {
    /// Whoever comes without it is refused.
    Strict,
    /// Whoever comes without it is let in.
    Permissive,
}

impl Demand {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Demand::Strict => "STRICT",
            Demand::Permissive => "PERMISSIVE",
        }
    }

    /// What holds in a namespace: its own level, else that of the mesh. Those with a selector are about less.
    pub fn of(policies: &[Value], root: &str, namespace: &str) -> Self {
        let mode = level(policies, namespace).or_else(|| level(policies, root));
        // Whoever receives treats DISABLE as PERMISSIVE.
        if mode == Some("STRICT") { Demand::Strict } else { Demand::Permissive }
    }
}

/// The mode that the oldest policy without a selector sets; `None` where it leaves it to what holds above.
fn level<'a>(policies: &'a [Value], namespace: &str) -> Option<&'a str> {
    let whole = |policy: &&Value| {
        let selector = &policy["spec"]["selector"]["matchLabels"];
        policy["metadata"]["namespace"] == namespace && selector.as_object().is_none_or(serde_json::Map::is_empty)
    };
    let age = |policy: &&Value| {
        let text = |key: &str| policy["metadata"][key].as_str().unwrap_or_default().to_owned();
        (text("creationTimestamp"), text("name"))
    };
    let oldest = policies.iter().filter(whole).min_by_key(age)?;
    oldest["spec"]["mtls"]["mode"].as_str().filter(|mode| *mode != "UNSET")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(namespace: &str, created: &str, spec: Value) -> Value {
        let metadata = json!({"namespace": namespace, "name": "p", "creationTimestamp": created});
        json!({"metadata": metadata, "spec": spec})
    }

    #[test]
    fn the_nearest_level_that_says_something_counts() {
        let strict = json!({"mtls": {"mode": "STRICT"}});
        let all = [
            policy("istio-system", "2026-01-01", strict.clone()),
            policy("open", "2026-01-01", json!({"mtls": {"mode": "DISABLE"}})),
            policy("unset", "2026-01-01", json!({"mtls": {"mode": "UNSET"}})),
            policy("two", "2026-01-02", json!({"mtls": {"mode": "PERMISSIVE"}})),
            policy("two", "2026-01-01", strict.clone()),
        ];
        let of = |namespace: &str| Demand::of(&all, "istio-system", namespace);
        assert_eq!(of("open"), Demand::Permissive);
        assert_eq!((of("unset"), of("other"), of("two")), (Demand::Strict, Demand::Strict, Demand::Strict));
        let selected = json!({"selector": {"matchLabels": {"app": "a"}}, "mtls": {"mode": "STRICT"}});
        assert_eq!(Demand::of(&[policy("a", "1", selected)], "istio-system", "a"), Demand::Permissive);
    }
}
