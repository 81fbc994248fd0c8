//! Options of the sockets we relay, and their two ways to end.

use std::io;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// When a silent connection is probed, how often, and how many unanswered probes end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub retries: u32,
}

/// A vanished application is noticed within half an hour: the numbers Istio's users know.
pub const KEEPALIVE: Keepalive =
    Keepalive { time: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 };

impl Default for Keepalive {
    fn default() -> Self {
        KEEPALIVE
    }
}

/// Makes an accepted or dialled socket fit for relaying: writes leave at once (our writes are whole already), and a
/// peer that vanished is noticed some day.
pub fn prepare(socket: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries),
    )
}

/// Closes a socket with RST instead of FIN: the answer to a connection we refuse.
pub fn reset(socket: TcpStream) {
    // An error means that the kernel already knows the connection as gone, and then there is nobody to tell.
    let _ = socket.set_zero_linger();
}

/// A socket in our care. Dropping it resets the connection: only an orderly end, which both sides agreed to, may look
/// like one. So a panic, a cancelled task or an early return never makes a truncated stream look complete.
#[derive(Debug)]
pub(crate) struct Held(Option<TcpStream>);

impl Held {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self(Some(socket))
    }

    /// Closes it in order; everything written is still delivered.
    pub(crate) fn finish(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Held {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        self.0.as_ref().expect("the socket is taken only by finish, which consumes self")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut TcpStream {
        self.0.as_mut().expect("the socket is taken only by finish, which consumes self")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(socket) = self.0.take() {
            reset(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_prepared_socket_does_not_wait_for_more_to_send() {
        let (near, _far) = pair().await;
        prepare(&near, KEEPALIVE).unwrap();
        assert!(near.nodelay().unwrap());
        let socket = SockRef::from(&near);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE.time);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE.retries);
    }

    #[tokio::test]
    async fn a_held_socket_ends_by_reset_unless_it_is_finished() {
        let (near, mut far) = pair().await;
        drop(Held::new(near));
        assert_eq!(far.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);

        let (mut near, mut far) = pair().await;
        near.write_all(b"all").await.unwrap();
        Held::new(near).finish();
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"all");
    }
}
