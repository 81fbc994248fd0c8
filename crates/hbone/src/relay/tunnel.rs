//! Joins an application's socket and a stream of a tunnel.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join;
use h2::{Reason as Code, RecvStream, SendStream};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::chunk::ChunkSize;
use super::pending::{MAX_SLICES, Pending};
use super::{failure, read_now};
use crate::flow::{Unread, UnreadShare};
use crate::outcome::{End, Hooks, Meter, Relay, Side};
use crate::pool::Slot;
use crate::socket::Held;

/// A stream of a tunnel that was agreed upon.
pub(crate) struct Stream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    pub(crate) unread: Arc<Unread>,
    /// Its place in a tunnel that we opened.
    pub(crate) slot: Option<Slot>,
}

/// Carries `app`, which stands on `side`, through a stream until both directions are finished or one side is reset.
///
/// FIN travels as END_STREAM and each direction ends for itself. A reset of the application travels as RST_STREAM,
/// and RST_STREAM or the loss of the tunnel as a reset of the application: it never takes a truncated stream for whole.
pub(crate) fn relay_tunnel(mut stream: Stream, mut app: Held, side: Side, mut hooks: Hooks) -> Relay {
    // What is captured is used where it is: a future has room for both a captured value and the variable it moves to.
    Box::pin(async move {
        let end = {
            let (read, write) = app.split();
            let socket: &TcpStream = write.as_ref();
            let ends = Ends { app: socket, side, meter: &hooks.meter };
            let share = UnreadShare::new(stream.unread.clone());
            let both = try_join(ends.to_tunnel(read, &mut stream.send), ends.to_app(&mut stream.recv, share));
            tokio::select! {
                biased;
                reason = &mut hooks.abort => End::Aborted(reason),
                both = both => match both {
                    Ok(_) => End::Finished,
                    Err(end) => end,
                },
                _ = failure(socket) => End::Reset(side),
            }
        };
        match end {
            End::Finished => app.finish(),
            End::Reset(_) | End::TunnelLost | End::Aborted(_) => {
                // RFC 9113 8.5: an error of the TCP connection that CONNECT asked for is CONNECT_ERROR.
                let code = match (end, side) {
                    (End::Reset(by), Side::Upstream) if by == side => Code::CONNECT_ERROR,
                    _ => Code::CANCEL,
                };
                stream.send.send_reset(code);
                drop(app);
            }
        }
        drop(stream.slot.take());
        hooks.meter.outcome(end)
    })
}

struct Ends<'a> {
    app: &'a TcpStream,
    side: Side,
    meter: &'a Meter,
}

impl Ends<'_> {
    /// From the application until its FIN, or until the peer politely takes no more.
    async fn to_tunnel(&self, mut app: ReadHalf<'_>, send: &mut SendStream<Bytes>) -> Result<(), End> {
        let mut size = ChunkSize::default();
        loop {
            // Wait without a buffer, and without a claim on the tunnel's window, which all its streams share.
            tokio::select! {
                biased;
                code = poll_fn(|cx| send.poll_reset(cx)) => return self.stopped(code),
                ready = poll_fn(|cx| self.app.poll_read_ready(cx)) => ready.map_err(|_| End::Reset(self.side))?,
            };
            loop {
                send.reserve_capacity(size.bytes());
                let granted = loop {
                    match send.capacity() {
                        0 => match poll_fn(|cx| send.poll_capacity(cx)).await {
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => return self.stopped(poll_fn(|cx| send.poll_reset(cx)).await),
                        },
                        granted => break granted,
                    }
                };
                let limit = granted.min(size.bytes());
                let mut buffer = BytesMut::with_capacity(limit);
                match read_now(&mut app, &mut buffer, limit) {
                    Some(Ok(0)) => {
                        send.reserve_capacity(0);
                        send.send_data(Bytes::new(), true).map_err(|e| self.lost(&e))?;
                        return Ok(());
                    }
                    Some(Ok(n)) => {
                        size.learn(n, limit);
                        self.meter.add(self.side, n);
                        send.send_data(buffer.freeze(), false).map_err(|e| self.lost(&e))?;
                        if n < limit {
                            break;
                        }
                    }
                    None => break,
                    Some(Err(_)) => return Err(End::Reset(self.side)),
                }
            }
            send.reserve_capacity(0);
        }
    }

    /// What the end of the sending direction means. A peer may be polite: RFC 9113 8.1 lets a side that has finished
    /// its own direction stop the other with NO_ERROR, and then the application may read to the end what it was sent.
    fn stopped(&self, reset: Result<Code, h2::Error>) -> Result<(), End> {
        match reset {
            Ok(Code::NO_ERROR) => Ok(()),
            Ok(_) => Err(End::Reset(self.tunnel_side())),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// From the tunnel until END_STREAM, which becomes FIN.
    async fn to_app(&self, recv: &mut RecvStream, mut unread: UnreadShare) -> Result<(), End> {
        let mut pending = Pending::default();
        let mut ended = false;
        loop {
            // Takes all that has arrived, so that one write serves many frames.
            let taken = poll_fn(|cx| {
                let mut taken = 0;
                while !ended && taken < MAX_SLICES {
                    match recv.poll_data(cx) {
                        Poll::Ready(Some(Ok(piece))) => {
                            unread.arrived(piece.len());
                            if pending.is_empty() {
                                pending.push(piece)
                            } else {
                                pending.push_waiting(piece)
                            }
                            taken += 1;
                        }
                        Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(e)),
                        Poll::Ready(None) => ended = true,
                        Poll::Pending => break,
                    }
                }
                if taken == 0 && !ended && pending.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
            });
            taken.await.map_err(|e| self.lost(&e))?;
            if pending.is_empty() {
                if ended {
                    break;
                }
                continue;
            }
            let written = {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let n = pending.slices(&mut slices);
                self.app.try_write_vectored(&slices[..n])
            };
            match written {
                Ok(n) => {
                    pending.advance(n);
                    unread.taken(n);
                    self.meter.add(self.tunnel_side(), n);
                    // It fails only if more is released than arrived, or on a stream that is gone, which reading finds.
                    let _ = recv.flow_control().release_capacity(n);
                    tokio::task::coop::consume_budget().await;
                }
                Err(e) if again(&e) => {
                    // While the application does not read, what arrives is still taken out of the tunnel, so that it
                    // is counted, and a reset is seen.
                    tokio::select! {
                        biased;
                        ready = poll_fn(|cx| self.app.poll_write_ready(cx)) => ready.map_err(|_| End::Reset(self.side))?,
                        piece = recv.data(), if !ended => match piece {
                            Some(Ok(piece)) => {
                                unread.arrived(piece.len());
                                pending.push_waiting(piece);
                            }
                            Some(Err(e)) => return Err(self.lost(&e)),
                            None => ended = true,
                        },
                    }
                }
                Err(_) => return Err(End::Reset(self.side)),
            }
        }
        SockRef::from(self.app).shutdown(Shutdown::Write).map_err(|_| End::Reset(self.side))
    }

    /// What an error of the stream means.
    fn lost(&self, error: &h2::Error) -> End {
        if error.is_reset() && error.is_remote() { End::Reset(self.tunnel_side()) } else { End::TunnelLost }
    }

    fn tunnel_side(&self) -> Side {
        match self.side {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        }
    }
}

/// Whether a socket only has nothing to give or take at the moment.
pub(super) fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
