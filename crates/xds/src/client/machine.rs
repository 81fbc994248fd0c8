//! What a client asks for, holds and acknowledges.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use bytes::Bytes;
use loam_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use loam_api::node::Node;
use loam_api::rpc;

/// A resource as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Its version, to be said again on the next connection.
    pub version: String,
    /// The encoded message.
    pub body: Bytes,
}

/// One response, to be applied as a whole but for what is rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Type of all its resources.
    pub type_url: String,
    /// New or changed.
    pub resources: Vec<Resource>,
    /// Gone.
    pub removed: Vec<String>,
    /// Whether more follows of what was asked for.
    pub more: bool,
}

/// A resource that was not applied; what was there under its name before stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Which field is wrong and how.
    pub why: String,
}

/// google.rpc.Code.INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// How many rejections a nack spells out; the rest are counted.
const MAX_REJECTIONS_TOLD: usize = 20;

/// Subscriptions and what is held of them, across connections.
#[derive(Debug)]
pub struct Machine {
    node: Node,
    types: BTreeMap<&'static str, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// What is asked for; everything where nothing is named.
    names: Vec<String>,
    versions: BTreeMap<Box<str>, Version>,
    synced: bool,
}

/// A version as the server said it. There is one per resource, so the usual form is kept small.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// 16 lower-case hexadecimal digits.
    Hash(u64),
    Text(Box<str>),
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let plain = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if plain => Version::Hash(hash),
            _ => Version::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Hash(hash) => write!(f, "{hash:016x}"),
            Version::Text(text) => f.write_str(text),
        }
    }
}

impl Machine {
    /// Wants everything of each type.
    pub fn new(node: Node, types: impl IntoIterator<Item = &'static str>) -> Self {
        Self { node, types: types.into_iter().map(|url| (url, TypeState::default())).collect() }
    }

    /// Wants only `names` of a type, each of which may be the beginning of names, as in `shop/waypoint/*`.
    pub fn only(&mut self, type_url: &'static str, names: impl IntoIterator<Item = String>) {
        self.types.entry(type_url).or_default().names = names.into_iter().collect();
    }

    /// The first requests of a connection: one subscription per type, with what is held already.
    pub fn subscribe(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut node = Some(self.node.clone());
        self.types
            .iter()
            .map(|(url, state)| DeltaDiscoveryRequest {
                node: node.take(),
                type_url: (*url).to_owned(),
                resource_names_subscribe: state.names.clone(),
                initial_resource_versions: state.versions.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
                ..Default::default()
            })
            .collect()
    }

    /// Takes a response apart. None: a type that was never asked for.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Option<(String, Update)> {
        if !self.types.contains_key(response.type_url.as_str()) {
            return None;
        }
        let resources = response.resources.into_iter().map(|resource| Resource {
            name: resource.name,
            version: resource.version,
            body: resource.resource.map(|any| any.value).unwrap_or_default(),
        });
        let update = Update {
            resources: resources.collect(),
            removed: response.removed_resources,
            more: response.more,
            type_url: response.type_url,
        };
        Some((response.nonce, update))
    }

    /// The answer to an update that was applied but for `rejected`. The versions of what was applied are remembered;
    /// a rejected resource keeps its former version, or one that nothing has, so that the server knows to send it
    /// again, and to tell of its removal.
    pub fn answer(&mut self, nonce: String, update: &Update, rejected: &[Rejected]) -> DeltaDiscoveryRequest {
        if let Some(state) = self.types.get_mut(update.type_url.as_str()) {
            for name in &update.removed {
                state.versions.remove(&**name);
            }
            let rejected: HashSet<&str> = rejected.iter().map(|r| &*r.name).collect();
            for resource in &update.resources {
                let name = resource.name.as_str();
                match rejected.contains(name) {
                    false => drop(state.versions.insert(name.into(), resource.version.as_str().into())),
                    true => drop(state.versions.entry(name.into()).or_insert(Version::Text("".into()))),
                }
            }
            state.synced |= !update.more;
        }
        DeltaDiscoveryRequest {
            type_url: update.type_url.clone(),
            response_nonce: nonce,
            error_detail: (!rejected.is_empty()).then(|| nack(rejected)),
            ..Default::default()
        }
    }

    /// Whether every type was once answered to the end and acknowledged.
    pub fn is_synced(&self) -> bool {
        self.types.values().all(|state| state.synced)
    }
}

fn nack(rejected: &[Rejected]) -> rpc::Status {
    let told = rejected.iter().take(MAX_REJECTIONS_TOLD).map(|r| format!("{}: {}", r.name, r.why));
    let mut message = told.collect::<Vec<_>>().join("; ");
    if let Some(more) = rejected.len().checked_sub(MAX_REJECTIONS_TOLD).filter(|n| *n > 0) {
        message.push_str(&format!("; and {more} more"));
    }
    rpc::Status { code: INVALID_ARGUMENT, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_api::discovery;

    const A: &str = "a";
    const B: &str = "b";

    fn response(type_url: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: "n".into(),
            resources: resources
                .iter()
                .map(|(name, version)| discovery::Resource {
                    name: (*name).into(),
                    version: (*version).into(),
                    ..Default::default()
                })
                .collect(),
            removed_resources: removed.iter().map(|n| (*n).into()).collect(),
            ..Default::default()
        }
    }

    fn apply(machine: &mut Machine, response: DeltaDiscoveryResponse, rejected: &[Rejected]) -> DeltaDiscoveryRequest {
        let (nonce, update) = machine.receive(response).unwrap();
        machine.answer(nonce, &update, rejected)
    }

    #[test]
    fn what_was_never_asked_for_is_passed_over() {
        assert_eq!(Machine::new(Node::default(), [A]).receive(response(B, &[("x", "1")], &[])), None);
    }

    #[test]
    fn it_is_synced_when_every_type_was_answered() {
        let mut machine = Machine::new(Node::default(), [A, B]);
        apply(&mut machine, response(A, &[], &[]), &[]);
        assert!(!machine.is_synced());
        apply(&mut machine, response(B, &[], &[]), &[]);
        assert!(machine.is_synced());
    }

    #[test]
    fn it_is_not_synced_in_the_middle_of_an_answer() {
        let mut machine = Machine::new(Node::default(), [A]);
        apply(&mut machine, DeltaDiscoveryResponse { more: true, ..response(A, &[("x", "1")], &[]) }, &[]);
        assert!(!machine.is_synced());
        apply(&mut machine, response(A, &[("y", "1")], &[]), &[]);
        assert!(machine.is_synced());
        apply(&mut machine, DeltaDiscoveryResponse { more: true, ..response(A, &[("z", "1")], &[]) }, &[]);
        assert!(machine.is_synced(), "later news made it forget");
    }

    #[test]
    fn a_new_connection_says_what_is_held() {
        let mut machine = Machine::new(Node { id: "me".into(), ..Default::default() }, [A, B]);
        apply(&mut machine, response(A, &[("x", "1"), ("y", "1")], &[]), &[]);
        apply(&mut machine, response(A, &[("x", "2")], &["y"]), &[]);
        let requests = machine.subscribe();
        assert_eq!(requests.iter().filter(|r| r.node.is_some()).count(), 1, "the node is named once");
        let of_a = requests.iter().find(|r| r.type_url == A).unwrap();
        assert_eq!(of_a.initial_resource_versions, BTreeMap::from([("x".into(), "2".into())]));
    }

    #[test]
    fn a_version_is_said_as_it_was_heard() {
        for version in ["0123456789abcdef", "0123456789ABCDEF", "+123456789abcdef", "1", "", "0000000000000000"] {
            assert_eq!(Version::from(version).to_string(), version);
        }
    }

    #[test]
    fn a_rejected_resource_is_nacked_by_name_and_its_siblings_are_held() {
        let mut machine = Machine::new(Node::default(), [A]);
        let bad = Rejected { name: "bad".into(), why: "no address".into() };
        let answer = apply(&mut machine, response(A, &[("bad", "1"), ("good", "1")], &[]), &[bad]);
        assert_eq!(answer.response_nonce, "n");
        assert_eq!(answer.error_detail.unwrap().message, "bad: no address");
        let held = &machine.subscribe()[0].initial_resource_versions;
        assert_eq!(*held, BTreeMap::from([("bad".into(), String::new()), ("good".into(), "1".into())]));
    }

    #[test]
    fn a_nack_of_very_many_resources_stays_short() {
        let mut machine = Machine::new(Node::default(), [A]);
        let bad: Vec<_> = (0..1000).map(|i| Rejected { name: format!("r{i}"), why: "bad".into() }).collect();
        let answer = apply(&mut machine, response(A, &[], &[]), &bad);
        let message = answer.error_detail.unwrap().message;
        assert!(message.ends_with("; and 980 more"), "{message}");
    }

    #[test]
    fn a_type_that_was_not_asked_for_is_not_taken() {
        assert!(Machine::new(Node::default(), [A]).receive(response("other", &[], &[])).is_none());
    }
}
