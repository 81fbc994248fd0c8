//! The policies, whom they are about, and what became of each.

mod told;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use loam_core::policy::{Action as L4Action, Policy, Rule, Scope};
use loam_manifest::istio::{Custom, Place};
use loam_manifest::{Kind, Located};

use super::delivery::{Delivery, Plan};
use super::protection::Protected;
use super::selectors::Selectors;
use super::{Mesh, Problem};
use crate::policy::mtls::{self, Strictness};
use crate::policy::pattern::TrustDomains;
use crate::policy::reader::{Flaw, Flaws};
use crate::policy::status::{Standing, Status};
use crate::policy::translate::{Outcome, translate};
use crate::resource::authorization_policy::{self, Action, AuthorizationPolicy, Target};
use crate::resource::peer_authentication::{self, PeerAuthentication};
use crate::resource::{Labels, Name};

/// Largest policy on the wire. The largest object of Kubernetes is about as large.
const MAX_POLICY_BYTES: usize = 1 << 20;

/// Whose policies became different.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Audience {
    /// Everybody's.
    Mesh,
    /// Those of a namespace.
    Namespace(Arc<str>),
    /// Those with these labels, in a namespace or anywhere.
    Selected(Option<Arc<str>>, Labels),
}

/// The policies.
#[derive(Debug)]
pub(super) struct Policies {
    root: Arc<str>,
    domains: TrustDomains,
    authorizations: BTreeMap<Name, Held<Authorization>>,
    peers: BTreeMap<Name, Held<Peer>>,
    /// Those with labels, by their labels.
    authorizations_by_labels: Selectors,
    peers_by_labels: Selectors,
    /// Those without labels in each namespace, the one that counts first.
    levels: HashMap<Arc<str>, BTreeSet<(Age, Name)>>,
    /// Names of policies to be compiled.
    dirty: BTreeSet<(Kind, Name)>,
    /// Whether [`mtls::strict`] is known to proxies.
    strict_published: bool,
    delivery: Delivery,
    /// What there is to be told; out of date while `untold`.
    statuses: Arc<[Status]>,
    problems: Arc<[Problem]>,
    untold: bool,
}

/// An object and how it came into force.
#[derive(Debug)]
struct Held<T> {
    in_force: T,
    standing: Standing,
    flaws: Vec<Flaw>,
    place: Place,
    generation: Option<i64>,
}

/// An AuthorizationPolicy and what became of its rules.
#[derive(Debug, Clone, PartialEq)]
struct Authorization {
    written: AuthorizationPolicy,
    rules: Vec<Rule>,
    outcomes: Vec<Outcome>,
}

#[derive(Debug, Clone, PartialEq)]
struct Peer {
    written: PeerAuthentication,
    age: Age,
}

/// The older one counts. One without a date is younger than one with; between equals the name decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    undated: bool,
    created: Option<Timestamp>,
}

impl Age {
    fn of(metadata: &ObjectMeta) -> Self {
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        Self { undated: created.is_none(), created }
    }
}

impl<T: Clone> Held<T> {
    /// What is in force after `read` was read with `flaws`.
    fn new(old: Option<&Self>, read: T, flaws: Vec<Flaw>, object: &Custom<Located>) -> Self {
        let (in_force, standing) = match old {
            _ if flaws.is_empty() => (read, Standing::AsWritten),
            Some(old) if old.standing != Standing::Closed => (old.in_force.clone(), Standing::LastValid),
            Some(_) | None => (read, Standing::Closed),
        };
        Self { in_force, standing, flaws, place: object.place.clone(), generation: object.metadata.generation }
    }
}

impl Policies {
    pub(super) fn new(mesh: &Mesh) -> Self {
        Self {
            root: Arc::clone(&mesh.root_namespace),
            domains: TrustDomains::new(&mesh.trust_domain, &mesh.trust_domain_aliases),
            authorizations: BTreeMap::new(),
            peers: BTreeMap::new(),
            authorizations_by_labels: Selectors::default(),
            peers_by_labels: Selectors::default(),
            levels: HashMap::new(),
            dirty: BTreeSet::new(),
            strict_published: false,
            delivery: Delivery::default(),
            statuses: Arc::default(),
            problems: Arc::default(),
            untold: false,
        }
    }

    /// What policies are about that only waypoints enforce.
    pub(super) fn protected(&self) -> Protected {
        let mut protected = Protected::default();
        for (name, held) in &self.authorizations {
            let written = &held.in_force.written;
            // What only watches decides nothing.
            if written.dry_run || written.action == Action::Audit {
                continue;
            }
            if let Target::Waypoint(targets) = &written.target {
                let is_root = name.namespace == self.root;
                targets.iter().for_each(|target| protected.add(&name.namespace, target, is_root));
            }
        }
        protected
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.authorizations.len() + self.peers.len()
    }

    /// Takes in an AuthorizationPolicy, or that it is gone.
    pub(super) fn set_authorization(&mut self, name: &Name, object: Option<Custom<Located>>) -> Vec<Audience> {
        self.untold = true;
        self.dirty.insert((Kind::AuthorizationPolicy, name.clone()));
        let old = self.authorizations.remove(name);
        let new = object.map(|object| {
            let (read, flaws) = self.read_authorization(name, &object);
            Held::new(old.as_ref(), read, flaws, &object)
        });
        let selector = |held: &Option<Held<Authorization>>| held.as_ref().and_then(|h| selector(&h.in_force)).cloned();
        let (before, after) = (selector(&old), selector(&new));
        self.authorizations.extend(new.map(|new| (name.clone(), new)));
        if before == after {
            return Vec::new();
        }
        before.iter().for_each(|labels| self.authorizations_by_labels.remove(name, labels));
        after.iter().for_each(|labels| self.authorizations_by_labels.add(name, labels));
        let namespace = (name.namespace != self.root).then(|| Arc::clone(&name.namespace));
        before.into_iter().chain(after).map(|labels| Audience::Selected(namespace.clone(), labels)).collect()
    }

    fn read_authorization(&self, name: &Name, object: &Custom<Located>) -> (Authorization, Vec<Flaw>) {
        let annotations = object.metadata.annotations.iter().flatten();
        let annotations: Vec<_> = annotations.map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let mut flaws = Flaws::default();
        let mut written = authorization_policy::read(name, &annotations, &object.spec, &self.domains, &mut flaws);
        let (mut rules, outcomes) = translate(&written);
        let policy = self.policy(name, &written, rules.clone());
        let bytes = policy.map_or(0, |policy| loam_api::encode::policy(&policy).1.len());
        if bytes > MAX_POLICY_BYTES {
            let line = object.spec.line;
            flaws
                .add(line, format_args!("spec: is larger than {} KiB: write several policies", MAX_POLICY_BYTES >> 10));
            written.rules = Vec::new();
            rules = match written.action {
                Action::Deny => vec![Rule::default()],
                Action::Allow | Action::Audit | Action::Custom => Vec::new(),
            };
        }
        (Authorization { written, rules, outcomes }, flaws.into_list())
    }

    /// Takes in a PeerAuthentication, or that it is gone.
    pub(super) fn set_peer(&mut self, name: &Name, object: Option<Custom<Located>>) -> Vec<Audience> {
        self.untold = true;
        let old = self.peers.remove(name);
        let new = object.map(|object| {
            let mut flaws = Flaws::default();
            let written = peer_authentication::read(&object.spec, &mut flaws);
            let peer = Peer { written, age: Age::of(&object.metadata) };
            Held::new(old.as_ref(), peer, flaws.into_list(), &object)
        });
        let same = old.as_ref().map(|h| &h.in_force) == new.as_ref().map(|h| &h.in_force);
        if same {
            self.peers.extend(new.map(|new| (name.clone(), new)));
            return Vec::new();
        }
        self.dirty.insert((Kind::PeerAuthentication, name.clone()));
        let mut audiences = Vec::new();
        if let Some(old) = old {
            audiences.push(self.audience(name, &old.in_force));
            match old.in_force.written.selector.is_empty() {
                true => self.leave_level(name, old.in_force.age),
                false => self.peers_by_labels.remove(name, &old.in_force.written.selector),
            }
        }
        if let Some(new) = new {
            audiences.push(self.audience(name, &new.in_force));
            match new.in_force.written.selector.is_empty() {
                true => {
                    let level = self.levels.entry(Arc::clone(&name.namespace)).or_default();
                    level.insert((new.in_force.age, name.clone()));
                }
                false => self.peers_by_labels.add(name, &new.in_force.written.selector),
            }
            self.peers.insert(name.clone(), new);
        }
        for audience in &audiences {
            let all = self.peers.keys();
            let below = |n: &&Name| match audience {
                Audience::Mesh => true,
                Audience::Namespace(namespace) => n.namespace == *namespace,
                Audience::Selected(..) => false,
            };
            self.dirty.extend(all.filter(below).map(|n| (Kind::PeerAuthentication, n.clone())));
        }
        audiences
    }

    fn leave_level(&mut self, name: &Name, age: Age) {
        if let Some(level) = self.levels.get_mut(&name.namespace) {
            level.remove(&(age, name.clone()));
            if level.is_empty() {
                self.levels.remove(&name.namespace);
            }
        }
    }

    fn audience(&self, name: &Name, peer: &Peer) -> Audience {
        let (root, selector) = (name.namespace == self.root, &peer.written.selector);
        match (root, selector.is_empty()) {
            (true, true) => Audience::Mesh,
            (false, true) => Audience::Namespace(Arc::clone(&name.namespace)),
            (_, false) => Audience::Selected(Some(Arc::clone(&name.namespace)), selector.clone()),
        }
    }

    /// The policies that a workload lists, by its namespace and labels.
    pub(super) fn listed_by(&self, namespace: &str, labels: &Labels) -> Arc<[Arc<str>]> {
        if self.len() == 0 {
            return Arc::default();
        }
        let own = self.authorizations_by_labels.candidates(namespace, labels);
        let root = self.authorizations_by_labels.candidates(&self.root, labels);
        let selects = |name: &&Name| {
            let held = self.authorizations.get(*name).and_then(|held| selector(&held.in_force));
            held.is_some_and(|selector| selector.select(labels))
        };
        // In the root namespace itself both are the same.
        let mut keys: BTreeSet<Arc<str>> = own.chain(root).filter(selects).map(|n| n.to_string().into()).collect();
        let peer = self.peer_of(namespace, labels);
        let strictness = self.strictness(namespace, peer);
        keys.extend(strictness.key(&self.root, peer));
        keys.into_iter().collect()
    }

    /// The PeerAuthentication that counts for a workload. With labels in the root namespace it is about nobody.
    fn peer_of<'a>(&'a self, namespace: &str, labels: &'a Labels) -> Option<&'a Name> {
        if *namespace == *self.root {
            return None;
        }
        let held = |name: &Name| self.peers.get(name).map(|held| &held.in_force);
        let candidates = self.peers_by_labels.candidates(namespace, labels);
        let selecting = candidates.filter(|name| held(name).is_some_and(|peer| peer.written.selector.select(labels)));
        selecting.min_by_key(|name| (held(name).map(|peer| peer.age), *name))
    }

    /// The PeerAuthentication without labels that counts in a namespace.
    fn level(&self, namespace: &str) -> Option<&Name> {
        self.levels.get(namespace)?.first().map(|(_, name)| name)
    }

    fn strictness(&self, namespace: &str, policy: Option<&Name>) -> Strictness {
        let written = |name: &Name| self.peers.get(name).map(|held| &held.in_force.written);
        let level = |namespace: &str| self.level(namespace).and_then(written);
        let own = if *namespace == *self.root { None } else { level(namespace) };
        mtls::strictness(mtls::inherited(level(&self.root), own), policy.and_then(written))
    }

    /// The same by the names that proxies know.
    pub(super) fn names(&self, list: &Arc<[Arc<str>]>) -> Arc<[Arc<str>]> {
        self.delivery.names(list)
    }

    /// Notes what a pod lists.
    pub(super) fn lists(&mut self, pod: &Name, list: Option<Arc<[Arc<str>]>>) {
        self.untold |= self.delivery.lists(pod, list);
    }

    /// Those who list one of `keys`.
    pub(super) fn who_lists<'a>(&'a self, keys: &'a BTreeSet<Arc<str>>) -> impl Iterator<Item = &'a Name> {
        self.delivery.who_lists(keys)
    }

    /// What to tell of policies, where pods are to list others than they do.
    pub(super) fn plan(&mut self, lists: impl Iterator<Item = (Name, Arc<[Arc<str>]>)>) -> Plan {
        let moves = self.delivery.moves(lists);
        let fresh = self.compile();
        self.delivery.plan(fresh, &moves)
    }

    /// The policies that became different; `None` is one that is gone, if it ever was there.
    fn compile(&mut self) -> Vec<(Arc<str>, Option<Policy>)> {
        let mut changes = Vec::new();
        if self.peers.is_empty() == self.strict_published {
            self.strict_published = !self.strict_published;
            changes.push((mtls::strict_key(&self.root), self.strict_published.then(|| mtls::strict(&self.root))));
        }
        for (kind, name) in std::mem::take(&mut self.dirty) {
            if kind == Kind::AuthorizationPolicy {
                let held = self.authorizations.get(&name).map(|held| &held.in_force);
                let policy = held.and_then(|held| self.policy(&name, &held.written, held.rules.clone()));
                changes.push((name.to_string().into(), policy));
            } else {
                let selects = |held: &&Held<Peer>| !held.in_force.written.selector.is_empty();
                let selecting = self.peers.get(&name).filter(selects).filter(|_| name.namespace != self.root);
                let strictness = selecting.map(|_| self.strictness(&name.namespace, Some(&name)));
                changes.push((mtls::converted_key(&name), strictness.and_then(|s| s.converted(&name))));
            }
        }
        changes
    }

    /// `None` for a policy that L4 has nothing to do with.
    fn policy(&self, name: &Name, written: &AuthorizationPolicy, rules: Vec<Rule>) -> Option<Policy> {
        let action = match written.action {
            Action::Allow => L4Action::Allow,
            Action::Deny => L4Action::Deny,
            Action::Audit | Action::Custom => return None,
        };
        let scope = match &written.target {
            Target::Workloads(labels) if !labels.is_empty() => Scope::Workload,
            Target::Workloads(_) if name.namespace == self.root => Scope::Global,
            Target::Workloads(_) => Scope::Namespace,
            Target::Waypoint(_) => return None,
        };
        let (key, namespace) = (name.to_string().into(), Arc::clone(&name.namespace));
        Some(Policy { key, namespace, scope, action, dry_run: written.dry_run, rules, unreadable: None })
    }

    /// What is to be told about each policy, as of the last [`Policies::tell`].
    pub(super) fn statuses(&self) -> Arc<[Status]> {
        Arc::clone(&self.statuses)
    }

    /// What somebody should look at, as of the last [`Policies::tell`].
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Brings what is told up to date.
    pub(super) fn tell(&mut self) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        let (mut statuses, mut problems) = (Vec::new(), Vec::new());
        for (name, held) in &self.authorizations {
            let status = self.authorization_status(name, held);
            problems.extend(told::problems_of(Kind::AuthorizationPolicy, name, held, &status));
            statuses.push(status);
        }
        for (name, held) in &self.peers {
            let status = self.peer_status(name, held);
            problems.extend(told::problems_of(Kind::PeerAuthentication, name, held, &status));
            statuses.push(status);
        }
        (self.statuses, self.problems) = (statuses.into(), problems.into());
    }
}

/// The labels of a policy that workloads have to list.
fn selector(policy: &Authorization) -> Option<&Labels> {
    match (&policy.written.target, policy.written.action) {
        (Target::Workloads(labels), Action::Allow | Action::Deny) => Some(labels).filter(|labels| !labels.is_empty()),
        (Target::Workloads(_) | Target::Waypoint(_), _) => None,
    }
}
