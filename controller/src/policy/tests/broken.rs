//! Manifests that are wrong: each is told with its line, and none opens anything.

use super::*;

/// A DENY policy in lines, of which line 7 is `line`.
fn deny(line: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n\
         \x20 selector: {{matchLabels: {{app: api}}}}\n  action: DENY\n  {line}\n"
    )
}

const VALID: &str = "rules: [{from: [{source: {namespaces: [a]}}]}]";

#[test]
fn each_mistake_is_told_with_its_line_and_what_to_do() {
    let rows: &[(&str, &str)] = &[
        ("rules: [{form: []}]", "spec.rules[0]: \"form\" is not a field: write one of from, to, when"),
        (
            "rule: []",
            "spec: \"rule\" is not a field: write one of action, selector, targetRef, targetRefs, provider, rules",
        ),
        ("rules: {}", "spec.rules: is a map, and should be a list"),
        ("rules: [{from: []}]", "spec.rules[0].from: is empty: leave the field out, or write at least one item"),
        ("rules: [{from: }]", "spec.rules[0].from: is nothing, and should be a list"),
        ("rules: [{from: [{}]}]", "spec.rules[0].from[0]: has no source"),
        ("rules: [{from: [{source: {}}]}]", "spec.rules[0].from[0].source: names nothing"),
        ("rules: [{from: [{source: {principal: [x]}}]}]", "\"principal\" is not a field: write one of"),
        ("rules: [{from: [{source: {namespaces: []}}]}]", "source.namespaces: is empty"),
        ("rules: [{from: [{source: {namespaces: a}}]}]", "source.namespaces: is text, and should be a list"),
        ("rules: [{from: [{source: {namespaces: [\"\"]}}]}]", "namespaces[0]: \"\" is empty"),
        ("rules: [{from: [{source: {principals: [\"a*b\"]}}]}]", "more than a single '*' at one of its ends"),
        ("rules: [{from: [{source: {principals: [spiffe://a/ns/b/sa/c]}}]}]", "is written without spiffe://"),
        (
            "rules: [{from: [{source: {principals: [web]}}]}]",
            "is not <trust domain>/ns/<namespace>/sa/<service account>",
        ),
        ("rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]", "is neither an IP address nor a range"),
        ("rules: [{from: [{source: {ipBlocks: [\"fe80::1%eth0\"]}}]}]", "is neither an IP address nor a range"),
        ("rules: [{from: [{source: {ipBlocks: [\"::ffff:0:0/80\"]}}]}]", "is wider than the mapped IPv4 addresses"),
        (
            "rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]",
            "serviceAccounts beside principals or",
        ),
        ("rules: [{to: [{operation: {ports: [80]}}]}]", "ports[0]: is a number: write it in quotes, \"80\""),
        ("rules: [{to: [{operation: {ports: [\"-1\"]}}]}]", "\"-1\" is not a port from 1 to 65535"),
        ("rules: [{to: [{operation: {ports: [\"0\"]}}]}]", "\"0\" is not a port from 1 to 65535"),
        ("rules: [{to: [{operation: {ports: [\"70000\"]}}]}]", "\"70000\" is not a port from 1 to 65535"),
        ("rules: [{when: [{values: [a]}]}]", "spec.rules[0].when[0]: has no key"),
        ("rules: [{when: [{key: source.ip}]}]", "has neither values nor notValues"),
        ("rules: [{when: [{key: source.name, values: [a]}]}]", "\"source.name\" is not a key: write source.ip"),
        ("targetRefs: [{kind: Service, name: web}]\n  rules: [{}]", "spec.targetRefs[0]: stands beside a selector"),
    ];
    for (line, message) in rows {
        let mut fresh = Cluster::new();
        assert_eq!(fresh.apply(&deny(line)), [""; 0], "{line}");
        let problems = fresh.problems();
        assert!(problems[0].starts_with("m.yaml:7: AuthorizationPolicy shop/p: "), "{line}: {problems:?}");
        assert!(problems[0].contains(message), "{line}: {problems:?}");
        assert!(fresh.status("shop/p").starts_with("ZtunnelAccepted False Invalid"), "{line}");
        // It never was valid: what is not understood is no limit.
        fresh.check(&[("b/web > shop/api:80", "denied shop/p"), ("a/web > shop/db:80", "allow")]);
        // The same in a policy that allows lets nobody in.
        let mut fresh = Cluster::new();
        fresh.apply(&deny(line).replace("DENY", "ALLOW"));
        fresh.check(&[("b/web > shop/api:80", "denied -")]);

        let mut cluster = Cluster::new();
        cluster.apply(&deny(VALID));
        cluster.apply(&deny(line));
        cluster.check(&[("a/web > shop/api:80", "denied shop/p"), ("b/web > shop/api:80", "allow")]);
        assert!(cluster.problems()[0].ends_with("; the last valid version stays in force"), "{line}");
        cluster.apply(&deny(VALID));
        assert_eq!(cluster.problems(), [""; 0], "{line}");
    }
}

#[test]
fn a_wrong_action_or_selector_denies_to_all_whom_it_may_be_about() {
    let rows: &[(&str, [bool; 5])] = &[
        (
            "{action: DENNY, selector: {matchLabels: {app: api}}, rules: [{from: [{source: {namespaces: [z]}}]}]}",
            [true, false, false, false, false],
        ),
        ("{action: DENY, selector: {matchLabel: {app: api}}, rules: [{}]}", [true, true, false, false, false]),
        ("{action: DENY, selector: {matchLabels: {app: 1}}, rules: [{}]}", [true, true, false, false, false]),
        ("{selector: {matchLabels: {app: \"*\"}}, rules: [{}]}", [true, true, false, false, false]),
        ("[]", [true, true, false, false, false]),
        ("", [true, true, false, false, false]),
    ];
    for (spec, expected) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize("shop/p", spec);
        let denied = PODS.map(|(pod, ..)| cluster.ask(&format!("a/web > {pod}:80")) != "allow");
        assert_eq!(denied, *expected, "{spec}: {}", cluster.told());
        let problem = &cluster.problems()[0];
        assert!(problem.ends_with("so it denies all that it may be about"), "{problem}");
    }
}

#[test]
fn a_wrong_peer_authentication_asks_for_mutual_tls() {
    let rows: &[(&str, &str)] = &[
        ("{mtls: {mode: STRIC}}", "\"STRIC\" is not a mode: write STRICT, PERMISSIVE, DISABLE or UNSET"),
        ("{mtls: PERMISSIVE}", "spec.mtls: is text, and should be a map of fields"),
        ("{mtls: {mode: PERMISSIVE, mod: x}}", "\"mod\" is not a field: write one of mode"),
        ("{portLevelMtls: {80: {mode: DISABLE}}}", "spec.portLevelMtls: needs a selector"),
        (
            "{selector: {matchLabels: {app: api}}, portLevelMtls: {http: {mode: DISABLE}}}",
            "is not a port from 1 to 65535",
        ),
        ("{selector: {matchLabels: {app: api}}, portLevelMtls: {0: {mode: DISABLE}}}", "is not a port from 1 to 65535"),
        ("{selector: {matchLabels: {app: api}}, portLevelMtls: {80: {mode: NONE}}}", "\"NONE\" is not a mode"),
        ("", "spec: is missing"),
    ];
    for (spec, message) in rows {
        let mut cluster = Cluster::new();
        cluster.authenticate("shop/p", spec);
        cluster.check(&[("a/web > shop/api:80", "allow"), ("- > other/api:80", "allow")]);
        assert!(cluster.ask("- > shop/api:80").starts_with("denied "), "{spec}: {}", cluster.told());
        assert!(cluster.problems()[0].contains(message), "{spec}: {:?}", cluster.problems());

        cluster.authenticate("shop/p", "{mtls: {mode: PERMISSIVE}}");
        cluster.authenticate("shop/p", spec);
        cluster.check(&[("- > shop/api:80", "allow")]);
        assert!(cluster.problems()[0].ends_with("; the last valid version stays in force"), "{spec}");
    }
}

#[test]
fn odd_but_valid_policies_mean_what_istio_documents_and_say_what_that_is() {
    let rows: &[(&str, &str, &str)] = &[
        // spec, verdict on everybody, what is told
        ("{}", "denied -", "in force; without a rule it allows nothing"),
        ("{rules: []}", "denied -", "in force; without a rule it allows nothing"),
        ("{rules: [{}]}", "allow", "in force"),
        ("{action: DENY}", "allow", "in force; without a rule it denies nothing"),
        ("{action: DENY, rules: [{}]}", "denied shop/p", "in force"),
        (
            "{action: DENY, selector: {matchLabels: {app: nobody}}, rules: [{}]}",
            "allow",
            "in force; it selects no workload",
        ),
    ];
    for (spec, expected, told) in rows {
        let mut cluster = Cluster::new();
        cluster.authorize("shop/p", spec);
        cluster.check(&[("a/web > shop/api:80", expected)]);
        let status = cluster.status("shop/p");
        assert_eq!(status.lines().next(), Some(&*format!("ZtunnelAccepted True Accepted: {told}")), "{spec}");
    }
}

#[test]
fn a_broken_file_takes_nothing_with_it() {
    let mut cluster = Cluster::new();
    let both = format!("{}---\n{}", deny("rules: [{oops}]"), manifest("AuthorizationPolicy", "other/q", "{}", "{}"));
    let told = cluster.apply(&both);
    assert_eq!(told, [""; 0]);
    cluster.check(&[("a/web > other/api:80", "denied -"), ("a/web > shop/db:80", "allow")]);
    // YAML that cannot be read does not even say what it is: it is told with its line.
    let told =
        cluster.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: r}\nspec: {\n");
    assert!(told[0].starts_with("m.yaml:"), "{told:?}");
}

#[test]
fn a_policy_too_large_for_the_wire_is_told_and_read_in_the_closed_way() {
    let namespace = "x".repeat(250);
    let principals: Vec<String> = (0..5_000).map(|i| format!("cluster.local/ns/{namespace}/sa/s{i}")).collect();
    let rule = format!("{{from: [{{source: {{principals: [{}]}}}}]}}", principals.join(", "));
    let mut cluster = Cluster::new();
    cluster.authorize("shop/p", &format!("{{action: DENY, rules: [{rule}]}}"));
    assert!(cluster.problems()[0].contains("is larger than 1024 KiB"), "{:?}", cluster.problems());
    cluster.check(&[("z/z > shop/api:80", "denied shop/p")]);
}

#[test]
fn flaws_of_one_policy_are_bounded() {
    let mut cluster = Cluster::new();
    let ports: Vec<_> = (0..1_000).map(|_| "\"x\"").collect();
    cluster.apply(&deny(&format!("rules: [{{to: [{{operation: {{ports: [{}]}}}}]}}]", ports.join(", "))));
    assert_eq!(cluster.problems().len(), 21);
    assert!(cluster.problems().iter().any(|p| p.contains("has 980 more flaws")), "{:?}", cluster.problems());
}
