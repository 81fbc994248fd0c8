//! Takes connections off a pod's listener.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use loam_rt::drain::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pause after an error that the next accept would meet again, such as a full descriptor table.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands every connection to `serve` until `end` begins. A pod without a free permit has its connections reset: it
/// learns at once, and its neighbours do not notice.
pub(crate) async fn accept(
    listener: Arc<TcpListener>,
    permits: Arc<Semaphore>,
    end: Drain,
    mut serve: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = end.started() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => match permits.clone().try_acquire_owned() {
                Ok(permit) => serve(socket, from, permit),
                Err(_) => loam_hbone::reset(socket),
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// accept(2): errors that a connection brought along say nothing about the next one.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
