//! Servers of known behaviour.
//!
//! A `talk` connection begins with a line that says what it wants:
//! `whoami <marker>`  each such line is answered with what the server sees, and the marker;
//! `speak <id> <bytes> <seed> <tag>`  sends so many bytes and ends its stream, then reads until the end;
//! `listen <id>`  answers `ok`, then reads until the end;
//! `reset`  answers `ok`, then resets;
//! `result <id>`  how the connection `<id>` ended, when it has.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use loam_tests::report::{Ending, Seen};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::client::kind;
use crate::payload::{Payload, Sum};

/// Longest request line.
const MAX_LINE_BYTES: u64 = 512;
/// Longest wait for a connection's end when its result is asked for.
const RESULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves for ever.
pub(crate) async fn run(echo: &[String], talk: &[String]) -> Result<()> {
    let results = Arc::new(Results::default());
    let mut tasks = tokio::task::JoinSet::new();
    for spec in echo {
        for listener in listeners(spec)? {
            tasks.spawn(accept(listener, |stream| async move {
                let _ = echo_all(stream).await;
            }));
        }
    }
    for spec in talk {
        for listener in listeners(spec)? {
            let results = results.clone();
            tasks.spawn(accept(listener, move |stream| {
                let results = results.clone();
                async move {
                    let _ = talk_on(stream, &results).await;
                }
            }));
        }
    }
    println!("serving");
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F,
) -> Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                stream.set_nodelay(true)?;
                tokio::spawn(serve(stream));
            }
            // The client is gone already, or descriptors are short for a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// A port means every address of both families.
fn listeners(spec: &str) -> Result<Vec<TcpListener>> {
    let addresses: Vec<SocketAddr> = match spec.parse::<u16>() {
        Ok(port) => vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()],
        Err(_) => vec![spec.parse().with_context(|| format!("{spec} is neither a port nor an address"))?],
    };
    let mut listeners = Vec::new();
    for address in addresses {
        let domain = Domain::for_address(address);
        let socket = match Socket::new(domain, Type::STREAM, None) {
            Err(_) if domain == Domain::IPV6 => continue,
            other => other?,
        };
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        listeners.push(TcpListener::from_std(socket.into())?);
    }
    Ok(listeners)
}

async fn echo_all(mut stream: TcpStream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match read.read(&mut buffer).await? {
            0 => return write.shutdown().await,
            n => write.write_all(&buffer[..n]).await?,
        }
    }
}

async fn talk_on(stream: TcpStream, results: &Results) -> io::Result<()> {
    let seen = Seen { peer: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) };
    let mut stream = BufReader::with_capacity(16 << 10, stream);
    loop {
        let Some(line) = read_line(&mut stream).await? else { return Ok(()) };
        let mut words = line.split_whitespace();
        let (word, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        match word {
            "whoami" => {
                let answer = format!("{} {id}\n", serde_json::to_string(&seen)?);
                stream.get_mut().write_all(answer.as_bytes()).await?;
            }
            "speak" => {
                let mut number = || words.next().and_then(|w| w.parse().ok()).unwrap_or_default();
                let (bytes, seed) = (number(), number());
                let payload = Payload::new(seed, words.next().unwrap_or_default());
                send(stream.get_mut(), payload, bytes).await?;
                stream.get_mut().shutdown().await?;
                results.put(id, read_to_end(&mut stream).await);
                return Ok(());
            }
            "listen" => {
                stream.get_mut().write_all(b"ok\n").await?;
                results.put(id, read_to_end(&mut stream).await);
                return Ok(());
            }
            "reset" => {
                stream.get_mut().write_all(b"ok\n").await?;
                // The client says when it has read it: a reset may overtake what is still on its way.
                let _ = read_line(&mut stream).await?;
                return stream.get_ref().set_zero_linger();
            }
            "result" => {
                let ending = tokio::time::timeout(RESULT_TIMEOUT, results.take(&id)).await;
                let line = match ending {
                    Ok(ending) => serde_json::to_string(&ending)?,
                    Err(_) => "null".into(),
                };
                stream.get_mut().write_all(format!("{line}\n").as_bytes()).await?;
            }
            _ => return Ok(()),
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A line without its end; nothing at the end of the stream.
pub(crate) async fn read_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = String::new();
    let n = stream.take(MAX_LINE_BYTES).read_line(&mut line).await?;
    Ok((n > 0).then(|| line.trim_end().to_owned()))
}

/// Sends the first `bytes` bytes of `payload`.
pub(crate) async fn send(to: &mut (impl AsyncWriteExt + Unpin), payload: Payload, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut sent = 0;
    while sent < bytes {
        let n = buffer.len().min(usize::try_from(bytes - sent).unwrap_or(usize::MAX));
        payload.fill(sent, &mut buffer[..n]);
        to.write_all(&buffer[..n]).await?;
        sent += n as u64;
    }
    Ok(())
}

/// Reads until the stream ends in whatever way.
async fn read_to_end(from: &mut (impl AsyncReadExt + Unpin)) -> Ending {
    let mut sum = Sum::default();
    let mut buffer = vec![0; 64 << 10];
    let how = loop {
        match from.read(&mut buffer).await {
            Ok(0) => break "end of stream".to_owned(),
            Ok(n) => sum.add(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break "reset".to_owned(),
            Err(e) => break kind(&e),
        }
    };
    Ending { how, bytes: sum.bytes(), sum: sum.value() }
}

/// How connections with an id ended, until somebody asks.
#[derive(Default)]
struct Results {
    ended: Mutex<HashMap<String, Ending>>,
    changed: Notify,
}

impl Results {
    fn put(&self, id: String, ending: Ending) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(id, ending);
        self.changed.notify_waiters();
    }

    async fn take(&self, id: &str) -> Ending {
        loop {
            let changed = self.changed.notified();
            if let Some(ending) = self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
                return ending;
            }
            changed.await;
        }
    }
}
