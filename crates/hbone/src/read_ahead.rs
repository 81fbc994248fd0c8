//! Reads a tunnel's socket in large pieces while much arrives.
//!
//! TLS asks for little more than one record at a time, 16 KiB: a system call each. While reads fill what they are
//! offered, the socket is read into a buffer of our own, from which TLS is fed; the buffer lives only while bytes are
//! in it, so a quiet tunnel has none.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::relay::ChunkSize;

/// A stream whose reads are made larger than those who read it ask for.
#[derive(Debug)]
pub(crate) struct ReadAhead<IO> {
    io: IO,
    /// What was read and not yet asked for.
    ahead: BytesMut,
    size: ChunkSize,
}

impl<IO> ReadAhead<IO> {
    pub(crate) fn new(io: IO) -> Self {
        Self { io, ahead: BytesMut::new(), size: ChunkSize::default() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            let wanted = this.size.bytes();
            if wanted <= buf.remaining() {
                let (before, offered) = (buf.filled().len(), buf.remaining());
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                let n = buf.filled().len() - before;
                this.size.learn(if n == offered { wanted } else { n }, offered);
                return Poll::Ready(Ok(()));
            }
            let mut ahead = BytesMut::with_capacity(wanted);
            let n = ready!(pin!(this.io.read_buf(&mut ahead)).poll(cx))?;
            this.size.learn(n.min(wanted), wanted);
            this.ahead = ahead;
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Counts the reads that reach it.
    struct Counted<IO>(IO, usize);

    impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_in_few_reads_however_little_is_asked_for_at_a_time() {
        const TOTAL: usize = 4 << 20;
        let sent: Vec<u8> = (0..TOTAL).map(|i| (i % 251) as u8).collect();
        let (mut far, near) = tokio::io::duplex(TOTAL);
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut reader = ReadAhead::new(Counted(near, 0));
        let mut received = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match reader.read(&mut piece).await.unwrap() {
                0 => break,
                n => received.extend_from_slice(&piece[..n]),
            }
        }
        assert!(received == sent);
        assert!(reader.io.1 < 40, "{} reads", reader.io.1);
    }

    #[tokio::test]
    async fn a_quiet_stream_holds_no_buffer() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut reader = ReadAhead::new(near);
        let mut piece = [0; 8192];
        far.write_all(&[1; 1 << 20]).await.unwrap();
        let mut left = 1 << 20;
        while left > 0 {
            left -= reader.read(&mut piece).await.unwrap();
        }
        assert_eq!(reader.ahead.capacity(), 0);
        for _ in 0..4 {
            far.write_all(b"a request").await.unwrap();
            assert_eq!(reader.read(&mut piece).await.unwrap(), 9);
        }
        assert_eq!((reader.ahead.capacity(), reader.size.bytes()), (0, ChunkSize::default().bytes()));
    }
}
