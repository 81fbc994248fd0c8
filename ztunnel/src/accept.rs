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

/// Connections that are still taken after the end began: as many as can wait in the listener's queue. More are new
/// ones, which a successor that shares the listener takes.
const MAX_LATE: usize = 4096;

/// Hands every connection to `serve` until `end` begins, and then those that wait already: nobody else may come for
/// them. A pod without a free permit has its connections reset: it
/// learns at once, and its neighbours do not notice.
pub(crate) async fn accept(
    listener: Arc<TcpListener>,
    permits: Arc<Semaphore>,
    end: Drain,
    mut serve: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let mut late = 0;
    loop {
        if end.has_started() {
            late += 1;
            if late > MAX_LATE {
                return;
            }
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = end.started() => return,
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
