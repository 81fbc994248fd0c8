//! What is spoken in a connection: as declared, and where nothing is declared, by its first bytes.

use std::time::Duration;

use bytes::BytesMut;
use loam_core::service::AppProtocol;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::stream::Prefixed;

/// How a client of HTTP/2 begins (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client on an undeclared port may be silent before its server is taken to speak first, which no HTTP
/// server does.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Methods by which HTTP/1 is known on an undeclared port (RFC 9110 9.1, RFC 5789).
const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Something else, which is carried as it is.
    Opaque,
}

/// What was declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// HTTP of either version.
    Http,
    /// Something else.
    Opaque,
    /// Nothing.
    Nothing,
}

impl From<AppProtocol> for Declared {
    fn from(declared: AppProtocol) -> Self {
        match declared {
            AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => Declared::Http,
            AppProtocol::Tcp | AppProtocol::Tls => Declared::Opaque,
            AppProtocol::Unknown => Declared::Nothing,
        }
    }
}

/// What the first bytes of a connection say, once they say it.
fn read(first: &[u8], declared: Declared) -> Option<Protocol> {
    let might_be = |known: &[u8]| known.starts_with(first) || first.starts_with(known);
    match declared {
        Declared::Opaque => Some(Protocol::Opaque),
        _ if first.starts_with(PREFACE) => Some(Protocol::Http2),
        _ if PREFACE.starts_with(first) => None,
        Declared::Http => Some(Protocol::Http1),
        Declared::Nothing if METHODS.iter().any(|method| first.starts_with(method)) => Some(Protocol::Http1),
        Declared::Nothing if METHODS.iter().any(|method| might_be(method)) => None,
        Declared::Nothing => Some(Protocol::Opaque),
    }
}

/// Finds out what is spoken in `io`. `None` when it ends or fails before a byte came that would say.
pub async fn sniff<T: AsyncRead + Unpin>(mut io: T, declared: Declared) -> Option<(Protocol, Prefixed<T>)> {
    let mut first = BytesMut::new();
    loop {
        if let Some(protocol) = read(&first, declared) {
            return Some((protocol, Prefixed::new(first.freeze(), io)));
        }
        let more = io.read_buf(&mut first);
        let n = match declared {
            Declared::Nothing => match timeout(SILENCE_TIMEOUT, more).await {
                Ok(n) => n,
                Err(_) => return Some((Protocol::Opaque, Prefixed::new(first.freeze(), io))),
            },
            Declared::Http | Declared::Opaque => more.await,
        };
        match (n, declared) {
            (Err(_), _) => return None,
            (Ok(0), Declared::Nothing) => return Some((Protocol::Opaque, Prefixed::new(first.freeze(), io))),
            (Ok(0), Declared::Http | Declared::Opaque) if first.is_empty() => return None,
            // A server of HTTP/1 knows what to say to that.
            (Ok(0), Declared::Http | Declared::Opaque) => {
                return Some((Protocol::Http1, Prefixed::new(first.freeze(), io)));
            }
            (Ok(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::{Instant, sleep};

    use super::*;

    async fn check(declared: Declared, pieces: &[&str], expected: Option<Protocol>) {
        let (mut client, server) = tokio::io::duplex(4096);
        let write = async {
            for piece in pieces {
                client.write_all(piece.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            client
        };
        let (client, found) = tokio::join!(write, sniff(server, declared));
        assert_eq!(found.as_ref().map(|(protocol, _)| *protocol), expected, "{declared:?} {pieces:?}");
        let Some((_, mut io)) = found else { return };
        drop(client);
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, pieces.concat(), "what was looked at is read again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_declared_as_http_is_http_of_the_version_that_the_client_begins_with() {
        check(Declared::Http, &["GET / HTTP/1.1\r\n"], Some(Protocol::Http1)).await;
        check(Declared::Http, &["brew /pot HTTP/1.1\r\n"], Some(Protocol::Http1)).await;
        check(Declared::Http, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], Some(Protocol::Http2)).await;
        check(Declared::Http, &["PRI", " * HTTP/2.0\r\n\r\n", "SM\r\n\r\nmore"], Some(Protocol::Http2)).await;
        check(Declared::Http, &["P", "OST / HTTP/1.1\r\n"], Some(Protocol::Http1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_declared_as_something_else_is_not_looked_at() {
        check(Declared::Opaque, &[], Some(Protocol::Opaque)).await;
        check(Declared::Opaque, &["GET / HTTP/1.1\r\n"], Some(Protocol::Opaque)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_declared_the_first_bytes_say_it() {
        check(Declared::Nothing, &["G", "ET / HTTP/1.1\r\n"], Some(Protocol::Http1)).await;
        check(Declared::Nothing, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], Some(Protocol::Http2)).await;
        check(Declared::Nothing, &["GETAWAY"], Some(Protocol::Opaque)).await;
        check(Declared::Nothing, &["\x16\x03\x01"], Some(Protocol::Opaque)).await;
        check(Declared::Nothing, &["GE"], Some(Protocol::Opaque)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_its_server_is_let_through_after_a_while() {
        let (_client, server) = tokio::io::duplex(64);
        let began = Instant::now();
        let (protocol, _) = sniff(server, Declared::Nothing).await.unwrap();
        assert_eq!((protocol, began.elapsed()), (Protocol::Opaque, SILENCE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http_may_be_silent_for_as_long_as_it_likes() {
        let (client, server) = tokio::io::duplex(64);
        let sniffing = tokio::spawn(sniff(server, Declared::Http));
        sleep(SILENCE_TIMEOUT * 100).await;
        assert!(!sniffing.is_finished());
        drop(client);
        assert!(sniffing.await.unwrap().is_none());
    }
}
