//! Moves bytes between the two sides of a connection.

mod chunk;
mod pending;
mod plain;
mod tunnel;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

pub use plain::relay_plain;
pub(crate) use tunnel::{Stream, relay_tunnel};

/// Ends when the kernel reports an error of the socket: a reset, or a peer that stopped answering. Reading would find
/// it too, but a relay that waits for its other side does not read, and one that saw FIN has nothing to read.
async fn failure(socket: &TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => match socket.take_error() {
            Ok(Some(error)) | Err(error) => error,
            // Whoever read or wrote has taken the error and reports it.
            Ok(None) => std::future::pending().await,
        },
        Err(error) => error,
    }
}

/// Reads what is there, at most `limit` bytes; nothing when there is nothing. Nobody is woken when there is more: a
/// caller that is given nothing waits for the socket, which is also where a task that has run for long takes its pause.
fn read_now(from: &mut ReadHalf<'_>, buffer: &mut BytesMut, limit: usize) -> Option<io::Result<usize>> {
    // Through AsyncRead, which knows that a short read has emptied the socket and spares the next attempt.
    match pin!(from.read_buf(&mut buffer.limit(limit))).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}
