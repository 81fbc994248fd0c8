//! Which pods are in the mesh: one rule for everybody who asks.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Pod};

/// The label that asks for the mesh, on a namespace or a pod.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";

/// An injector leaves this on a pod that brings its own proxy.
const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";

/// Namespaces that are never enrolled: the node itself depends on what runs in them.
pub const EXCLUDED_NAMESPACES: [&str; 1] = ["kube-system"];

/// What a pod says about the mesh. With what its namespace says it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// It may not be in it, whatever the labels say.
    Never(Why),
    /// It wants to be in it.
    In,
    /// It wants to stay outside.
    Out,
    /// It does as its namespace says.
    Inherit,
}

/// Why a pod is outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its addresses are the node's.
    HostNetwork,
    /// It brings its own proxy.
    Sidecar,
    /// Its namespace is never enrolled.
    ExcludedNamespace,
    /// Its label says `none`.
    OptedOut,
    /// Neither it nor its namespace asks for it.
    NotAsked,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::HostNetwork => "the pod uses the node's network",
            Why::Sidecar => "the pod has a sidecar",
            Why::ExcludedNamespace => "its namespace is never enrolled",
            Why::OptedOut => "its label istio.io/dataplane-mode says none",
            Why::NotAsked => "neither the pod nor its namespace has the label istio.io/dataplane-mode=ambient",
        })
    }
}

impl Wish {
    /// What a pod says.
    pub fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let spec = pod.spec.as_ref();
        let annotated = |name: &str| metadata.annotations.as_ref().is_some_and(|a| a.contains_key(name));
        if spec.is_some_and(|s| s.host_network == Some(true)) {
            return Wish::Never(Why::HostNetwork);
        }
        if EXCLUDED_NAMESPACES.contains(&metadata.namespace.as_deref().unwrap_or_default()) {
            return Wish::Never(Why::ExcludedNamespace);
        }
        if annotated(SIDECAR_ANNOTATION) {
            return Wish::Never(Why::Sidecar);
        }
        match mode(metadata.labels.as_ref()) {
            Some("ambient") => Wish::In,
            Some("none") => Wish::Out,
            Some(_) | None => Wish::Inherit,
        }
    }

    /// Whether the pod belongs to the mesh, given whether its namespace does.
    pub fn under(self, namespace_in: bool) -> Result<(), Why> {
        match self {
            Wish::Never(why) => Err(why),
            Wish::In => Ok(()),
            Wish::Out => Err(Why::OptedOut),
            Wish::Inherit if namespace_in => Ok(()),
            Wish::Inherit => Err(Why::NotAsked),
        }
    }
}

/// Whether a namespace asks for the mesh.
pub fn namespace_in(namespace: &Namespace) -> bool {
    mode(namespace.metadata.labels.as_ref()) == Some("ambient")
}

fn mode(labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
    labels?.get(MODE_LABEL).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn labels_decide_and_some_pods_are_never_in() {
        // The pod, in a namespace that is outside, and in one that is in the mesh.
        let cases = [
            ("metadata: {namespace: a}", Err(Why::NotAsked), Ok(())),
            ("metadata: {labels: {istio.io/dataplane-mode: ambient}}", Ok(()), Ok(())),
            ("metadata: {labels: {istio.io/dataplane-mode: none}}", Err(Why::OptedOut), Err(Why::OptedOut)),
            ("metadata: {labels: {istio.io/dataplane-mode: other}}", Err(Why::NotAsked), Ok(())),
            (
                "{metadata: {labels: {istio.io/dataplane-mode: ambient}}, spec: {hostNetwork: true, containers: []}}",
                Err(Why::HostNetwork),
                Err(Why::HostNetwork),
            ),
            (
                "metadata: {namespace: kube-system, labels: {istio.io/dataplane-mode: ambient}}",
                Err(Why::ExcludedNamespace),
                Err(Why::ExcludedNamespace),
            ),
            ("metadata: {annotations: {sidecar.istio.io/status: x}}", Err(Why::Sidecar), Err(Why::Sidecar)),
        ];
        for (yaml, outside, inside) in cases {
            let wish = Wish::of(&pod(yaml));
            assert_eq!((wish.under(false), wish.under(true)), (outside, inside), "{yaml}");
        }
    }
}
