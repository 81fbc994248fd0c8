//! The one call of gRPC that the suite makes, as messages on HTTP/2: <https://grpc.io>, "gRPC over HTTP2".

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Path of the call.
pub const CALL: &str = "/proto.EchoTestService/Echo";
/// Content type of requests and answers.
pub const CONTENT_TYPE: &str = "application/grpc";
/// Names of the header or trailer with the status of a call, and of the one with its reason.
pub const STATUS: &str = "grpc-status";
pub const REASON: &str = "grpc-message";
/// Status of a call that the server does not have, and of one that it cannot read.
pub const UNIMPLEMENTED: &str = "12";
pub const INVALID_ARGUMENT: &str = "3";

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// `proto.EchoRequest` and `proto.EchoResponse` alike.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Echo {
    /// What is said.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// A message as it is sent.
pub fn frame(message: &str) -> Bytes {
    let message = Echo { message: message.to_owned() }.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("bodies are limited"));
    bytes.put_slice(&message);
    bytes.freeze()
}

/// The message in a whole body. The error says what is wrong with it.
pub fn unframe(body: &[u8]) -> Result<String, &'static str> {
    let (prefix, message) = body.split_at_checked(PREFIX).ok_or("there is no message")?;
    let (compressed, length) = prefix.split_at(1);
    if compressed != [0] {
        return Err("the message is compressed");
    }
    if u32::from_be_bytes(length.try_into().expect("the prefix has four bytes left")) as usize != message.len() {
        return Err("the body is not one message");
    }
    Ok(Echo::decode(message).map_err(|_| "the message is of another type")?.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_nothing_else_is() {
        let framed = frame("HelloWorld");
        // Field 1, ten bytes.
        assert_eq!(framed, b"\0\0\0\0\x0c\x0a\x0aHelloWorld".as_slice());
        assert_eq!(unframe(&framed).as_deref(), Ok("HelloWorld"));
        assert_eq!(unframe(&frame("")).as_deref(), Ok(""));
        for body in [&b""[..], b"\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x09\x0a", b"\0\0\0\0\x01\x0a", b"\0\0\0\0\0\0"] {
            assert!(unframe(body).is_err(), "{body:?}");
        }
    }
}
