//! What one client was told and may be told next. At most one response per type is unacknowledged, and each is made
//! from the store at the moment it is sent: there is no queue that a slow client could make long.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use loam_api::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use loam_api::rpc;

use crate::store::Store;

/// Size at which a response is cut, in bytes: far below what any client accepts, and small enough that a proxy can
/// apply one while the next travels.
pub const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Names one client may ask for one by one.
pub const MAX_NAMES: usize = 100_000;

/// Types a client may ask for that are not served: more than any version of a proxy knows.
pub const MAX_FOREIGN_TYPES: usize = 32;

/// Beginnings of names one client may ask for: a waypoint has one.
const MAX_BEGINNINGS: usize = 16;

/// What a client did that the protocol does not allow; the stream ends with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More names than a client may hold.
    #[error("subscribes to more than {MAX_NAMES} names of {0}")]
    TooManyNames(String),
    /// The client missed removals that are no longer known. It connects again and says what it holds.
    #[error("is too far behind in {0}: connect again")]
    TooFarBehind(String),
}

/// What became of a request.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// It changes what the client wants.
    Subscribed,
    /// The client holds what was sent.
    Acked,
    /// The client refused (part of) what was sent.
    Nacked(rpc::Status),
    /// A type that is not served, as a newer client may ask for one. It waits for an answer, which says that there is
    /// nothing of it; what it holds of the type stays with it.
    Foreign(DeltaDiscoveryResponse),
    /// An answer to something that was not the last response.
    Ignored,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Machine {
    types: HashMap<String, TypeState>,
    /// Types that are not served and were answered all the same.
    foreign: BTreeSet<String>,
    last_nonce: u64,
}

#[derive(Debug, Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Beginnings of names: all that have one are wanted.
    beginnings: BTreeSet<String>,
    /// Names asked for since the last response.
    asked: BTreeSet<String>,
    /// What the client said it holds, until the first pass over the store is done.
    held: BTreeMap<String, String>,
    first_pass_done: bool,
    answered: bool,
    /// The last response said that more follows.
    more: bool,
    cursor: u64,
    unacked: Option<String>,
}

impl Machine {
    /// Takes one request. `served` tells whether a type is offered.
    pub fn receive(
        &mut self,
        request: DeltaDiscoveryRequest,
        served: impl Fn(&str) -> bool,
    ) -> Result<Received, Violation> {
        let type_url = request.type_url;
        if !served(&type_url) {
            return Ok(self.foreign(type_url));
        }
        let first = !self.types.contains_key(&type_url);
        let state = self.types.entry(type_url.clone()).or_default();
        if first {
            state.held = request.initial_resource_versions;
            // An empty first subscription means everything.
            state.wildcard = request.resource_names_subscribe.is_empty();
        }
        let mut subscribed = first;
        for name in request.resource_names_subscribe {
            subscribed = true;
            if name == "*" {
                state.wildcard = true;
            } else if let Some(beginning) = beginning(&name) {
                if state.beginnings.len() >= MAX_BEGINNINGS && !state.beginnings.contains(beginning) {
                    return Err(Violation::TooManyNames(type_url));
                }
                state.beginnings.insert(beginning.to_owned());
                // What was passed over may be wanted.
                (state.cursor, state.first_pass_done) = (0, false);
            } else if state.names.len() >= MAX_NAMES && !state.names.contains(&name) {
                return Err(Violation::TooManyNames(type_url));
            } else {
                state.asked.insert(name.clone());
                state.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            subscribed = true;
            if name == "*" {
                state.wildcard = false;
            } else if let Some(beginning) = beginning(&name) {
                state.beginnings.remove(beginning);
            } else {
                state.names.remove(&name);
                state.asked.remove(&name);
            }
        }
        if request.response_nonce.is_empty() {
            return Ok(if subscribed { Received::Subscribed } else { Received::Ignored });
        }
        if state.unacked.as_ref() != Some(&request.response_nonce) {
            return Ok(Received::Ignored);
        }
        state.unacked = None;
        Ok(match request.error_detail {
            Some(status) => Received::Nacked(status),
            None => Received::Acked,
        })
    }

    fn foreign(&mut self, type_url: String) -> Received {
        if self.foreign.len() >= MAX_FOREIGN_TYPES || !self.foreign.insert(type_url.clone()) {
            return Received::Ignored;
        }
        self.last_nonce += 1;
        let nonce = self.last_nonce.to_string();
        Received::Foreign(DeltaDiscoveryResponse { type_url, nonce, ..Default::default() })
    }

    /// The next response for a type, if there is anything to say and the last one was answered.
    pub fn next(&mut self, type_url: &str, store: &Store) -> Result<Option<DeltaDiscoveryResponse>, Violation> {
        let Some(state) = self.types.get_mut(type_url) else { return Ok(None) };
        if state.unacked.is_some() {
            return Ok(None);
        }
        let mut response = DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..Default::default() };
        for name in std::mem::take(&mut state.asked) {
            match store.get(&name) {
                Some(resource) => {
                    if !state.first_pass_done {
                        // The pass below meets it again.
                        state.held.insert(name, resource.version.to_string());
                    }
                    response.resources.push(encode(type_url, resource));
                }
                None => response.removed_resources.push(name),
            }
        }
        loop {
            let Some(batch) = store.since(state.cursor, MAX_RESPONSE_BYTES) else {
                return Err(Violation::TooFarBehind(type_url.to_owned()));
            };
            state.cursor = batch.cursor;
            for resource in batch.resources {
                let same = state.held.remove(&*resource.name).is_some_and(|version| *version == *resource.version);
                if !same && state.wants(&resource.name) {
                    response.resources.push(encode(type_url, resource));
                }
            }
            for name in batch.removed {
                // During the first pass the client knows of a removed name only if it said so.
                let held = state.held.remove(&*name).is_some();
                if (held || state.first_pass_done) && state.wants(&name) {
                    response.removed_resources.push(name.to_string());
                }
            }
            response.more = batch.more;
            let empty = response.resources.is_empty() && response.removed_resources.is_empty();
            if !(batch.more && empty) {
                if !batch.more && !state.first_pass_done {
                    state.first_pass_done = true;
                    // What the client holds and no pass has met does not exist.
                    let gone = std::mem::take(&mut state.held);
                    response.removed_resources.extend(gone.into_keys());
                }
                break;
            }
        }
        // The first answer is owed even if it says nothing, and so is the end of one: the client waits to be in step.
        let owed = !state.answered || state.more;
        if response.resources.is_empty() && response.removed_resources.is_empty() && !owed {
            return Ok(None);
        }
        (state.answered, state.more) = (true, response.more);
        self.last_nonce += 1;
        response.nonce = self.last_nonce.to_string();
        response.system_version_info = state.cursor.to_string();
        state.unacked = Some(response.nonce.clone());
        Ok(Some(response))
    }
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        self.wildcard
            || self.names.contains(name)
            || self.beginnings.iter().any(|beginning| name.starts_with(&**beginning))
    }
}

/// The beginning that `beginning/*` asks for.
fn beginning(name: &str) -> Option<&str> {
    name.strip_suffix('*').filter(|beginning| beginning.ends_with('/'))
}

fn encode(type_url: &str, resource: crate::store::Resource) -> Resource {
    Resource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(Any { type_url: type_url.to_owned(), value: resource.body }),
        aliases: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::Arc;

    const T: &str = "t";

    fn put(name: &str, body: &str) -> (Arc<str>, Option<Bytes>) {
        (name.into(), Some(Bytes::copy_from_slice(body.as_bytes())))
    }

    fn subscribe(names: &[&str], held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: T.into(),
            resource_names_subscribe: names.iter().map(|n| (*n).into()).collect(),
            initial_resource_versions: held.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            ..Default::default()
        }
    }

    fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: T.into(), response_nonce: response.nonce.clone(), ..Default::default() }
    }

    fn told(response: &DeltaDiscoveryResponse) -> (Vec<&str>, Vec<&str>) {
        (
            response.resources.iter().map(|r| r.name.as_str()).collect(),
            response.removed_resources.iter().map(String::as_str).collect(),
        )
    }

    #[test]
    fn a_client_is_told_all_then_changes_and_nothing_while_it_has_not_answered() {
        let (store, mut machine) = (Store::default(), Machine::default());
        store.apply([put("a", "1"), put("b", "1")]);
        assert_eq!(machine.receive(subscribe(&[], &[]), |_| true), Ok(Received::Subscribed));
        let first = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&first), (vec!["a", "b"], vec![]));
        store.apply([put("a", "2"), ("b".into(), None), put("a", "3")]);
        assert_eq!(machine.next(T, &store), Ok(None));
        assert_eq!(machine.receive(ack(&first), |_| true), Ok(Received::Acked));
        let second = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&second), (vec!["a"], vec!["b"]));
        assert_eq!(machine.receive(ack(&first), |_| true), Ok(Received::Ignored), "a replayed nonce acknowledged");
        machine.receive(ack(&second), |_| true).unwrap();
        assert_eq!(machine.next(T, &store), Ok(None));
    }

    #[test]
    fn an_empty_type_is_answered_once() {
        let (store, mut machine) = (Store::default(), Machine::default());
        machine.receive(subscribe(&[], &[]), |_| true).unwrap();
        let first = machine.next(T, &store).unwrap().expect("a client waits for the first answer");
        machine.receive(ack(&first), |_| true).unwrap();
        assert_eq!(machine.next(T, &store), Ok(None));
    }

    #[test]
    fn a_client_that_returns_is_told_only_what_it_missed() {
        let store = Store::default();
        store.apply([put("same", "1"), put("changed", "2"), put("new", "1"), put("dead", "1")]);
        let version = store.get("same").unwrap().version;
        store.apply([("dead".into(), None)]);
        let mut machine = Machine::default();
        let held = [("same", &*version), ("changed", "old"), ("dead", "x"), ("before-restart", "x")];
        machine.receive(subscribe(&[], &held), |_| true).unwrap();
        let response = machine.next(T, &store).unwrap().unwrap();
        let (mut resources, mut removed) = told(&response);
        resources.sort_unstable();
        removed.sort_unstable();
        assert_eq!((resources, removed), (vec!["changed", "new"], vec!["before-restart", "dead"]));
    }

    #[test]
    fn a_large_mesh_travels_in_pieces_and_arrives_whole() {
        let (store, mut machine) = (Store::default(), Machine::default());
        let body = "x".repeat(100);
        store.apply((0..100_000).map(|i| put(&format!("workload-{i}"), &body)));
        machine.receive(subscribe(&[], &[]), |_| true).unwrap();
        let (mut seen, mut more) = (0, Vec::new());
        while let Some(response) = machine.next(T, &store).unwrap() {
            seen += response.resources.len();
            more.push(response.more);
            machine.receive(ack(&response), |_| true).unwrap();
        }
        assert_eq!(seen, 100_000);
        assert_eq!(more.pop(), Some(false), "the last piece promises another");
        assert!(more.len() >= 10 && more.iter().all(|more| *more), "{more:?}");
    }

    #[test]
    fn the_end_of_an_answer_is_told_even_if_nothing_else_is_left_to_tell() {
        let (store, mut machine) = (Store::default(), Machine::default());
        let body = "x".repeat(MAX_RESPONSE_BYTES);
        store.apply([put("new", &body), put("held", &body)]);
        let version = store.get("held").unwrap().version;
        machine.receive(subscribe(&[], &[("held", &version)]), |_| true).unwrap();
        let first = machine.next(T, &store).unwrap().unwrap();
        assert_eq!((told(&first), first.more), ((vec!["new"], vec![]), true));
        machine.receive(ack(&first), |_| true).unwrap();
        let end = machine.next(T, &store).unwrap().expect("a client waits for the end");
        assert_eq!((told(&end), end.more), ((vec![], vec![]), false));
        machine.receive(ack(&end), |_| true).unwrap();
        assert_eq!(machine.next(T, &store), Ok(None));
    }

    #[test]
    fn a_name_asked_for_is_answered_even_if_it_does_not_exist() {
        let (store, mut machine) = (Store::default(), Machine::default());
        store.apply([put("a", "1"), put("b", "1")]);
        machine.receive(subscribe(&["a", "nobody"], &[]), |_| true).unwrap();
        let response = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&response), (vec!["a"], vec!["nobody"]));
        machine.receive(ack(&response), |_| true).unwrap();
        store.apply([put("b", "2"), put("nobody", "1")]);
        let next = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&next), (vec!["nobody"], vec![]));
    }

    #[test]
    fn a_beginning_asks_for_all_names_that_have_it_and_for_no_others() {
        let (store, mut machine) = (Store::default(), Machine::default());
        store.apply([put("shop/w/a", "1"), put("shop/web/a", "1"), put("other/w/a", "1"), put("shop/w/dead", "1")]);
        store.apply([("shop/w/dead".into(), None)]);
        machine.receive(subscribe(&["shop/w/*"], &[("shop/w/before-restart", "x")]), |_| true).unwrap();
        let first = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&first), (vec!["shop/w/a"], vec!["shop/w/before-restart"]));
        machine.receive(ack(&first), |_| true).unwrap();
        store.apply([put("shop/w/b", "1"), put("shop/web/b", "1"), ("shop/w/a".into(), None)]);
        let second = machine.next(T, &store).unwrap().unwrap();
        assert_eq!(told(&second), (vec!["shop/w/b"], vec!["shop/w/a"]));
        let more = DeltaDiscoveryRequest { response_nonce: second.nonce.clone(), ..subscribe(&["shop/web/*"], &[]) };
        machine.receive(more, |_| true).unwrap();
        let third = machine.next(T, &store).unwrap().unwrap();
        let mut names = told(&third).0;
        names.sort_unstable();
        assert_eq!(names, vec!["shop/w/b", "shop/web/a", "shop/web/b"]);
    }

    #[test]
    fn a_nack_names_itself_and_does_not_stop_later_changes() {
        let (store, mut machine) = (Store::default(), Machine::default());
        store.apply([put("bad", "1")]);
        machine.receive(subscribe(&[], &[]), |_| true).unwrap();
        let response = machine.next(T, &store).unwrap().unwrap();
        let status = rpc::Status { code: 3, message: "bad: no address".into() };
        let nack = DeltaDiscoveryRequest { error_detail: Some(status.clone()), ..ack(&response) };
        assert_eq!(machine.receive(nack, |_| true), Ok(Received::Nacked(status)));
        assert_eq!(machine.next(T, &store), Ok(None), "the same version was sent again");
        store.apply([put("bad", "2")]);
        assert!(machine.next(T, &store).unwrap().is_some());
    }

    #[test]
    fn a_type_that_is_not_served_is_answered_once_and_takes_nothing_away() {
        let mut machine = Machine::default();
        let Ok(Received::Foreign(answer)) = machine.receive(subscribe(&[], &[("held", "1")]), |_| false) else {
            panic!("a client waits for the first answer")
        };
        assert_eq!((&answer.type_url[..], told(&answer)), (T, (vec![], vec![])));
        assert_eq!(machine.receive(ack(&answer), |_| false), Ok(Received::Ignored));
        assert_eq!(machine.next(T, &Store::default()), Ok(None));
    }

    #[test]
    fn types_that_are_not_served_are_remembered_to_a_bound() {
        let mut machine = Machine::default();
        let mut ask = |number: usize| {
            let request = DeltaDiscoveryRequest { type_url: format!("t{number}"), ..Default::default() };
            machine.receive(request, |_| false).unwrap()
        };
        assert!((0..MAX_FOREIGN_TYPES).all(|number| ask(number) != Received::Ignored));
        assert_eq!(ask(MAX_FOREIGN_TYPES), Received::Ignored);
    }
}
