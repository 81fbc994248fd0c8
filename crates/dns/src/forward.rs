//! A question for the pod's own servers, and which message is their reply.
//!
//! Question and reply are passed on as they are, the identifier apart: options, signatures and the case of letters mean
//! something to those who speak DNS, and what is not taken apart cannot be put together wrongly.

use hickory_proto::op::{Header, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::MAX_MESSAGE_BYTES;
use crate::answer;
use crate::query::{Query, Transport};

/// A question that the mesh does not answer.
#[derive(Debug, Clone)]
pub struct Forward {
    bytes: Vec<u8>,
    metadata: Metadata,
    question: Question,
    transport: Transport,
    max_reply_bytes: usize,
    known: bool,
}

/// Why a message is not the reply to a question. Whoever sent it is not to be believed, so waiting goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// It cannot be read as far as that takes.
    #[error("cannot be read")]
    Malformed,
    /// It is a question itself.
    #[error("is not a reply")]
    NotAReply,
    /// It has another identifier.
    #[error("has another identifier")]
    Identifier,
    /// It answers another question.
    #[error("answers another question")]
    Question,
}

/// A server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message for the client.
    pub bytes: Vec<u8>,
    /// What the server made of the question.
    pub verdict: Verdict,
}

/// What a server made of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, if only that there is nothing.
    Answered,
    /// It could not or would not; another may.
    Failed,
}

impl Forward {
    /// `known`: the mesh has the name, only not this type of record.
    pub(crate) fn new(query: &Query<'_>, known: bool) -> Self {
        let announced = query.edns.map_or(0, |edns| edns.max_payload).max(512);
        Self {
            bytes: query.bytes.to_vec(),
            metadata: query.metadata,
            question: query.question.clone(),
            transport: query.transport,
            max_reply_bytes: match query.transport {
                Transport::Udp => announced.into(),
                Transport::Tcp => MAX_MESSAGE_BYTES,
            },
            known,
        }
    }

    /// A question that no client asked.
    pub(crate) fn own(message: &Message, question: &Question, transport: Transport, max_udp_bytes: usize) -> Self {
        Self {
            // A name that could be read can be written.
            bytes: message.to_vec().unwrap_or_default(),
            metadata: message.metadata,
            question: question.clone(),
            transport,
            max_reply_bytes: match transport {
                Transport::Udp => max_udp_bytes,
                Transport::Tcp => MAX_MESSAGE_BYTES,
            },
            known: false,
        }
    }

    /// How the client asked, and so how its servers are to be asked.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Longest reply that the client takes.
    pub fn max_reply_bytes(&self) -> usize {
        self.max_reply_bytes
    }

    /// The question with an identifier of our own.
    pub fn question(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        identify(&mut bytes, id);
        bytes
    }

    /// Takes a message as the reply to the question that was sent with `id`.
    pub fn accept(&self, id: u16, mut bytes: Vec<u8>) -> Result<Reply, NotOurs> {
        let mut decoder = BinDecoder::new(&bytes);
        let Header { metadata, counts } = Header::read(&mut decoder).map_err(|_| NotOurs::Malformed)?;
        if metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Query {
            return Err(NotOurs::NotAReply);
        }
        if metadata.id != id {
            return Err(NotOurs::Identifier);
        }
        let failed = !matches!(metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
        let question_end = match counts.queries {
            // Some servers say that they did not understand a question without repeating it.
            0 if failed => decoder.index(),
            1 => {
                let question = Question::read(&mut decoder).map_err(|_| NotOurs::Malformed)?;
                // Names compare without case.
                if question != self.question {
                    return Err(NotOurs::Question);
                }
                decoder.index()
            }
            _ => return Err(NotOurs::Question),
        };
        if bytes.len() > self.max_reply_bytes {
            cut(&mut bytes, question_end);
        }
        if self.known && metadata.response_code == ResponseCode::NXDomain {
            deny_only_the_type(&mut bytes);
        }
        identify(&mut bytes, self.metadata.id);
        let verdict = if failed { Verdict::Failed } else { Verdict::Answered };
        Ok(Reply { bytes, verdict })
    }

    /// The answer when no server gave one.
    pub fn unanswered(&self) -> Vec<u8> {
        answer::failure(&self.metadata, Some(&self.question), ResponseCode::ServFail)
    }
}

/// Writes the identifier, the first two bytes of a message (RFC 1035 4.1.1).
fn identify(bytes: &mut [u8], id: u16) {
    if let Some(place) = bytes.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// Leaves the header and the question, and says that something was left out.
fn cut(bytes: &mut Vec<u8>, question_end: usize) {
    const TRUNCATED: u8 = 0x02;
    bytes.truncate(question_end);
    if let Some(header) = bytes.first_chunk_mut::<12>() {
        header[2] |= TRUNCATED;
        // The counts of answers, authorities and additional records.
        header[6..].fill(0);
    }
}

/// Turns "no such name" into "nothing of this type". The servers do not know the names of the mesh, and a resolver
/// takes the former for every type (RFC 8020).
fn deny_only_the_type(bytes: &mut [u8]) {
    const CODE: u8 = 0x0f;
    if let Some(flags) = bytes.get_mut(3) {
        *flags &= !CODE;
    }
}
