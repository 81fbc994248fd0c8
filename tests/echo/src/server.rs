//! The server: ports of HTTP, gRPC and TCP, each in the clear or in TLS.

mod exchange;
mod websocket;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::answer::{self, Arrival, Place};
use crate::tls::Certificate;

/// Connections served at a time, on all ports; more wait in the listeners' queues.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take for a handshake, a request's head, or its first bytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, which mostly means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of TCP that are read and sent back.
const MAX_ECHO_BYTES: usize = 4096;

/// Ports and who we are. The names of the flags are the suite's.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// A port of HTTP/1.1, HTTP/2 and WebSocket; may be repeated
    #[arg(long = "port", value_name = "PORT", default_value = "8080")]
    http: Vec<u16>,
    /// A port of gRPC; may be repeated
    #[arg(long, value_name = "PORT", default_value = "7070")]
    grpc: Vec<u16>,
    /// A port of plain TCP; may be repeated
    #[arg(long, value_name = "PORT", default_value = "9090")]
    tcp: Vec<u16>,
    /// Which of these ports speaks TLS; may be repeated
    #[arg(long, value_name = "PORT")]
    tls: Vec<u16>,
    /// File of the certificate for TLS; one is made when there is no such file
    #[arg(long, value_name = "FILE", default_value = "/cert.crt")]
    crt: PathBuf,
    /// File of its key
    #[arg(long, value_name = "FILE", default_value = "/cert.key")]
    key: PathBuf,
    /// What answers say of the version
    #[arg(long, default_value = "")]
    version: String,
    /// Name of the pod; the machine's when left out
    #[arg(long, env = "POD_NAME")]
    hostname: Option<String>,
    /// Namespace of the pod
    #[arg(long, env = "NAMESPACE", default_value = "")]
    namespace: String,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, HTTP/2 with prior knowledge, WebSocket.
    Http,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

/// A port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// Its number; 0 is any that is free.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether in TLS.
    pub is_tls: bool,
}

impl Flags {
    /// The ports to listen on; an error when two of them are one, or TLS is wanted where nobody listens.
    fn doors(&self) -> Result<Vec<Door>> {
        let of = |ports: &[u16], protocol| -> Vec<Door> {
            ports.iter().map(|&port| Door { port, protocol, is_tls: self.tls.contains(&port) }).collect()
        };
        let doors =
            [of(&self.http, Protocol::Http), of(&self.grpc, Protocol::Grpc), of(&self.tcp, Protocol::Tcp)].concat();
        for (index, door) in doors.iter().enumerate() {
            let is_new = doors[..index].iter().all(|other| other.port != door.port);
            ensure!(is_new, "port {} is named twice", door.port);
        }
        for port in &self.tls {
            ensure!(doors.iter().any(|door| door.port == *port), "--tls names port {port}, which nobody listens on");
        }
        Ok(doors)
    }

    fn place(&self) -> Place {
        let machine = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Place {
            hostname: self.hostname.clone().unwrap_or_else(machine),
            namespace: self.namespace.clone(),
            version: self.version.clone(),
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(flags: &Flags) -> Result<()> {
    let certificate = Certificate::read_or_make(&flags.crt, &flags.key)?;
    let server = Server::bind(Ipv6Addr::UNSPECIFIED.into(), &flags.doors()?, flags.place(), &certificate).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        never = server.serve() => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A server whose ports are open.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    place: Arc<Place>,
}

#[derive(Debug)]
struct Listener {
    door: Door,
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    /// Opens the ports. Where the machine has no IPv6, `::` means all IPv4 addresses.
    pub async fn bind(ip: IpAddr, doors: &[Door], place: Place, certificate: &Certificate) -> Result<Self> {
        let mut listeners = Vec::new();
        for &door in doors {
            let socket = listen(SocketAddr::new(ip, door.port)).await;
            let socket = socket.with_context(|| format!("listen on port {}", door.port))?;
            let protocols: &[&str] = match door.protocol {
                Protocol::Http => &["h2", "http/1.1"],
                Protocol::Grpc => &["h2"],
                Protocol::Tcp => &[],
            };
            let tls = door.is_tls.then(|| certificate.server(protocols)).transpose()?;
            listeners.push(Listener { door, socket, tls });
        }
        Ok(Self { listeners, place: Arc::new(place) })
    }

    /// Where each port is.
    pub fn addrs(&self) -> io::Result<Vec<(Door, SocketAddr)>> {
        self.listeners.iter().map(|listener| Ok((listener.door, listener.socket.local_addr()?))).collect()
    }

    /// Serves for as long as it is awaited.
    pub async fn serve(self) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(listener.accept(Arc::clone(&self.place), Arc::clone(&permits)));
        }
        while accepting.join_next().await.is_some() {}
        // Without a port there is nothing to wait for but the end.
        std::future::pending().await
    }
}

async fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(_) if addr.ip() == Ipv6Addr::UNSPECIFIED => TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await,
        result => result,
    }
}

impl Listener {
    async fn accept(self, place: Arc<Place>, permits: Arc<Semaphore>) {
        let port = self.socket.local_addr().map_or(self.door.port, |addr| addr.port());
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
                (self.socket.accept().await, permit)
            };
            tokio::select! {
                Some(_) = connections.join_next() => {}
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, client)) => {
                        let arrival = Arrival { port, client: client.ip().to_canonical(), alpn: String::new() };
                        let work = connection(stream, self.door.protocol, self.tls.clone(), Arc::clone(&place), arrival);
                        connections.spawn(async move {
                            // How a client's connection ends is of no interest.
                            let _ = work.await;
                            drop(permit);
                        });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    protocol: Protocol,
    tls: Option<Arc<ServerConfig>>,
    place: Arc<Place>,
    mut arrival: Arrival,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return speak(stream, protocol, place, arrival).await };
    let stream = tokio::time::timeout(PATIENCE, TlsAcceptor::from(tls).accept(stream)).await??;
    let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default();
    arrival.alpn = String::from_utf8_lossy(agreed).into_owned();
    speak(stream, protocol, place, arrival).await
}

async fn speak<S>(stream: S, protocol: Protocol, place: Arc<Place>, arrival: Arrival) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Http => {
            let answer = move |request| exchange::http(Arc::clone(&place), arrival.clone(), request);
            let service = service_fn(answer);
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            served.map_err(|error| anyhow::anyhow!(error))
        }
        Protocol::Grpc => {
            let answer = move |request| exchange::grpc(Arc::clone(&place), arrival.clone(), request);
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            Ok(builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await?)
        }
        Protocol::Tcp => tokio::time::timeout(PATIENCE, echo(stream, &answer::tcp(&place, &arrival))).await?,
    }
}

/// Answers what comes first with who we are and with itself.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, who: &str) -> Result<()> {
    let mut received = vec![0; MAX_ECHO_BYTES];
    let length = stream.read(&mut received).await?;
    // Not before: a client may look for what a server says unasked.
    stream.write_all(who.as_bytes()).await?;
    stream.write_all(&received[..length]).await?;
    Ok(stream.shutdown().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Part, Program};

    fn flags(line: &str) -> Flags {
        let arguments = std::iter::once("server").chain(line.split_whitespace()).map(Into::into);
        match Program::read(arguments).unwrap().part {
            Part::Server(flags) => flags,
            Part::Client(_) => unreachable!("it is called server"),
        }
    }

    #[test]
    fn ports_are_as_the_suites_manifests_name_them() {
        let door = |port, protocol, is_tls| Door { port, protocol, is_tls };
        let mesh = "--tcp=9090 --port=8080 --grpc=7070 --port=8443 --tls=8443 --crt=/cert.crt --key=/cert.key";
        let (http, grpc, tcp) = (Protocol::Http, Protocol::Grpc, Protocol::Tcp);
        let expected =
            [door(8080, http, false), door(8443, http, true), door(7070, grpc, false), door(9090, tcp, false)];
        assert_eq!(flags(mesh).doors().unwrap(), expected);
        // The consumer's pod gives no arguments.
        assert_eq!(flags("").doors().unwrap(), [expected[0], expected[2], expected[3]]);
    }

    #[test]
    fn a_port_with_two_protocols_and_tls_without_a_port_are_refused() {
        for (line, what) in [("--port=8080 --grpc=8080", "8080 is named twice"), ("--tls=8443", "names port 8443")] {
            let error = flags(line).doors().unwrap_err().to_string();
            assert!(error.contains(what), "{line}: {error}");
        }
    }
}
