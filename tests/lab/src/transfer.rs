//! Transfers in which every byte, every end of stream and every reset is checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use loam_tests::report::{Ending, Transfers};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{connect, kind};
use crate::payload::{Mix, Payload, Sum};
use crate::serve::{read_line, send};

/// Longest life of one connection: 64 MB through two proxies on a busy machine take a few seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// What to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// Both directions at once through an `echo` server; the client ends its stream first.
    Echo,
    /// A `talk` server sends and ends its stream first; the client sends after that.
    Server,
    /// The client resets; the `talk` server must see a reset.
    ClientReset,
    /// The `talk` server resets; the client must see a reset.
    ServerReset,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The server.
    to: SocketAddr,
    /// Who ends it, and how.
    #[arg(long, value_enum)]
    order: Order,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Largest transfer.
    #[arg(long, default_value_t = 1 << 20)]
    max_bytes: u64,
    /// Every transfer is of the largest size.
    #[arg(long)]
    exactly: bool,
    /// Where the random sizes begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tag of the marker.
    #[arg(long, default_value = "transfer")]
    tag: String,
}

/// One transfer.
#[derive(Debug, Clone)]
struct Job {
    to: SocketAddr,
    seed: u64,
    bytes: u64,
    tag: String,
}

/// Runs them all.
pub(crate) async fn run(arguments: Arguments) -> Result<Transfers> {
    let start = Instant::now();
    let mut sizes = Mix(arguments.seed);
    let mut report = Transfers::default();
    let permits = Arc::new(Semaphore::new(arguments.parallel));
    let mut tasks = JoinSet::new();
    for number in 0..arguments.count {
        let bytes = if arguments.exactly { arguments.max_bytes } else { sizes.size(arguments.max_bytes) };
        let job = Job { to: arguments.to, seed: arguments.seed ^ (number << 20), bytes, tag: arguments.tag.clone() };
        let (permit, order) = (permits.clone().acquire_owned().await?, arguments.order);
        tasks.spawn(async move {
            let result = tokio::time::timeout(LIMIT, job.run(order)).await;
            drop(permit);
            let result = result.unwrap_or_else(|_| Err(format!("not done after {LIMIT:?}")));
            (bytes, result.map_err(|e| format!("{order:?} of {bytes} bytes, seed {}: {e}", job.seed)))
        });
    }
    while let Some(done) = tasks.join_next().await {
        match done? {
            (bytes, Ok(())) => {
                report.ok += 1;
                report.bytes += bytes;
            }
            (_, Err(e)) => report.errors.push(e),
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

type Checked<T = ()> = Result<T, String>;

fn at(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {}", kind(&e))
}

impl Job {
    async fn run(&self, order: Order) -> Checked {
        let stream = connect(self.to, None).await.map_err(at("connect"))?;
        match order {
            Order::Echo => self.echo(stream).await,
            Order::Server => self.server_first(stream).await,
            Order::ClientReset => self.client_reset(stream).await,
            Order::ServerReset => self.server_reset(stream).await,
        }
    }

    fn payload(&self) -> Payload {
        Payload::new(self.seed, &self.tag)
    }

    fn id(&self) -> String {
        format!("{}-{:x}", std::process::id(), self.seed)
    }

    async fn echo(&self, stream: TcpStream) -> Checked {
        let (mut read, mut write) = stream.into_split();
        let (payload, bytes) = (self.payload(), self.bytes);
        let sending = tokio::spawn(async move {
            send(&mut write, payload, bytes).await.map_err(at("send"))?;
            write.shutdown().await.map_err(at("end the stream"))?;
            Ok::<_, String>(write)
        });
        let received = expect(&mut read, payload, bytes).await;
        // The sender may be stuck behind what made the receiver fail.
        received?;
        sending.await.map_err(|e| e.to_string())?.map(drop)
    }

    async fn server_first(&self, stream: TcpStream) -> Checked {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let request = format!("speak {} {} {} {}\n", self.id(), self.bytes, self.seed, self.tag);
        stream.get_mut().write_all(request.as_bytes()).await.map_err(at("ask"))?;
        expect(&mut stream, self.payload(), self.bytes).await?;
        send(stream.get_mut(), self.payload(), self.bytes).await.map_err(at("send after the server's end"))?;
        stream.get_mut().shutdown().await.map_err(at("end the stream"))?;
        let ending = self.result().await?;
        if (ending.bytes, ending.sum) != (self.bytes, self.sum()) || ending.how != "end of stream" {
            return Err(format!("the server saw {ending:?}"));
        }
        Ok(())
    }

    async fn client_reset(&self, stream: TcpStream) -> Checked {
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(format!("listen {}\n", self.id()).as_bytes()).await.map_err(at("ask"))?;
        expect_ok(&mut stream).await?;
        stream.get_ref().set_zero_linger().map_err(at("linger"))?;
        drop(stream);
        let ending = self.result().await?;
        if ending.how != "reset" {
            return Err(format!("the server saw {ending:?}, not a reset"));
        }
        Ok(())
    }

    async fn server_reset(&self, stream: TcpStream) -> Checked {
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"reset\n").await.map_err(at("ask"))?;
        expect_ok(&mut stream).await?;
        stream.get_mut().write_all(b"go\n").await.map_err(at("ask"))?;
        match stream.read_u8().await {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("the client saw {other:?}, not a reset")),
        }
    }

    fn sum(&self) -> u64 {
        let mut sum = Sum::default();
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        while done < self.bytes {
            let n = buffer.len().min((self.bytes - done) as usize);
            self.payload().fill(done, &mut buffer[..n]);
            sum.add(&buffer[..n]);
            done += n as u64;
        }
        sum.value()
    }

    /// Asks the server, over another connection, how this one ended.
    async fn result(&self) -> Checked<Ending> {
        let mut stream = BufReader::new(connect(self.to, None).await.map_err(at("connect to ask"))?);
        stream.get_mut().write_all(format!("result {}\n", self.id()).as_bytes()).await.map_err(at("ask"))?;
        let line = read_line(&mut stream).await.map_err(at("read the result"))?.unwrap_or_default();
        serde_json::from_str(&line).map_err(|_| "the server saw no end at all".to_owned())
    }
}

async fn expect_ok(stream: &mut BufReader<TcpStream>) -> Checked {
    match read_line(stream).await {
        Ok(Some(line)) if line == "ok" => Ok(()),
        other => Err(format!("no ok but {other:?}")),
    }
}

/// Reads `bytes` bytes of `payload` and the end of the stream.
async fn expect(from: &mut (impl AsyncReadExt + Unpin), payload: Payload, bytes: u64) -> Checked {
    let mut buffer = vec![0; 64 << 10];
    let mut wanted = vec![0; 64 << 10];
    let mut done = 0;
    loop {
        let n = from.read(&mut buffer).await.map_err(|e| format!("read at {done}: {}", kind(&e)))?;
        if n == 0 {
            break;
        }
        payload.fill(done, &mut wanted[..n]);
        if let Some(i) = (0..n).find(|&i| buffer[i] != wanted[i]) {
            return Err(format!("byte {} is not what was sent", done + i as u64));
        }
        done += n as u64;
        if done > bytes {
            return Err(format!("{done} bytes instead of {bytes}"));
        }
    }
    if done == bytes { Ok(()) } else { Err(format!("end of stream after {done} bytes")) }
}
