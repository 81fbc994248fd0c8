//! Messages that nobody means well with: what becomes of each.

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use super::MESH;
use crate::testmesh::{client, mesh, question};
use crate::{Family, Found, Lookup, Outcome, Query, Transport, Unanswered, Verdict};

/// What is made of a question that reaches us.
#[derive(Debug, PartialEq, Eq)]
enum Becomes {
    /// Nobody is answered.
    Nothing,
    /// It is refused by this code.
    Refused(u16),
    /// The mesh answers it.
    Answered,
    /// The pod's servers are asked.
    Forwarded,
}

use Becomes::{Answered, Forwarded, Nothing, Refused};

const FORMAT_ERROR: Becomes = Refused(1);
const NOT_IMPLEMENTED: Becomes = Refused(4);
const REFUSED: Becomes = Refused(5);
/// Read back as BADSIG, which has the same number.
const BAD_VERSION: Becomes = Refused(16);

fn becomes(bytes: &[u8]) -> Becomes {
    match Query::read(bytes, Transport::Udp) {
        Err(Unanswered::Ignored) => Nothing,
        Err(Unanswered::Refused(answer)) => {
            assert!(answer.len() <= bytes.len() + 11, "the refusal is larger than the question");
            assert_eq!(answer[..2], bytes[..2]);
            Refused(Message::from_vec(&answer).unwrap().metadata.response_code.into())
        }
        Ok(query) => match query.decide(&mesh(MESH), &client(), 1) {
            Outcome::Answer { .. } => Answered,
            Outcome::Forward(_) => Forwarded,
        },
    }
}

const WEB: &str = "web.shop.svc.cluster.local.";

/// A question for [`WEB`] with EDNS, in which bytes are replaced.
fn spoiled(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = question(WEB, RecordType::A, Some(1232));
    changes.iter().for_each(|(at, value)| bytes[*at] = *value);
    bytes
}

/// A question whose name is written as these bytes.
fn named(name: &[u8]) -> Vec<u8> {
    let header = &spoiled(&[(11, 0)])[..12];
    [header, name, &[0, 1, 0, 1]].concat()
}

/// A question whose EDNS says that options of this length follow.
fn with_options(options: &[u8], length: u8) -> Vec<u8> {
    let mut bytes = spoiled(&[]);
    *bytes.last_mut().unwrap() = length;
    [&bytes, options].concat()
}

#[test]
fn every_bad_question_has_its_outcome() {
    // There type and class end, and EDNS begins.
    let end = question(WEB, RecordType::A, None).len();
    let kind = |number: u16| question(WEB, RecordType::from(number), None);
    let mut long = [[63u8; 64]; 4].concat();
    long.push(0);
    let twice = [&spoiled(&[(11, 2)])[..], &spoiled(&[])[end..]].concat();
    let table = [
        ("nothing", vec![], Nothing),
        ("less than a header", spoiled(&[])[..11].to_vec(), Nothing),
        ("a response sent as a question", spoiled(&[(2, 0x81)]), Nothing),
        ("a status request", spoiled(&[(2, 0x11)]), NOT_IMPLEMENTED),
        ("an update", spoiled(&[(2, 0x29)]), NOT_IMPLEMENTED),
        ("no question", spoiled(&[(5, 0)]), FORMAT_ERROR),
        ("two questions", spoiled(&[(5, 2)]), FORMAT_ERROR),
        ("65535 questions", spoiled(&[(4, 0xff), (5, 0xff)]), FORMAT_ERROR),
        ("an answer in a question", spoiled(&[(7, 1)]), FORMAT_ERROR),
        ("65535 authorities", spoiled(&[(8, 0xff), (9, 0xff)]), FORMAT_ERROR),
        ("nine additional records", spoiled(&[(11, 9)]), FORMAT_ERROR),
        ("more than may be", [&spoiled(&[])[..], &[0; 5000]].concat(), FORMAT_ERROR),
        ("a pointer to itself", named(&[0xc0, 12]), FORMAT_ERROR),
        ("a pointer to a pointer back", named(&[0xc0, 14, 0xc0, 12]), FORMAT_ERROR),
        ("a pointer forward", named(&[0xc0, 18]), FORMAT_ERROR),
        ("a pointer beyond the end", named(&[0xff, 0xff]), FORMAT_ERROR),
        ("a label of 64 bytes", spoiled(&[(12, 64)]), FORMAT_ERROR),
        ("a label of a kind that is not", spoiled(&[(12, 0x80)]), FORMAT_ERROR),
        ("a name of 257 bytes", named(&long), FORMAT_ERROR),
        ("class CH", spoiled(&[(end - 1, 3)]), REFUSED),
        ("class ANY", spoiled(&[(end - 1, 255)]), REFUSED),
        ("type ANY", kind(255), Answered),
        ("type AXFR", kind(252), REFUSED),
        ("type IXFR", kind(251), REFUSED),
        ("type OPT", kind(41), REFUSED),
        ("a type that nobody knows", kind(65_280), Forwarded),
        ("EDNS of 65535 bytes", spoiled(&[(end + 3, 0xff), (end + 4, 0xff)]), Answered),
        ("EDNS of no bytes", spoiled(&[(end + 3, 0), (end + 4, 0)]), Answered),
        ("EDNS 1", spoiled(&[(end + 6, 1)]), BAD_VERSION),
        ("EDNS twice", twice, FORMAT_ERROR),
        ("an option that nobody knows", with_options(&[0xff, 0xf0, 0, 2, 1, 2], 6), Answered),
        ("options longer than the message", with_options(&[], 9), FORMAT_ERROR),
        ("mixed case", question("wEb.sHOp.svc.CLUSTER.local.", RecordType::A, None), Answered),
        ("a search domain too much", question("web.shop.svc.svc.cluster.local.", RecordType::A, None), Answered),
        ("a pattern", question("*.svc.", RecordType::A, None), Forwarded),
        ("the root", question(".", RecordType::A, None), Forwarded),
    ];
    for (what, bytes, expected) in table {
        assert_eq!(becomes(&bytes), expected, "{what}: {bytes:?}");
    }
    let good = spoiled(&[]);
    for cut in 12..good.len() {
        assert_eq!(becomes(&good[..cut]), FORMAT_ERROR, "cut after {cut}");
    }
}

const A: u16 = 1;
const CNAME: u16 = 5;
const SIGNATURE: u16 = 46;

/// Where a header counts the records of a section.
const ANSWERS: usize = 7;
const AUTHORITIES: usize = 9;
const ADDITIONALS: usize = 11;

/// The name of the question, as a pointer.
const SAME: &[u8] = &[0xc0, 12];

/// A reply that is being written behind the question.
struct Draft(Vec<u8>);

impl Draft {
    /// Replaces a byte, counted from the end where negative.
    fn set(&mut self, at: isize, change: impl Fn(u8) -> u8) -> &mut Self {
        let at = self.0.len().checked_add_signed(at).filter(|_| at < 0).unwrap_or(at.unsigned_abs());
        self.0[at] = change(self.0[at]);
        self
    }

    fn record(&mut self, section: usize, name: &[u8], kind: u16, ttl: u32, data: &[u8]) -> &mut Self {
        let count = u16::from_be_bytes([self.0[section - 1], self.0[section]]) + 1;
        self.0[section - 1..=section].copy_from_slice(&count.to_be_bytes());
        let length = (data.len() as u16).to_be_bytes();
        self.0.extend([name, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length, data].concat());
        self
    }

    fn address(&mut self) -> &mut Self {
        self.record(ANSWERS, SAME, A, 60, &[192, 0, 2, 1])
    }
}

/// What the pod that asked gets of a reply, and what the addresses of an endpoint's name become by it: `-` when it is
/// not taken for the reply at all.
#[test]
fn every_bad_reply_has_its_outcome() {
    let good = "192.0.2.1 for 60 s";
    let evil = &[6, 6, 6, 6];
    type Write<'a> = &'a dyn Fn(&mut Draft) -> &mut Draft;
    let table: [(&str, Write<'_>, &str, &str); 27] = [
        ("a good one", &|d| d.address(), "passed on", good),
        ("another identifier", &|d| d.address().set(1, |b| b ^ 1), "has another identifier", "-"),
        ("another name", &|d| d.set(13, |b| b ^ 1), "answers another question", "-"),
        ("another type", &|d| d.set(-3, |_| 28), "answers another question", "-"),
        ("another class", &|d| d.set(-1, |_| 3), "answers another question", "-"),
        ("no question", &|d| d.set(5, |_| 0), "answers another question", "-"),
        ("two questions", &|d| d.set(5, |_| 2), "answers another question", "-"),
        ("a question", &|d| d.set(2, |b| b & 0x7f), "is not a reply", "-"),
        ("another operation", &|d| d.set(2, |b| b | 0x28), "is not a reply", "-"),
        (
            "half a message",
            &|d| {
                d.0.truncate(20);
                d
            },
            "cannot be read",
            "-",
        ),
        ("a poisoned additional section", &|d| d.address().record(ADDITIONALS, SAME, A, 60, evil), "passed on", good),
        ("a poisoned authority", &|d| d.record(AUTHORITIES, SAME, A, 60, evil), "passed on", "no address"),
        ("another name's address", &|d| d.record(ANSWERS, b"\x03abc\0", A, 60, evil), "passed on", "no address"),
        ("a name that stands for itself", &|d| d.record(ANSWERS, SAME, CNAME, 60, SAME), "passed on", "useless"),
        (
            "a pointer that goes round",
            &|d| {
                let own_place = d.0.len() as u8 + 12;
                d.record(ANSWERS, SAME, CNAME, 60, &[0xc0, own_place])
            },
            "passed on",
            "useless",
        ),
        ("fewer records than it says", &|d| d.set(7, |_| 1), "passed on", "useless"),
        (
            "1000 records",
            &|d| {
                for n in 0..1000u16 {
                    d.record(ANSWERS, SAME, A, 60, &[10, 0, (n >> 8) as u8, n as u8]);
                }
                d
            },
            "cut",
            "cut",
        ),
        ("no time", &|d| d.record(ANSWERS, SAME, A, 0, &[192, 0, 2, 1]), "passed on", "192.0.2.1 for 0 s"),
        ("2^31 seconds", &|d| d.record(ANSWERS, SAME, A, 1 << 31, &[192, 0, 2, 1]), "passed on", "192.0.2.1 for 0 s"),
        ("a signature of junk", &|d| d.address().record(ANSWERS, SAME, SIGNATURE, 60, &[0xff; 9]), "passed on", good),
        ("cut", &|d| d.set(2, |b| b | 2), "cut", "cut"),
        ("no such name", &|d| d.set(3, |_| 3), "passed on", "no name"),
        ("nothing", &|d| d, "passed on", "no address"),
        ("a failure", &|d| d.set(3, |_| 2), "failed", "useless"),
        ("a refusal", &|d| d.set(3, |_| 5), "failed", "useless"),
        (
            "not understood, and not repeated",
            &|d| {
                d.0.truncate(12);
                d.set(3, |_| 1).set(5, |_| 0)
            },
            "failed",
            "useless",
        ),
        ("an address of three bytes", &|d| d.record(ANSWERS, SAME, A, 60, &[1, 2, 3]), "passed on", "useless"),
    ];
    let asked = question("www.example.com.", RecordType::A, None);
    let query = Query::read(&asked, Transport::Udp).unwrap();
    let Outcome::Forward(forward) = query.decide(&mesh(MESH), &client(), 1) else { panic!("answered") };
    let lookup = Lookup::new(&"www.example.com".parse().unwrap(), Family::V4).unwrap();
    for (what, write, for_the_pod, for_us) in table {
        let mut draft = Draft(forward.question(9));
        draft.0[2] |= 0x80;
        write(&mut draft);
        let reply = draft.0;
        let got = match forward.accept(9, reply.clone()) {
            Err(why) => why.to_string(),
            Ok(taken) if taken.verdict == Verdict::Failed => "failed".into(),
            Ok(taken) if taken.bytes[2] & 2 != 0 => "cut".into(),
            Ok(taken) => {
                assert!(taken.bytes[..2] == asked[..2] && taken.bytes[2..] == reply[2..], "{what} was changed");
                "passed on".into()
            }
        };
        assert_eq!(got, for_the_pod, "{what}");
        let found = match lookup.forward(Transport::Udp).accept(9, reply).map(|taken| lookup.read(&taken.bytes)) {
            Err(_) => "-".into(),
            Ok(Found::Addresses(addresses, ttl)) => format!("{} for {ttl} s", addresses[0]),
            Ok(Found::NoAddress) => "no address".into(),
            Ok(Found::NoName) => "no name".into(),
            Ok(Found::Cut) => "cut".into(),
            Ok(Found::Useless(_)) => "useless".into(),
        };
        assert_eq!(found, for_us, "{what}");
    }
}
