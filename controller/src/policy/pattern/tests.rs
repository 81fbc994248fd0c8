use super::*;

fn domains(list: &str) -> TrustDomains {
    let all: Vec<TrustDomain> = list.split(' ').map(|d| d.parse().unwrap()).collect();
    TrustDomains::new(&all[0], &all[1..])
}

fn show(pattern: &StringMatch) -> String {
    match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

fn shown(patterns: &[StringMatch]) -> String {
    patterns.iter().map(show).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_star_is_a_pattern_at_one_end_and_a_mistake_elsewhere() {
    let shape = |text: &str| match pattern(text) {
        Ok(found) => format!("{found:?}"),
        Err(why) => why.to_owned(),
    };
    for (text, expected) in [
        ("a", "Exact(\"a\")"),
        ("a*", "Prefix(\"a\")"),
        ("*a", "Suffix(\"a\")"),
        ("*", "Presence"),
        ("", "is empty"),
        ("a*b", "has more than a single '*' at one of its ends"),
        ("*a*", "has more than a single '*' at one of its ends"),
        ("**", "has more than a single '*' at one of its ends"),
        ("a\nb", "has a control character"),
    ] {
        assert_eq!(shape(text), expected, "{text:?}");
    }
    assert!(pattern(&"x".repeat(901)).is_err());
}

#[test]
fn a_principal_of_the_mesh_is_meant_in_all_its_trust_domains() {
    let ours = domains("new.example old-td old.td");
    for (text, expected) in [
        // The mesh's own, an alias, and Istio's word for the mesh are the same.
        ("new.example/ns/a/sa/b", "new.example/ns/a/sa/b old-td/ns/a/sa/b old.td/ns/a/sa/b"),
        ("old-td/ns/a/sa/b", "new.example/ns/a/sa/b old-td/ns/a/sa/b old.td/ns/a/sa/b"),
        ("cluster.local/ns/a/sa/b", "new.example/ns/a/sa/b old-td/ns/a/sa/b old.td/ns/a/sa/b"),
        ("old-td/ns/a/*", "new.example/ns/a/* old-td/ns/a/* old.td/ns/a/*"),
        ("old-td/*", "new.example/* old-td/* old.td/*"),
        // Those of others stay what they are.
        ("their.td/ns/a/sa/b", "their.td/ns/a/sa/b"),
        ("*/ns/a/sa/b", "*/ns/a/sa/b"),
        ("*td/ns/a/sa/b", "*td/ns/a/sa/b new.example/ns/a/sa/b"),
        ("*other/ns/a/sa/b", "*other/ns/a/sa/b"),
        ("*/sa/b", "*/sa/b"),
        ("*", "*"),
        ("new*", "new*"),
        ("*-reader", "*-reader"),
    ] {
        assert_eq!(shown(&principals(text, &ours).unwrap()), expected, "{text:?}");
    }
    // A name with a dot means that name: nothing in it is a pattern.
    let found = principals("old.td/ns/a/sa/b", &domains("old.td")).unwrap();
    assert!(!found[0].matches(Some("oldxtd/ns/a/sa/b")));
    for wrong in ["spiffe://td/ns/a/sa/b", "a/b", "b", "td/ns/a/sa/", "td/ns/a/sa/b/c", "TD/ns/a/sa/b", "td/ns/../sa/b"]
    {
        assert!(principals(wrong, &ours).is_err(), "{wrong:?} could never be somebody's");
    }
}

#[test]
fn a_trust_domain_and_a_principal_together_are_what_fits_both() {
    let ours = domains("td alias");
    let patterns = |list: &str| list.split(' ').map(|t| pattern(t).unwrap()).collect::<Vec<_>>();
    let domain = |text: &str| trust_domain(text, &ours).unwrap();
    assert_eq!(shown(&domain("td").unwrap()), "td/* alias/*");
    assert_eq!(shown(&domain("other").unwrap()), "other/*");
    assert_eq!(domain("*.example"), None, "a suffix of the first part is no prefix and no suffix of the whole");
    assert!(trust_domain("a/b", &ours).is_err());
    for (principal, domain, expected) in [
        ("td/ns/a/sa/b x/ns/a/sa/b", "td/*", Some("td/ns/a/sa/b")),
        ("*", "td/*", Some("td/*")),
        ("td/ns/*", "td/*", Some("td/ns/*")),
        ("t*", "td/*", Some("td/*")),
        ("*/ns/a/sa/b", "td/* alias/*", Some("td/ns/a/sa/b alias/ns/a/sa/b")),
        ("*/sa/b", "td/*", None),
        ("x/ns/a/sa/b", "td/*", Some("")),
    ] {
        let found = both(&patterns(principal), &patterns(domain));
        assert_eq!(found.as_deref().map(shown).as_deref(), expected, "{principal} and {domain}");
    }
}

#[test]
fn ranges_ports_and_accounts_are_checked() {
    let block = |text: &str| ip_block(text).map(|net| net.to_string());
    for (text, expected) in [
        ("10.0.0.1", Ok("10.0.0.1/32")),
        ("10.1.2.3/8", Ok("10.0.0.0/8")),
        ("fd00::1", Ok("fd00::1/128")),
        ("0.0.0.0/0", Ok("0.0.0.0/0")),
        ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
        ("::ffff:10.0.0.0/90", Err("is wider than the mapped IPv4 addresses")),
        ("10.0.0.0/33", Err("is neither an IP address nor a range such as 10.0.0.0/8")),
        ("fe80::1%eth0", Err("is neither an IP address nor a range such as 10.0.0.0/8")),
        ("10.0.0", Err("is neither an IP address nor a range such as 10.0.0.0/8")),
        ("", Err("is neither an IP address nor a range such as 10.0.0.0/8")),
    ] {
        assert_eq!(block(text).as_deref().map_err(|e| *e), expected, "{text:?}");
    }
    assert_eq!((port("80"), port("65535").ok(), port("0").ok()), (Ok(80), Some(65_535), None));
    for wrong in ["-1", "+80", "65536", "http", "", "8 0"] {
        assert!(port(wrong).is_err(), "{wrong:?}");
    }
    let account = |text: &str| service_account(text, "own").map(|a| format!("{}/{}", a.namespace, a.name)).ok();
    assert_eq!((account("a"), account("b/a")), (Some("own/a".to_owned()), Some("b/a".to_owned())));
    for wrong in ["", "*", "a/*", "a/b/c", "/a", "a/"] {
        assert_eq!(account(wrong), None, "{wrong:?}");
    }
}
