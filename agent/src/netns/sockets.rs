//! The marked TCP sockets of a namespace: as long as there is one, the rules must stay.

use std::io::{self, Read as _};

use loam_ebpf_common::mark;
use socket2::{Domain, Protocol, Socket, Type};

use super::NetnsError;

/// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
const NETLINK_SOCK_DIAG: i32 = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_MARK_COND: u8 = 10;
const HEADER_BYTES: usize = 16;
/// Family, state and two more bytes before a socket's id in an answer; family, protocol and the states in a request.
const ANSWER_ID_AT: usize = HEADER_BYTES + 4;
const ID_BYTES: usize = 48;

/// States of sockets that still send: all but TIME_WAIT (6), CLOSE (7) and LISTEN (10).
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// One answer of the kernel at most.
const BUFFER_BYTES: usize = 64 << 10;

/// A socket, as the kernel names it.
struct Marked {
    family: u8,
    id: [u8; ID_BYTES],
}

/// How many marked sockets there are in the namespace of the calling thread.
pub fn count() -> Result<usize, NetnsError> {
    list().map(|marked| marked.len()).map_err(|error| NetnsError::Io("list marked sockets", error))
}

/// Ends the marked sockets of the namespace of the calling thread; the other sides learn it by a reset.
pub fn destroy() -> Result<usize, NetnsError> {
    let failed = |error| NetnsError::Io("end marked sockets", error);
    let marked = list().map_err(failed)?;
    let socket = open().map_err(failed)?;
    for Marked { family, id } in &marked {
        let mut request = Vec::new();
        request.extend([*family, libc::IPPROTO_TCP as u8, 0, 0]);
        request.extend(u32::MAX.to_ne_bytes());
        request.extend(id);
        exchange(&socket, SOCK_DESTROY, NLM_F_ACK, &request, |_| {}).or_else(gone).map_err(failed)?;
    }
    Ok(marked.len())
}

/// A socket may have ended by itself.
fn gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

fn list() -> io::Result<Vec<Marked>> {
    let socket = open()?;
    let mut marked = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = Vec::new();
        request.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
        request.extend(STATES.to_ne_bytes());
        request.extend([0; ID_BYTES]);
        request.extend(filter());
        exchange(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request, |answer| {
            if let (Some(family), Some(id)) =
                (answer.get(HEADER_BYTES), answer.get(ANSWER_ID_AT..ANSWER_ID_AT + ID_BYTES))
                && let Ok(id) = id.try_into()
            {
                marked.push(Marked { family: *family, id });
            }
        })?;
    }
    Ok(marked)
}

/// Has the kernel compare the marks: one condition, which if false jumps past the end.
fn filter() -> Vec<u8> {
    const CONDITION_BYTES: u8 = 12;
    let mut attribute = Vec::new();
    attribute.extend((4 + u16::from(CONDITION_BYTES)).to_ne_bytes());
    attribute.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    attribute.extend([INET_DIAG_BC_MARK_COND, CONDITION_BYTES]);
    attribute.extend((u16::from(CONDITION_BYTES) + 4).to_ne_bytes());
    attribute.extend(mark::ROUTED.to_ne_bytes());
    attribute.extend(mark::MASK.to_ne_bytes());
    attribute
}

fn open() -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(NETLINK_SOCK_DIAG)))
}

/// Sends a request and hands out each answer until the last.
fn exchange(socket: &Socket, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let bytes = (HEADER_BYTES + body.len()) as u32;
    let mut request = Vec::with_capacity(bytes as usize);
    request.extend(bytes.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    socket.send(&request)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = (&*socket).read(&mut buffer)?;
        let mut rest = &buffer[..read];
        while let Some((message, after)) = split(rest) {
            match u16::from_ne_bytes([message[4], message[5]]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return outcome(message),
                _ => each(message),
            }
            rest = after;
        }
    }
}

/// The first message of a packet, and the rest.
fn split(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = u32::from_ne_bytes(packet.get(..4)?.try_into().ok()?) as usize;
    if bytes < HEADER_BYTES {
        return None;
    }
    let message = packet.get(..bytes)?;
    Some((message, packet.get(bytes.next_multiple_of(4)..).unwrap_or_default()))
}

fn outcome(message: &[u8]) -> io::Result<()> {
    let code = message.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|bytes| bytes.try_into().ok());
    match code.map_or(-libc::EPROTO, i32::from_ne_bytes) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_split_at_its_messages_and_a_broken_one_ends_it() {
        let mut packet = Vec::new();
        packet.extend(18_u32.to_ne_bytes());
        packet.extend([0; 16]);
        packet.extend(16_u32.to_ne_bytes());
        packet.extend([0; 12]);
        let (first, rest) = split(&packet).unwrap();
        let (second, rest) = split(rest).unwrap();
        assert_eq!((first.len(), second.len(), rest.len()), (18, 16, 0));
        for broken in [&[][..], &[1, 0, 0], &[1, 0, 0, 0], &[255, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(split(broken).is_none());
        }
    }
}
