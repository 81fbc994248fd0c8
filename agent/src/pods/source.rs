//! What the manifests say about the pods of this node.

use std::collections::{BTreeMap, HashMap};

use loam_manifest::enrol::namespace_in;
use loam_manifest::{Change, Key, Kind, Object};

use super::spec::{PodSpec, SpecError, Uid, eligible, uid};

/// The pods that belong to the mesh here: each with what its enrolment needs, or with what it lacks.
pub type Wanted = BTreeMap<Uid, Pod>;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `<namespace>/<name>`.
    pub title: String,
    /// What is known of it.
    pub spec: Result<PodSpec, SpecError>,
}

/// Objects as far as they decide which pods are ours.
#[derive(Debug)]
pub struct Source {
    node: String,
    /// Whether questions to name servers are captured of a pod that does not say.
    dns: bool,
    /// Whether a namespace asks for the mesh.
    namespaces: HashMap<String, bool>,
    pods: BTreeMap<Key, Box<k8s_openapi::api::core::v1::Pod>>,
}

impl Source {
    /// Nothing is known yet.
    pub fn new(node: String, dns: bool) -> Self {
        Self { node, dns, namespaces: HashMap::new(), pods: BTreeMap::new() }
    }

    /// Takes in an object.
    pub fn apply(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Namespace(namespace) => {
                self.namespaces.insert(key.name.to_string(), namespace_in(&namespace));
            }
            Object::Pod(pod) => {
                let here = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(&self.node));
                match here {
                    true => self.pods.insert(key, pod),
                    false => self.pods.remove(&key),
                };
            }
            Object::Node(_)
            | Object::ServiceAccount(_)
            | Object::PeerAuthentication(_)
            | Object::AuthorizationPolicy(_)
            | Object::Sidecar(_)
            | Object::Service(_)
            | Object::ServiceEntry(_)
            | Object::EndpointSlice(_)
            | Object::WorkloadEntry(_) => {}
        }
    }

    /// Takes in a change.
    pub fn change(&mut self, change: Change) {
        match change {
            Change::Applied(object) => self.apply(object),
            Change::Deleted(key) => match key.kind {
                Kind::Namespace => drop(self.namespaces.remove(&*key.name)),
                Kind::Pod => drop(self.pods.remove(&key)),
                Kind::Node
                | Kind::ServiceAccount
                | Kind::PeerAuthentication
                | Kind::AuthorizationPolicy
                | Kind::Sidecar
                | Kind::Service
                | Kind::ServiceEntry
                | Kind::EndpointSlice
                | Kind::WorkloadEntry => {}
            },
        }
    }

    /// The pods that are ours.
    pub fn wanted(&self) -> Wanted {
        let ours = self.pods.iter().filter_map(|(key, pod)| {
            let in_mesh = self.namespaces.get(&*key.namespace).copied().unwrap_or(false);
            let spec = eligible(pod, &self.node, in_mesh, self.dns)?;
            Some((uid(pod), Pod { title: format!("{}/{}", key.namespace, key.name), spec }))
        });
        ours.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, annotations: {loam.dev/netns: /run/netns/web}}
spec: {nodeName: n1, containers: []}
status: {podIPs: [{ip: 10.0.0.7}]}
";

    fn namespace(labels: &str) -> Object {
        object(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{labels}}}}}}}"))
    }

    fn object(text: &str) -> Object {
        loam_manifest::read([("a.yaml", text.as_bytes())]).objects.remove(0)
    }

    #[test]
    fn labelling_a_namespace_takes_its_pods_in_and_unlabelling_lets_them_go() {
        let mut source = Source::new("n1".into(), true);
        source.apply(object(POD));
        assert!(source.wanted().is_empty());
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        assert_eq!(source.wanted().keys().map(|uid| &**uid).collect::<Vec<_>>(), ["shop/web"]);
        source.apply(namespace(""));
        assert!(source.wanted().is_empty());
    }

    #[test]
    fn a_pod_that_is_deleted_or_moves_away_is_let_go() {
        let mut source = Source::new("n1".into(), true);
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        source.apply(object(POD));
        source.apply(object(&POD.replace("n1", "n2")));
        assert!(source.wanted().is_empty());
        source.apply(object(POD));
        source.change(Change::Deleted(object(POD).key()));
        assert!(source.wanted().is_empty());
    }
}
