//! What the manifests say about the pods of this node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod as Manifest;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use loam_manifest::enrol::{Why, Wish, namespace_in};
use loam_manifest::network_policy::{Blocking, blocking};
use loam_manifest::{Change, Key, Kind, Object};

use super::sandbox::{ResolvConf, Sandbox};
use super::spec::{Guide, PodSpec, Rules, SpecError, Uid, uid};

/// Most NetworkPolicies that are kept. They are read for advice only, so whatever comes beyond it is passed over.
const MAX_NETWORK_POLICIES: usize = 10_000;

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

/// What is known of a pod by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet, or only of another pod of that name.
    Unknown,
    /// It does not belong to the mesh here.
    Outside,
    /// It belongs to the mesh.
    Ours(Uid),
}

/// Objects as far as they decide which pods are ours.
#[derive(Debug)]
pub struct Source {
    rules: Rules,
    /// Whether a namespace asks for the mesh.
    namespaces: HashMap<String, bool>,
    pods: BTreeMap<Key, Box<Manifest>>,
    /// At most [`MAX_NETWORK_POLICIES`].
    network_policies: BTreeMap<Key, Box<NetworkPolicy>>,
    /// What was found out about pods; at most one for each that is here.
    sandboxes: HashMap<Uid, Result<Sandbox, String>>,
}

impl Source {
    /// Nothing is known yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            namespaces: HashMap::new(),
            pods: BTreeMap::new(),
            network_policies: BTreeMap::new(),
            sandboxes: HashMap::new(),
        }
    }

    /// Takes in an object.
    pub fn apply(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Namespace(namespace) => {
                self.namespaces.insert(key.name.to_string(), namespace_in(&namespace));
            }
            Object::Pod(pod) => {
                let here = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(&self.rules.node));
                let is = uid(&pod);
                let former = match here {
                    true => self.pods.insert(key, pod),
                    false => self.pods.remove(&key),
                };
                // Another pod of that name, or it is another node's.
                if let Some(former) = former.map(|former| uid(&former)).filter(|former| !here || *former != is) {
                    self.sandboxes.remove(&former);
                }
            }
            Object::NetworkPolicy(policy) => {
                if self.network_policies.len() < MAX_NETWORK_POLICIES || self.network_policies.contains_key(&key) {
                    self.network_policies.insert(key, policy);
                }
            }
            Object::Node(_)
            | Object::ServiceAccount(_)
            | Object::PeerAuthentication(_)
            | Object::AuthorizationPolicy(_)
            | Object::Sidecar(_)
            | Object::Service(_)
            | Object::ServiceEntry(_)
            | Object::EndpointSlice(_)
            | Object::WorkloadEntry(_)
            | Object::GatewayClass(_)
            | Object::Gateway(_)
            | Object::ReferenceGrant(_)
            | Object::HttpRoute(_)
            | Object::GrpcRoute(_)
            | Object::TlsRoute(_)
            | Object::TcpRoute(_)
            | Object::BackendTlsPolicy(_)
            | Object::BackendTrafficPolicy(_) => {}
        }
    }

    /// Takes in a change.
    pub fn change(&mut self, change: Change) {
        match change {
            Change::Applied(object) => self.apply(object),
            Change::Deleted(key) => match key.kind {
                Kind::Namespace => drop(self.namespaces.remove(&*key.name)),
                Kind::Pod => {
                    if let Some(pod) = self.pods.remove(&key) {
                        self.sandboxes.remove(&uid(&pod));
                    }
                }
                Kind::NetworkPolicy => drop(self.network_policies.remove(&key)),
                Kind::Node
                | Kind::ServiceAccount
                | Kind::PeerAuthentication
                | Kind::AuthorizationPolicy
                | Kind::Sidecar
                | Kind::Service
                | Kind::ServiceEntry
                | Kind::EndpointSlice
                | Kind::WorkloadEntry
                | Kind::GatewayClass
                | Kind::Gateway
                | Kind::ReferenceGrant
                | Kind::HttpRoute
                | Kind::GrpcRoute
                | Kind::TlsRoute
                | Kind::TcpRoute
                | Kind::BackendTlsPolicy
                | Kind::BackendTrafficPolicy => {}
            },
        }
    }

    /// The NetworkPolicies that keep tunnels from a pod.
    pub fn blocking(&self, pod: &Manifest) -> Vec<Blocking> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let first = Key { kind: Kind::NetworkPolicy, namespace: namespace.into(), name: "".into() };
        let near = self.network_policies.range(first..).take_while(|(key, _)| *key.namespace == *namespace);
        blocking(pod, near.map(|(_, policy)| &**policy))
    }

    /// Notes where a pod is.
    pub fn place(&mut self, uid: Uid, sandbox: Sandbox) {
        self.sandboxes.insert(uid, Ok(sandbox));
    }

    /// Whether this is where the pod is known to be.
    pub fn is_placed(&self, uid: &Uid, sandbox: &Sandbox) -> bool {
        let same = |known: &Sandbox| known.netns == sandbox.netns && known.addresses == sandbox.addresses;
        matches!(self.sandboxes.get(uid), Some(Ok(known)) if same(known))
    }

    /// Forgets where a pod was, if that is still what is known.
    pub fn displace(&mut self, namespace: &str, name: &str, netns: &Path) {
        let Some(uid) = self.named(namespace, name).map(uid) else { return };
        if matches!(self.sandboxes.get(&uid), Some(Ok(sandbox)) if sandbox.netns == netns) {
            self.sandboxes.remove(&uid);
        }
    }

    /// How the pod of this name stands. With a uid no other pod of the name is meant.
    pub fn standing(&self, namespace: &str, name: &str, asked: &str) -> Standing {
        let is_meant = |pod: &&Manifest| asked.is_empty() || pod.metadata.uid.as_deref().is_none_or(|uid| uid == asked);
        let Some(pod) = self.named(namespace, name).filter(is_meant) else { return Standing::Unknown };
        let wish = Wish::of(pod);
        let belongs = |namespace_in| wish.under(namespace_in).is_ok();
        match self.namespaces.get(namespace) {
            // Nothing depends on it for a pod that says for itself.
            None if belongs(true) != belongs(false) => Standing::Unknown,
            known if belongs(known.copied().unwrap_or(false)) => Standing::Ours(uid(pod)),
            _ => Standing::Outside,
        }
    }

    fn named(&self, namespace: &str, name: &str) -> Option<&Manifest> {
        let mut pods = self.pods.iter().filter(|(key, _)| *key.namespace == *namespace && *key.name == *name);
        pods.next().map(|(_, pod)| &**pod)
    }

    /// Notes what a search found of a pod, if the pod is still here. Where it is known to be counts for more, since its
    /// namespace may have several paths. Says whether it was not known that it can be found, or why not.
    pub fn found(&mut self, uid: &Uid, found: Result<Sandbox, String>) -> bool {
        if !self.pods.values().any(|pod| super::spec::uid(pod) == *uid) {
            return false;
        }
        match (self.sandboxes.get_mut(uid), found) {
            (Some(Ok(known)), Ok(found)) => known.resolv_conf = found.resolv_conf,
            (Some(Ok(_)), Err(_)) => {}
            (Some(Err(known)), Err(why)) if *known == why => {}
            (Some(Err(_)) | None, found) => {
                self.sandboxes.insert(uid.clone(), found);
                return true;
            }
        }
        false
    }

    /// Everything that was there at the beginning is known: forgets what is of pods that are not here.
    pub fn settle(&mut self) {
        let here: BTreeSet<Uid> = self.pods.values().map(|pod| uid(pod)).collect();
        self.sandboxes.retain(|uid, _| here.contains(uid));
    }

    /// Forgets where a pod was: it is not there any more.
    pub fn lose(&mut self, uid: &Uid) {
        self.sandboxes.remove(uid);
    }

    /// The pods that are to be searched for among the node's processes.
    pub fn missing(&self) -> BTreeSet<Uid> {
        if self.rules.guide == Guide::Annotations {
            return BTreeSet::new();
        }
        let is_missing = |uid: &Uid, pod: &Pod| match &pod.spec {
            Ok(_) => matches!(self.sandboxes.get(uid), Some(Ok(sandbox)) if sandbox.resolv_conf == ResolvConf::Unknown),
            Err(error) => error.is_sought(),
        };
        self.wanted().into_iter().filter(|(uid, pod)| is_missing(uid, pod)).map(|(uid, _)| uid).collect()
    }

    /// The pods that are ours.
    pub fn wanted(&self) -> Wanted {
        let ours = self.pods.iter().filter_map(|(key, pod)| {
            let uid = uid(pod);
            let spec = self.rules.eligible(pod, self.is_in(key), self.sandboxes.get(&uid))?;
            Some((uid, Pod { title: format!("{}/{}", key.namespace, key.name), spec }))
        });
        ours.collect()
    }

    /// Every pod of the node, with whether it belongs to the mesh.
    pub fn pods(&self) -> impl Iterator<Item = (&Manifest, Result<(), Why>)> {
        self.pods.iter().map(|(key, pod)| (&**pod, Wish::of(pod).under(self.is_in(key))))
    }

    /// Whether the namespace of a pod asks for the mesh.
    fn is_in(&self, key: &Key) -> bool {
        self.namespaces.get(&*key.namespace).copied().unwrap_or(false)
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

    fn source(guide: Guide) -> Source {
        Source::new(Rules { node: "n1".into(), dns: true, guide })
    }

    fn namespace(labels: &str) -> Object {
        object(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{labels}}}}}}}"))
    }

    fn object(text: &str) -> Object {
        loam_manifest::read([("a.yaml", text.as_bytes())]).objects.remove(0)
    }

    #[test]
    fn labelling_a_namespace_takes_its_pods_in_and_unlabelling_lets_them_go() {
        let mut source = source(Guide::Annotations);
        source.apply(object(POD));
        assert!(source.wanted().is_empty());
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        assert_eq!(source.wanted().keys().map(|uid| &**uid).collect::<Vec<_>>(), ["shop/web"]);
        source.apply(namespace(""));
        assert!(source.wanted().is_empty());
    }

    #[test]
    fn a_pod_that_is_asked_about_stands_as_its_labels_and_its_namespace_say() {
        let mut source = source(Guide::Annotations);
        let standing = |source: &Source, uid| source.standing("shop", "web", uid);
        source.apply(object(&POD.replace("name: web,", "name: web, uid: u-1,")));
        assert_eq!(standing(&source, "u-1"), Standing::Unknown, "its namespace is not known");
        source.apply(namespace(""));
        assert_eq!(standing(&source, "u-1"), Standing::Outside);
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        assert_eq!(standing(&source, "u-1"), Standing::Ours("u-1".into()));
        assert_eq!(standing(&source, "u-2"), Standing::Unknown, "it is a former pod of that name that is known");
        assert_eq!(source.standing("shop", "other", ""), Standing::Unknown);
        for (mode, expected) in [("none", Standing::Outside), ("ambient", Standing::Ours("lone/web".into()))] {
            let labelled = format!("name: web, namespace: lone, labels: {{istio.io/dataplane-mode: {mode}}},");
            source.apply(object(&POD.replace("name: web, namespace: shop,", &labelled)));
            assert_eq!(source.standing("lone", "web", ""), expected, "whatever its namespace says");
        }
    }

    #[test]
    fn policies_of_its_own_namespace_keep_tunnels_from_a_pod_until_they_are_gone() {
        let mut source = source(Guide::Annotations);
        source.apply(object(POD));
        let policy = |namespace: &str| {
            object(&format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}, \
                 spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: 80}}]}}]}}}}"
            ))
        };
        let blocking = |source: &Source| {
            let pods: Vec<_> = source.pods().map(|(pod, _)| source.blocking(pod)).collect();
            pods.concat().into_iter().map(|blocking| blocking.policy).collect::<Vec<_>>()
        };
        for namespace in ["a", "shop", "z"] {
            source.apply(policy(namespace));
        }
        assert_eq!(blocking(&source), ["shop/p"]);
        source.change(Change::Deleted(policy("shop").key()));
        assert_eq!(blocking(&source), Vec::<String>::new());
    }

    #[test]
    fn a_sandbox_that_goes_is_forgotten_unless_another_one_came() {
        let mut source = source(Guide::Node);
        source.apply(object(POD));
        let sandbox = |netns: &str| Sandbox { netns: netns.into(), ..Sandbox::default() };
        source.place("shop/web".into(), sandbox("/b"));
        source.displace("shop", "web", Path::new("/a"));
        assert!(source.is_placed(&"shop/web".into(), &sandbox("/b")));
        source.displace("shop", "web", Path::new("/b"));
        assert!(!source.is_placed(&"shop/web".into(), &sandbox("/b")));
    }

    #[test]
    fn a_pod_that_is_deleted_or_moves_away_is_let_go() {
        let mut source = source(Guide::Annotations);
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        source.apply(object(POD));
        source.apply(object(&POD.replace("n1", "n2")));
        assert!(source.wanted().is_empty());
        source.apply(object(POD));
        source.change(Change::Deleted(object(POD).key()));
        assert!(source.wanted().is_empty());
    }

    #[test]
    fn a_pod_is_missing_until_it_is_found_with_its_resolv_conf_and_again_when_it_is_lost() {
        let mut source = source(Guide::Node);
        source.apply(namespace("istio.io/dataplane-mode: ambient"));
        source.apply(object(POD));
        let web = || Uid::from("shop/web");
        let missing = |source: &Source| source.missing().into_iter().next();
        let sandbox = |netns: &str, resolv_conf| Ok(Sandbox { netns: netns.into(), resolv_conf, ..Sandbox::default() });
        assert_eq!(missing(&source), Some(web()));
        source.found(&web(), Err("no way in".into()));
        assert_eq!(missing(&source), Some(web()));
        source.found(&web(), sandbox("/a", ResolvConf::Unknown));
        assert_eq!(missing(&source), Some(web()));
        source.found(&web(), sandbox("/b", ResolvConf::Text("nameserver 10.0.0.10".into())));
        assert_eq!(missing(&source), None);
        let spec = source.wanted().remove("shop/web").unwrap().spec.unwrap();
        assert_eq!((spec.netns.to_str(), spec.dns), (Some("/a"), true));
        source.lose(&web());
        assert_eq!(missing(&source), Some(web()));
        source.found(&web(), sandbox("/a", ResolvConf::Unreadable));
        assert_eq!(missing(&source), None);
        // Another pod of that name.
        source.apply(object(&POD.replace("name: web,", "name: web, uid: u-2,")));
        assert_eq!(missing(&source).as_deref(), Some("u-2"));
        assert!(source.sandboxes.is_empty());
        source.apply(namespace(""));
        assert_eq!(missing(&source), None);
        assert!(!source.found(&web(), sandbox("/a", ResolvConf::Unknown)), "it is not here any more");
        assert!(source.sandboxes.is_empty());
    }

    #[test]
    fn what_a_predecessor_knew_of_pods_that_are_gone_is_forgotten() {
        let mut source = source(Guide::Node);
        for uid in ["shop/web", "shop/gone"] {
            source.place(uid.into(), Sandbox { netns: "/a".into(), ..Sandbox::default() });
        }
        source.apply(object(POD));
        source.settle();
        assert_eq!(source.sandboxes.keys().collect::<Vec<_>>(), ["shop/web"]);
    }
}
