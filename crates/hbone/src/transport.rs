//! The byte stream under HTTP/2: it gathers what one turn of the tunnel writes into one write.
//!
//! The h2 crate flushes after every DATA frame, which would cost a TLS record and a system call each. Here a flush only
//! means "no later than the end of this turn": the tunnel's task calls [`Outlet::poll_flush`] after it has polled the
//! connection, and everything that many streams wrote meanwhile leaves in one piece.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use loam_tls::HandshakeError;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a turn gathers before it writes: beyond this a larger write saves nothing. TLS must be allowed to hold as much
/// (its default is a quarter), so that a batch is one system call: together that halves the cost of bulk data.
pub(crate) const MAX_BATCH_BYTES: usize = 256 << 10;

/// The batch buffer above this size is given back when it is empty.
const KEEP_BYTES: usize = 4 << 10;

struct Shared<IO> {
    io: IO,
    batch: Vec<u8>,
    /// How much of the batch is written.
    written: usize,
    /// While true, a flush is a flush: HTTP/2 handshakes wait for it.
    eager: bool,
    /// Bytes that arrived, to know a living peer.
    arrived: u64,
    /// What an error of the stream meant, as TLS knows it.
    failure: Option<Arc<HandshakeError>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shared<IO> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.batch.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.batch[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.batch.clear();
        self.written = 0;
        if self.batch.capacity() > KEEP_BYTES {
            self.batch = Vec::new();
        }
        // Also without a batch: TLS has things of its own to say, such as a key update.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Makes room in the batch; pending while it is full and the socket takes nothing.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.batch.len() >= MAX_BATCH_BYTES {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(MAX_BATCH_BYTES - self.batch.len()))
    }

    fn note(&mut self, error: &io::Error) {
        self.failure.get_or_insert_with(|| Arc::new(HandshakeError::of(error)));
    }
}

/// The end that HTTP/2 reads from and writes to.
pub(crate) struct Batched<IO>(Arc<Mutex<Shared<IO>>>);

/// The end by which the tunnel's task lets written bytes go.
pub(crate) struct Outlet<IO>(Arc<Mutex<Shared<IO>>>);

/// Wraps a stream. Both ends belong to one task, so the lock between them is never contended.
pub(crate) fn batched<IO>(io: IO) -> (Batched<IO>, Outlet<IO>) {
    let shared =
        Arc::new(Mutex::new(Shared { io, batch: Vec::new(), written: 0, eager: true, arrived: 0, failure: None }));
    (Batched(shared.clone()), Outlet(shared))
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Outlet<IO> {
    /// From now on writes wait for the end of the turn.
    pub(crate) fn gather(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).eager = false;
    }

    /// Ends a turn: writes what was gathered.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_drain(cx)
    }

    /// Whether bytes wait to be written for the first time; those the socket did not take already had their turn.
    pub(crate) fn has_gathered(&self) -> bool {
        let shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !shared.batch.is_empty() && shared.written == 0
    }

    /// Bytes that arrived so far.
    pub(crate) fn arrived(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).arrived
    }

    /// Why the stream failed, if it did.
    pub(crate) fn failure(&self) -> Option<Arc<HandshakeError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failure.clone()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Batched<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut shared.io).poll_read(cx, buf));
        match &result {
            Ok(()) => shared.arrived += (buf.filled().len() - before) as u64,
            Err(error) => shared.note(error),
        }
        Poll::Ready(result)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Batched<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = ready!(shared.poll_room(cx))?;
        let mut taken = 0;
        for buf in bufs {
            let n = buf.len().min(room);
            shared.batch.extend_from_slice(&buf[..n]);
            room -= n;
            taken += n;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.eager { shared.poll_drain(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }

    #[tokio::test]
    async fn what_a_turn_writes_leaves_when_the_turn_ends() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut io, outlet) = batched(near);
        outlet.gather();
        for piece in [b"one ".as_slice(), b"two ", b"three"] {
            io.write_all(piece).await.unwrap();
            io.flush().await.unwrap();
        }
        let mut buf = [0; 32];
        assert!(poll_once(pin!(far.read(&mut buf))).await.is_pending());
        std::future::poll_fn(|cx| outlet.poll_flush(cx)).await.unwrap();
        let n = far.read(&mut buf).await.unwrap();
        assert_eq!(&buf[..n], b"one two three");
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_bounds_the_batch() {
        let (near, _far) = tokio::io::duplex(1024);
        let (mut io, outlet) = batched(near);
        outlet.gather();
        let mut accepted = 0;
        let piece = [7; 1000];
        while let Poll::Ready(n) = poll_once(pin!(io.write(&piece))).await {
            accepted += n.unwrap();
            assert!(accepted <= 2 * MAX_BATCH_BYTES, "the batch grows without a bound");
        }
        assert!(accepted >= MAX_BATCH_BYTES);
    }

    #[tokio::test]
    async fn closing_writes_what_was_gathered() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut io, outlet) = batched(near);
        outlet.gather();
        io.write_all(b"goodbye").await.unwrap();
        io.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"goodbye");
    }
}
