//! HTTP GET as small as it can be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Bound on connecting and on each read.
const LIMIT: Duration = Duration::from_secs(10);

/// Prints the body.
pub(crate) fn run(url: &str, any_status: bool) -> Result<()> {
    let rest = url.strip_prefix("http://").context("only http:// is known")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains("]:") || (host.contains(':') && !host.ends_with(']')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut stream = TcpStream::connect_timeout(&address.parse().context("only numeric addresses are known")?, LIMIT)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: loam-lab\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer has no end of headers")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    if !any_status && !status.starts_with('2') {
        bail!("status {status}: {}", String::from_utf8_lossy(&answer[end + 4..]));
    }
    let body = &answer[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_vec() };
    std::io::stdout().write_all(&body).map_err(Into::into)
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").context("a chunk has no length")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..line])?.split(';').next().unwrap_or("").trim(), 16)?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..size).context("a chunk is cut")?);
        rest = rest.get(size + 2..).context("a chunk is cut")?;
    }
}
