//! A pod of this node that belongs to the mesh, with what its enrolment needs.

use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use loam_ebpf_common::layout::MAX_ADDRESSES;
use loam_ebpf_common::probe::MAX_PROBED;
use loam_manifest::enrol::Wish;
use loam_node::PodInfo;
use serde::{Deserialize, Serialize};

use super::probes;
use super::sandbox::Sandbox;

/// The annotation that names the path of the pod's network namespace.
pub const NETNS_ANNOTATION: &str = "loam.dev/netns";

/// The annotation by which a pod is excepted from what the agent was told about capturing questions to name servers.
pub const DNS_CAPTURE_ANNOTATION: &str = "ambient.istio.io/dns-capture";

/// The annotation that names the path of the pod's resolv.conf, as the agent sees it.
pub const RESOLV_CONF_ANNOTATION: &str = "loam.dev/resolv-conf";

/// What names a pod for good: its Kubernetes UID, or `<namespace>/<name>` where it has none.
pub type Uid = String;

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// See [`Uid`].
    pub uid: Uid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses: at least one and at most [`MAX_ADDRESSES`], no two alike.
    pub addresses: Vec<IpAddr>,
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// Whether what it asks name servers is captured.
    #[serde(default)]
    pub dns: bool,
    /// Where its resolv.conf is, if that is known.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// What its resolv.conf says, if that was read once and for all.
    #[serde(default)]
    pub resolv: Option<String>,
    /// Whether none of its containers but initial ones ran yet when it was first found.
    #[serde(default)]
    pub starting: bool,
    /// Its ports that the kubelet dials: at most [`MAX_PROBED`].
    #[serde(default)]
    pub probes: Vec<u16>,
}

impl PodSpec {
    /// The pod as the keeper and the ztunnel are told of it.
    pub fn info(&self, node: &str) -> PodInfo {
        let info = PodInfo {
            uid: self.uid.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            node: node.to_owned(),
            addresses: Vec::new(),
            dns: self.dns,
            resolv: None,
            starting: self.starting,
        };
        info.with_ips(self.addresses.iter().copied())
    }
}

impl std::fmt::Display for PodSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who says where pods are and how they resolve names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guide {
    /// Their annotations: who writes manifests into a directory of the node may do anything there.
    Annotations,
    /// The node itself. Whoever may make a pod can write annotations, and must not choose what root opens.
    Node,
}

/// What an agent goes by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The name of its node.
    pub node: String,
    /// Whether questions to name servers are captured of a pod that does not say.
    pub dns: bool,
    /// Who says where pods are.
    pub guide: Guide,
}

/// What a pod of ours lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nobody says where it is.
    #[error(
        "nobody says where the pod's network namespace is: neither the annotation {NETNS_ANNOTATION} nor the CNI plugin"
    )]
    NoNetns,
    /// It was not found yet.
    #[error(
        "waiting for a process of the pod: either none runs yet, or the agent does not see the processes of its node \
         (hostPID)"
    )]
    NoProcess,
    /// It was found, and where it is cannot be had.
    #[error("{0}")]
    Hidden(String),
    /// A relative path would depend on where the agent was started.
    #[error("the annotation {0} is {1:?}, which is not an absolute path")]
    RelativePath(&'static str, String),
    /// Neither of the two words.
    #[error("the annotation {DNS_CAPTURE_ANNOTATION} is {0:?}, which is neither \"true\" nor \"false\"")]
    BadDnsCapture(String),
    /// It has not been given one.
    #[error("the pod has no address in status.podIPs")]
    NoAddress,
    /// It is not an address.
    #[error("status.podIPs has {0:?}, which is not an IP address")]
    BadAddress(String),
    /// An address that no other pod could reach.
    #[error("status.podIPs has {0}, which cannot be a pod's own address")]
    UnusableAddress(IpAddr),
    /// See [`MAX_ADDRESSES`].
    #[error("status.podIPs has {0} addresses: a pod can have at most {MAX_ADDRESSES}")]
    TooManyAddresses(usize),
    /// See [`MAX_PROBED`].
    #[error("its probes are at {0} ports: a pod can have at most {MAX_PROBED}")]
    TooManyProbes(usize),
}

impl SpecError {
    /// Whether this only waits for somebody else.
    pub fn is_waiting(&self) -> bool {
        matches!(self, SpecError::NoProcess)
    }

    /// Whether looking for the pod among the node's processes may help.
    pub fn is_sought(&self) -> bool {
        matches!(self, SpecError::NoProcess | SpecError::Hidden(_))
    }
}

impl Rules {
    /// What a pod is to the agent: none if it does not belong to the mesh here. `sandbox` is what was found out about it.
    pub fn eligible(
        &self,
        pod: &Pod,
        namespace_in: bool,
        sandbox: Option<&Result<Sandbox, String>>,
    ) -> Option<Result<PodSpec, SpecError>> {
        let spec = pod.spec.as_ref()?;
        let is_here = spec.node_name.as_deref() == Some(&*self.node);
        // A pod that has ended sends nothing more. One that is being deleted still may, so it stays until it is gone.
        match is_here && !has_ended(pod) && Wish::of(pod).under(namespace_in).is_ok() {
            true => Some(self.read(pod, sandbox)),
            false => None,
        }
    }

    fn read(&self, pod: &Pod, sandbox: Option<&Result<Sandbox, String>>) -> Result<PodSpec, SpecError> {
        let metadata = &pod.metadata;
        let (netns, resolv_conf) = match self.guide {
            Guide::Annotations => (path(pod, NETNS_ANNOTATION)?, path(pod, RESOLV_CONF_ANNOTATION)?),
            Guide::Node => (None, None),
        };
        // What the pod says where it may counts for more than its sandbox.
        let found = sandbox.and_then(|sandbox| sandbox.as_ref().ok()).filter(|_| netns.is_none());
        // Before where it is, since a pod without an address is not there to be found yet.
        let addresses = addresses(pod, found)?;
        let netns =
            netns.or_else(|| found.map(|found| found.netns.clone())).ok_or_else(|| match (self.guide, sandbox) {
                (Guide::Annotations, _) => SpecError::NoNetns,
                (Guide::Node, Some(Err(why))) => SpecError::Hidden(why.clone()),
                (Guide::Node, _) => SpecError::NoProcess,
            })?;
        let resolv = found.and_then(|found| found.resolv_conf.text());
        let dns = match annotation(pod, DNS_CAPTURE_ANNOTATION) {
            // Who does not know the pod's servers could only answer for names of the mesh, and all others would be lost.
            None => self.dns && (resolv_conf.is_some() || resolv.is_some()),
            Some("true") => true,
            Some("false") => false,
            Some(other) => return Err(SpecError::BadDnsCapture(shortened(other))),
        };
        let probes = probes::ports(pod);
        if probes.len() > MAX_PROBED {
            return Err(SpecError::TooManyProbes(probes.len()));
        }
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        Ok(PodSpec {
            uid: uid(pod),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
            addresses,
            netns,
            dns,
            resolv_conf,
            resolv,
            starting: phase(pod) == Some("Pending") || found.is_some_and(|found| found.starting),
            probes,
        })
    }
}

/// Whether a pod has run and will not again.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// What names the pod, whatever else is wrong with it.
pub fn uid(pod: &Pod) -> Uid {
    let metadata = &pod.metadata;
    match metadata.uid.as_deref() {
        Some(uid) if !uid.is_empty() => uid.to_owned(),
        _ => {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{}/{}", part(&metadata.namespace), part(&metadata.name))
        }
    }
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let value = pod.metadata.annotations.as_ref()?.get(name)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

fn path(pod: &Pod, name: &'static str) -> Result<Option<PathBuf>, SpecError> {
    match annotation(pod, name) {
        Some(path) if !path.starts_with('/') => Err(SpecError::RelativePath(name, shortened(path))),
        path => Ok(path.map(PathBuf::from)),
    }
}

/// As much of a text as an error needs.
fn shortened(text: &str) -> String {
    text.chars().take(128).collect()
}

fn addresses(pod: &Pod, sandbox: Option<&Sandbox>) -> Result<Vec<IpAddr>, SpecError> {
    let stated = stated_addresses(pod);
    let Some(sandbox) = sandbox.filter(|sandbox| (1..=MAX_ADDRESSES).contains(&sandbox.addresses.len())) else {
        return stated;
    };
    match &stated {
        // The same in another order is no change.
        Ok(stated) if stated.iter().any(|address| !sandbox.addresses.contains(address)) => Ok(stated.clone()),
        Ok(_) | Err(SpecError::NoAddress) => Ok(sandbox.addresses.clone()),
        Err(_) => stated,
    }
}

fn stated_addresses(pod: &Pod) -> Result<Vec<IpAddr>, SpecError> {
    let status = pod.status.as_ref();
    let many = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    let one = status.and_then(|status| status.pod_ip.as_deref());
    let mut addresses = Vec::new();
    for text in one.into_iter().chain(many).filter(|text| !text.is_empty()) {
        let address = text.parse::<IpAddr>().map_err(|_| SpecError::BadAddress(text.chars().take(64).collect()))?;
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(SpecError::UnusableAddress(address));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.len() {
        0 => Err(SpecError::NoAddress),
        1..=MAX_ADDRESSES => Ok(addresses),
        more => Err(SpecError::TooManyAddresses(more)),
    }
}

#[cfg(test)]
mod tests {
    use loam_manifest::Object;

    use super::super::sandbox::ResolvConf;
    use super::*;

    fn pod(metadata: &str, status: &str) -> Pod {
        pod_with_spec(metadata, "nodeName: n1, containers: []", status)
    }

    fn pod_with_spec(metadata: &str, spec: &str, status: &str) -> Pod {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop, {metadata}}}, \
             spec: {{{spec}}}, status: {{{status}}}}}"
        );
        let state = loam_manifest::read([("pod.yaml", text.as_bytes())]);
        match state.objects.into_iter().next() {
            Some(Object::Pod(pod)) => *pod,
            other => panic!("{text}: {other:?} {:?}", state.problems),
        }
    }

    fn rules(node: &str, dns: bool) -> Rules {
        Rules { node: node.into(), dns, guide: Guide::Annotations }
    }

    /// What a pod is to the agent of a node that goes by annotations.
    fn eligible(pod: &Pod, node: &str, namespace_in: bool, dns: bool) -> Option<Result<PodSpec, SpecError>> {
        rules(node, dns).eligible(pod, namespace_in, None)
    }

    const NETNS: &str = "annotations: {loam.dev/netns: /run/netns/web}";
    const IPS: &str = "podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]";

    #[test]
    fn a_pod_of_this_node_in_an_enrolled_namespace_is_ours() {
        let spec = eligible(&pod(NETNS, IPS), "n1", true, true).unwrap().unwrap();
        assert_eq!(&*spec.uid, "shop/web");
        assert_eq!(spec.service_account, "default");
        assert_eq!(spec.netns, PathBuf::from("/run/netns/web"));
        assert_eq!(spec.addresses, ["10.0.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn its_uid_is_kept_where_it_has_one() {
        let spec = eligible(&pod(&format!("uid: u-1, {NETNS}"), IPS), "n1", true, true).unwrap().unwrap();
        assert_eq!(&*spec.uid, "u-1");
    }

    #[test]
    fn other_pods_are_not() {
        assert!(eligible(&pod(NETNS, IPS), "n2", true, true).is_none());
        assert!(eligible(&pod(NETNS, IPS), "n1", false, true).is_none());
        assert!(eligible(&pod_with_spec(NETNS, "containers: []", IPS), "n1", true, true).is_none());
        let host = pod_with_spec(NETNS, "nodeName: n1, hostNetwork: true, containers: []", IPS);
        assert!(eligible(&host, "n1", true, true).is_none());
        for phase in ["Succeeded", "Failed"] {
            assert!(eligible(&pod(NETNS, &format!("phase: {phase}, {IPS}")), "n1", true, true).is_none());
        }
    }

    #[test]
    fn a_pod_whose_containers_have_not_run_is_starting() {
        for (phase, starting) in [("phase: Pending, ", true), ("phase: Running, ", false), ("", false)] {
            let spec = eligible(&pod(NETNS, &format!("{phase}{IPS}")), "n1", true, true).unwrap().unwrap();
            assert_eq!(spec.starting, starting, "{phase}");
        }
    }

    #[test]
    fn an_agent_that_goes_by_the_node_opens_nothing_that_annotations_name() {
        let rules = Rules { guide: Guide::Node, ..rules("n1", true) };
        let named = pod("annotations: {loam.dev/netns: /a, loam.dev/resolv-conf: b}", IPS);
        let read = |sandbox: Option<Result<Sandbox, String>>| rules.eligible(&named, true, sandbox.as_ref()).unwrap();
        assert_eq!(read(None), Err(SpecError::NoProcess));
        assert_eq!(read(Some(Err("no way in".into()))), Err(SpecError::Hidden("no way in".into())));
        let sandbox = |resolv_conf| Sandbox { netns: "/proc/9/ns/net".into(), resolv_conf, ..Sandbox::default() };
        for (resolv_conf, resolv) in [
            (ResolvConf::Text("nameserver 10.0.0.10".into()), Some("nameserver 10.0.0.10".to_owned())),
            (ResolvConf::Unknown, None),
            (ResolvConf::Unreadable, None),
        ] {
            let spec = read(Some(Ok(sandbox(resolv_conf)))).unwrap();
            assert_eq!((spec.netns, spec.resolv_conf), (PathBuf::from("/proc/9/ns/net"), None));
            assert_eq!((spec.dns, spec.resolv), (resolv.is_some(), resolv));
        }
        // Nothing is looked for before it can be there.
        assert_eq!(rules.eligible(&pod("", ""), true, None), Some(Err(SpecError::NoAddress)));
    }

    #[test]
    fn a_sandbox_says_where_a_pod_is_and_its_annotation_counts_for_more_where_it_counts() {
        let addresses = ["fd00::7", "10.0.0.7"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let sandbox = Ok(Sandbox {
            netns: "/run/netns/s".into(),
            addresses: addresses.into(),
            starting: true,
            ..Sandbox::default()
        });
        for guide in [Guide::Annotations, Guide::Node] {
            let rules = Rules { guide, ..rules("n1", true) };
            let read = |metadata: &str, status: &str| {
                rules.eligible(&pod(metadata, status), true, Some(&sandbox)).unwrap().unwrap()
            };
            let made = read("", "");
            assert_eq!(made.netns, PathBuf::from("/run/netns/s"));
            assert_eq!((&made.addresses[..], made.starting), (&addresses[..], true));
            assert_eq!(read("", IPS).addresses, addresses, "the same in another order");
            assert_eq!(read("", "podIPs: [{ip: 10.0.0.8}]").addresses, ["10.0.0.8".parse::<IpAddr>().unwrap()]);
            let expected = if guide == Guide::Annotations { "/run/netns/web" } else { "/run/netns/s" };
            assert_eq!(read(NETNS, IPS).netns, PathBuf::from(expected));
        }
    }

    #[test]
    fn a_pod_that_is_being_deleted_stays_ours_until_it_is_gone() {
        let deleted = pod(&format!("deletionTimestamp: '2025-01-01T00:00:00Z', {NETNS}"), IPS);
        assert!(eligible(&deleted, "n1", true, true).is_some());
    }

    #[test]
    fn a_pod_says_for_itself_whether_its_questions_are_captured_and_others_follow_the_agent() {
        const KNOWN: &str = ", loam.dev/resolv-conf: /b";
        let pod = |more: &str| pod(&format!("annotations: {{loam.dev/netns: /a{more}}}"), IPS);
        let dns = |more, agent| eligible(&pod(more), "n1", true, agent).unwrap().unwrap().dns;
        for agent in [true, false] {
            assert_eq!(dns(KNOWN, agent), agent);
            assert!(!dns("", agent), "nobody knows its servers");
            assert!(dns(", ambient.istio.io/dns-capture: 'true'", agent));
            assert!(!dns(", ambient.istio.io/dns-capture: 'false'", agent));
        }
        let spec = eligible(&pod(KNOWN), "n1", true, true).unwrap().unwrap();
        assert_eq!(spec.resolv_conf, Some(PathBuf::from("/b")));
    }

    #[test]
    fn what_a_pod_lacks_is_said() {
        let many = "podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: 10.0.0.3}, {ip: 10.0.0.4}, {ip: 10.0.0.5}]";
        for (metadata, status, expected) in [
            ("", IPS, SpecError::NoNetns),
            ("annotations: {loam.dev/netns: web}", IPS, SpecError::RelativePath(NETNS_ANNOTATION, "web".into())),
            (
                "annotations: {loam.dev/netns: /a, loam.dev/resolv-conf: b}",
                IPS,
                SpecError::RelativePath(RESOLV_CONF_ANNOTATION, "b".into()),
            ),
            (
                "annotations: {loam.dev/netns: /a, ambient.istio.io/dns-capture: 'no'}",
                IPS,
                SpecError::BadDnsCapture("no".into()),
            ),
            (NETNS, "", SpecError::NoAddress),
            (NETNS, "podIPs: [{ip: 10.0.0.300}]", SpecError::BadAddress("10.0.0.300".into())),
            (NETNS, "podIPs: [{ip: 127.0.0.1}]", SpecError::UnusableAddress("127.0.0.1".parse().unwrap())),
            (NETNS, many, SpecError::TooManyAddresses(5)),
        ] {
            assert_eq!(eligible(&pod(metadata, status), "n1", true, true), Some(Err(expected)), "{metadata} {status}");
        }
    }

    #[test]
    fn one_address_told_twice_is_one() {
        let spec = eligible(&pod(NETNS, "podIP: 10.0.0.7, podIPs: [{ip: '::ffff:10.0.0.7'}]"), "n1", true, true);
        assert_eq!(spec.unwrap().unwrap().addresses.len(), 1);
    }
}
