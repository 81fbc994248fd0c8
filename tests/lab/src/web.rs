//! An HTTP server that costs as little as a server can: what is measured through it is the way to it.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The answer to every request over a connection that stays.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 64\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The answer to whoever wants no other. It announces the end: to a client that is not told, the end of a connection
/// over which it could ask again is a failure.
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 64\r\n\
    connection: close\r\n\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Longest head of a request.
const MAX_HEAD_BYTES: usize = 4096;

/// Serves for ever.
pub(crate) async fn run(listen: SocketAddr) -> Result<()> {
    let socket = if listen.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen).with_context(|| format!("bind {listen}"))?;
    let listener: TcpListener = socket.listen(4096)?;
    println!("serving");
    loop {
        // A client that left before it was accepted is no reason to stop.
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; MAX_HEAD_BYTES];
    let mut filled = 0;
    loop {
        let Some(head) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4) else {
            let n = stream.read(&mut buffer[filled..]).await?;
            if n == 0 {
                return Ok(());
            }
            filled += n;
            continue;
        };
        if wants_close(&buffer[..head]) {
            stream.write_all(LAST_ANSWER).await?;
            return stream.shutdown().await;
        }
        stream.write_all(ANSWER).await?;
        buffer.copy_within(head..filled, 0);
        filled -= head;
    }
}

fn wants_close(head: &[u8]) -> bool {
    let wanted = b"connection: close";
    head.split(|&b| b == b'\n').any(|line| line.get(..wanted.len()).is_some_and(|l| l.eq_ignore_ascii_case(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_asks_for_it_is_cut_off() {
        assert!(wants_close(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!wants_close(b"GET /connection: close HTTP/1.1\r\nHost: a\r\n\r\n"));
    }

    #[test]
    fn the_answers_are_as_long_as_they_say() {
        for answer in [ANSWER, LAST_ANSWER] {
            let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            assert_eq!(answer.len() - at, 64);
        }
    }

    #[test]
    fn only_the_last_answer_announces_the_end() {
        assert!(wants_close(LAST_ANSWER) && !wants_close(ANSWER));
    }
}
