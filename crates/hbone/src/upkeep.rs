//! What either end of a tunnel does at every turn beside HTTP/2 itself.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use h2::PingPong;
use loam_tls::HandshakeError;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::flow::{Unread, Windows};
use crate::liveness::{Liveness, Pulse};
use crate::transport::Outlet;

/// Sees to windows, signs of life and the writing of what was gathered.
pub(crate) struct Upkeep<IO> {
    outlet: Outlet<IO>,
    windows: Windows,
    liveness: Liveness,
    /// What was gathered waits for the streams that were woken together with the one that wrote it.
    yielded: bool,
}

/// Why a tunnel is over although HTTP/2 has not noticed.
#[derive(Debug, thiserror::Error)]
pub enum Loss {
    /// PING was not answered.
    #[error("the peer is silent")]
    Silent,
    /// The socket does not take what we write.
    #[error("write: {0}")]
    Write(io::Error),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Upkeep<IO> {
    /// To be made when the HTTP/2 handshake is done: from now on writes wait for the end of a turn.
    pub(crate) fn new(outlet: Outlet<IO>, pings: PingPong, unread: Arc<Unread>) -> Self {
        outlet.gather();
        Self { outlet, windows: Windows::new(unread), liveness: Liveness::new(pings), yielded: false }
    }

    /// Ends a turn; to be polled last. `announce` changes the stream window if HTTP/2 can do so now. Ready at intervals,
    /// or when the tunnel is lost.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        announce: impl FnOnce(u32) -> Result<(), h2::Error>,
    ) -> Poll<Result<(), Loss>> {
        if let Some(window) = self.windows.wanted(cx)
            // It fails while an earlier change is not acknowledged; the acknowledgement brings us back here.
            && announce(window).is_ok()
        {
            self.windows.announced(window);
            cx.waker().wake_by_ref();
        }
        if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
            return Poll::Ready(Err(Loss::Write(error)));
        }
        self.liveness.poll(cx, self.outlet.arrived()).map(|pulse| match pulse {
            Pulse::Beat => Ok(()),
            Pulse::Dead => Err(Loss::Silent),
        })
    }

    /// Lets go of what was gathered, one turn late: a scheduler may run this task right behind the first stream that
    /// wrote, and then every stream would have a system call of its own. Whoever was runnable before us comes first.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.yielded && self.outlet.has_gathered() {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        self.outlet.poll_flush(cx)
    }

    /// What TLS says about the end of the tunnel. In TLS 1.3 a server's refusal arrives after the handshake.
    pub(crate) fn tls_failure(&self) -> Option<Arc<HandshakeError>> {
        self.outlet.failure().filter(|failure| !matches!(**failure, HandshakeError::Closed(_)))
    }
}
