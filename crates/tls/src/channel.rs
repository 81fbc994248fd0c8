//! gRPC over TLS to the control plane.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client, server};
use tonic::codegen::Service;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::cert;
use crate::provider::{ALPN, VERSIONS, provider};

/// Longest wait for the connection with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle connection with streams is probed, and how long the answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest file of roots or tokens that is read: a wrong path must not fill the memory.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where the control plane is and what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// `host:port` to dial.
    pub address: String,
    /// Name or address in its certificate; the host of `address` when absent.
    pub server_name: Option<String>,
    /// File with the roots that may vouch for it, in PEM.
    pub root_file: PathBuf,
}

/// The channel to the control plane cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ChannelError {
    #[error("read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: no certificate that can be used as a root", .0.display())]
    Roots(PathBuf),
    #[error("control plane address {0:?}: is not host:port")]
    Address(String),
    #[error("control plane name {0:?}: is neither a DNS name nor an address")]
    ServerName(String),
    #[error("configure TLS: {0}")]
    Tls(rustls::Error),
}

/// What carries bytes to the control plane, below TLS.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Opens a connection to a host and port.
pub type Dial = Arc<dyn Fn(String, u16) -> BoxFuture<io::Result<Box<dyn Wire>>> + Send + Sync>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Dials TCP in the namespace of this process.
pub fn tcp() -> Dial {
    Arc::new(|host, port| {
        Box::pin(async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(tcp) as Box<dyn Wire>)
        })
    })
}

/// Hands out a channel; it is made anew when the file of roots changes.
pub struct Channels {
    to: ControlPlane,
    dial: Dial,
    current: Mutex<Option<(Vec<u8>, Channel)>>,
}

impl Channels {
    /// Nothing is read or dialled yet.
    pub fn new(to: ControlPlane, dial: Dial) -> Self {
        Self { to, dial, current: Mutex::new(None) }
    }

    /// The channel for one call. It dials when first used and again after a failure.
    pub async fn channel(&self) -> Result<Channel, ChannelError> {
        // Files from volumes are replaced by renaming directories: only their content tells a change reliably, and
        // calls are rare.
        let roots = read(&self.to.root_file).await?;
        if let Some((of, channel)) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner)
            && *of == roots
        {
            return Ok(channel.clone());
        }
        let channel = channel(&self.to, &roots, self.dial.clone())?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((roots, channel.clone()));
        Ok(channel)
    }
}

/// A channel that trusts the roots in `roots_pem`; it dials when first used.
pub fn channel(to: &ControlPlane, roots_pem: &[u8], dial: Dial) -> Result<Channel, ChannelError> {
    let bad_address = || ChannelError::Address(to.address.clone());
    let uri: Uri = format!("http://{}", to.address).parse().map_err(|_| bad_address())?;
    let (host, port) = (uri.host().ok_or_else(bad_address)?, uri.port_u16().ok_or_else(bad_address)?);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = to.server_name.clone().unwrap_or_else(|| host.clone());
    let origin: Uri = format!("https://{}", to.address).parse().map_err(|_| bad_address())?;
    let server_name = ServerName::try_from(name.clone()).map_err(|_| ChannelError::ServerName(name))?;
    let config = config(roots_pem).map_err(|e| match e {
        None => ChannelError::Roots(to.root_file.clone()),
        Some(e) => ChannelError::Tls(e),
    })?;
    let connector = Connector { host, port, dial, server_name, tls: TlsConnector::from(Arc::new(config)) };
    Ok(Endpoint::from(uri)
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .connect_with_connector_lazy(connector))
}

/// `None` as error: no usable root.
fn config(roots_pem: &[u8]) -> Result<ClientConfig, Option<rustls::Error>> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> = cert::certificates_in_pem(roots_pem).map_err(|_| None)?;
    let (usable, _) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(None);
    }
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(VERSIONS)
        .map_err(Some)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Reads a small file.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, ChannelError> {
    let fail = |source| ChannelError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(fail)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).await.map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(io::Error::other("is larger than 1 MiB")));
    }
    Ok(bytes)
}

struct Connector {
    host: String,
    port: u16,
    dial: Dial,
    server_name: ServerName<'static>,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<client::TlsStream<Box<dyn Wire>>>;
    type Error = io::Error;
    type Future = BoxFuture<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (host, port, name, tls) = (self.host.clone(), self.port, self.server_name.clone(), self.tls.clone());
        let wire = (self.dial)(host.clone(), port);
        Box::pin(async move {
            let context = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what} {host}:{port}: {e}"));
            let wire = wire.await.map_err(|e| context("dial", e))?;
            let stream = tls.connect(name, wire).await.map_err(|e| context("TLS with", e))?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// The other end: an accepted TLS connection as tonic's server takes it.
pub struct Accepted<IO>(pub server::TlsStream<IO>);

impl<IO> Connected for Accepted<IO> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Accepted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Accepted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
