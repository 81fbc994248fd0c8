//! Questions of our own: which addresses a name has that an endpoint is known by.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use loam_core::ids::Hostname;

use crate::forward::Forward;
use crate::query::Transport;

/// What we announce to take by UDP: what passes every network in one piece.
const PAYLOAD_BYTES: u16 = 1232;

/// Most names that stand for each other in one answer. Public ones have four or five; more is a circle or an attack.
const MAX_ALIASES: usize = 16;

/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 64;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of families say it")]
pub enum Family {
    V4,
    V6,
}

/// The question for the addresses of a name.
#[derive(Debug, Clone)]
pub struct Lookup {
    question: Question,
    message: Message,
}

/// What a server's reply says about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It has these addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// It exists and has no address of this family.
    NoAddress,
    /// It does not exist.
    NoName,
    /// The answer did not fit: it is to be asked for by TCP.
    Cut,
    /// Nothing that can be used; why.
    Useless(String),
}

impl Lookup {
    /// The addresses of `host` of one family; none for a name that DNS cannot spell.
    pub fn new(host: &Hostname, family: Family) -> Option<Self> {
        let name = Name::from_labels(host.as_str().split('.').map(str::as_bytes)).ok()?;
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let question = Question::query(name, kind);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.queries.push(question.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES);
        message.edns = Some(edns);
        Some(Self { question, message })
    }

    /// The question as it is sent to a server.
    pub fn forward(&self, transport: Transport) -> Forward {
        Forward::own(&self.message, &self.question, transport, PAYLOAD_BYTES.into())
    }

    /// Reads the message that was accepted as the reply. Only records count that belong to the name, or to one that it
    /// stands for; whatever else a server adds is nobody's question.
    pub fn read(&self, reply: &[u8]) -> Found {
        let message = match Message::from_vec(reply) {
            Ok(message) => message,
            Err(error) => return Found::Useless(format!("a reply that cannot be read: {error}")),
        };
        match message.metadata.response_code {
            _ if message.metadata.truncation => return Found::Cut,
            ResponseCode::NXDomain => return Found::NoName,
            ResponseCode::NoError => {}
            code => return Found::Useless(format!("the server answers {code}")),
        }
        let mut owner = self.question.name().clone();
        let mut ttl = u32::MAX;
        for _ in 0..=MAX_ALIASES {
            let mut alias = None;
            let mut addresses: Vec<IpAddr> = Vec::new();
            let own = message.answers.iter().filter(|r| r.dns_class == DNSClass::IN && r.name == owner);
            for record in own {
                let address = match (&record.data, self.question.query_type()) {
                    (RData::A(a), RecordType::A) => IpAddr::V4(a.0),
                    (RData::AAAA(aaaa), RecordType::AAAA) => aaaa.0.to_canonical(),
                    (RData::CNAME(to), _) => {
                        alias.get_or_insert((&to.0, seconds(record.ttl)));
                        continue;
                    }
                    _ => continue,
                };
                ttl = ttl.min(seconds(record.ttl));
                if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            match alias {
                _ if !addresses.is_empty() => return Found::Addresses(addresses, ttl),
                Some((to, alias_ttl)) => {
                    ttl = ttl.min(alias_ttl);
                    owner = to.clone();
                }
                None => return Found::NoAddress,
            }
        }
        Found::Useless(format!("names that stand for each other more than {MAX_ALIASES} times"))
    }
}

/// RFC 2181 8: a time of more than 31 bits is none.
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME, TXT};

    use super::*;

    const HOST: &str = "db.example";

    fn lookup(family: Family) -> Lookup {
        Lookup::new(&HOST.parse().unwrap(), family).unwrap()
    }

    /// `name ttl kind data`, `;` between records.
    fn records(text: &str) -> Vec<Record> {
        let record = |text: &str| {
            let words: Vec<_> = text.split_whitespace().collect();
            let [name, ttl, kind, data] = words[..] else { panic!("{text}") };
            let data = match kind {
                "A" => RData::A(A(data.parse().unwrap())),
                "AAAA" => RData::AAAA(data.parse::<std::net::Ipv6Addr>().unwrap().into()),
                "CNAME" => RData::CNAME(CNAME(Name::from_ascii(data).unwrap())),
                "TXT" => RData::TXT(TXT::new(vec![data.into()])),
                _ => panic!("{text}"),
            };
            Record::from_rdata(Name::from_ascii(name).unwrap(), ttl.parse().unwrap(), data)
        };
        text.split(';').filter(|t| !t.trim().is_empty()).map(record).collect()
    }

    fn read(family: Family, answers: &str, change: impl FnOnce(&mut Message)) -> Found {
        let lookup = lookup(family);
        let mut message = Message::from_vec(&lookup.forward(Transport::Udp).question(1)).unwrap().into_response();
        message.answers = records(answers);
        change(&mut message);
        lookup.read(&message.to_vec().unwrap())
    }

    fn found(addresses: &[&str], ttl: u32) -> Found {
        Found::Addresses(addresses.iter().map(|ip| ip.parse().unwrap()).collect(), ttl)
    }

    #[test]
    fn the_question_asks_for_recursion_and_takes_more_than_512_bytes() {
        for (family, kind) in [(Family::V4, RecordType::A), (Family::V6, RecordType::AAAA)] {
            let sent = Message::from_vec(&lookup(family).forward(Transport::Udp).question(7)).unwrap();
            assert!(sent.metadata.recursion_desired && sent.metadata.id == 7);
            assert_eq!(sent.queries[0].name().to_ascii(), format!("{HOST}."));
            assert_eq!(sent.queries[0].query_type(), kind);
            assert_eq!(sent.edns.unwrap().max_payload(), PAYLOAD_BYTES);
        }
        let longest = format!("{}x", "x.".repeat(126));
        assert!(longest.len() == 253 && Lookup::new(&longest.parse().unwrap(), Family::V4).is_some());
    }

    #[test]
    fn the_addresses_are_those_of_the_name_and_of_what_it_stands_for() {
        let table = [
            ("db.example. 60 A 192.0.2.1; DB.Example. 30 A 192.0.2.2", found(&["192.0.2.1", "192.0.2.2"], 30)),
            ("db.example. 60 A 192.0.2.1; db.example. 60 A 192.0.2.1", found(&["192.0.2.1"], 60)),
            ("db.example. 9 CNAME b.example.; b.example. 60 A 192.0.2.1", found(&["192.0.2.1"], 9)),
            ("b.example. 60 A 192.0.2.1; db.example. 90 CNAME b.example.", found(&["192.0.2.1"], 60)),
            // Nobody asked for these.
            ("other.example. 60 A 192.0.2.1", Found::NoAddress),
            ("db.example. 60 TXT x; other.example. 60 A 192.0.2.1", Found::NoAddress),
            ("db.example. 60 AAAA 2001:db8::1", Found::NoAddress),
            ("", Found::NoAddress),
            // It stands for something whose addresses the server does not tell.
            ("db.example. 60 CNAME b.example.", Found::NoAddress),
        ];
        for (answers, expected) in table {
            assert_eq!(read(Family::V4, answers, |_| ()), expected, "{answers}");
        }
        assert_eq!(read(Family::V6, "db.example. 5 AAAA 2001:db8::1", |_| ()), found(&["2001:db8::1"], 5));
    }

    #[test]
    fn a_time_of_no_seconds_or_of_more_than_31_bits_is_no_time() {
        for (ttl, seconds) in [("0", 0), ("2147483647", 2_147_483_647), ("2147483648", 0), ("4294967295", 0)] {
            let answers = format!("db.example. {ttl} A 192.0.2.1");
            assert_eq!(read(Family::V4, &answers, |_| ()), found(&["192.0.2.1"], seconds), "{ttl}");
        }
    }

    #[test]
    fn chains_and_circles_of_aliases_end() {
        let chain = |length: usize| {
            let link = |n: usize| match n {
                0 => format!("{HOST}. 60 CNAME n1.example."),
                n => format!("n{n}.example. 60 CNAME n{}.example.", n + 1),
            };
            let links: Vec<_> = (0..length).map(link).collect();
            format!("{}; n{length}.example. 60 A 192.0.2.1", links.join("; "))
        };
        assert_eq!(read(Family::V4, &chain(MAX_ALIASES), |_| ()), found(&["192.0.2.1"], 60));
        for answers in [
            chain(50),
            "db.example. 60 CNAME db.example.".to_owned(),
            "db.example. 60 CNAME b.example.; b.example. 60 CNAME db.example.".to_owned(),
        ] {
            assert!(matches!(read(Family::V4, &answers, |_| ()), Found::Useless(_)), "{answers}");
        }
    }

    #[test]
    fn other_sections_poison_nothing_and_very_many_records_are_cut() {
        let good = "db.example. 60 A 192.0.2.1";
        let poisoned = read(Family::V4, good, |message| {
            message.additionals = records("db.example. 60 A 6.6.6.6; ns.example. 60 A 6.6.6.6");
            message.authorities = records("db.example. 60 A 6.6.6.6");
        });
        assert_eq!(poisoned, found(&["192.0.2.1"], 60));
        assert_eq!(read(Family::V4, "", |m| m.additionals = records(good)), Found::NoAddress);
        let many: Vec<_> = (0..1000).map(|n| format!("db.example. 60 A 10.0.{}.{}", n / 250, n % 250)).collect();
        let Found::Addresses(addresses, _) = read(Family::V4, &many.join(";"), |_| ()) else { panic!() };
        assert_eq!(addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn what_a_server_says_instead_of_an_answer_is_told_apart() {
        let code = |code| read(Family::V4, "", |m| m.metadata.response_code = code);
        assert_eq!(code(ResponseCode::NXDomain), Found::NoName);
        for refusal in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::FormErr, ResponseCode::NotImp] {
            assert!(matches!(code(refusal), Found::Useless(_)), "{refusal}");
        }
        assert_eq!(read(Family::V4, "db.example. 60 A 192.0.2.1", |m| m.metadata.truncation = true), Found::Cut);
        let mut cut = lookup(Family::V4).forward(Transport::Udp).question(1);
        (cut[2], cut[7]) = (0x80, 1);
        assert!(matches!(lookup(Family::V4).read(&cut), Found::Useless(_)));
    }
}
