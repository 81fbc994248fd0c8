//! Sockets made inside the pod, with which its servers are asked.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use loam_node::Kind;
use tokio::net::{TcpStream, UdpSocket};

use crate::pods::Pod;

/// Makes sockets inside a pod. They are exempt from the redirect: what they send is not captured again.
pub trait Inside: Send + Sync + 'static {
    /// A UDP socket that may be connected to `server`.
    fn udp(&self, server: IpAddr) -> impl Future<Output = io::Result<UdpSocket>> + Send;

    /// A connection to `server`.
    fn tcp(&self, server: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;
}

impl Inside for Arc<Pod> {
    async fn udp(&self, server: IpAddr) -> io::Result<UdpSocket> {
        self.asking_socket(server).await.map_err(io::Error::other)
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(Kind::outbound(server.ip())).await.map_err(io::Error::other)?;
        socket.connect(server).await
    }
}
