//! A connection to a `talk` server, and failures with the stage they happened at.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use loam_tests::report::Seen;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::payload::marker;

/// Where and why an attempt failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    /// `connect`, `write`, `read`.
    pub(crate) stage: &'static str,
    /// The error's kind.
    pub(crate) error: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.stage, self.error)
    }
}

impl Failed {
    /// A failure of `stage`.
    pub(crate) fn at(stage: &'static str) -> impl Fn(io::Error) -> Self {
        move |e| Self { stage, error: kind(&e) }
    }
}

/// The error's kind as one word.
pub(crate) fn kind(error: &io::Error) -> String {
    format!("{:?}", error.kind())
}

/// Bounds a stage.
pub(crate) async fn within<T>(
    limit: Duration,
    stage: &'static str,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Failed { stage, error: format!("nothing after {limit:?}") }),
    }
}

/// Connects.
pub(crate) async fn connect(to: SocketAddr, bind: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(bind) = bind {
        socket.set_reuseaddr(true)?;
        socket.bind(bind)?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to a `talk` server that answers line by line.
#[derive(Debug)]
pub(crate) struct Talk {
    stream: BufReader<TcpStream>,
    request: String,
}

impl Talk {
    /// Speaks over an open connection, with markers of `tag`.
    pub(crate) fn over(stream: TcpStream, tag: &str) -> Self {
        Self { stream: BufReader::with_capacity(512, stream), request: format!("whoami {}\n", marker(tag)) }
    }

    /// Connects and speaks.
    pub(crate) async fn open(to: SocketAddr, tag: &str) -> Result<Self, Failed> {
        connect(to, None).await.map(|s| Self::over(s, tag)).map_err(Failed::at("connect"))
    }

    /// Asks who the server thinks we are.
    pub(crate) async fn ask(&mut self) -> Result<Seen, Failed> {
        self.stream.get_mut().write_all(self.request.as_bytes()).await.map_err(Failed::at("write"))?;
        let mut line = String::new();
        let n = self.stream.read_line(&mut line).await.map_err(Failed::at("read"))?;
        if n == 0 {
            return Err(Failed { stage: "read", error: "end of stream".into() });
        }
        let json = line.split(" LOAM").next().unwrap_or_default();
        serde_json::from_str(json).map_err(|e| Failed { stage: "read", error: format!("{e} in {line:?}") })
    }
}
