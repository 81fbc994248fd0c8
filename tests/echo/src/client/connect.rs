//! Connections to the target, in the clear or in TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::target::Target;

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where to connect, looked up once.
#[derive(Debug)]
pub(super) struct Addresses(Vec<SocketAddr>);

/// TLS towards a name.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    pub(super) name: ServerName<'static>,
}

impl Addresses {
    pub(super) async fn of(target: &Target) -> Result<Self> {
        let found = lookup_host((target.host(), target.port)).await;
        let found: Vec<_> = found.with_context(|| format!("look up {}", target.host()))?.collect();
        ensure!(!found.is_empty(), "{} has no address", target.host());
        Ok(Self(found))
    }

    /// A connection to the first that takes one.
    pub(super) async fn connect(&self, tls: Option<&Tls>) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.0.as_slice()).await.with_context(|| format!("connect to {:?}", self.0))?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(tls.name.clone(), stream).await;
        Ok(Box::new(stream.with_context(|| format!("TLS with {:?}", self.0))?))
    }
}
