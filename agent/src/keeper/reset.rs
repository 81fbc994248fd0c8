//! Refusing connections that nobody will serve: accept and reset, so that the other side knows at once.

use super::place::SharedListeners;
use socket2::SockRef;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How long to leave a listener alone after accepting failed, which is when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Resets whatever waits in the listeners and whatever comes, until it is dropped.
#[derive(Debug)]
pub(super) struct Resetting {
    // Aborts its tasks when dropped; none of them runs again after that.
    _tasks: JoinSet<()>,
}

impl Resetting {
    /// Begins. Must be called inside a tokio runtime.
    pub(super) fn start(listeners: &SharedListeners) -> io::Result<Self> {
        let mut tasks = JoinSet::new();
        for listener in listeners.tcp() {
            let listener = TcpListener::from_std(std::net::TcpListener::from(listener.try_clone()?))?;
            tasks.spawn(reset(listener));
        }
        Ok(Self { _tasks: tasks })
    }
}

async fn reset(listener: TcpListener) {
    loop {
        match listener.accept().await {
            // Closing with a linger of zero resets instead of finishing.
            Ok((stream, _)) => drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::sockets::Listeners;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    fn listeners() -> (SharedListeners, std::net::SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let clone = || OwnedFd::from(listener.try_clone().unwrap());
        (Arc::new(Listeners { mesh: [clone(), clone(), clone()], dns: None }), addr)
    }

    #[tokio::test]
    async fn what_waits_and_what_comes_is_reset() {
        let (listeners, addr) = listeners();
        let mut waiting = TcpStream::connect(addr).await.unwrap();
        let _resetting = Resetting::start(&listeners).unwrap();
        let mut coming = TcpStream::connect(addr).await.unwrap();
        for stream in [&mut waiting, &mut coming] {
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn after_the_stop_a_connection_waits_for_who_accepts() {
        let (listeners, addr) = listeners();
        drop(Resetting::start(&listeners).unwrap());
        let mut client = TcpStream::connect(addr).await.unwrap();
        let listener = TcpListener::from_std(listeners.mesh[0].try_clone().unwrap().into()).unwrap();
        let (served, _) = listener.accept().await.unwrap();
        drop(served);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
