//! Writing answers.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::forward::Forward;
use crate::query::Query;

/// Most addresses in one answer. More would fit a connection, and no resolver looks at so many.
const MAX_ADDRESSES: usize = 1000;

/// What we announce to take by UDP.
const OWN_PAYLOAD_BYTES: u16 = 1232;

/// The header, whose question follows at once.
const HEADER_BYTES: usize = 12;

/// EDNS without options (RFC 6891 6.1.2).
const EDNS_BYTES: usize = 11;

/// A record before its data, its name written as a pointer: name, type, class, TTL, length.
const RECORD_BYTES: usize = 2 + 2 + 2 + 4 + 2;

/// A pointer to a name earlier in the message (RFC 1035 4.1.4).
const POINTER: u16 = 0xc000;

/// What becomes of a question.
#[derive(Debug)]
pub enum Outcome {
    /// The mesh has the name: these bytes are the answer. One without addresses says that the name exists and has none
    /// of this type; nothing here ever says that a name does not exist, which only its servers can know.
    Answer {
        /// The message.
        bytes: Vec<u8>,
        /// How many addresses it carries.
        addresses: usize,
    },
    /// The pod's servers are to answer.
    Forward(Forward),
}

/// As many addresses as may be in the answer to `query`, and one more, so that it shows when some are missing.
pub(crate) fn most_addresses(query: &Query<'_>) -> usize {
    MAX_ADDRESSES.min(query.max_answer_bytes() / (RECORD_BYTES + 4) + 1)
}

/// The answer that `addresses` are those of the name, or of `alias` for which it stands.
pub(crate) fn write(query: &Query<'_>, alias: Option<&str>, addresses: &[IpAddr], ttl: u32) -> Outcome {
    let mut bytes = Vec::with_capacity(512);
    match encode(&mut bytes, query, alias, addresses, ttl) {
        Ok(addresses) => Outcome::Answer { bytes, addresses },
        // The one thing that may not fit is a name of the configuration that is too long for DNS.
        Err(_) => Outcome::Forward(Forward::new(query, true)),
    }
}

fn encode(
    bytes: &mut Vec<u8>,
    query: &Query<'_>,
    alias: Option<&str>,
    addresses: &[IpAddr],
    ttl: u32,
) -> Result<usize, ProtoError> {
    let mut encoder = BinEncoder::new(bytes);
    let header = encoder.place::<Header>()?;
    query.question.emit(&mut encoder)?;
    // The question's name stands right behind the header.
    let mut owner = HEADER_BYTES;
    if let Some(alias) = alias {
        record(&mut encoder, owner, RecordType::CNAME, ttl)?;
        let length = encoder.place::<u16>()?;
        owner = encoder.len();
        Name::from_labels(alias.split('.').map(str::as_bytes))?.emit(&mut encoder)?;
        let written = encoder.len_since_place(&length);
        length.replace(&mut encoder, u16::try_from(written).unwrap_or(u16::MAX))?;
    }
    let reserved = if query.edns.is_some() { EDNS_BYTES } else { 0 };
    let most_bytes = query.max_answer_bytes().saturating_sub(reserved);
    let mut written = 0u16;
    for address in addresses {
        let (kind, octets) = match address {
            IpAddr::V4(v4) => (RecordType::A, &v4.octets()[..]),
            IpAddr::V6(v6) => (RecordType::AAAA, &v6.octets()[..]),
        };
        if encoder.len() + RECORD_BYTES + octets.len() > most_bytes {
            break;
        }
        record(&mut encoder, owner, kind, ttl)?;
        encoder.emit_u16(if address.is_ipv6() { 16 } else { 4 })?;
        octets.iter().try_for_each(|octet| encoder.emit(*octet))?;
        written += 1;
    }
    if let Some(edns) = &query.edns {
        Record::from(&own_edns(edns.dnssec_ok)).emit(&mut encoder)?;
    }
    let mut metadata = Metadata::response_from_request(&query.metadata);
    metadata.authoritative = true;
    metadata.recursion_available = true;
    metadata.truncation = usize::from(written) < addresses.len().min(MAX_ADDRESSES);
    let counts = HeaderCounts {
        queries: 1,
        answers: written + u16::from(alias.is_some()),
        authorities: 0,
        additionals: u16::from(query.edns.is_some()),
    };
    header.replace(&mut encoder, Header { metadata, counts })?;
    Ok(written.into())
}

/// A record up to its length, owned by the name at `owner`.
fn record(encoder: &mut BinEncoder<'_>, owner: usize, kind: RecordType, ttl: u32) -> Result<(), ProtoError> {
    // A question is at most 259 bytes long, so the name of an alias begins where a pointer reaches.
    encoder.emit_u16(POINTER | u16::try_from(owner).unwrap_or(0))?;
    kind.emit(encoder)?;
    DNSClass::IN.emit(encoder)?;
    encoder.emit_u32(ttl)
}

fn own_edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(OWN_PAYLOAD_BYTES).set_dnssec_ok(dnssec_ok);
    edns
}

/// The answer that says only what went wrong. Without `question` where none could be read.
pub(crate) fn failure(metadata: &Metadata, question: Option<&Question>, code: ResponseCode) -> Vec<u8> {
    short(metadata, question, code, None)
}

/// RFC 6891 6.1.3: the resolver speaks a version that we do not know.
pub(crate) fn bad_version(metadata: &Metadata, question: &Question) -> Vec<u8> {
    short(metadata, Some(question), ResponseCode::BADVERS, Some(own_edns(false)))
}

fn short(metadata: &Metadata, question: Option<&Question>, code: ResponseCode, edns: Option<Edns>) -> Vec<u8> {
    let mut message = hickory_proto::op::Message::response(metadata.id, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = metadata.op_code == OpCode::Query;
    message.metadata.response_code = code;
    message.queries.extend(question.cloned());
    message.edns = edns;
    // What was read can be written; if not, silence is an answer too.
    message.to_vec().unwrap_or_default()
}
