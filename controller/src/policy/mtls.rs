//! Who must come with mutual TLS: the levels of PeerAuthentication folded into one answer for a workload, and that
//! answer as the policies that proxies know.
//!
//! Without mutual TLS nobody has a principal, so STRICT is a policy that denies those without one. PERMISSIVE and
//! DISABLE are the same for whoever receives.

use std::collections::BTreeSet;
use std::sync::Arc;

use loam_core::policy::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};

use crate::resource::Name;
use crate::resource::peer_authentication::{Mode, PeerAuthentication};

/// Name of the policy that denies everybody without mutual TLS, in the root namespace. No manifest can have a name
/// with an underscore.
pub const STRICT: &str = "istio_converted_static_strict";

/// Begins the names of policies made from those that tell ports apart.
pub const CONVERTED: &str = "converted_peer_authentication_";

/// What holds for a workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strictness {
    /// Whether it needs mutual TLS.
    pub strict: bool,
    /// The ports for which it is the other way round.
    pub except: BTreeSet<u16>,
}

/// What holds in a namespace: its own level, or else that of the mesh, or else nothing is required.
pub fn inherited(mesh: Option<&PeerAuthentication>, namespace: Option<&PeerAuthentication>) -> bool {
    let mode = |level: Option<&PeerAuthentication>| level.and_then(|p| p.mode);
    mode(namespace).or_else(|| mode(mesh)) == Some(Mode::Strict)
}

/// What holds for workloads that `policy` selects, where `inherited` holds above.
pub fn strictness(inherited: bool, policy: Option<&PeerAuthentication>) -> Strictness {
    let Some(policy) = policy else { return Strictness { strict: inherited, except: BTreeSet::new() } };
    let strict = policy.mode.map_or(inherited, |mode| mode == Mode::Strict);
    let differs = |mode: &Option<Mode>| mode.is_some_and(|mode| (mode == Mode::Strict) != strict);
    let except = policy.ports.iter().filter(|(_, mode)| differs(mode)).map(|(port, _)| *port).collect();
    Strictness { strict, except }
}

impl Strictness {
    /// The key of the policy that says so; `None` where everybody may come.
    pub fn key(&self, root: &str, policy: Option<&Name>) -> Option<Arc<str>> {
        match (self.except.is_empty(), self.strict, policy) {
            (true, true, _) => Some(strict_key(root)),
            (true, false, _) | (false, _, None) => None,
            (false, _, Some(name)) => Some(converted_key(name)),
        }
    }

    /// The policy of the workloads that `name` selects, if it tells ports apart.
    pub fn converted(&self, name: &Name) -> Option<Policy> {
        if self.except.is_empty() {
            return None;
        }
        let ports: Vec<u16> = self.except.iter().copied().collect();
        let nobody = vec![StringMatch::Presence];
        let matches: Vec<Match> = match self.strict {
            true => vec![
                Match { not_principals: nobody, ..Match::default() },
                Match { not_destination_ports: ports, ..Match::default() },
            ],
            false => vec![Match { not_principals: nobody, destination_ports: ports, ..Match::default() }],
        };
        Some(denying(converted_key(name), Arc::clone(&name.namespace), matches))
    }
}

/// The policy that denies everybody without mutual TLS.
pub fn strict(root: &Arc<str>) -> Policy {
    let nobody = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    denying(strict_key(root), Arc::clone(root), vec![nobody])
}

/// The key of [`strict`].
pub fn strict_key(root: &str) -> Arc<str> {
    format!("{root}/{STRICT}").into()
}

/// The key of [`Strictness::converted`].
pub fn converted_key(name: &Name) -> Arc<str> {
    format!("{}/{CONVERTED}{}", name.namespace, name.name).into()
}

/// Denies what fits all of `matches`.
fn denying(key: Arc<str>, namespace: Arc<str>, matches: Vec<Match>) -> Policy {
    let clauses = matches.into_iter().map(|m| Clause { matches: vec![m] }).collect();
    let (scope, action) = (Scope::Workload, Action::Deny);
    Policy { key, namespace, scope, action, dry_run: false, rules: vec![Rule { clauses }], unreadable: None }
}
