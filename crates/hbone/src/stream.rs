//! A stream of a tunnel as bytes to read and to write, for who speaks a protocol in it instead of relaying it whole.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pool::Slot;

/// Most bytes of one write: a write is copied, and longer ones gain nothing.
const MAX_WRITE_BYTES: usize = 64 << 10;

/// A stream that was agreed upon. END_STREAM is read as the end, and [shutdown](tokio::io::AsyncWriteExt::shutdown)
/// sends it. Dropped before both directions ended, it resets the stream: the peer never takes what was cut for whole.
///
/// What is not read stays in the stream's window, which the makers of tunnels bound by
/// [`Limits::stream_window`](crate::Limits::stream_window) and [`PoolConfig::stream_window`](crate::PoolConfig).
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Arrived, and not read.
    rest: Bytes,
    read_ended: bool,
    write_ended: bool,
    /// Its place in a tunnel that we opened.
    _slot: Option<Slot>,
}

impl TunnelStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, slot: Option<Slot>) -> Self {
        Self { send, recv, rest: Bytes::new(), read_ended: false, write_ended: false, _slot: slot }
    }

    /// How many of `wanted` bytes may be sent.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.write_ended {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let wanted = wanted.min(MAX_WRITE_BYTES);
        self.send.reserve_capacity(wanted);
        loop {
            match self.send.capacity() {
                0 => match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                    None => return Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
                },
                room => return Poll::Ready(Ok(room.min(wanted))),
            }
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.rest.is_empty() {
            if this.read_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(piece)) => this.rest = piece,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => this.read_ended = true,
            }
        }
        let n = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest.split_to(n));
        // It fails only if more is released than arrived, or on a stream that is gone, which reading finds.
        let _ = this.recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_room(cx, buf.len()))?;
        self.send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(io_error)?;
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = bufs.iter().map(|buf| buf.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_room(cx, total))?;
        let mut gathered = BytesMut::with_capacity(n);
        for buf in bufs {
            let part = buf.len().min(n - gathered.len());
            gathered.extend_from_slice(&buf[..part]);
        }
        self.send.send_data(gathered.freeze(), false).map_err(io_error)?;
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel writes by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.write_ended, true) {
            self.send.reserve_capacity(0);
            self.send.send_data(Bytes::new(), true).map_err(io_error)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn io_error(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() { ErrorKind::ConnectionReset } else { ErrorKind::ConnectionAborted };
    io::Error::new(kind, error)
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").field("stream", &self.send.stream_id()).finish_non_exhaustive()
    }
}
