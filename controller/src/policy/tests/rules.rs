//! What rules mean, field by field, and what L4 makes of those that it does not see whole.

use super::*;

#[test]
fn every_field_that_l4_knows_is_judged() {
    let rows: &[(&str, &str, &str)] = &[
        // the rule of a DENY policy, who is denied, who is not
        ("from: [{source: {principals: [cluster.local/ns/a/sa/web]}}]", "a/web", "a/other"),
        ("from: [{source: {principals: [\"*/sa/web\"]}}]", "a/web", "a/webs"),
        ("from: [{source: {principals: [\"*\"]}}]", "a/web", "-"),
        ("from: [{source: {notPrincipals: [\"*\"]}}]", "-", "a/web"),
        ("from: [{source: {notPrincipals: [cluster.local/ns/a/sa/web]}}]", "a/other", "a/web"),
        ("from: [{source: {namespaces: [a, b]}}]", "b/web", "c/web"),
        ("from: [{source: {namespaces: [a-*]}}]", "a-b/web", "a/web"),
        ("from: [{source: {notNamespaces: [a]}}]", "b/web", "a/web"),
        ("from: [{source: {serviceAccounts: [web]}}]", "shop/web", "a/web"),
        ("from: [{source: {serviceAccounts: [a/web]}}]", "other.td!a/web", "a/other"),
        ("from: [{source: {notServiceAccounts: [a/web]}}]", "-", "a/web"),
        ("from: [{source: {ipBlocks: [10.1.0.0/16]}}]", "a/web@10.1.2.3", "a/web@10.2.0.1"),
        ("from: [{source: {notIpBlocks: [10.1.0.0/16]}}]", "a/web@10.2.0.1", "a/web@10.1.2.3"),
        ("from: [{source: {ipBlocks: [\"fd00::/8\"]}}]", "a/web@fd01::1", "a/web"),
        ("from: [{source: {trustDomains: [their.td]}}]", "their.td!a/web", "a/web"),
        ("from: [{source: {notTrustDomains: [cluster.local]}}]", "their.td!a/web", "a/web"),
        ("from: [{source: {namespaces: [a], ipBlocks: [10.1.0.0/16]}}]", "a/web@10.1.0.1", "a/web"),
        ("from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]", "b/web", "c/web"),
        ("when: [{key: source.ip, values: [10.1.0.1]}]", "a/web@10.1.0.1", "a/web"),
        ("when: [{key: source.namespace, notValues: [a]}]", "b/web", "a/web"),
        ("when: [{key: source.principal, values: [\"cluster.local/ns/a/*\"]}]", "a/web", "b/web"),
        ("when: [{key: destination.ip, values: [10.0.0.1]}]", "a/web", ""),
        ("when: [{key: destination.ip, notValues: [10.0.0.1]}]", "", "a/web"),
        ("when: [{key: destination.port, values: [\"80\"]}]", "a/web", ""),
        ("to: [{operation: {ports: [\"80\"]}}]", "a/web", ""),
        ("to: [{operation: {ports: [\"81\"]}}]", "", "a/web"),
        ("to: [{operation: {notPorts: [\"80\"]}}]", "", "a/web"),
        ("from: [{source: {namespaces: [a]}}], to: [{operation: {ports: [\"80\"]}}]", "a/web", "b/web"),
        ("", "-", ""),
    ];
    for (rule, denied, allowed) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize("shop/p", &format!("{{action: DENY, rules: [{{{rule}}}]}}"));
        for (who, expected) in [(denied, "denied shop/p"), (allowed, "allow")] {
            if !who.is_empty() {
                assert_eq!(cluster.ask(&format!("{who} > shop/api:80")), expected, "{rule}");
            }
        }
        // The same rule in a policy that allows means the opposite.
        cluster.authorize("shop/p", &format!("{{action: ALLOW, rules: [{{{rule}}}]}}"));
        for (who, expected) in [(denied, "allow"), (allowed, "denied -")] {
            if !who.is_empty() {
                assert_eq!(cluster.ask(&format!("{who} > shop/api:80")), expected, "{rule}");
            }
        }
        assert_eq!(cluster.problems(), [""; 0]);
    }
}

#[test]
fn a_policy_is_about_its_selection_its_namespace_or_the_mesh() {
    let deny = |selector: &str| format!("{{action: DENY, {selector} rules: [{{}}]}}");
    let api = "selector: {matchLabels: {app: api}},";
    let rows: &[(&str, &str, [bool; 5])] = &[
        // policy, selector, and whether each pod of the cluster is denied to
        ("shop/p", "", [true, true, false, false, false]),
        ("shop/p", "selector: {},", [true, true, false, false, false]),
        ("shop/p", api, [true, false, false, false, false]),
        ("shop/p", "selector: {matchLabels: {app: api, tier: back}},", [false; 5]),
        ("istio-system/p", "", [true; 5]),
        // With a selector, the root namespace selects everywhere.
        ("istio-system/p", api, [true, false, true, false, true]),
    ];
    for (name, selector, expected) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize(name, &deny(selector));
        let denied = PODS.map(|(pod, ..)| cluster.ask(&format!("a/web > {pod}:80")) != "allow");
        assert_eq!(denied, *expected, "{name} {selector}");
        cluster.delete(Kind::AuthorizationPolicy, name);
        let denied = PODS.map(|(pod, ..)| cluster.ask(&format!("a/web > {pod}:80")) != "allow");
        assert_eq!(denied, [false; 5], "{name} {selector} is gone");
    }
}

#[test]
fn what_denies_outweighs_what_allows() {
    let mut cluster = Cluster::new();
    let rule = "rules: [{from: [{source: {namespaces: [a]}}]}]";
    cluster.authorize("shop/allow", &format!("{{action: ALLOW, {rule}}}"));
    cluster.authorize("shop/deny", &format!("{{action: DENY, {rule}}}"));
    cluster.check(&[("a/web > shop/api:80", "denied shop/deny"), ("b/web > shop/api:80", "denied -")]);
}

#[test]
fn a_rule_that_l4_does_not_see_whole_denies_more_and_allows_nothing() {
    let rows: &[(&str, &str, &str)] = &[
        // rule, who is denied by a DENY policy, who is not
        ("to: [{operation: {methods: [GET]}}]", "a/web > shop/api:80", ""),
        ("to: [{operation: {methods: [GET], ports: [\"80\"]}}]", "a/web > shop/api:80", "a/web > shop/api:81"),
        ("to: [{operation: {paths: [/x]}}, {operation: {ports: [\"81\"]}}]", "a/web > shop/api:80", ""),
        (
            "from: [{source: {namespaces: [a]}}], to: [{operation: {notPaths: [/x]}}]",
            "a/web > shop/api:80",
            "b/web > shop/api:80",
        ),
        (
            "from: [{source: {namespaces: [a], requestPrincipals: [\"*\"]}}]",
            "a/web > shop/api:80",
            "b/web > shop/api:80",
        ),
        ("from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]", "- > shop/api:80", ""),
        ("from: [{source: {trustDomains: [\"*.example\"]}}]", "- > shop/api:80", ""),
        ("when: [{key: \"request.headers[x]\", values: [y]}]", "- > shop/api:80", ""),
        (
            "from: [{source: {namespaces: [a]}}], when: [{key: connection.sni, values: [y]}]",
            "a/web > shop/api:80",
            "b/web > shop/api:80",
        ),
    ];
    for (rule, denied, allowed) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize("shop/p", &format!("{{action: DENY, rules: [{{{rule}}}]}}"));
        cluster.check(&[(denied, "denied shop/p")]);
        if !allowed.is_empty() {
            cluster.check(&[(allowed, "allow")]);
        }
        let status = cluster.status("shop/p");
        assert!(status.starts_with("ZtunnelAccepted True PartiallyInvalid"), "{status}");
        assert!(status.contains("\n0: L4 cannot see ") && status.contains("denies whatever fits the rest"), "{status}");
        assert!(cluster.problems()[0].contains("stricter than it is written"), "{:?}", cluster.problems());

        // Beside a rule that L4 sees whole, that one allows and the other does not.
        let other = "{from: [{source: {namespaces: [z]}}]}";
        cluster.authorize("shop/p", &format!("{{rules: [{{{rule}}}, {other}]}}"));
        cluster.check(&[(denied, "denied -"), ("z/web > shop/api:80", "allow")]);
        let status = cluster.status("shop/p");
        assert!(status.contains("it allows nothing\n1: enforced as written"), "{status}");
    }
}

#[test]
fn the_mesh_is_meant_by_each_name_of_its_trust_domain() {
    let mut cluster = Cluster::with_aliases(&["old.td"]);
    cluster.authorize("shop/p", "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/web]}}]}]}");
    cluster.check(&[
        ("a/web > shop/api:80", "allow"),
        ("old.td!a/web > shop/api:80", "allow"),
        ("oldxtd!a/web > shop/api:80", "denied -"),
        ("other.td!a/web > shop/api:80", "denied -"),
    ]);
    cluster.authorize("shop/p", "{rules: [{from: [{source: {notPrincipals: [old.td/ns/a/sa/web]}}]}]}");
    cluster.check(&[("a/web > shop/api:80", "denied -"), ("other.td!a/web > shop/api:80", "allow")]);
}

#[test]
fn a_policy_on_trial_denies_nothing() {
    let mut cluster = Cluster::new();
    let dry = |value: &str| {
        let annotations = format!("{{istio.io/dry-run: \"{value}\"}}");
        manifest("AuthorizationPolicy", "shop/p", &annotations, "{action: DENY, rules: [{}]}")
    };
    cluster.apply(&dry("true"));
    cluster.check(&[("a/web > shop/api:80", "allow")]);
    assert_eq!(
        cluster.status("shop/p"),
        "ZtunnelAccepted True Accepted: watched and not enforced\n0: enforced as written"
    );
    cluster.apply(&dry("false"));
    cluster.check(&[("a/web > shop/api:80", "denied shop/p")]);
}

#[test]
fn what_is_not_for_l4_is_not_sent_to_it_and_says_so() {
    let rows = [
        (
            "{action: AUDIT, rules: [{}]}",
            "ZtunnelAccepted False UnsupportedValue: L4 does not support the action AUDIT",
        ),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
            "ZtunnelAccepted False UnsupportedValue: L4 does not support the action CUSTOM",
        ),
        (
            "{action: DENY, targetRefs: [{kind: Service, group: \"\", name: web}], rules: [{}]}",
            "WaypointAccepted False UnsupportedValue: waypoints do not evaluate policies, so they refuse all requests to \
             Service web",
        ),
        (
            "{action: AUDIT, targetRefs: [{kind: Service, group: \"\", name: web}], rules: [{}]}",
            "WaypointAccepted False UnsupportedValue: waypoints do not evaluate policies: it is not in force",
        ),
    ];
    for (spec, status) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize("shop/p", spec);
        cluster.check(&[("a/web > shop/api:80", "allow")]);
        assert!(cluster.status("shop/p").starts_with(status), "{}", cluster.status("shop/p"));
        assert_eq!(cluster.problems().len(), 1, "{:?}", cluster.problems());
    }
}
