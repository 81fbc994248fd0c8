//! The one port of the control plane: configuration and certificates over TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use loam_tls::channel::Accepted;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

/// Connections at once: two for each node of the largest cluster we know of. More are closed at once.
const MAX_CONNECTIONS: usize = 10_000;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections whose handshake is done and that wait to be served.
const MAX_WAITING: usize = 128;

/// Pause after an accept that failed, which mostly means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests of one connection at once: a proxy has one stream, and asks for a few certificates.
pub const MAX_STREAMS: u32 = 64;

/// A connection that does not answer is dead, and its client asks again elsewhere.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long an answer to a ping may take.
pub const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long living streams may go on when the process ends. They never end by themselves.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves `router` until `end` is ready.
pub async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(MAX_WAITING);
    let accepting = tokio::spawn(accept(listener, config, ready));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = router.serve_with_incoming_shutdown(ReceiverStream::new(connections), async {
        // A dropped sender says the same.
        let _ = stopped.await;
    });
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = end => {
            accepting.abort();
            let _ = stop.send(());
            tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
        }
    };
    accepting.abort();
    served
}

/// A TCP connection that holds its place among [`MAX_CONNECTIONS`].
struct Counted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

type Connections = mpsc::Sender<io::Result<Accepted<Counted>>>;

async fn accept(listener: TcpListener, config: Arc<ServerConfig>, ready: Connections) {
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        tracing::warn!(limit = MAX_CONNECTIONS, "connection closed: there are too many");
                        continue;
                    };
                    let acceptor = acceptor.clone();
                    let ready = ready.clone();
                    handshakes.spawn(async move {
                        match handshake(&acceptor, Counted { stream, _place: place }).await {
                            // Nobody takes it: the server has ended.
                            Ok(connection) => drop(ready.send(Ok(connection)).await),
                            Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept of the control plane");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn handshake(acceptor: &TlsAcceptor, connection: Counted) -> io::Result<Accepted<Counted>> {
    connection.stream.set_nodelay(true)?;
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await;
    accepted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(Accepted)
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
