//! Version skew: what the version before says is understood here, what is said here is understood by it, and what a newer
//! version may say does no harm.
//!
//! Before [`VERSION`] becomes another one, `ours` of that build is what is to be recorded for the next.

use super::*;
use prost::Message as _;

/// Packets of version 3, recorded from its last build: direction, name, number of descriptors, bytes.
const RECORDED: &str = include_str!("recorded/3.txt");

/// An empty field 200, which no message has.
const UNKNOWN_FIELD: [u8; 3] = [0xc2, 0x0c, 0x00];

/// A packet.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    /// Direction and name.
    name: String,
    fds: usize,
    bytes: Vec<u8>,
}

fn recorded() -> Vec<Said> {
    let said = |line: &str| {
        let [direction, name, fds, hex] = line.split(' ').collect::<Vec<_>>().try_into().expect("four words a line");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        Said { name: format!("{direction} {name}"), fds: fds.parse().unwrap(), bytes }
    };
    RECORDED.lines().map(said).collect()
}

fn of(name: &str) -> Vec<u8> {
    recorded().into_iter().find(|said| said.name == name).unwrap_or_else(|| panic!("{name} is not recorded")).bytes
}

fn said<M: Wire>(direction: &str, name: &str, fds: usize, message: &M) -> Said {
    message.check(fds).unwrap();
    Said { name: format!("{direction} {name}"), fds, bytes: encode(message).unwrap() }
}

/// What is recorded, but for the greetings, as this build says it.
fn ours() -> Vec<Said> {
    let mut all = Vec::new();
    use from_agent::Asked;
    use from_ztunnel::Said as From;
    use to_agent::Answer;
    use to_ztunnel::Said as To;
    let full = || {
        PodInfo {
            uid: "6d7e2b1c-0d55-4f0e-9a3a-0c1f5b6a7d8e".into(),
            name: "web-5f7d".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            node: "node-a".into(),
            dns: true,
            resolv: Some(Resolv::new(
                ["10.96.0.10".parse().unwrap()],
                vec!["shop.svc.cluster.local".into(), "svc.cluster.local".into()],
                5,
            )),
            starting: true,
            addresses: vec![],
        }
        .with_ips(["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()])
    };
    let pod = || Some(PodRef { uid: "6d7e2b1c-0d55-4f0e-9a3a-0c1f5b6a7d8e".into(), incarnation: 7 });
    let mut f = |n, fds, s: From| all.push(said("from-ztunnel", n, fds, &FromZtunnel::from(s)));
    f("need", 0, From::Need(Need { pod: pod(), kind: Kind::Out4 as i32, count: 16 }));
    f("pod-ack", 0, From::PodAck(PodAck { pod: pod(), error: String::new() }));
    f("pod-ack-waits", 0, From::PodAck(PodAck { pod: pod(), error: "no certificate yet".into() }));
    f("serving", 0, From::Serving(Serving {}));
    f("pod-drained", 0, From::PodDrained(PodDrained { pod: pod() }));
    f("leaving", 0, From::Leaving(Leaving {}));
    f("held", 6, From::Held(Held { uid: "6d7e2b1c-0d55-4f0e-9a3a-0c1f5b6a7d8e".into() }));
    let mut t = |n, fds, s: To| all.push(said("to-ztunnel", n, fds, &ToZtunnel::from(s)));
    t("add-pod", 9, To::AddPod(AddPod { incarnation: 7, info: Some(full()) }));
    t(
        "add-pod-plain",
        3,
        To::AddPod(AddPod {
            incarnation: 7,
            info: Some(PodInfo { dns: false, resolv: None, starting: false, ..full() }),
        }),
    );
    t("remove-pod", 0, To::RemovePod(RemovePod { pod: pod() }));
    t("snapshot-sent", 0, To::SnapshotSent(SnapshotSent {}));
    t("sockets", 16, To::Sockets(Sockets { pod: pod(), kind: Kind::Out4 as i32, error: String::new() }));
    t(
        "sockets-none",
        0,
        To::Sockets(Sockets { pod: pod(), kind: Kind::Ask6 as i32, error: "the pod is not there".into() }),
    );
    t("retire", 0, To::Retire(Retire {}));
    t("goodbye", 0, To::Goodbye(Goodbye { reason: "the keeper stops".into() }));
    let mut a = |n, fds, asked: Asked| all.push(said("from-agent", n, fds, &FromAgent { id: 3, asked: Some(asked) }));
    a("stores", 2, Asked::Stores(Stores {}));
    a("add-pod", 1, Asked::AddPod(EnrolPod { index: 12, info: Some(full()) }));
    a("remove-pod", 0, Asked::RemovePod(ReleasePod { uid: "6d7e2b1c-0d55-4f0e-9a3a-0c1f5b6a7d8e".into() }));
    a("list", 0, Asked::List(List {}));
    a("check", 0, Asked::Check(Check { uid: "6d7e2b1c-0d55-4f0e-9a3a-0c1f5b6a7d8e".into() }));
    let mut k = |n, answer: Answer| all.push(said("to-agent", n, 0, &ToAgent { id: 3, answer: Some(answer) }));
    k("stored", Answer::Stored(Stored { error: String::new() }));
    k(
        "added",
        Answer::Added(Added {
            uid: pod().unwrap().uid,
            netns_cookie: 4711,
            serving: false,
            problem: "no ztunnel serves it".into(),
            error: String::new(),
        }),
    );
    k("removed", Answer::Removed(Removed { uid: pod().unwrap().uid, found: true }));
    k(
        "pods",
        Answer::Pods(Pods {
            pods: vec![KeptPod { info: Some(full()), index: 12, netns_cookie: 4711, serving: true }],
            more: true,
        }),
    );
    k(
        "checked",
        Answer::Checked(Checked { uid: pod().unwrap().uid, listening: true, serving: true, problem: String::new() }),
    );
    k("goodbye", Answer::Goodbye(Goodbye { reason: "the keeper stops".into() }));
    all
}

/// Whether the bytes are a message of their direction that keeps all rules.
fn understood(said: &Said) -> Result<(), MessageError> {
    match said.name.split_once(' ').unwrap().0 {
        "hello" => decode::<Hello>(&said.bytes, said.fds).map(drop),
        "welcome" => decode::<Welcome>(&said.bytes, said.fds).map(drop),
        "from-ztunnel" => decode::<FromZtunnel>(&said.bytes, said.fds).map(drop),
        "to-ztunnel" => decode::<ToZtunnel>(&said.bytes, said.fds).map(drop),
        "from-agent" => decode::<FromAgent>(&said.bytes, said.fds).map(drop),
        "to-agent" => decode::<ToAgent>(&said.bytes, said.fds).map(drop),
        other => panic!("{other}"),
    }
}

#[test]
fn every_message_is_on_the_wire_what_it_was_in_the_version_before() {
    let greeting = |said: &Said| said.name.starts_with("hello ") || said.name.starts_with("welcome ");
    let recorded: Vec<Said> = recorded().into_iter().filter(|said| !greeting(said)).collect();
    for (ours, theirs) in ours().iter().zip(&recorded) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours().len(), recorded.len());
}

#[test]
fn every_packet_of_the_version_before_keeps_the_rules_and_so_it_does_with_a_field_more() {
    for mut said in recorded() {
        understood(&said).unwrap_or_else(|error| panic!("{}: {error}", said.name));
        said.bytes.extend(UNKNOWN_FIELD);
        understood(&said).unwrap_or_else(|error| panic!("{} with an unknown field: {error}", said.name));
    }
}

#[test]
fn the_version_before_is_greeted_in_its_own_version() {
    let hello: Hello = decode(&of("hello ztunnel-leaving"), 0).unwrap();
    assert_eq!((hello.agree(), hello.leaving), (Ok(3), true));
    let welcome: Welcome = decode(&of("welcome let-in"), 0).unwrap();
    assert_eq!((welcome.agree(), welcome.keeper), (Ok(3), 0x1122_3344_5566_7788));
    let refused: Welcome = decode(&of("welcome refused"), 0).unwrap();
    assert_eq!(refused.agree(), Err("another agent is connected".into()));
}

#[test]
fn the_version_before_finds_its_own_version_in_our_hello() {
    /// What version 3 reads of a hello: it lets in whoever says 3.
    #[derive(Clone, PartialEq, prost::Message)]
    struct HelloOf3 {
        #[prost(uint32, tag = "1")]
        version: u32,
        #[prost(uint32, tag = "2")]
        pid: u32,
        #[prost(bool, tag = "3")]
        leaving: bool,
    }
    let bytes = encode(&Hello { leaving: true, ..Hello::new() }).unwrap();
    let read = HelloOf3::decode(&bytes[..]).unwrap();
    assert_eq!(read, HelloOf3 { version: 3, pid: std::process::id(), leaving: true });
}

#[test]
fn both_speak_the_newest_version_that_both_know() {
    for (theirs, ours, expected) in [
        ((3, 3), (3, 4), Some(3)),
        ((3, 4), (3, 4), Some(4)),
        ((4, 5), (3, 4), Some(4)),
        ((3, 4), (4, 5), Some(4)),
        ((4, 5), (4, 5), Some(5)),
        ((5, 6), (3, 4), None),
        ((3, 4), (5, 6), None),
        ((2, 2), (3, 4), None),
        ((0, 0), (3, 4), None),
    ] {
        let range = |(oldest, newest): (u32, u32)| oldest..=newest;
        assert_eq!(agreed(&range(theirs), &range(ours)), expected, "{theirs:?} and {ours:?}");
    }
    let hello = Hello { oldest: VERSION + 1, newest: VERSION + 2, ..Hello::new() };
    assert_eq!(hello.agree().unwrap_err(), "hello of versions 5 to 6, this keeper speaks versions 3 to 4");
    let welcome = |version| Welcome { version, keeper: 1, error: String::new() };
    assert_eq!(welcome(VERSION).agree(), Ok(VERSION));
    assert_eq!(welcome(VERSION + 1).agree().unwrap_err(), "it speaks version 5, we versions 3 to 4");
}

#[test]
fn a_field_that_a_newer_agent_knows_of_a_pod_is_passed_over() {
    let field = |tag: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("it is short");
        let varint = if length < 128 { vec![length] } else { vec![length | 0x80, 1] };
        [vec![tag << 3 | 2], varint, bytes.to_vec()].concat()
    };
    let pod = PodInfo {
        uid: "u1".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        node: "n1".into(),
        ..PodInfo::default()
    };
    let newer = [pod.encode_to_vec(), UNKNOWN_FIELD.to_vec()].concat();
    let add = [vec![0x08, 7], field(2, &newer)].concat();
    let read: ToZtunnel = decode(&field(1, &add), 3).unwrap();
    assert_eq!(read.said, Some(to_ztunnel::Said::AddPod(AddPod { incarnation: 7, info: Some(pod) })));
}

#[test]
fn a_kind_of_message_that_is_not_known_is_no_error_whatever_comes_beside_it() {
    for fds in [0, 2] {
        assert_eq!(decode::<FromZtunnel>(&UNKNOWN_FIELD, fds).unwrap().said, None);
        assert_eq!(decode::<ToZtunnel>(&UNKNOWN_FIELD, fds).unwrap().said, None);
        assert_eq!(decode::<FromAgent>(&UNKNOWN_FIELD, fds).unwrap().asked, None);
        assert_eq!(decode::<ToAgent>(&UNKNOWN_FIELD, fds).unwrap().answer, None);
    }
}

#[test]
fn a_kind_of_socket_that_is_not_known_is_left_to_the_receiver() {
    let pod = Some(PodRef { uid: "u1".into(), incarnation: 7 });
    let need = from_ztunnel::Said::Need(Need { pod: pod.clone(), kind: 99, count: 1 });
    assert_eq!(FromZtunnel::from(need).check(0), Ok(()));
    let sockets = to_ztunnel::Said::Sockets(Sockets { pod, kind: 99, error: "not known".into() });
    assert_eq!(ToZtunnel::from(sockets).check(0), Ok(()));
}
