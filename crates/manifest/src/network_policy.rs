//! Which NetworkPolicies of Kubernetes keep tunnels from a pod of the mesh, while they let in or out what the tunnels carry.
//!
//! Whoever wrote such a policy named the ports of applications. In the mesh what went to them goes to port 15008, which a
//! CNI that enforces the policy drops. Only a rule that lets TCP pass at some ports can cut anything off in this way: one
//! without ports lets 15008 pass, and where no rule lets anything pass nothing was to come. What lies outside the cluster
//! (`ipBlock`) is not reached by tunnels, names (port 53) are asked for outside of them, and the kubelet's probes come from
//! the node, which policies do not concern.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Where tunnels arrive.
const TUNNELS: u16 = 15008;

/// Where names are asked for.
const NAMES: u16 = 53;

/// Which way a policy restricts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// A policy that keeps tunnels from a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocking {
    /// `<namespace>/<name>` of the policy.
    pub policy: String,
    /// Which way.
    pub direction: Direction,
}

/// What is wrong, and what to add.
impl fmt::Display for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, rules) = match self.direction {
            Direction::Ingress => ("from reaching the pod", "ingress"),
            Direction::Egress => ("from leaving the pod", "egress"),
        };
        write!(
            f,
            "NetworkPolicy {} keeps tunnels of the mesh {way}: add {{protocol: TCP, port: {TUNNELS}}} to the ports of its \
             {rules} rules",
            self.policy
        )
    }
}

/// The policies among `policies` that keep tunnels from `pod`, in order and each named once for each direction. A rule is
/// told unless a rule of any policy lets the same peers pass at the tunnels' port.
pub fn blocking<'a>(pod: &Pod, policies: impl IntoIterator<Item = &'a NetworkPolicy>) -> Vec<Blocking> {
    let selecting: Vec<&NetworkPolicy> = policies.into_iter().filter(|policy| selects(policy, pod)).collect();
    let mut all = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let rules: Vec<(&NetworkPolicy, Rule<'_>)> = selecting
            .iter()
            .filter(|policy| restricts(policy, direction))
            .flat_map(|policy| rules(policy, direction).into_iter().map(move |rule| (*policy, rule)))
            .collect();
        let open: Vec<&Rule<'_>> =
            rules.iter().map(|(_, rule)| rule).filter(|rule| rule.lets_pass(TUNNELS, direction, pod)).collect();
        let shut = rules.iter().filter(|(_, rule)| {
            rule.is_about_applications() && !rule.is_about_outside() && !open.iter().any(|open| open.covers(rule))
        });
        all.extend(shut.map(|(policy, _)| Blocking { policy: title(policy), direction }));
    }
    all.sort();
    all.dedup();
    all
}

/// A rule of either direction. Without peers it is about everybody, without ports about every port.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

impl Rule<'_> {
    fn lets_pass(&self, port: u16, direction: Direction, pod: &Pod) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| holds(range, port, direction, pod))
    }

    /// Whether it lets TCP pass that is not for name servers alone.
    fn is_about_applications(&self) -> bool {
        self.ports.iter().any(|port| is_tcp(port) && port.port != Some(IntOrString::Int(NAMES.into())))
    }

    fn is_about_outside(&self) -> bool {
        !self.peers.is_empty() && self.peers.iter().all(|peer| peer.ip_block.is_some())
    }

    /// Whether whomever the other rule is about is a peer of this one, as far as that can be read off.
    fn covers(&self, other: &Rule<'_>) -> bool {
        let everybody = |rule: &Rule<'_>| rule.peers.is_empty();
        everybody(self) || !everybody(other) && other.peers.iter().all(|peer| self.peers.contains(peer))
    }
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => {
            list(&spec.ingress).iter().map(|rule| Rule { peers: list(&rule.from), ports: list(&rule.ports) }).collect()
        }
        Direction::Egress => {
            list(&spec.egress).iter().map(|rule| Rule { peers: list(&rule.to), ports: list(&rule.ports) }).collect()
        }
    }
}

fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

/// Where nothing is said a policy is about what comes, and about what goes if it has rules for that.
fn restricts(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let types = spec.policy_types.as_deref().unwrap_or_default();
    match (types.is_empty(), direction) {
        (true, Direction::Ingress) => true,
        (true, Direction::Egress) => spec.egress.is_some(),
        (false, Direction::Ingress) => types.iter().any(|name| name == "Ingress"),
        (false, Direction::Egress) => types.iter().any(|name| name == "Egress"),
    }
}

fn is_tcp(port: &NetworkPolicyPort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

fn holds(range: &NetworkPolicyPort, port: u16, direction: Direction, pod: &Pod) -> bool {
    if !is_tcp(range) {
        return false;
    }
    match (&range.port, direction) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), _) => (*first..=range.end_port.unwrap_or(*first)).contains(&i32::from(port)),
        (Some(IntOrString::String(name)), Direction::Ingress) => named(pod, name) == Some(port),
        // A name that peers give to ports of theirs; nobody gives one to the tunnels'.
        (Some(IntOrString::String(_)), Direction::Egress) => false,
    }
}

/// The TCP port to which a pod gives this name.
fn named(pod: &Pod, name: &str) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let containers: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let mut ports = containers.into_iter().flat_map(|container| container.ports.iter().flatten());
    let is_it = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    };
    u16::try_from(ports.find(|port| is_it(port))?.container_port).ok()
}

fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    if policy.metadata.namespace != pod.metadata.namespace {
        return false;
    }
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    policy.spec.is_some() && selector.is_none_or(|selector| matches(selector, labels))
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|wanted| {
            let label = labels.get(&wanted.key);
            let listed = || label.is_some_and(|label| wanted.values.iter().flatten().any(|value| value == label));
            match wanted.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                // The API server takes no other.
                _ => false,
            }
        })
}

fn title(policy: &NetworkPolicy) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&policy.metadata.namespace), part(&policy.metadata.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "{metadata: {namespace: shop, name: web, labels: {app: web, tier: front}}, spec: {containers: \
                       [{name: a, ports: [{name: http, containerPort: 8080}, {name: mesh, containerPort: 15008}, \
                       {name: quic, containerPort: 15008, protocol: UDP}]}]}}";

    /// The policies p0, p1 and so on of namespace shop that block POD, with their directions' first letters.
    fn check(specs: &[&str]) -> Vec<String> {
        let pod: Pod = serde_saphyr::from_str(POD).unwrap();
        let policy = |(number, spec): (usize, &&str)| -> NetworkPolicy {
            serde_saphyr::from_str(&format!("{{metadata: {{namespace: shop, name: p{number}}}, spec: {spec}}}"))
                .unwrap()
        };
        let policies: Vec<NetworkPolicy> = specs.iter().enumerate().map(policy).collect();
        let told = |blocking: Blocking| {
            let letter = if blocking.direction == Direction::Ingress { "i" } else { "e" };
            format!("{letter}:{}", blocking.policy.trim_start_matches("shop/"))
        };
        blocking(&pod, &policies).into_iter().map(told).collect()
    }

    #[test]
    fn a_rule_that_names_ports_and_not_the_tunnels_blocks() {
        for (rule, expected) in [
            // Ports.
            ("{ports: [{port: 8080}]}", true),
            ("{ports: [{protocol: TCP, port: 8080}]}", true),
            ("{ports: [{port: http}]}", true),
            ("{ports: [{port: quic}]}", true),
            ("{ports: [{port: 8080}, {port: 15008}]}", false),
            ("{ports: [{port: 8080}, {port: 15008, protocol: UDP}]}", true),
            ("{ports: [{port: 8080}, {port: mesh}]}", false),
            ("{ports: [{port: 15000, endPort: 15010}]}", false),
            ("{ports: [{port: 15008, endPort: 15008}]}", false),
            ("{ports: [{port: 8000, endPort: 15007}]}", true),
            ("{ports: [{port: 15009, endPort: 16000}]}", true),
            ("{ports: [{protocol: TCP}]}", false),
            ("{ports: [{protocol: UDP}, {port: 80}]}", true),
            // What tunnels do not carry.
            ("{ports: [{protocol: UDP, port: 5000}]}", false),
            ("{ports: [{protocol: SCTP}]}", false),
            ("{ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}", false),
            ("{ports: [{protocol: TCP, port: 53}, {port: 80}]}", true),
            // Every port, or nothing at all.
            ("{}", false),
            ("{ports: []}", false),
            ("{from: [{podSelector: {}}]}", false),
            // Peers.
            ("{from: [{podSelector: {}}], ports: [{port: 8080}]}", true),
            ("{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 8080}]}", false),
            ("{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {namespaceSelector: {}}], ports: [{port: 8080}]}", true),
        ] {
            let ingress = format!("{{podSelector: {{}}, ingress: [{rule}]}}");
            assert_eq!(check(&[&ingress]), if expected { vec!["i:p0"] } else { vec![] }, "{rule}");
        }
    }

    #[test]
    fn what_goes_is_judged_as_what_comes_is() {
        for (rule, expected) in [
            ("{ports: [{port: 8080}]}", true),
            ("{ports: [{port: 8080}, {port: 15008}]}", false),
            // A name is the peer's own.
            ("{ports: [{port: mesh}]}", true),
            ("{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}", false),
            ("{to: [{namespaceSelector: {}}], ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}", false),
        ] {
            let egress = format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{rule}]}}");
            assert_eq!(check(&[&egress]), if expected { vec!["e:p0"] } else { vec![] }, "{rule}");
        }
    }

    #[test]
    fn policies_are_told_of_the_pods_that_they_select() {
        for (selector, expected) in [
            ("{}", true),
            ("{matchLabels: {app: web}}", true),
            ("{matchLabels: {app: web, tier: back}}", false),
            ("{matchExpressions: [{key: app, operator: In, values: [db, web]}]}", true),
            ("{matchExpressions: [{key: app, operator: In, values: [db]}]}", false),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}", true),
            ("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", true),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", false),
            ("{matchExpressions: [{key: tier, operator: Exists}]}", true),
            ("{matchExpressions: [{key: zone, operator: Exists}]}", false),
            ("{matchExpressions: [{key: zone, operator: DoesNotExist}]}", true),
            ("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", false),
            ("{matchExpressions: [{key: tier, operator: Like, values: [front]}]}", false),
            ("{matchLabels: {app: web}, matchExpressions: [{key: zone, operator: Exists}]}", false),
        ] {
            let policy = format!("{{podSelector: {selector}, ingress: [{{ports: [{{port: 8080}}]}}]}}");
            assert_eq!(!check(&[&policy]).is_empty(), expected, "{selector}");
        }
        let elsewhere: NetworkPolicy =
            serde_saphyr::from_str("{metadata: {namespace: b, name: p}, spec: {ingress: [{ports: [{port: 80}]}]}}")
                .unwrap();
        assert_eq!(blocking(&serde_saphyr::from_str(POD).unwrap(), [&elsewhere]), []);
    }

    #[test]
    fn only_the_directions_count_that_a_policy_is_about() {
        let both = "ingress: [{ports: [{port: 80}]}], egress: [{ports: [{port: 80}]}]";
        for (types, expected) in [
            ("", vec!["i:p0", "e:p0"]),
            ("policyTypes: [Ingress], ", vec!["i:p0"]),
            ("policyTypes: [Egress], ", vec!["e:p0"]),
            ("policyTypes: [Ingress, Egress], ", vec!["i:p0", "e:p0"]),
        ] {
            assert_eq!(check(&[&format!("{{{types}{both}}}")]), expected, "{types}");
        }
        assert_eq!(check(&["{podSelector: {}}"]), Vec::<String>::new(), "nothing may come, and nothing was to");
        assert_eq!(check(&["{podSelector: {}, policyTypes: [Ingress, Egress]}"]), Vec::<String>::new());
    }

    #[test]
    fn what_one_policy_shuts_another_may_open_for_the_same_peers() {
        let web = "{ingress: [{from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: 80}]}]}";
        let shut = Vec::<String>::new();
        for (other, expected) in [
            ("{ingress: [{ports: [{port: 15008}]}]}", shut.clone()),
            ("{ingress: [{}]}", shut.clone()),
            ("{ingress: [{from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: 15008}]}]}", shut.clone()),
            (
                "{ingress: [{from: [{podSelector: {}}, {podSelector: {matchLabels: {a: b}}}], ports: [{port: 15008}]}]}",
                shut,
            ),
            (
                "{ingress: [{from: [{podSelector: {matchLabels: {a: c}}}], ports: [{port: 15008}]}]}",
                vec!["i:p0".to_owned()],
            ),
            ("{policyTypes: [Egress], ingress: [{ports: [{port: 15008}]}]}", vec!["i:p0".to_owned()]),
            ("{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 15008}]}]}", vec!["i:p0".to_owned()]),
        ] {
            assert_eq!(check(&[web, other]), expected, "{other}");
        }
    }

    #[test]
    fn it_is_said_which_policy_it_is_and_what_to_add() {
        let blocking = Blocking { policy: "shop/web".into(), direction: Direction::Ingress };
        assert_eq!(
            blocking.to_string(),
            "NetworkPolicy shop/web keeps tunnels of the mesh from reaching the pod: add {protocol: TCP, port: 15008} to \
             the ports of its ingress rules"
        );
    }
}
