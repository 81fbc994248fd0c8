//! A question as a pod sends it.

use hickory_proto::op::{Header, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use loam_core::snapshot::Snapshot;

use crate::answer::{self, Outcome};
use crate::client::Client;
use crate::find::{Wanted, find};
use crate::forward::Forward;
use crate::{MAX_MESSAGE_BYTES, MAX_QUERY_BYTES};

/// Most records beside the question: EDNS, a signature, and room for what is not known yet.
const MAX_ADDITIONALS: u16 = 8;

/// Least that every resolver takes by UDP (RFC 1035 4.2.1).
const MIN_UDP_BYTES: u16 = 512;

/// Longest answer of our own by UDP. It does not leave the pod, so a larger one than on a network may be sent.
const MAX_UDP_BYTES: u16 = 4096;

/// How a question arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl Transport {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

/// Why a message is not a question that can be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// It is no question at all, and whoever sent it waits for nothing.
    Ignored,
    /// It is a question in a form that is refused; the bytes say so.
    Refused(Vec<u8>),
}

/// One question.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) metadata: Metadata,
    pub(crate) question: Question,
    pub(crate) edns: Option<Edns>,
    pub(crate) transport: Transport,
}

/// What the resolver says about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edns {
    pub(crate) max_payload: u16,
    pub(crate) dnssec_ok: bool,
}

impl<'a> Query<'a> {
    /// Reads a message from a pod.
    pub fn read(bytes: &'a [u8], transport: Transport) -> Result<Self, Unanswered> {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Err(Unanswered::Ignored) };
        let (metadata, counts) = (header.metadata, header.counts);
        if metadata.message_type == MessageType::Response {
            return Err(Unanswered::Ignored);
        }
        let refuse = |code| Err(Unanswered::Refused(answer::failure(&metadata, None, code)));
        if metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        // Before anything is allocated by what the counts say.
        let plain = counts.queries == 1 && counts.answers == 0 && counts.authorities == 0;
        if !plain || counts.additionals > MAX_ADDITIONALS || bytes.len() > MAX_QUERY_BYTES {
            return refuse(ResponseCode::FormErr);
        }
        let mut decoder = BinDecoder::new(bytes);
        let Ok(message) = Message::read(&mut decoder) else { return refuse(ResponseCode::FormErr) };
        let Some(question) = message.queries.into_iter().next() else { return refuse(ResponseCode::FormErr) };
        let refuse = |code| Err(Unanswered::Refused(answer::failure(&metadata, Some(&question), code)));
        if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Err(Unanswered::Refused(answer::bad_version(&metadata, &question)));
        }
        let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR | RecordType::OPT);
        if question.query_class() != DNSClass::IN || transfer {
            return refuse(ResponseCode::Refused);
        }
        let edns = message.edns.map(|edns| Edns { max_payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok });
        // What follows the message is nobody's.
        let bytes = &bytes[..decoder.index()];
        Ok(Self { bytes, metadata, question, edns, transport })
    }

    /// The type asked for, among those worth telling apart.
    pub fn kind(&self) -> &'static str {
        match self.question.query_type() {
            RecordType::A => "a",
            RecordType::AAAA => "aaaa",
            RecordType::ANY => "any",
            RecordType::CNAME => "cname",
            RecordType::HTTPS => "https",
            RecordType::MX => "mx",
            RecordType::NS => "ns",
            RecordType::PTR => "ptr",
            RecordType::SOA => "soa",
            RecordType::SRV => "srv",
            RecordType::SVCB => "svcb",
            RecordType::TXT => "txt",
            _ => "other",
        }
    }

    /// The name asked for, as it was spelled.
    pub fn name(&self) -> String {
        self.question.name().to_ascii()
    }

    /// What the mesh makes of it. `entropy` is random and decides the order of addresses.
    pub fn decide(&self, snapshot: &Snapshot, client: &Client, entropy: u64) -> Outcome {
        let found = self.hostname().and_then(|name| find(snapshot, client, &name));
        let wanted = match self.question.query_type() {
            RecordType::A => Wanted { v4: true, v6: false },
            RecordType::AAAA => Wanted { v4: false, v6: client.ipv6 },
            // RFC 8482 4.1: some of what there is is an answer.
            RecordType::ANY => Wanted { v4: true, v6: client.ipv6 },
            _ => return Outcome::Forward(Forward::new(self, found.is_some())),
        };
        match found {
            Some(found) => {
                let ttl = found.target.ttl();
                let most = answer::most_addresses(self);
                let addresses = found.target.addresses(snapshot, client, wanted, most, entropy);
                answer::write(self, found.alias.as_deref(), &addresses, ttl)
            }
            None => Outcome::Forward(Forward::new(self, false)),
        }
    }

    /// Longest answer that the client takes.
    pub(crate) fn max_answer_bytes(&self) -> usize {
        match (self.transport, &self.edns) {
            (Transport::Udp, None) => MIN_UDP_BYTES.into(),
            (Transport::Udp, Some(edns)) => edns.max_payload.clamp(MIN_UDP_BYTES, MAX_UDP_BYTES).into(),
            (Transport::Tcp, _) => MAX_MESSAGE_BYTES,
        }
    }

    /// The name in the form in which the mesh has its names; none for one that no mesh name is like.
    fn hostname(&self) -> Option<String> {
        let name = self.question.name();
        let mut hostname = String::with_capacity(name.len());
        for label in name.iter() {
            let valid = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*');
            if !label.iter().all(valid) {
                return None;
            }
            if !hostname.is_empty() {
                hostname.push('.');
            }
            hostname.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        }
        (!hostname.is_empty()).then_some(hostname)
    }
}
