//! DNS messages on a connection: each behind its length (RFC 1035 4.2.2).

use std::io;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const LENGTH_BYTES: usize = 2;

/// Reads messages one after the other.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    max_message_bytes: usize,
}

impl Frames {
    pub(super) fn new(max_message_bytes: usize) -> Self {
        Self { buffer: Vec::new(), max_message_bytes }
    }

    /// The next message; none when the peer has ended. Safe to cancel: what was read is kept.
    pub(super) async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let room = LENGTH_BYTES + self.max_message_bytes - self.buffer.len();
            if from.read_buf(&mut (&mut self.buffer).limit(room)).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// A message that is there in full.
    fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 || length > self.max_message_bytes {
            let why = format!("a message of {length} bytes; at least 1 and at most {}", self.max_message_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(LENGTH_BYTES + length);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..LENGTH_BYTES);
        Ok(Some(message))
    }
}

/// Writes one message.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // In one piece: some resolvers expect the length and the message in one segment (RFC 7766 8).
    let mut framed = Vec::with_capacity(LENGTH_BYTES + message.len());
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    to.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> Vec<io::Result<Option<Vec<u8>>>> {
        let mut frames = Frames::new(4);
        let mut read = Vec::new();
        loop {
            let next = frames.next(&mut bytes).await;
            let last = !matches!(next, Ok(Some(_)));
            read.push(next);
            if last {
                return read;
            }
        }
    }

    #[tokio::test]
    async fn messages_are_told_apart_by_their_length() {
        let read = read(b"\0\x01a\0\x04bcde").await;
        let read: Vec<_> = read.into_iter().map(Result::unwrap).collect();
        assert_eq!(read, [Some(b"a".to_vec()), Some(b"bcde".to_vec()), None]);
    }

    #[tokio::test]
    async fn a_message_that_is_empty_too_long_or_cut_ends_the_connection() {
        for (bytes, kind) in [
            (&b"\0\0"[..], io::ErrorKind::InvalidData),
            (b"\0\x05abcde", io::ErrorKind::InvalidData),
            (b"\xff\xff", io::ErrorKind::InvalidData),
            (b"\0", io::ErrorKind::UnexpectedEof),
            (b"\0\x02a", io::ErrorKind::UnexpectedEof),
        ] {
            let read = read(bytes).await;
            assert_eq!(read[0].as_ref().unwrap_err().kind(), kind, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_message_survives_being_read_in_pieces() {
        let (mut far, mut near) = tokio::io::duplex(64);
        let mut frames = Frames::new(16);
        for byte in b"\0\x03ab" {
            far.write_all(&[*byte]).await.unwrap();
            let read = frames.next(&mut near);
            tokio::select! { biased; _ = read => panic!("too early"), () = std::future::ready(()) => {} }
        }
        far.write_all(b"c").await.unwrap();
        assert_eq!(frames.next(&mut near).await.unwrap().unwrap(), b"abc");
    }
}
