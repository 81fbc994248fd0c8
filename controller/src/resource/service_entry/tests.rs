use super::*;

fn entry(spec: &str) -> (Option<ServiceEntry>, Vec<Flaw>) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: \
         {{{spec}}}\n"
    );
    let mut state = loam_manifest::read([("m.yaml", text.as_bytes())]);
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    let Some(loam_manifest::Object::ServiceEntry(entry)) = state.objects.pop() else { panic!("no entry") };
    let mut flaws = Vec::new();
    (read(&entry.metadata, entry.spec, &mut flaws), flaws)
}

const GOOD: &str = "hosts: [a.example], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC";

#[test]
fn what_leaves_nothing_is_left_out_and_says_what_to_do() {
    let cases = [
        ("", "no host"),
        ("hosts: [a.example]", "no TCP port"),
        ("ports: [{number: 80}]", "no host"),
        ("hosts: [''], ports: [{number: 80}]", "is empty"),
        ("hosts: ['*'], ports: [{number: 80}]", "has a character"),
        ("hosts: ['*.'], ports: [{number: 80}]", "has a character"),
        ("hosts: ['*.*.com'], ports: [{number: 80}]", "has a character"),
        ("hosts: ['bücher.example'], ports: [{number: 80}]", "has a character"),
        ("hosts: [192.0.2.1], ports: [{number: 80}]", "belongs under addresses"),
        ("hosts: ['2001:db8::/32'], ports: [{number: 80}]", "belongs under addresses"),
        ("hosts: [a.example], ports: [{number: 0}]", "not between 1 and 65535"),
        ("hosts: [a.example], ports: [{number: -1}]", "not between 1 and 65535"),
        ("hosts: [a.example], ports: [{number: 65536}]", "not between 1 and 65535"),
        ("hosts: [a.example], ports: [{number: 4294967376}]", "not between 1 and 65535"),
        ("hosts: [a.example], ports: [{number: 80, targetPort: 70000}]", "target port 70000"),
        ("hosts: [a.example], ports: [{number: 53, protocol: UDP}]", "only TCP"),
        ("hosts: [a.example], ports: [{number: 80}], resolution: ALWAYS", "resolution"),
    ];
    for (spec, expected) in cases {
        let (entry, flaws) = entry(spec);
        assert!(entry.is_none(), "{spec}: {entry:?}");
        assert!(flaws.last().unwrap().contains("is left out"), "{spec}: {flaws:?}");
        assert!(flaws.iter().any(|f| f.contains(expected)), "{spec}: {flaws:?}");
    }
    let host = |host: String| entry(&format!("hosts: [{host}], ports: [{{number: 80}}]")).0.is_some();
    assert!(!host(format!("{}.example", "x".repeat(64))), "a label of 64 bytes");
    assert!(host(format!("{}.example", "x".repeat(63))));
    let labels = |bytes: usize| ["x".repeat(62).as_str(); 4].join(".")[..bytes].to_owned();
    assert!(!host(format!("{}.example", labels(246))), "254 bytes");
    assert!(host(format!("{}.example", labels(245))), "253 bytes");
    assert!(host(format!("{}.example.", labels(245))), "the final dot does not count");
}

#[test]
fn a_wrong_part_is_told_and_the_rest_counts() {
    let cases = [
        ("addresses: [10.0.0.0/33, 192.0.2.1]", "10.0.0.0/33"),
        ("addresses: [0.0.0.0/0, 192.0.2.1]", "every address"),
        ("addresses: ['fe80::1%eth0', 192.0.2.1]", "not an IP address"),
        ("addresses: [nonsense, 192.0.2.1]", "not an IP address"),
        ("addresses: [127.0.0.1, 192.0.2.1]", "cannot be the address"),
        ("location: MESH_NOWHERE, addresses: [192.0.2.1]", "MESH_EXTERNAL"),
        ("exportTo: [other, Other], addresses: [192.0.2.1]", "nor a namespace"),
        ("exportTo: ['', .], addresses: [192.0.2.1]", "nor a namespace"),
        ("exportTo: ['~', other], addresses: [192.0.2.1]", "to nobody"),
        ("endpoints: [{address: 1.2.3}], addresses: [192.0.2.1]", "endpoints[0]"),
        ("endpoints: [{address: b.example}], addresses: [192.0.2.1]", "set DNS"),
        ("endpoints: [{address: 192.0.2.9}, {address: 192.0.2.9}], addresses: [192.0.2.1]", "there twice"),
        ("workloadSelector: {labels: {a: b}}, endpoints: [{address: 192.0.2.9}], addresses: [192.0.2.1]", "ignored"),
        (
            "endpoints: [{address: 192.0.2.9, labels: {networking.istio.io/tunnel: http}}], addresses: [192.0.2.1]",
            "MESH_INTERNAL",
        ),
    ];
    for (more, expected) in cases {
        let (entry, flaws) = entry(&format!("{GOOD}, {more}"));
        let entry = entry.unwrap();
        assert_eq!(entry.single_addresses().collect::<Vec<_>>(), ["192.0.2.1".parse::<IpAddr>().unwrap()], "{more}");
        assert!(flaws.len() == 1 && flaws[0].contains(expected), "{more}: {flaws:?}");
    }
}

#[test]
fn names_lose_their_case_and_final_dot_and_mapped_addresses_are_ipv4() {
    let entry = entry(
        "hosts: [A.Example., a.example], ports: [{number: 80}], resolution: NONE, addresses: ['::ffff:192.0.2.1', \
         192.0.2.1]",
    );
    let (entry, flaws) = (entry.0.unwrap(), entry.1);
    assert_eq!(entry.hosts.iter().map(Hostname::as_str).collect::<Vec<_>>(), ["a.example"]);
    assert_eq!(entry.single_addresses().count(), 1);
    assert!(flaws.is_empty(), "{flaws:?}");
}

#[test]
fn names_are_resolved_where_they_are_endpoints_and_patterns_are_not() {
    let read = |spec: &str| {
        let (entry, flaws) = entry(&format!("ports: [{{number: 443}}], addresses: [192.0.2.1], {spec}"));
        let entry = entry.unwrap();
        let hosts: Vec<_> = entry.hosts.iter().map(ToString::to_string).collect();
        (entry.resolution, hosts.join(" "), entry.endpoints.len(), flaws)
    };
    let none: Vec<Flaw> = Vec::new();
    for resolution in ["DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] {
        let spec = format!("resolution: {resolution}, hosts: [a.example, b.example]");
        assert_eq!(read(&spec), (Resolution::Hosts, "a.example b.example".into(), 0, none.clone()));
        let spec = format!("{spec}, endpoints: [{{address: c.example}}, {{address: 192.0.2.9}}]");
        assert_eq!(read(&spec), (Resolution::Dns, "a.example b.example".into(), 2, none.clone()));
    }
    let (resolution, hosts, _, flaws) = read("resolution: DNS, hosts: [a.example, '*.example']");
    assert_eq!((resolution, &*hosts), (Resolution::Hosts, "a.example"));
    assert!(flaws.len() == 1 && flaws[0].contains("*.example is left out"), "{flaws:?}");
    let (resolution, _, _, flaws) = read("resolution: DNS, hosts: ['*.example']");
    assert_eq!(resolution, Resolution::None);
    assert!(flaws[0].contains("read as NONE"), "{flaws:?}");
    // Who wrote down endpoints did not mean the hosts, even if none of them is right.
    let (resolution, _, endpoints, flaws) = read("resolution: DNS, hosts: [a.example], endpoints: [{address: 1.2.3}]");
    assert_eq!((resolution, endpoints, flaws.len()), (Resolution::Dns, 0, 1));
}

#[test]
fn without_addresses_and_endpoints_an_entry_says_nothing_to_a_mesh_of_addresses() {
    let (entry, flaws) = entry("hosts: ['*.example'], ports: [{number: 443}], resolution: NONE");
    assert_eq!(entry.unwrap().addresses, Addresses::None);
    assert!(flaws.len() == 1 && flaws[0].contains("give it the addresses"), "{flaws:?}");
}
