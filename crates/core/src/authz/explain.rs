//! Why a verdict is what it is, for people.

use std::fmt;
use std::sync::Arc;

use super::fit::Field;
use super::{Applying, Connection, Facts, Set, Verdict};
use crate::policy::{Match, Policy, ServiceAccount, StringMatch};
use crate::reason::Reason;
use crate::snapshot::Snapshot;
use crate::traversal;
use crate::workload::Workload;

/// Most policies named that could have allowed a connection; the rest are counted. A log line stays a line.
pub const MAX_NAMED: usize = 5;

/// Most values of a field that are spelled out.
pub const MAX_VALUES: usize = 3;

/// A verdict with its causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// The waypoints by which it should have come, where it went past them.
    pub waypoints: Vec<Arc<str>>,
    /// Why the policy that denies it cannot be read, where that is why it denies.
    pub unreadable: Option<Arc<str>>,
    /// One of the policies that allow it, where such policies apply and one fits.
    pub allowed_by: Option<Arc<str>>,
    /// Where no policy allows it: policies that might have, nearest first, and what of each did not match. At most
    /// [`MAX_NAMED`].
    pub missed: Vec<Miss>,
    /// How many more there are.
    pub more_missed: usize,
    /// What the verdict would be if dry-run policies were in force; `None` where none applies.
    pub dry_run: Option<Verdict>,
}

/// Why one policy does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The policy.
    pub policy: Arc<str>,
    /// Its rule that came furthest, counted from 0.
    pub rule: Option<usize>,
    /// The first field of it that did not match, as policies on the wire call it.
    pub field: &'static str,
    /// What the field asks for and what the connection has.
    pub why: String,
}

/// Explains the verdict about a connection to `destination`, which is that of [`judge`](super::judge).
pub fn explain(snapshot: &Snapshot, destination: &Workload, facts: &Facts<'_>) -> Explanation {
    let applying = snapshot.applying(destination);
    let connection = Connection::new(facts);
    let verdict = applying.verdict(destination, &connection);
    let dry_run = applying.dry_run(&connection, &verdict);
    let allowing = || applying.sets().map(|set| &set.allow);
    let allowed_by = match &verdict {
        Verdict::Allow => allowing().find_map(|index| index.first(&connection)).map(|policy| policy.key.clone()),
        Verdict::Deny { .. } => None,
    };
    let is_past = matches!(verdict, Verdict::Deny { reason: Reason::WaypointRequired, .. });
    let waypoints = match is_past {
        true => traversal::waypoints(destination, facts.destination_port).cloned().collect(),
        false => Vec::new(),
    };
    let denying = (!is_past).then(|| applying.denying(&connection)).flatten();
    let unreadable = denying.and_then(|policy| policy.unreadable.clone());
    let (missed, more_missed) = match &verdict {
        Verdict::Deny { reason: Reason::Denied, policy: None } => missed(&applying, &connection),
        Verdict::Deny { .. } | Verdict::Allow => (Vec::new(), 0),
    };
    Explanation { verdict, waypoints, unreadable, allowed_by, missed, more_missed, dry_run }
}

fn missed(applying: &Applying<'_>, connection: &Connection<'_>) -> (Vec<Miss>, usize) {
    // The most particular first: those that the workload lists.
    let sets: Vec<&Set> = applying.sets().collect();
    let mut nearest: Vec<&Arc<Policy>> = Vec::new();
    for policy in sets.iter().rev().flat_map(|set| set.allow.nearest(connection)) {
        if nearest.len() == MAX_NAMED {
            break;
        }
        if !nearest.iter().any(|known| Arc::ptr_eq(known, policy)) {
            nearest.push(policy);
        }
    }
    let all: usize = sets.iter().map(|set| set.allow.len()).sum();
    (nearest.iter().map(|policy| connection.miss(policy)).collect(), all.saturating_sub(nearest.len()))
}

impl Connection<'_> {
    /// Why a policy that does not fit does not.
    fn miss(&self, policy: &Policy) -> Miss {
        let mut furthest: Option<(usize, usize)> = None;
        for (i, rule) in policy.rules.iter().enumerate() {
            let holding = rule.clauses.iter().take_while(|clause| self.fits_clause(clause)).count();
            if furthest.is_none_or(|(_, best)| holding > best) {
                furthest = Some((i, holding));
            }
        }
        let Some((rule, failing)) = furthest else {
            let why = "it has no rule, so it allows nothing".to_owned();
            return Miss { policy: policy.key.clone(), rule: None, field: "rules", why };
        };
        let matches = policy.rules[rule].clauses.get(failing).map(|clause| &clause.matches[..]).unwrap_or_default();
        let (field, mut why) = match matches.first().map(|m| (m, self.first_miss(m))) {
            Some((m, Some(field))) => self.tell(m, field),
            Some((_, None)) | None => self.tell(&Match::default(), Field::Nothing),
        };
        if matches.len() > 1 {
            why.push_str(&format!(", nor does any of {} alternatives match", matches.len() - 1));
        }
        Miss { policy: policy.key.clone(), rule: Some(rule), field, why }
    }

    fn tell(&self, m: &Match, field: Field) -> (&'static str, String) {
        let nobody = || "a caller without identity".to_owned();
        let facts = self.facts;
        let namespace = || facts.source.map_or_else(nobody, |source| source.namespace().to_owned());
        let principal = || self.principal.clone().unwrap_or_else(nobody);
        let account = || facts.source.map_or_else(nobody, |id| format!("{}/{}", id.namespace(), id.service_account()));
        let (from, to) = (|| facts.source_ip.to_string(), || facts.destination_ip.to_string());
        let port = || facts.destination_port.to_string();
        let is_none = |has: String, values: String| format!("{has} is none of {values}");
        let is_one = |has: String, values: String| format!("{has} is excluded by {values}");
        match field {
            Field::Nothing => ("matches", "it asks for nothing that is known of a connection".to_owned()),
            Field::Namespaces => ("namespaces", is_none(namespace(), few(&m.namespaces, pattern))),
            Field::NotNamespaces => ("not_namespaces", is_one(namespace(), few(&m.not_namespaces, pattern))),
            Field::Principals => ("principals", is_none(principal(), few(&m.principals, pattern))),
            Field::NotPrincipals => ("not_principals", is_one(principal(), few(&m.not_principals, pattern))),
            Field::ServiceAccounts => ("service_accounts", is_none(account(), few(&m.service_accounts, name))),
            Field::NotServiceAccounts => {
                ("not_service_accounts", is_one(account(), few(&m.not_service_accounts, name)))
            }
            Field::SourceIps => ("source_ips", is_none(from(), few(&m.source_ips, ToString::to_string))),
            Field::NotSourceIps => ("not_source_ips", is_one(from(), few(&m.not_source_ips, ToString::to_string))),
            Field::DestinationIps => ("destination_ips", is_none(to(), few(&m.destination_ips, ToString::to_string))),
            Field::NotDestinationIps => {
                ("not_destination_ips", is_one(to(), few(&m.not_destination_ips, ToString::to_string)))
            }
            Field::DestinationPorts => {
                ("destination_ports", is_none(port(), few(&m.destination_ports, ToString::to_string)))
            }
            Field::NotDestinationPorts => {
                ("not_destination_ports", is_one(port(), few(&m.not_destination_ports, ToString::to_string)))
            }
        }
    }
}

fn pattern(pattern: &StringMatch) -> String {
    match pattern {
        StringMatch::Exact(exact) => exact.to_string(),
        StringMatch::Prefix(prefix) => format!("{prefix}*"),
        StringMatch::Suffix(suffix) => format!("*{suffix}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

fn name(account: &ServiceAccount) -> String {
    format!("{}/{}", account.namespace, account.name)
}

fn few<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let shown: Vec<_> = values.iter().take(MAX_VALUES).map(show).collect();
    match values.len().saturating_sub(MAX_VALUES) {
        0 => format!("[{}]", shown.join(", ")),
        more => format!("[{}, {more} more]", shown.join(", ")),
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if let Some(rule) = self.rule {
            write!(f, " rule {rule}")?;
        }
        write!(f, ": {}: {}", self.field, self.why)
    }
}

/// One line.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        for (i, waypoint) in self.waypoints.iter().enumerate() {
            write!(f, "{}{waypoint}", if i == 0 { ": come by way of waypoint " } else { " or " })?;
        }
        if let Some(why) = &self.unreadable {
            write!(f, ", which cannot be read ({why}), so nothing that it may be about passes")?;
        }
        if let Some(policy) = &self.allowed_by {
            write!(f, " by policy {policy}")?;
        }
        for (i, miss) in self.missed.iter().enumerate() {
            write!(f, "{}{miss}", if i == 0 { ": " } else { "; " })?;
        }
        if self.more_missed > 0 {
            write!(f, "; {} more policies do not match either", self.more_missed)?;
        }
        Ok(())
    }
}
