//! Joins two sockets without a tunnel.

use std::future::poll_fn;
use std::net::Shutdown;

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::chunk::ChunkSize;
use super::tunnel::again;
use super::{failure, read_now};
use crate::outcome::{End, Hooks, Meter, Relay, Side};
use crate::socket::Held;

/// Carries a connection between two sockets until both directions are finished or one side is reset.
pub fn relay_plain(downstream: TcpStream, upstream: TcpStream, mut hooks: Hooks) -> Relay {
    // Held before the future first runs: dropping it unpolled must reset both sides too.
    let (mut downstream, mut upstream) = (Held::new(downstream), Held::new(upstream));
    Box::pin(async move {
        let end = {
            let meter = &hooks.meter;
            let (down_read, down_write) = downstream.split();
            let (up_read, up_write) = upstream.split();
            let (down, up): (&TcpStream, &TcpStream) = (down_write.as_ref(), up_write.as_ref());
            let both = async {
                tokio::try_join!(
                    copy(down_read, Side::Downstream, up, Side::Upstream, meter),
                    copy(up_read, Side::Upstream, down, Side::Downstream, meter),
                )
            };
            tokio::select! {
                biased;
                reason = &mut hooks.abort => End::Aborted(reason),
                both = both => match both {
                    Ok(_) => End::Finished,
                    Err(end) => end,
                },
                _ = failure(down) => End::Reset(Side::Downstream),
                _ = failure(up) => End::Reset(Side::Upstream),
            }
        };
        if end == End::Finished {
            downstream.finish();
            upstream.finish();
        }
        // Otherwise dropping them resets both.
        hooks.meter.outcome(end)
    })
}

/// One direction until FIN, which is passed on.
async fn copy(
    mut from: ReadHalf<'_>,
    from_side: Side,
    to: &TcpStream,
    to_side: Side,
    meter: &Meter,
) -> Result<(), End> {
    let mut size = ChunkSize::default();
    loop {
        // Wait without a buffer.
        poll_fn(|cx| from.as_ref().poll_read_ready(cx)).await.map_err(|_| End::Reset(from_side))?;
        let mut buffer = BytesMut::new();
        loop {
            let limit = size.bytes();
            buffer.reserve(limit);
            match read_now(&mut from, &mut buffer, limit) {
                Some(Ok(0)) => {
                    return SockRef::from(to).shutdown(Shutdown::Write).map_err(|_| End::Reset(to_side));
                }
                Some(Ok(n)) => {
                    write_all(to, to_side, &mut buffer, from_side, meter).await?;
                    size.learn(n, limit);
                    if n < limit {
                        break;
                    }
                }
                None => break,
                Some(Err(_)) => return Err(End::Reset(from_side)),
            }
        }
    }
}

async fn write_all(to: &TcpStream, to_side: Side, bytes: &mut BytesMut, from: Side, meter: &Meter) -> Result<(), End> {
    while !bytes.is_empty() {
        poll_fn(|cx| to.poll_write_ready(cx)).await.map_err(|_| End::Reset(to_side))?;
        match to.try_write(bytes) {
            Ok(n) => {
                bytes.advance(n);
                meter.add(from, n);
            }
            Err(e) if again(&e) => {}
            Err(_) => return Err(End::Reset(to_side)),
        }
    }
    Ok(())
}
