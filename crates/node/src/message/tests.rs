use super::*;
use prost::Message as _;

fn info() -> PodInfo {
    PodInfo {
        uid: "u1".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        node: "n1".into(),
        addresses: vec![],
        dns: true,
        resolv: None,
        starting: false,
    }
}

fn pod() -> Option<PodRef> {
    Some(PodRef { uid: "u1".into(), incarnation: 7 })
}

#[test]
fn a_hello_of_istios_protocol_is_recognised_by_its_version() {
    // ZdsHello { version: V1 } is field 1, varint 1.
    let hello: Hello = decode(&[0x08, 0x01], 0).unwrap();
    assert!(hello.agree().unwrap_err().contains("version 1, Istio's"));
}

#[test]
fn addresses_survive_the_wire() {
    let ips: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    let add =
        ToZtunnel::from(to_ztunnel::Said::AddPod(AddPod { incarnation: 1, info: Some(info().with_ips(ips.clone())) }));
    let read: ToZtunnel = decode(&encode(&add).unwrap(), 3).unwrap();
    let Some(to_ztunnel::Said::AddPod(AddPod { info: Some(info), .. })) = read.said else { panic!("{read:?}") };
    assert_eq!(info.ips().collect::<Vec<_>>(), ips);
}

#[test]
fn a_field_that_breaks_its_rule_is_named() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let cases: [(PodInfo, &str); 6] = [
        (PodInfo { uid: String::new(), ..info() }, "PodInfo.uid is empty"),
        (PodInfo { uid: long, ..info() }, "PodInfo.uid is longer than 512 bytes"),
        (PodInfo { namespace: "a\nb".into(), ..info() }, "PodInfo.namespace has a control character"),
        (PodInfo { node: String::new(), ..info() }, "PodInfo.node is empty"),
        (PodInfo { addresses: vec![vec![1, 2, 3]], ..info() }, "PodInfo.addresses has one of neither 4 nor 16 bytes"),
        (PodInfo { addresses: vec![vec![0; 4]; 17], ..info() }, "PodInfo.addresses has more than 16"),
    ];
    for (info, expected) in cases {
        let asked = from_agent::Asked::AddPod(EnrolPod { index: 0, info: Some(info) });
        let bytes = FromAgent { id: 1, asked: Some(asked) }.encode_to_vec();
        assert_eq!(decode::<FromAgent>(&bytes, 1).unwrap_err().to_string(), expected);
    }
}

#[test]
fn settings_for_names_survive_the_wire_and_are_bounded() {
    let servers: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fd00::10".parse().unwrap()];
    let resolv = Resolv::new(servers.clone(), vec!["shop.svc.cluster.local".into()], 5);
    assert_eq!(resolv.servers().collect::<Vec<_>>(), servers);
    let check = |resolv| PodInfo { resolv: Some(resolv), ..info() }.check().map_err(|error| error.to_string());
    assert_eq!(check(resolv.clone()), Ok(()));
    for (broken, expected) in [
        (Resolv { nameservers: vec![vec![0; 4]; 4], ..resolv.clone() }, "Resolv.nameservers has more than 3"),
        (
            Resolv { nameservers: vec![vec![0; 5]], ..resolv.clone() },
            "Resolv.nameservers has one of neither 4 nor 16 bytes",
        ),
        (Resolv { search: vec!["a".into(); 33], ..resolv.clone() }, "Resolv.search has more than 32"),
        (Resolv { search: vec![String::new()], ..resolv.clone() }, "Resolv.search has one that is no name"),
        (Resolv { ndots: 16, ..resolv.clone() }, "Resolv.ndots is more than 15"),
    ] {
        assert_eq!(check(broken), Err(expected.into()));
    }
}

#[test]
fn needs_are_for_a_pod_a_kind_and_1_to_253_sockets() {
    use from_ztunnel::Said;
    let check = |pod, kind, count| FromZtunnel::from(Said::Need(Need { pod, kind, count })).check(0);
    assert!(check(pod(), Kind::Out4 as i32, 1).is_ok());
    assert!(check(pod(), Kind::In6 as i32, 253).is_ok());
    assert!(check(pod(), Kind::Out4 as i32, 0).is_err());
    assert!(check(pod(), Kind::Out4 as i32, 254).is_err());
    assert!(check(pod(), Kind::Unspecified as i32, 1).is_err());
    assert!(check(pod(), -1, 1).is_err());
    assert!(check(None, Kind::Out4 as i32, 1).is_err());
    assert!(check(Some(PodRef { uid: "u".into(), incarnation: 0 }), Kind::Out4 as i32, 1).is_err());
}

#[test]
fn each_message_takes_exactly_its_descriptors() {
    let agent = |asked, fds| FromAgent { id: 1, asked: Some(asked) }.check(fds).is_ok();
    let add = || from_agent::Asked::AddPod(EnrolPod { index: 0, info: Some(info()) });
    assert_eq!([0, 1, 2].map(|n| agent(add(), n)), [false, true, false]);
    assert_eq!([1, 2, 3].map(|n| agent(from_agent::Asked::Stores(Stores {}), n)), [false, true, false]);
    assert_eq!([0, 1].map(|n| agent(from_agent::Asked::List(List {}), n)), [true, false]);

    let add = |fds| ToZtunnel::from(to_ztunnel::Said::AddPod(AddPod { incarnation: 1, info: Some(info()) })).check(fds);
    let held = |fds| FromZtunnel::from(from_ztunnel::Said::Held(Held { uid: "u1".into() })).check(fds);
    for (fds, expected) in [(0, false), (3, true), (4, false), (6, true), (9, true), (12, false)] {
        assert_eq!((add(fds).is_ok(), held(fds).is_ok()), (expected, expected), "{fds}");
    }

    let sockets = |error: &str, fds| {
        let said = to_ztunnel::Said::Sockets(Sockets { pod: pod(), kind: 1, error: error.into() });
        ToZtunnel::from(said).check(fds).is_ok()
    };
    assert_eq!([0, 1, 253, 254].map(|n| sockets("", n)), [false, true, true, false]);
    assert_eq!([0, 1].map(|n| sockets("no", n)), [true, false]);
}

#[test]
fn noise_is_an_error() {
    assert!(decode::<FromZtunnel>(&[0xff; 40], 0).is_err());
    assert!(decode::<FromAgent>(&[0xff; 40], 0).is_err());
    assert!(decode::<ToAgent>(&[0xff; 40], 0).is_err());
    assert!(decode::<ToZtunnel>(&vec![0; MAX_MESSAGE_BYTES + 1], 0).is_err());
}

#[test]
fn a_message_that_is_too_large_is_not_encoded() {
    let welcome = Welcome { version: VERSION, keeper: 1, error: "x".repeat(MAX_MESSAGE_BYTES) };
    assert!(matches!(encode(&welcome), Err(MessageError::TooLarge { message: "Welcome", .. })));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let text = cut("ö".repeat(MAX_TEXT_BYTES));
    assert_eq!(text.len(), MAX_TEXT_BYTES);
    assert_eq!(cut(format!("a{}", "ö".repeat(MAX_TEXT_BYTES))).len(), MAX_TEXT_BYTES - 1);
}
