//! Dials the application of a pod from inside the pod, with the client's own address.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loam_node::Kind;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::CONNECT_TIMEOUT;
use crate::pods::Pod;

/// Source ports of deliveries. They stay out of 32768-60999, from which clients draw theirs: a delivery
/// client:q -> pod:port whose q equals the port of the client's own plaintext connection to pod:port would run into
/// that connection instead of making one.
const HIGH_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// Used after the high ones; below 1024 are privileged.
const LOW_PORTS: std::ops::RangeInclusive<u16> = 1_024..=32_767;

/// How many ports one delivery tries before it gives up.
const MAX_TRIES: usize = 64;

/// The deliveries that live in one pod, by the address they come from.
#[derive(Debug, Default)]
pub struct Deliveries {
    next: AtomicU32,
    live: Mutex<HashSet<SocketAddr>>,
}

/// A delivery's place in the set; given back when dropped.
#[derive(Debug)]
pub struct Delivery {
    of: Arc<Deliveries>,
    from: SocketAddr,
}

impl Deliveries {
    /// Whether a connection from `peer` is one that we opened ourselves: accepting it would go round for ever.
    pub fn is_own(&self, peer: SocketAddr) -> bool {
        self.lock().contains(&peer)
    }

    /// Connects to `upstream` from inside `pod` as if `client` had.
    pub async fn dial(
        self: &Arc<Self>,
        pod: &Pod,
        client: IpAddr,
        upstream: SocketAddr,
    ) -> io::Result<(TcpStream, Delivery)> {
        timeout(CONNECT_TIMEOUT, self.connect(pod, client, upstream))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from the application")))
    }

    async fn connect(
        self: &Arc<Self>,
        pod: &Pod,
        client: IpAddr,
        upstream: SocketAddr,
    ) -> io::Result<(TcpStream, Delivery)> {
        if client == upstream.ip() {
            // The pod calls itself. Its own address needs no borrowing, and the mark of a delivery would send the
            // connection back to the outbound listener.
            let socket = pod.socket(Kind::outbound(client)).await.map_err(io::Error::other)?;
            let stream = socket.connect(upstream).await?;
            let from = stream.local_addr()?;
            self.lock().insert(from);
            return Ok((stream, Delivery { of: self.clone(), from }));
        }
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in self.candidates().take(MAX_TRIES) {
            let from = SocketAddr::new(client, port);
            let socket = pod.socket(Kind::inbound(upstream.ip())).await.map_err(io::Error::other)?;
            socket.set_reuseaddr(true)?;
            match socket.bind(from) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    last = error;
                    continue;
                }
                result => result?,
            }
            // Known as ours before its SYN can come back to one of our listeners.
            self.lock().insert(from);
            let delivery = Delivery { of: self.clone(), from };
            match socket.connect(upstream).await {
                Ok(stream) => return Ok((stream, delivery)),
                Err(error) if is_port_taken(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Ports to try, one after the other. The first is the one that was used longest ago. Where that is taken its
    /// neighbours probably are too, by the connections of a ztunnel before this one, so the others are far from it.
    fn candidates(&self) -> impl Iterator<Item = u16> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        std::iter::once(first).chain(std::iter::repeat_with(rand::random)).map(port)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.of.lock().remove(&self.from);
    }
}

/// The `n`th of the source ports, counted round.
fn port(n: u32) -> u16 {
    let high = u32::from(HIGH_PORTS.end() - HIGH_PORTS.start()) + 1;
    let low = u32::from(LOW_PORTS.end() - LOW_PORTS.start()) + 1;
    let n = n % (high + low);
    let port = if n < high { u32::from(*HIGH_PORTS.start()) + n } else { u32::from(*LOW_PORTS.start()) + n - high };
    u16::try_from(port).expect("both ranges end at a port")
}

/// The four addresses of the connection are in use, which bind cannot know.
fn is_port_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_stay_out_of_the_range_from_which_clients_draw_theirs() {
        let deliveries = Deliveries::default();
        let ports: HashSet<u16> = (0..40_000).filter_map(|_| deliveries.candidates().next()).collect();
        assert_eq!(ports.len(), 4_536 + 31_744);
        assert!(ports.iter().all(|port| !(32_768..61_000).contains(port) && *port >= 1_024));
    }

    #[test]
    fn a_run_of_taken_ports_is_left_behind() {
        let deliveries = Deliveries::default();
        let taken: HashSet<u16> = (0..10_000).map(port).collect();
        for _ in 0..1_000 {
            assert!(deliveries.candidates().take(MAX_TRIES).any(|port| !taken.contains(&port)));
        }
    }

    #[test]
    fn a_delivery_is_known_as_ours_while_it_lives() {
        let deliveries = Arc::new(Deliveries::default());
        let from = "10.0.0.1:61000".parse().unwrap();
        deliveries.lock().insert(from);
        let delivery = Delivery { of: deliveries.clone(), from };
        assert!(deliveries.is_own(from));
        drop(delivery);
        assert!(!deliveries.is_own(from));
    }
}
