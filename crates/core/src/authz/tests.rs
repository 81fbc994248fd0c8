use ipnet::IpNet;

use super::*;
use crate::policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
use crate::snapshot::Change;
use crate::testmesh::{changes, mesh, uid};

mod compiled;
mod orders;
mod random;

const POD: &str = "pod shop/api-1 10.0.0.2 hbone policies=";

fn policy(key: &str, scope: Scope, action: Action, rules: Vec<Rule>) -> Change {
    let namespace = key.split_once('/').unwrap().0.into();
    Change::Policy(Policy { key: key.into(), namespace, scope, action, dry_run: false, rules, unreadable: None })
}

fn rule(m: Match) -> Vec<Rule> {
    vec![Rule { clauses: vec![Clause { matches: vec![m] }] }]
}

fn from_namespace(namespace: &str) -> Match {
    Match { namespaces: vec![StringMatch::Exact(namespace.into())], ..Match::default() }
}

fn on_port(port: u16) -> Match {
    Match { destination_ports: vec![port], ..Match::default() }
}

/// shop/api-1 with `policies` listed; who connects from namespace `from` (or without identity) to port 80.
fn judged(listed: &str, policies: Vec<Change>, from: Option<&str>) -> String {
    let mesh = mesh(&format!("{POD}{listed}")).apply(policies);
    judge_in(&mesh, from)
}

fn judge_in(mesh: &Snapshot, from: Option<&str>) -> String {
    let source = from.map(|ns| Identity::new(Default::default(), ns, "web").unwrap());
    shown_verdict(&judge(mesh, mesh.workload(&uid("shop/api-1")).unwrap(), &facts(source.as_ref())))
}

fn facts(source: Option<&Identity>) -> Facts<'_> {
    let ip = |text: &str| text.parse().unwrap();
    Facts { source, source_ip: ip("10.0.0.1"), destination_ip: ip("10.0.0.2"), destination_port: 80 }
}

fn shown_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allow => "allow".into(),
        Verdict::Deny { reason, policy } => format!("{} {}", reason.as_str(), policy.as_deref().unwrap_or("-")),
    }
}

#[test]
fn without_a_policy_that_allows_everything_may_pass() {
    assert_eq!(judged("x/y", vec![policy("x/y", Scope::Workload, Action::Deny, vec![])], None), "allow");
    let other = policy("other/p", Scope::Namespace, Action::Allow, rule(from_namespace("a")));
    assert_eq!(judged("shop/p", vec![policy("shop/p", Scope::Workload, Action::Deny, vec![]), other], None), "allow");
}

#[test]
fn with_a_policy_that_allows_only_its_matches_pass() {
    for scope in [Scope::Global, Scope::Namespace, Scope::Workload] {
        let allow = || vec![policy("shop/p", scope, Action::Allow, rule(from_namespace("a")))];
        assert_eq!(judged("shop/p", allow(), Some("a")), "allow", "{scope:?}");
        assert_eq!(judged("shop/p", allow(), Some("b")), "denied -", "{scope:?}");
        assert_eq!(judged("shop/p", allow(), None), "denied -", "{scope:?}");
    }
    assert_eq!(judged("shop/p", vec![policy("shop/p", Scope::Workload, Action::Allow, vec![])], Some("a")), "denied -");
}

#[test]
fn a_policy_that_denies_outweighs_those_that_allow() {
    let both = vec![
        policy("shop/a", Scope::Namespace, Action::Allow, rule(on_port(80))),
        policy("shop/d", Scope::Workload, Action::Deny, rule(from_namespace("b"))),
    ];
    assert_eq!(judged("shop/d", both.clone(), Some("a")), "allow");
    assert_eq!(judged("shop/d", both, Some("b")), "denied shop/d");
}

#[test]
fn a_listed_policy_that_has_not_arrived_refuses() {
    assert_eq!(judged("shop/late", vec![], Some("a")), "policy_pending shop/late");
    let arrived = policy("shop/late", Scope::Workload, Action::Allow, rule(from_namespace("a")));
    assert_eq!(judged("shop/late", vec![arrived], Some("a")), "allow");
}

#[test]
fn a_removed_policy_stays_in_force_while_it_is_listed() {
    let policies = vec![
        policy("shop/p", Scope::Workload, Action::Deny, rule(on_port(80))),
        policy("shop/n", Scope::Namespace, Action::Deny, rule(from_namespace("b"))),
    ];
    let before = mesh(&format!("{POD}shop/p")).apply(policies);
    let removed = before.apply(vec![Change::RemovePolicy("shop/p".into()), Change::RemovePolicy("shop/n".into())]);
    assert_eq!(judge_in(&removed, Some("b")), "denied shop/p");
    assert!(removed.policy("shop/p").is_none());
    let unlisted = removed.apply(changes("pod shop/api-1 10.0.0.2 hbone"));
    assert_eq!(judge_in(&unlisted, Some("b")), "allow");
    let listed_again = unlisted.apply(changes(&format!("{POD}shop/p")));
    assert_eq!(judge_in(&listed_again, Some("b")), "policy_pending shop/p");
}

#[test]
fn a_policy_may_come_back_with_another_scope() {
    let deny = |scope| policy("shop/p", scope, Action::Deny, rule(on_port(80)));
    let mesh = mesh("pod shop/api-1 10.0.0.2 hbone").apply(vec![deny(Scope::Namespace)]);
    assert_eq!(judge_in(&mesh, None), "denied shop/p");
    let mesh = mesh.apply(vec![deny(Scope::Workload)]);
    assert_eq!(judge_in(&mesh, None), "allow");
    let mesh = mesh.apply(vec![deny(Scope::Global)]);
    assert_eq!(judge_in(&mesh, None), "denied shop/p");
    let mesh = mesh.apply(vec![Change::RemovePolicy("shop/p".into())]);
    assert_eq!(judge_in(&mesh, None), "allow");
}

#[test]
fn the_revision_moves_exactly_when_a_verdict_may() {
    let before = mesh(&format!("{POD}shop/p"));
    let moved = |changes| before.apply(changes).policies_revision() != before.policies_revision();
    assert!(moved(vec![policy("shop/p", Scope::Workload, Action::Deny, vec![])]));
    assert!(moved(changes("pod shop/api-1 10.0.0.2 hbone")));
    assert!(moved(changes("-pod shop/api-1")));
    assert!(moved(changes("pod shop/api-2 10.0.0.3 policies=shop/p")));
    assert!(moved(changes(&format!("{POD}shop/p by=shop/wp"))));
    assert!(moved(changes("pod shop/api-2 10.0.0.3 by=shop/wp")));
    assert!(!moved(changes("pod shop/api-2 10.0.0.3")));
    assert!(!moved(changes(&format!("{POD}shop/p unhealthy"))));
    assert!(!moved(changes("svc shop/x 10.1.1.1 ports=80>80")));
}

#[test]
fn who_has_no_identity_matches_no_name() {
    for principals in [StringMatch::Presence, StringMatch::Prefix("".into()), StringMatch::Suffix("".into())] {
        let positive = Match { principals: vec![principals.clone()], ..Match::default() };
        let negative = Match { not_principals: vec![principals], ..Match::default() };
        let deny = |m| vec![policy("shop/strict", Scope::Global, Action::Deny, rule(m))];
        assert_eq!(judged("shop/strict", deny(positive.clone()), None), "allow");
        assert_eq!(judged("shop/strict", deny(positive), Some("a")), "denied shop/strict");
        assert_eq!(judged("shop/strict", deny(negative.clone()), None), "denied shop/strict");
        assert_eq!(judged("shop/strict", deny(negative), Some("a")), "allow");
    }
}

#[test]
fn each_field_holds_when_one_value_fits_and_no_negative_one() {
    let net = |s: &str| vec![s.parse::<IpNet>().unwrap()];
    let text = |s: &str| vec![StringMatch::Exact(s.into())];
    let account = |namespace: &str, name: &str| vec![ServiceAccount { namespace: namespace.into(), name: name.into() }];
    let m = Match::default;
    let rows = [
        (true, Match { principals: text("cluster.local/ns/a/sa/web"), ..m() }),
        (false, Match { principals: text("spiffe://cluster.local/ns/a/sa/web"), ..m() }),
        (true, Match { principals: vec![StringMatch::Prefix("cluster.local/ns/a/".into())], ..m() }),
        (true, Match { principals: vec![StringMatch::Suffix("/sa/web".into())], ..m() }),
        (false, Match { principals: vec![StringMatch::Suffix("/sa/we".into())], ..m() }),
        (true, Match { service_accounts: account("a", "web"), ..m() }),
        (false, Match { service_accounts: account("b", "web"), ..m() }),
        (false, Match { not_service_accounts: account("a", "web"), ..m() }),
        (true, Match { source_ips: net("10.0.0.0/24"), ..m() }),
        (false, Match { source_ips: net("10.0.0.0/24"), not_source_ips: net("10.0.0.1/32"), ..m() }),
        (false, Match { source_ips: net("::/0"), ..m() }),
        (true, Match { destination_ips: net("10.0.0.2/32"), ..m() }),
        (false, Match { not_destination_ips: net("10.0.0.2/32"), ..m() }),
        (true, Match { destination_ports: vec![79, 80], ..m() }),
        (false, Match { not_destination_ports: vec![79, 80], ..m() }),
        (true, Match { not_destination_ports: vec![81], ..m() }),
        (true, Match { namespaces: text("a"), destination_ports: vec![80], ..m() }),
        (false, Match { namespaces: text("a"), destination_ports: vec![81], ..m() }),
        (false, Match { not_namespaces: text("a"), ..m() }),
        (false, m()),
    ];
    for (holds, m) in rows {
        let shown = format!("{m:?}");
        let verdict = judged("shop/p", vec![policy("shop/p", Scope::Workload, Action::Deny, rule(m))], Some("a"));
        assert_eq!(verdict == "denied shop/p", holds, "{shown}");
    }
}

#[test]
fn rules_are_alternatives_clauses_add_up_and_matches_are_alternatives() {
    let clause = |matches: &[Match]| Clause { matches: matches.to_vec() };
    let (yes, no) = (on_port(80), on_port(81));
    let rows = [
        (false, vec![]),
        (true, vec![Rule::default()]),
        (false, vec![Rule { clauses: vec![clause(&[])] }]),
        (true, vec![Rule { clauses: vec![clause(&[no.clone(), yes.clone()])] }]),
        (false, vec![Rule { clauses: vec![clause(std::slice::from_ref(&yes)), clause(std::slice::from_ref(&no))] }]),
        (true, vec![Rule { clauses: vec![clause(&[no])] }, Rule { clauses: vec![clause(&[yes])] }]),
    ];
    for (holds, rules) in rows {
        let shown = format!("{rules:?}");
        let verdict = judged("shop/p", vec![policy("shop/p", Scope::Workload, Action::Deny, rules)], Some("a"));
        assert_eq!(verdict == "denied shop/p", holds, "{shown}");
    }
}

#[test]
fn a_policy_on_trial_decides_nothing_and_says_what_it_would_have() {
    let trial = |key, action, m| {
        let Change::Policy(policy) = policy(key, Scope::Global, action, rule(m)) else { unreachable!() };
        Change::Policy(Policy { dry_run: true, ..policy })
    };
    let in_force = |action| policy("shop/force", Scope::Global, action, rule(from_namespace("a")));
    let (deny, allow) = (Action::Deny, Action::Allow);
    let rows = [
        (None, vec![]),
        (Some("denied shop/p"), vec![trial("shop/p", deny, on_port(80))]),
        (Some("allow"), vec![trial("shop/p", deny, on_port(81))]),
        (Some("allow"), vec![trial("shop/p", allow, on_port(80))]),
        (Some("denied -"), vec![trial("shop/p", allow, on_port(81))]),
        (Some("allow"), vec![trial("shop/p", allow, on_port(81)), in_force(allow)]),
        (Some("denied shop/force"), vec![trial("shop/p", allow, on_port(80)), in_force(deny)]),
        (Some("denied shop/p"), vec![trial("shop/p", deny, on_port(80)), in_force(allow)]),
    ];
    for (expected, policies) in rows {
        let shown = format!("{policies:?}");
        let without: Vec<_> =
            policies.iter().filter(|c| !matches!(c, Change::Policy(p) if p.dry_run)).cloned().collect();
        let mesh = mesh(POD.trim_end_matches("policies=")).apply(policies);
        assert_eq!(judge_in(&mesh, Some("a")), judged_without_list(without), "{shown}");
        let source = Identity::new(Default::default(), "a", "web").unwrap();
        let told = dry_run(&mesh, mesh.workload(&uid("shop/api-1")).unwrap(), &facts(Some(&source)));
        assert_eq!(told.as_ref().map(shown_verdict).as_deref(), expected, "{shown}");
    }
}

fn judged_without_list(policies: Vec<Change>) -> String {
    judge_in(&mesh(POD.trim_end_matches("policies=")).apply(policies), Some("a"))
}

#[test]
fn a_denial_tells_of_each_policy_that_might_have_allowed_it_what_did_not_match() {
    let principals = |names: &[&str]| Match {
        principals: names.iter().map(|name| StringMatch::Exact((*name).into())).collect(),
        ..Match::default()
    };
    let clause = |m: Match| Clause { matches: vec![m] };
    let policies = vec![
        policy("shop/a", Scope::Global, Action::Allow, vec![]),
        policy("shop/b", Scope::Namespace, Action::Allow, rule(principals(&["x", "y", "z", "w"]))),
        policy(
            "shop/c",
            Scope::Namespace,
            Action::Allow,
            rule(Match { not_namespaces: vec![StringMatch::Presence], ..Match::default() }),
        ),
        policy(
            "shop/d",
            Scope::Workload,
            Action::Allow,
            vec![
                Rule { clauses: vec![clause(from_namespace("b"))] },
                Rule { clauses: vec![clause(from_namespace("a")), clause(on_port(443))] },
            ],
        ),
    ];
    let mesh = mesh(&format!("{POD}shop/d")).apply(policies);
    let source = Identity::new(Default::default(), "a", "web").unwrap();
    let explanation = explain(&mesh, mesh.workload(&uid("shop/api-1")).unwrap(), &facts(Some(&source)));
    assert_eq!(
        explanation.to_string(),
        "no policy allows it: \
         shop/d rule 1: destination_ports: 80 is none of [443]; \
         shop/c rule 0: not_namespaces: a is excluded by [*]; \
         shop/b rule 0: principals: cluster.local/ns/a/sa/web is none of [x, y, z, 1 more]; \
         shop/a: rules: it has no rule, so it allows nothing"
    );
}

#[test]
fn a_denial_stays_one_line_whatever_the_number_of_policies() {
    let allow = |i: usize| policy(&format!("shop/p{i:03}"), Scope::Global, Action::Allow, rule(on_port(443)));
    let mesh = mesh(POD.trim_end_matches("policies=")).apply((0..100).map(allow).collect());
    let explanation = explain(&mesh, mesh.workload(&uid("shop/api-1")).unwrap(), &facts(None));
    assert_eq!((explanation.missed.len(), explanation.more_missed), (MAX_NAMED, 100 - MAX_NAMED));
    assert!(explanation.to_string().len() < 1000, "{explanation}");
}

#[test]
fn what_is_allowed_is_explained_by_the_policy_that_allows_it() {
    let mesh = mesh(&format!("{POD}shop/p")).apply(vec![
        policy("shop/other", Scope::Global, Action::Allow, rule(on_port(81))),
        policy("shop/p", Scope::Workload, Action::Allow, rule(on_port(80))),
    ]);
    let explanation = explain(&mesh, mesh.workload(&uid("shop/api-1")).unwrap(), &facts(None));
    assert_eq!(explanation.to_string(), "allowed by policy shop/p");
}

#[test]
fn who_goes_past_a_waypoint_is_refused_before_any_policy_and_told_which_it_is() {
    let allow = policy("shop/p", Scope::Workload, Action::Allow, rule(from_namespace("a")));
    let deny = policy("shop/q", Scope::Workload, Action::Deny, rule(from_namespace("shop")));
    let open = mesh(&format!("{POD}shop/p")).apply(vec![allow]);
    assert_eq!(judge_in(&open, Some("a")), "allow");
    let guarded = open.apply(changes(&format!("{POD}shop/p by=a/web:80,b/wp:80+81")));
    // a/web is one of the waypoints, and the policies are still asked.
    assert_eq!(judge_in(&guarded, Some("a")), "allow");
    assert_eq!(judge_in(&guarded, Some("b")), "waypoint_required -");
    assert_eq!(judge_in(&guarded, None), "waypoint_required -");
    let other_port = open.apply(changes(&format!("{POD}shop/p by=b/wp:81")));
    assert_eq!(judge_in(&other_port, Some("a")), "allow");
    assert_eq!(judge_in(&other_port, Some("b")), "denied -");
    let pending = open.apply(changes(&format!("{POD}shop/nobody by=b/wp")));
    assert_eq!(judge_in(&pending, Some("a")), "waypoint_required -");

    let workload = guarded.workload(&uid("shop/api-1")).unwrap();
    let explanation = explain(&guarded.apply(vec![deny]), workload, &facts(None));
    assert_eq!(
        explanation.to_string(),
        "the port takes connections from its waypoint alone: come by way of waypoint a/web or b/wp"
    );
    assert!(explanation.missed.is_empty());
}

#[test]
fn before_the_control_plane_has_told_of_its_policies_nothing_passes() {
    let mesh = Snapshot::awaited().apply(changes("pod shop/api-1 10.0.0.2 hbone"));
    assert_eq!(judge_in(&mesh, Some("a")), "policy_pending -");
    let mesh = mesh.apply(vec![policy("shop/p", Scope::Global, Action::Deny, rule(from_namespace("b")))]);
    assert_eq!(judge_in(&mesh, Some("b")), "denied shop/p");
    let before = mesh.policy_version(mesh.workload(&uid("shop/api-1")).unwrap());
    let mesh = mesh.apply(vec![Change::PoliciesArrived]);
    assert_eq!(judge_in(&mesh, Some("a")), "allow");
    assert_ne!(before, mesh.policy_version(mesh.workload(&uid("shop/api-1")).unwrap()));
}

#[test]
fn a_workload_of_another_snapshot_is_judged_by_what_it_lists() {
    let old = mesh(&format!("{POD}shop/p")).apply(vec![policy("shop/p", Scope::Workload, Action::Deny, vec![])]);
    let workload = old.workload(&uid("shop/api-1")).unwrap();
    let facts = facts(None);
    let new = old.apply(changes("pod shop/api-1 10.0.0.2 hbone"));
    assert_eq!(judge(&new, workload, &facts), Verdict::Allow);
    let deny = policy("shop/p", Scope::Workload, Action::Deny, rule(on_port(80)));
    assert_eq!(shown_verdict(&judge(&new.apply(vec![deny]), workload, &facts)), "denied shop/p");
    let gone = new.apply(vec![Change::RemovePolicy("shop/p".into())]);
    assert_eq!(shown_verdict(&judge(&gone, workload, &facts)), "policy_pending shop/p");
}

#[test]
fn only_policies_that_apply_make_connections_to_be_judged_again() {
    let start = mesh(
        "pod shop/api-1 10.0.0.2 hbone policies=shop/p,shop/q
         pod shop/web-1 10.0.0.3 hbone
         pod back/db-1 10.0.0.4 hbone policies=shop/q",
    );
    let put = |key, scope, port| policy(key, scope, Action::Deny, rule(on_port(port)));
    let start = start.apply(vec![put("shop/p", Scope::Workload, 1), put("shop/q", Scope::Workload, 1)]);
    let moved = |changes: Vec<Change>| -> String {
        let next = start.apply(changes);
        let pods = ["shop/api-1", "shop/web-1", "back/db-1"];
        let version = |mesh: &Snapshot, pod| mesh.policy_version(mesh.workload(&uid(pod)).unwrap());
        pods.into_iter().filter(|pod| version(&start, pod) != version(&next, pod)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(moved(vec![put("shop/p", Scope::Workload, 2)]), "shop/api-1");
    assert_eq!(moved(vec![put("shop/q", Scope::Workload, 2)]), "shop/api-1 back/db-1");
    assert_eq!(moved(vec![put("shop/n", Scope::Namespace, 2)]), "shop/api-1 shop/web-1");
    assert_eq!(moved(vec![put("root/g", Scope::Global, 2)]), "shop/api-1 shop/web-1 back/db-1");
    assert_eq!(moved(vec![put("shop/p", Scope::Namespace, 1)]), "shop/api-1 shop/web-1");
    assert_eq!(moved(changes("pod shop/web-1 10.0.0.3 hbone policies=shop/p")), "shop/web-1");
    assert_eq!(moved(changes("pod shop/web-1 10.0.0.3 hbone unhealthy")), "");
    // The same again, as after a new connection to the control plane.
    assert_eq!(moved(vec![put("shop/p", Scope::Workload, 1)]), "");
    assert_eq!(moved(vec![put("shop/nobody", Scope::Workload, 1)]), "");
    // Still in force where it is listed.
    assert_eq!(moved(vec![Change::RemovePolicy("shop/p".into())]), "");
}

#[test]
fn a_policy_that_cannot_be_read_denies_what_it_may_be_about() {
    let scope = |key, scope| Policy::unreadable(key, scope, "root", "why").scope;
    assert_eq!(scope("shop/p", None), Scope::Namespace);
    assert_eq!(scope("root/p", None), Scope::Global);
    assert_eq!(scope("p", None), Scope::Global);
    for read in [Scope::Global, Scope::Namespace, Scope::Workload] {
        assert_eq!(scope("root/p", Some(read)), read);
    }

    let doubt = |key, scope| vec![Change::UnreadablePolicy(Policy::unreadable(key, scope, "root", "rules: why"))];
    for (listed, key, scope, verdict) in [
        ("x/y", "shop/p", None, "denied shop/p"),
        ("x/y", "root/p", None, "denied root/p"),
        ("x/y", "bank/p", None, "policy_pending x/y"),
        ("bank/p", "bank/p", Some(Scope::Workload), "denied bank/p"),
        ("x/y", "bank/p", Some(Scope::Workload), "policy_pending x/y"),
    ] {
        assert_eq!(judged(listed, doubt(key, scope), Some("a")), verdict, "{key} {scope:?}");
    }
    let mesh = mesh("pod shop/api-1 10.0.0.2 hbone").apply(doubt("shop/p", None));
    let workload = mesh.workload(&uid("shop/api-1")).unwrap();
    let told = explain(&mesh, workload, &facts(None)).to_string();
    let expected = "denied by policy shop/p, which cannot be read (rules: why), so nothing that it may be about passes";
    assert_eq!(told, expected);
}

#[test]
fn a_version_that_could_be_read_stays_in_force_when_the_next_cannot() {
    let doubt = || Change::UnreadablePolicy(Policy::unreadable("shop/p", None, "root", "why"));
    let readable = || policy("shop/p", Scope::Namespace, Action::Allow, rule(from_namespace("a")));
    let mut mesh = mesh("pod shop/api-1 10.0.0.2 hbone");
    for (change, of_a, of_b) in [
        (readable(), "allow", "denied -"),
        (doubt(), "allow", "denied -"),
        (Change::RemovePolicy("shop/p".into()), "allow", "allow"),
        (doubt(), "denied shop/p", "denied shop/p"),
        (readable(), "allow", "denied -"),
        (Change::RemovePolicy("shop/p".into()), "allow", "allow"),
        (doubt(), "denied shop/p", "denied shop/p"),
        (Change::RemovePolicy("shop/p".into()), "allow", "allow"),
    ] {
        let step = format!("{change:?}");
        mesh = mesh.apply(vec![change]);
        assert_eq!([judge_in(&mesh, Some("a")), judge_in(&mesh, Some("b"))], [of_a, of_b], "{step}");
    }
}
