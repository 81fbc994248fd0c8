//! Two ztunnels in miniature, and the applications that speak through them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use loam_core::addr::{DownstreamAddr, NextHop};
use loam_core::ids::Identity;
use loam_core::reason::Reason;
use loam_hbone::{
    ConnectHeaders, Handler, Hooks, Incoming, Limits, Malformed, OpenError, OpenRequest, Opened, Outcome, Pool,
    PoolConfig, Request, ServeError, Served, TunnelKey, serve,
};
use loam_tls::Credentials;
use loam_tls::testing::TestCa;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A CA and the two workloads of every test.
pub(crate) struct Mesh {
    pub(crate) ca: TestCa,
    pub(crate) web: Identity,
    pub(crate) db: Identity,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let ca = TestCa::new("cluster.local");
        let (web, db) = (ca.identity("shop", "web"), ca.identity("shop", "db"));
        Self { ca, web, db }
    }

    /// A request for `authority` that dials as `web`.
    pub(crate) fn request(&self, authority: &str, dials: &Arc<AtomicUsize>) -> OpenRequest {
        let dials = dials.clone();
        OpenRequest {
            authority: authority.parse().unwrap(),
            headers: ConnectHeaders { baggage: Some("k8s.namespace.name=shop".into()), ..Default::default() },
            credentials: self.ca.credentials(&self.web),
            dialer: Arc::new(move |next_hop: NextHop| {
                dials.fetch_add(1, Ordering::SeqCst);
                TcpStream::connect(next_hop.get())
            }),
        }
    }

    /// The key for a tunnel from `web` to the server at `addr`, which must prove to be `db`.
    pub(crate) fn key(&self, addr: SocketAddr) -> Arc<TunnelKey> {
        Arc::new(TunnelKey::new(self.web.clone(), vec![self.db.clone()], NextHop::new(addr), "pod".into()))
    }
}

/// What the server does with a CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// Dials the application at the authority.
    Forward,
    Refuse(Reason),
    /// Waits until the peer has gone away.
    Wait,
    /// Takes the stream as bytes, and sends them back where the echo port is asked for. Elsewhere nothing is read.
    Stream,
}

/// The port at which [`Answer::Stream`] sends back what comes.
pub(crate) const ECHO_PORT: u16 = 7;

pub(crate) struct TestHandler {
    pub(crate) answer: Answer,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) malformed: AtomicUsize,
    outcomes: mpsc::UnboundedSender<Outcome>,
}

impl Handler for TestHandler {
    async fn connect(&self, mut incoming: Box<Incoming>) {
        self.requests.lock().unwrap().push(incoming.request().clone());
        match self.answer {
            Answer::Forward => {
                let app = TcpStream::connect(incoming.request().authority.to_string()).await.unwrap();
                // So that what an application does not read waits in the tunnel and not in the kernel.
                SockRef::from(&app).set_send_buffer_size(64 << 10).unwrap();
                let outcome = incoming.accept(app, Some("k8s.pod.name=db-1"), Hooks::none()).await;
                self.outcomes.send(outcome).ok();
            }
            Answer::Refuse(reason) => incoming.refuse(reason),
            Answer::Wait => incoming.gone().await,
            Answer::Stream => {
                let echoes = incoming.request().authority.port() == ECHO_PORT;
                let mut stream = incoming.accept_stream(None).unwrap();
                if !echoes {
                    std::future::pending::<()>().await;
                }
                let (mut read, mut write) = tokio::io::split(&mut stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            }
        }
    }

    fn malformed(&self, _: &Identity, _: DownstreamAddr, _: &Malformed) {
        self.malformed.fetch_add(1, Ordering::SeqCst);
    }
}

/// The receiving ztunnel.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) handler: Arc<TestHandler>,
    pub(crate) outcomes: mpsc::UnboundedReceiver<Outcome>,
    /// How each tunnel ended.
    pub(crate) tunnels: mpsc::UnboundedReceiver<Result<Served, ServeError>>,
    drain: watch::Sender<bool>,
    pub(crate) task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(credentials: Arc<Credentials>, answer: Answer, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (outcome_sender, outcomes) = mpsc::unbounded_channel();
        let (tunnel_sender, tunnels) = mpsc::unbounded_channel();
        let handler = Arc::new(TestHandler {
            answer,
            requests: Mutex::default(),
            malformed: AtomicUsize::new(0),
            outcomes: outcome_sender,
        });
        let (drain, draining) = watch::channel(false);
        let for_tunnels = handler.clone();
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (credentials, limits) = (credentials.clone(), limits.clone());
                let (handler, sender, mut draining) = (for_tunnels.clone(), tunnel_sender.clone(), draining.clone());
                serving.spawn(async move {
                    let drain = async move {
                        draining.wait_for(|drain| *drain).await.ok();
                    };
                    sender.send(serve(socket, &credentials, &limits, &handler, drain).await).ok();
                });
            }
        });
        Self { addr, handler, outcomes, tunnels, drain, task }
    }

    pub(crate) async fn forwarding(mesh: &Mesh) -> Self {
        Self::start(mesh.ca.credentials(&mesh.db), Answer::Forward, Limits::default()).await
    }

    pub(crate) fn drain(&self) {
        self.drain.send_replace(true);
    }
}

/// Both ztunnels and a listening application behind them.
pub(crate) struct Pair {
    pub(crate) mesh: Mesh,
    pub(crate) pool: Arc<Pool>,
    pub(crate) server: Server,
    pub(crate) app: TcpListener,
    pub(crate) key: Arc<TunnelKey>,
    pub(crate) request: OpenRequest,
    pub(crate) dials: Arc<AtomicUsize>,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let mesh = Mesh::new();
        let server = Server::forwarding(&mesh).await;
        Self::with(mesh, server).await
    }

    pub(crate) async fn with(mesh: Mesh, server: Server) -> Self {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dials = Arc::new(AtomicUsize::new(0));
        let request = mesh.request(&app.local_addr().unwrap().to_string(), &dials);
        let key = mesh.key(server.addr);
        Self { pool: Arc::new(Pool::new(PoolConfig::default())), mesh, server, app, key, request, dials }
    }

    pub(crate) async fn open(&self) -> Result<Opened, OpenError> {
        self.pool.open(&self.key, &self.request).await
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    /// One carried connection: the client's socket, the server's socket, and the outcome on the sending side.
    pub(crate) async fn connect(&self) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
        self.connect_with(Hooks::none()).await
    }

    pub(crate) async fn connect_with(&self, hooks: Hooks) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
        let (opened, accepted) = tokio::join!(self.open(), self.app.accept());
        let (client, ours) = sockets().await;
        let carried = tokio::spawn(opened.unwrap().carry(ours, hooks));
        (client, accepted.unwrap().0, carried)
    }
}

/// Polls a future once.
pub(crate) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Two ends of a TCP connection.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Sends back what comes until FIN, then FIN.
pub(crate) async fn echo(mut socket: TcpStream) -> io::Result<u64> {
    let (mut read, mut write) = socket.split();
    let n = tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await?;
    Ok(n)
}

/// Bytes without a pattern that a mistake could reproduce.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Reads to FIN.
pub(crate) async fn read_all(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await?;
    Ok(all)
}

/// Reads until the connection ends, which must be by a reset.
pub(crate) async fn expect_reset(socket: &mut TcpStream) {
    match read_all(socket).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("ended by {error} instead of a reset"),
        Ok(bytes) => panic!("ended by FIN after {} bytes instead of a reset", bytes.len()),
    }
}

/// Resets a connection from the application's side.
pub(crate) fn reset(socket: TcpStream) {
    socket.set_zero_linger().unwrap();
}
