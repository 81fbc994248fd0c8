use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use loam_core::snapshot::Snapshot;

use crate::testmesh::{client, mesh, question};
use crate::{Client, Outcome, Query, Transport, Verdict};

mod hostile;

const MESH: &str = "
    svc shop/web 10.1.0.1
    svc shop/both 10.1.0.2,fd00:1::2
    svc shop/only4 10.1.0.3,fd00:1::3 v4
    svc bank/vault 10.1.1.1
    svc bank/hidden 10.1.1.2 private
    svc shop/db
    svc shop/early unready-too
    svc shop/empty
    svc far/away network=other 10.9.0.1
    pod shop/db-0 10.0.0.1,fd00::1 serves=db
    pod shop/db-1 10.0.0.2 serves=db unhealthy
    pod shop/db-2 10.0.0.3 serves=db network=other
    pod shop/db-9f7-x2x4 10.0.0.4 serves=db deployment
    pod shop/early-0 10.0.0.5 serves=early unhealthy
    entry shop/api.example.com 240.240.0.1,2001:2::1
    entry shop/*.wild.example.com 240.240.0.2
    entry shop/*.deep.wild.example.com 240.240.0.3
    entry shop/exact.wild.example.com 240.240.0.4
    entry bank/mine.example.com 240.240.0.5 private
    entry bank/some.example.com 240.240.0.11 shown=shop,depot
    entry bank/few.example.com 240.240.0.12 shown=bank,depot
    entry bank/shared.example.com 240.240.0.6 canonical
    entry shop/shared.example.com 240.240.0.7
    entry bank/other.example.com 240.240.0.8
    entry depot/other.example.com 240.240.0.9 canonical
    entry shop/range.example.com 240.241.0.0/16
    entry shop/plain 240.240.0.10
";

fn ask(mesh: &Snapshot, client: &Client, name: &str, kind: RecordType) -> String {
    let bytes = question(name, kind, Some(1232));
    let query = Query::read(&bytes, Transport::Udp).unwrap();
    match query.decide(mesh, client, 1) {
        Outcome::Forward(_) => "forward".into(),
        Outcome::Answer { bytes, .. } => shown(&bytes),
    }
}

/// What a resolver reads: `CNAME target` first, then the addresses in order, or `nodata`.
fn shown(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    let mut owner = message.queries[0].name().clone();
    let mut shown = Vec::new();
    for record in &message.answers {
        assert!(record.name.eq_case(&owner), "{} is not {owner}", record.name);
        match &record.data {
            RData::CNAME(target) => {
                owner = target.0.clone();
                shown.push(format!("={owner}"));
            }
            RData::A(a) => shown.push(a.to_string()),
            RData::AAAA(aaaa) => shown.push(aaaa.to_string()),
            other => panic!("{other:?}"),
        }
    }
    if !message.answers.iter().any(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA)) {
        shown.push("nodata".into());
    }
    let addresses = usize::from(shown[0].starts_with('='));
    shown[addresses..].sort();
    shown.join(" ")
}

#[test]
fn names_of_the_mesh_have_their_addresses_and_others_go_to_the_servers() {
    let mesh = mesh(MESH);
    let table = [
        // Services.
        ("web.shop.svc.cluster.local.", "10.1.0.1", "nodata"),
        ("WeB.sHop.svc.Cluster.locaL.", "10.1.0.1", "nodata"),
        ("both.shop.svc.cluster.local.", "10.1.0.2", "fd00:1::2"),
        ("only4.shop.svc.cluster.local.", "10.1.0.3", "nodata"),
        ("vault.bank.svc.cluster.local.", "10.1.1.1", "nodata"),
        ("hidden.bank.svc.cluster.local.", "forward", "forward"),
        ("away.far.svc.cluster.local.", "forward", "forward"),
        ("nobody.shop.svc.cluster.local.", "forward", "forward"),
        ("shop.svc.cluster.local.", "forward", "forward"),
        ("_http._tcp.web.shop.svc.cluster.local.", "forward", "forward"),
        // Headless services: endpoints that may be used.
        ("db.shop.svc.cluster.local.", "10.0.0.1 10.0.0.4", "fd00::1"),
        ("early.shop.svc.cluster.local.", "10.0.0.5", "nodata"),
        ("empty.shop.svc.cluster.local.", "nodata", "nodata"),
        // Pods of a StatefulSet. What is not known may have a name that only Kubernetes knows.
        ("db-0.db.shop.svc.cluster.local.", "10.0.0.1", "fd00::1"),
        ("db-1.db.shop.svc.cluster.local.", "nodata", "nodata"),
        ("db-7.db.shop.svc.cluster.local.", "forward", "forward"),
        ("db-9f7-x2x4.db.shop.svc.cluster.local.", "forward", "forward"),
        ("early-0.early.shop.svc.cluster.local.", "10.0.0.5", "nodata"),
        ("db-0.early.shop.svc.cluster.local.", "forward", "forward"),
        ("db-0.web.shop.svc.cluster.local.", "forward", "forward"),
        // Service entries.
        ("api.example.com.", "240.240.0.1", "2001:2::1"),
        ("www.api.example.com.", "forward", "forward"),
        ("example.com.", "forward", "forward"),
        ("*.svc.", "forward", "forward"),
        ("*.shop.svc.cluster.local.", "forward", "forward"),
        ("a.wild.example.com.", "240.240.0.2", "nodata"),
        ("a.b.wild.example.com.", "240.240.0.2", "nodata"),
        ("a.deep.wild.example.com.", "240.240.0.3", "nodata"),
        ("exact.wild.example.com.", "240.240.0.4", "nodata"),
        ("wild.example.com.", "forward", "forward"),
        ("mine.example.com.", "forward", "forward"),
        ("some.example.com.", "240.240.0.11", "nodata"),
        ("few.example.com.", "forward", "forward"),
        ("shared.example.com.", "240.240.0.7", "nodata"),
        ("other.example.com.", "240.240.0.9", "nodata"),
        ("range.example.com.", "forward", "forward"),
        // Not names of hosts.
        (".", "forward", "forward"),
        ("local.", "forward", "forward"),
        ("1.0.1.10.in-addr.arpa.", "forward", "forward"),
        ("a\0b.wild.example.com.", "forward", "forward"),
        ("ä.wild.example.com.", "forward", "forward"),
        ("a!b.wild.example.com.", "forward", "forward"),
    ];
    for (name, v4, v6) in table {
        assert_eq!(ask(&mesh, &client(), name, RecordType::A), v4, "{name} A");
        assert_eq!(ask(&mesh, &client(), name, RecordType::AAAA), v6, "{name} AAAA");
    }
}

#[test]
fn every_name_that_a_resolver_makes_of_a_short_one_means_the_same() {
    let mesh = mesh(MESH);
    let table = [
        // As they are.
        ("web.", "10.1.0.1"),
        ("vault.bank.", "10.1.1.1"),
        ("vault.bank.svc.", "10.1.1.1"),
        ("db-0.db.", "10.0.0.1"),
        ("hidden.bank.", "forward"),
        // With a search domain that did not belong there.
        ("vault.bank.shop.svc.cluster.local.", "=vault.bank.svc.cluster.local. 10.1.1.1"),
        ("vault.bank.svc.shop.svc.cluster.local.", "=vault.bank.svc.cluster.local. 10.1.1.1"),
        ("vault.bank.svc.svc.cluster.local.", "=vault.bank.svc.cluster.local. 10.1.1.1"),
        ("vault.bank.svc.cluster.local.shop.svc.cluster.local.", "=vault.bank.svc.cluster.local. 10.1.1.1"),
        ("db-0.db.shop.shop.svc.cluster.local.", "=db-0.db.shop.svc.cluster.local. 10.0.0.1"),
        ("api.example.com.shop.svc.cluster.local.", "=api.example.com. 240.240.0.1"),
        ("api.example.com.cluster.local.", "=api.example.com. 240.240.0.1"),
        ("x.wild.example.com.svc.cluster.local.", "=x.wild.example.com. 240.240.0.2"),
        ("plain.shop.svc.cluster.local.", "=plain. 240.240.0.10"),
        ("www.example.com.shop.svc.cluster.local.", "forward"),
        // A name of its own, even though its end is searched.
        ("vault.bank.example.org.", "forward"),
        ("web.example.org.", "forward"),
        // The resolver asks for names of five dots as they are before it searches.
        ("a.b.c.wild.example.com.shop.svc.cluster.local.", "forward"),
        // A pod's name beneath a service, though it looks like a namespace's service.
        ("vault.db.shop.svc.cluster.local.", "forward"),
    ];
    for (name, v4) in table {
        assert_eq!(ask(&mesh, &client(), name, RecordType::A), v4, "{name}");
    }
}

#[test]
fn short_names_follow_the_pods_own_resolv_conf() {
    let mesh = mesh(MESH);
    let plain = Client::new::<&str>("shop", "", true, &[], 1);
    assert_eq!(ask(&mesh, &plain, "web.", RecordType::A), "forward");
    assert_eq!(ask(&mesh, &plain, "web.shop.svc.cluster.local.", RecordType::A), "10.1.0.1");
    assert_eq!(ask(&mesh, &plain, "api.example.com.shop.svc.cluster.local.", RecordType::A), "forward");
    let one_dot = Client::new("shop", "", true, &["shop.svc.cluster.local", "svc.cluster.local"], 1);
    assert_eq!(ask(&mesh, &one_dot, "web.", RecordType::A), "10.1.0.1");
    assert_eq!(ask(&mesh, &one_dot, "vault.bank.", RecordType::A), "forward", "it is asked for as it is first");
    let elsewhere = Client::new("bank", "", true, &["bank.svc.cluster.local"], 5);
    assert_eq!(ask(&mesh, &elsewhere, "hidden.", RecordType::A), "10.1.1.2");
}

#[test]
fn a_pod_without_ipv6_is_given_none() {
    let mesh = mesh(MESH);
    let v4 = Client::new("shop", "", false, &["shop.svc.cluster.local"], 5);
    assert_eq!(ask(&mesh, &v4, "both.shop.svc.cluster.local.", RecordType::AAAA), "nodata");
    assert_eq!(ask(&mesh, &v4, "both.shop.svc.cluster.local.", RecordType::ANY), "10.1.0.2");
    assert_eq!(ask(&mesh, &client(), "both.shop.svc.cluster.local.", RecordType::ANY), "10.1.0.2 fd00:1::2");
}

#[test]
fn an_answer_repeats_the_question_as_it_was_spelled_and_says_what_it_is() {
    let bytes = question("wEb.Shop.svc.cluster.LOCAL.", RecordType::A, None);
    let query = Query::read(&bytes, Transport::Udp).unwrap();
    let Outcome::Answer { bytes: answer, addresses } = query.decide(&mesh(MESH), &client(), 1) else {
        panic!("forwarded")
    };
    assert_eq!(addresses, 1);
    assert_eq!(answer[12..bytes.len()], bytes[12..], "0x20: the case of letters comes back");
    let message = Message::from_vec(&answer).unwrap();
    let header = message.metadata;
    assert_eq!(header.id, 77);
    assert!(header.authoritative && header.recursion_available && header.recursion_desired && !header.truncation);
    assert_eq!(message.answers[0].ttl, 30);
    assert!(message.edns.is_none(), "nobody asked for EDNS");
}

#[test]
fn endpoints_are_shuffled_bounded_and_marked_as_cut() {
    let mut text = String::from("svc shop/many\n");
    for i in 0..2000 {
        text += &format!("pod shop/many-{i} 10.2.{}.{} serves=many\n", i / 250, i % 250);
    }
    let mesh = mesh(&text);
    let count = |transport, edns, entropy| {
        let bytes = question("many.shop.svc.cluster.local.", RecordType::A, edns);
        let query = Query::read(&bytes, transport).unwrap();
        let Outcome::Answer { bytes, .. } = query.decide(&mesh, &client(), entropy) else { panic!("forwarded") };
        let message = Message::from_vec(&bytes).unwrap();
        let first = message.answers[0].data.to_string();
        (bytes.len(), message.answers.len(), message.metadata.truncation, first, message.edns.is_some())
    };
    let (bytes, answers, truncated, first, edns) = count(Transport::Udp, None, 1);
    assert!(bytes <= 512 && answers == 29 && truncated && !edns, "{bytes} {answers}");
    let (bytes, answers, truncated, _, edns) = count(Transport::Udp, Some(1232), 1);
    assert!(bytes <= 1232 && answers > 70 && truncated && edns, "{bytes} {answers}");
    let (bytes, _, truncated, ..) = count(Transport::Udp, Some(65_535), 1);
    assert!(bytes <= 4096 && truncated, "{bytes}");
    let (_, answers, truncated, ..) = count(Transport::Tcp, None, 1);
    assert_eq!((answers, truncated), (1000, false));
    assert!((2..20).any(|entropy| count(Transport::Udp, None, entropy).3 != first), "the order is always the same");
}

#[test]
fn other_types_go_to_the_servers_whose_no_is_not_for_the_name() {
    let mesh = mesh(MESH);
    for (name, known) in [("api.example.com.", true), ("www.example.com.", false)] {
        let bytes = question(name, RecordType::HTTPS, None);
        let query = Query::read(&bytes, Transport::Udp).unwrap();
        let Outcome::Forward(forward) = query.decide(&mesh, &client(), 1) else { panic!("answered") };
        let sent = Message::from_vec(&forward.question(4711)).unwrap();
        assert_eq!(sent.metadata.id, 4711);
        let mut reply = sent.into_response();
        reply.metadata.response_code = ResponseCode::NXDomain;
        let reply = forward.accept(4711, reply.to_vec().unwrap()).unwrap();
        let code = Message::from_vec(&reply.bytes).unwrap().metadata.response_code;
        assert_eq!(code, if known { ResponseCode::NoError } else { ResponseCode::NXDomain }, "{name}");
        assert_eq!(reply.verdict, Verdict::Answered);
    }
}

#[test]
fn only_the_reply_to_the_question_is_taken() {
    let bytes = question("wWw.example.com.", RecordType::A, None);
    let query = Query::read(&bytes, Transport::Udp).unwrap();
    let Outcome::Forward(forward) = query.decide(&mesh(MESH), &client(), 1) else { panic!("answered") };
    let sent = forward.question(9);
    let reply = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sent.clone();
        bytes[2] |= 0x80;
        change(&mut bytes);
        forward.accept(9, bytes)
    };
    let good = reply(&|_| ()).unwrap();
    assert_eq!(good.bytes[..2], bytes[..2], "the client's own identifier comes back");
    assert_eq!(good.verdict, Verdict::Answered);
    assert!(reply(&|b| b[13] = b'W').is_ok(), "servers may write letters as they like");
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let refusals: [(&str, Change<'_>); 8] = [
        ("has another identifier", &|b| b[1] = 8),
        ("is not a reply", &|b| b[2] &= 0x7f),
        ("is not a reply", &|b| b[2] |= 0x28),
        ("answers another question", &|b| b[13] = b'x'),
        ("answers another question", &|b| *b.last_mut().unwrap() = 3),
        ("answers another question", &|b| b[5] = 0),
        ("answers another question", &|b| b[5] = 2),
        ("cannot be read", &|b| b.truncate(20)),
    ];
    for (why, change) in refusals {
        assert_eq!(reply(change).unwrap_err().to_string(), why);
    }
    for (code, verdict) in [(2, Verdict::Failed), (5, Verdict::Failed), (1, Verdict::Failed), (3, Verdict::Answered)] {
        assert_eq!(reply(&|b| b[3] = code).unwrap().verdict, verdict, "code {code}");
    }
    assert_eq!(reply(&|b| (b[3], b[5]) = (1, 0)).unwrap().verdict, Verdict::Failed, "not understood, not repeated");
}

#[test]
fn a_reply_that_the_client_cannot_take_is_cut_and_says_so() {
    let bytes = question("www.example.com.", RecordType::TXT, None);
    let query = Query::read(&bytes, Transport::Udp).unwrap();
    let Outcome::Forward(forward) = query.decide(&mesh(MESH), &client(), 1) else { panic!("answered") };
    let mut long = forward.question(9);
    long[2] |= 0x80;
    long[7] = 40;
    long.resize(2000, 0xaa);
    let reply = Message::from_vec(&forward.accept(9, long).unwrap().bytes).unwrap();
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    assert_eq!(reply.queries[0], query.question);
}

#[test]
fn silence_of_the_servers_is_told_as_their_failure() {
    let bytes = question("www.example.com.", RecordType::A, None);
    let query = Query::read(&bytes, Transport::Tcp).unwrap();
    let Outcome::Forward(forward) = query.decide(&mesh(MESH), &client(), 1) else { panic!("answered") };
    let answer = Message::from_vec(&forward.unanswered()).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (77, ResponseCode::ServFail));
    assert_eq!(answer.queries[0], query.question);
}
