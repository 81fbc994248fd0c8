//! As much of a DNS message as the lab's client and servers need: one question, answers of type A.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// Recursion is desired.
const ASKED: u16 = 0x0100;
/// A response, recursion was desired and is available.
const ANSWERED: u16 = 0x8180;
/// The name of the question, by reference.
const SAME_NAME: u16 = 0xc000 | HEADER_BYTES as u16;

/// A question for the IPv4 addresses of a name.
pub(crate) fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = Vec::new();
    for word in [id, ASKED, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(TYPE_A.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message
}

/// The identifier of a message.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    word(message, 0)
}

/// The answer to a question: this address, or that the name has none of the type that is asked for.
pub(crate) fn answer(question: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let end = question_end(question)?;
    let is_a = word(question, end - 4)? == TYPE_A;
    let mut message = Vec::new();
    for word in [id(question)?, ANSWERED, 1, u16::from(is_a), 0, 0] {
        message.extend(word.to_be_bytes());
    }
    message.extend(&question[HEADER_BYTES..end]);
    if is_a {
        const TTL_SECONDS: u32 = 1;
        message.extend([SAME_NAME, TYPE_A, CLASS_IN].map(u16::to_be_bytes).concat());
        message.extend(TTL_SECONDS.to_be_bytes());
        message.extend(4_u16.to_be_bytes());
        message.extend(address.octets());
    }
    Some(message)
}

/// What an answer says: its response code and its addresses.
pub(crate) fn read(message: &[u8]) -> Result<(u16, Vec<Ipv4Addr>)> {
    let code = word(message, 2).context("no header")? & 0xf;
    let count = word(message, 6).context("no header")?;
    let mut at = question_end(message).context("no question")?;
    let mut addresses = Vec::new();
    for _ in 0..count {
        at = name_end(message, at).context("a name without an end")?;
        let (kind, bytes) = (word(message, at).context("cut short")?, word(message, at + 8).context("cut short")?);
        at += 10;
        let data = message.get(at..at + usize::from(bytes)).context("cut short")?;
        at += usize::from(bytes);
        if let (TYPE_A, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            addresses.push(octets.into());
        }
    }
    ensure!(at <= message.len(), "cut short");
    Ok((code, addresses))
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            reference if reference >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

fn question_end(message: &[u8]) -> Option<usize> {
    let end = name_end(message, HEADER_BYTES)? + 4;
    (end <= message.len()).then_some(end)
}
