//! Both ends of a tunnel and their applications in one process over loopback: numbers to compare settings with, not
//! to publish. `cargo run -p loam-hbone --example bench [seconds per line]`

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers, which may fail aloud")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loam_core::addr::{DownstreamAddr, NextHop};
use loam_core::ids::Identity;
use loam_hbone::{
    ConnectHeaders, Handler, Hooks, Incoming, Limits, Malformed, OpenRequest, Pool, PoolConfig, TunnelKey, serve,
};
use loam_tls::testing::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Forward;

impl Handler for Forward {
    async fn connect(&self, incoming: Box<Incoming>) {
        let app = TcpStream::connect(incoming.request().authority.to_string()).await.unwrap();
        app.set_nodelay(true).unwrap();
        incoming.accept(app, None, Hooks::none()).await;
    }

    fn malformed(&self, _: &Identity, _: DownstreamAddr, _: &Malformed) {}
}

#[derive(Clone)]
struct Bench {
    pool: Arc<Pool>,
    key: Arc<TunnelKey>,
    request: OpenRequest,
    front: SocketAddr,
}

impl Bench {
    async fn new(app: SocketAddr) -> Self {
        let ca = TestCa::new("cluster.local");
        let (web, db) = (ca.identity("shop", "web"), ca.identity("shop", "db"));
        let server = ca.credentials(&db);
        let hbone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let next_hop = NextHop::new(hbone.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (socket, _) = hbone.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    serve(socket, &server, &Limits::default(), &Arc::new(Forward), std::future::pending()).await
                });
            }
        });
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bench = Self {
            pool: Arc::new(Pool::new(PoolConfig::default())),
            key: Arc::new(TunnelKey::new(web.clone(), vec![db], next_hop, "pod".into())),
            request: OpenRequest {
                authority: app.into(),
                headers: ConnectHeaders::default(),
                credentials: ca.credentials(&web),
                dialer: Arc::new(|next_hop: NextHop| TcpStream::connect(next_hop.get())),
            },
            front: front.local_addr().unwrap(),
        };
        let accept = bench.clone();
        tokio::spawn(async move {
            loop {
                let (app, _) = front.accept().await.unwrap();
                app.set_nodelay(true).unwrap();
                let bench = accept.clone();
                tokio::spawn(async move {
                    let opened = bench.pool.open(&bench.key, &bench.request).await.unwrap();
                    opened.carry(app, Hooks::none()).await
                });
            }
        });
        bench
    }

    async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.front).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }
}

/// The first byte of a connection chooses: a sink for bulk, or an echo of 100 bytes.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut buf = vec![0; 256 << 10];
                let bulk = matches!(socket.read(&mut buf[..1]).await, Ok(1) if buf[0] == b'b');
                if bulk {
                    while matches!(socket.read(&mut buf).await, Ok(n) if n > 0) {}
                } else {
                    while socket.read_exact(&mut buf[..100]).await.is_ok() {
                        if socket.write_all(&buf[..100]).await.is_err() {
                            break;
                        }
                    }
                }
            });
        }
    });
    addr
}

/// Runs `task` until the time is over; the sum of what the tasks counted, per second, and the CPU seconds used.
async fn measure<F, Task>(bench: &Bench, tasks: usize, time: Duration, task: F) -> (f64, f64)
where
    F: Fn(Bench, Arc<AtomicBool>, Arc<AtomicU64>) -> Task,
    Task: Future<Output = ()> + Send + 'static,
{
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..tasks {
        all.spawn(task(bench.clone(), stop.clone(), count.clone()));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (begin, cpu, before) = (Instant::now(), cpu_seconds(), count.load(Ordering::Relaxed));
    tokio::time::sleep(time).await;
    let (done, used) = (count.load(Ordering::Relaxed) - before, cpu_seconds() - cpu);
    let rate = done as f64 / begin.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    all.join_all().await;
    (rate, used / done.max(1) as f64)
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let time = Duration::from_secs_f64(std::env::args().nth(1).map_or(2.0, |s| s.parse().unwrap()));
    let bench = Bench::new(application().await).await;
    for streams in [1, 4] {
        let bulk = |bench: Bench, stop: Arc<AtomicBool>, count: Arc<AtomicU64>| async move {
            let mut socket = bench.connect().await;
            socket.write_all(b"b").await.unwrap();
            let piece = vec![7; 256 << 10];
            while !stop.load(Ordering::Relaxed) {
                socket.write_all(&piece).await.unwrap();
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        };
        let (rate, cpu) = measure(&bench, streams, time, bulk).await;
        println!("bulk {streams:>3}         {:6.2} Gb/s      {:5.2} core-s/GB", rate * 8.0 / 1e9, cpu * 1e9);
    }
    for connections in [1, 64] {
        let ask = |bench: Bench, stop: Arc<AtomicBool>, count: Arc<AtomicU64>| async move {
            let mut socket = bench.connect().await;
            socket.write_all(b"r").await.unwrap();
            let mut buf = [0; 100];
            while !stop.load(Ordering::Relaxed) {
                socket.write_all(&buf).await.unwrap();
                socket.read_exact(&mut buf).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (rate, cpu) = measure(&bench, connections, time, ask).await;
        println!("requests {connections:>3}   {:8.0} /s         {:5.1} us each", rate, cpu * 1e6);
    }
    let fresh = |bench: Bench, stop: Arc<AtomicBool>, count: Arc<AtomicU64>| async move {
        let mut buf = [0; 100];
        while !stop.load(Ordering::Relaxed) {
            let mut socket = bench.connect().await;
            socket.write_all(b"r").await.unwrap();
            socket.write_all(&buf).await.unwrap();
            socket.read_exact(&mut buf).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (rate, cpu) = measure(&bench, 16, time, fresh).await;
    println!("connections    {:8.0} /s         {:5.1} us each", rate, cpu * 1e6);

    let bulk = tokio::spawn({
        let bench = bench.clone();
        async move {
            let mut socket = bench.connect().await;
            socket.write_all(b"b").await.unwrap();
            let piece = vec![7; 256 << 10];
            loop {
                socket.write_all(&piece).await.unwrap();
            }
        }
    });
    let mut socket = bench.connect().await;
    socket.write_all(b"r").await.unwrap();
    let (mut buf, mut waits, begin) = ([0; 100], Vec::new(), Instant::now());
    while begin.elapsed() < time {
        let asked = Instant::now();
        socket.write_all(&buf).await.unwrap();
        socket.read_exact(&mut buf).await.unwrap();
        waits.push(asked.elapsed());
    }
    bulk.abort();
    waits.sort_unstable();
    println!("small beside bulk  p50 {:?}  p99 {:?}", waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!("{:?}", bench.pool.stats());
}
