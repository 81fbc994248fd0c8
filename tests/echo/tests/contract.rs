//! Client against server, read as the suite reads it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use loam_echo::answer::Place;
use loam_echo::server::{Door, Protocol, Server};
use loam_echo::tls::Certificate;
use loam_echo::{Part, Program, client};
use regex::Regex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const POD: &str = "echo-v1-6d8f5c-abcde";

/// Runs the client as the suite does.
async fn ask(line: &str) -> Result<String> {
    let arguments = std::iter::once("client").chain(line.split(' ')).map(Into::into);
    match Program::read(arguments)?.part {
        Part::Client(flags) => client::run(&flags).await,
        Part::Server(_) => unreachable!("it is called client"),
    }
}

/// A server of all protocols: where HTTP, HTTPS, gRPC and TCP are.
async fn serve() -> [SocketAddr; 4] {
    let door = |protocol, is_tls| Door { port: 0, protocol, is_tls };
    let doors = [
        door(Protocol::Http, false),
        door(Protocol::Http, true),
        door(Protocol::Grpc, false),
        door(Protocol::Tcp, false),
    ];
    let place = Place { hostname: POD.into(), namespace: "mesh".into(), version: "v1".into() };
    let certificate = Certificate::make().unwrap();
    let server = Server::bind([127, 0, 0, 1].into(), &doors, place, &certificate).await.unwrap();
    let addrs: Vec<_> = server.addrs().unwrap().into_iter().map(|(_, addr)| addr).collect();
    tokio::spawn(server.serve());
    addrs.try_into().unwrap()
}

/// What the suite finds for `field`: all of the first line that has it.
fn field(output: &str, name: &str) -> Option<String> {
    let found = Regex::new(&format!("{name}=(.*)")).unwrap().captures(output)?;
    Some(found[1].to_owned())
}

/// The values of a header in all lines of `field`, joined as the suite joins them.
fn header(output: &str, field: &str, name: &str) -> Option<String> {
    let lines = Regex::new(&format!("{field}=(.*)")).unwrap();
    let values: Vec<_> = lines
        .captures_iter(output)
        .filter_map(|found| found[1].split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// How many answers the suite counts in a run of many.
fn answers(output: &str) -> Vec<&str> {
    let is_answer = |text: &&str| field(text, "Hostname").or(field(text, "StatusCode")).is_some();
    output.split("\n\n").map(str::trim).filter(is_answer).collect()
}

#[tokio::test]
async fn every_protocol_brings_an_answer_that_the_suite_can_read() {
    let [http, https, grpc, tcp] = serve().await;
    for (line, proto) in [
        (format!("http://{http}/v1?x=1 --method=GET"), "HTTP/1.1"),
        (format!("http://{http}/v1?x=1 --method=GET --http2"), "HTTP/2.0"),
        (format!("https://{https}/v1?x=1"), "HTTP/1.1"),
        (format!("https://{https}/v1?x=1 --http2"), "HTTP/2.0"),
        (format!("ws://{http}/v1?x=1"), "HTTP/1.1"),
        (format!("grpc://{grpc}"), "GRPC"),
        (format!("tcp://{tcp}"), "TCP"),
    ] {
        let output = ask(&line).await.unwrap_or_else(|error| panic!("{line}: {error:#}"));
        let read = |name: &str| field(&output, name);
        assert_eq!(read("StatusCode").as_deref(), Some("200"), "{output}");
        assert_eq!(read("Hostname").as_deref(), Some(POD), "{output}");
        assert_eq!(read("Proto").as_deref(), Some(proto), "{output}");
        assert_eq!(read("IP").as_deref(), Some("127.0.0.1"), "{output}");
        if proto.starts_with("HTTP") {
            assert_eq!(read("URL").as_deref(), Some("/v1?x=1"), "{output}");
            assert_eq!(read("Method").as_deref(), Some("GET"), "{output}");
        }
        let agreed = match (line.starts_with("https"), proto) {
            (true, "HTTP/2.0") => "h2",
            (true, _) => "http/1.1",
            (false, _) => "",
        };
        assert_eq!(read("Alpn").as_deref(), Some(agreed), "{output}");
    }
}

#[tokio::test]
async fn headers_arrive_one_by_one_and_the_host_is_what_was_asked_for() {
    let [http, _, grpc, _] = serve().await;
    let headers = "-H X-Header-Add:one -H X-Header-Add:two -H Host:echo-v2";
    for line in [
        format!("http://{http} {headers}"),
        format!("http://{http} --http2 {headers}"),
        format!("grpc://{grpc} {headers}"),
    ] {
        let output = ask(&line).await.unwrap();
        assert_eq!(header(&output, "RequestHeader", "x-header-add").as_deref(), Some("one,two"), "{output}");
        assert_eq!(header(&output, "RequestHeader", "x-header-remove"), None, "{output}");
        assert_eq!(field(&output, "Host").as_deref(), Some("echo-v2"), "{output}");
    }
    let output = ask(&format!("http://{http}")).await.unwrap();
    assert_eq!(field(&output, "Host"), Some(http.to_string()));
}

#[tokio::test]
async fn many_requests_bring_as_many_answers_over_the_connections_that_a_weight_needs() {
    let [http, _, grpc, _] = serve().await;
    for (scheme, server, count, connections) in [("http", http, 75, 75), ("grpc", grpc, 75, 1), ("http", http, 1, 1)] {
        let accepted = Arc::new(AtomicUsize::new(0));
        let door = relay(server, Arc::clone(&accepted)).await;
        let output = ask(&format!("{scheme}://{door} --count={count}")).await.unwrap();
        let answers = answers(&output);
        assert_eq!(answers.len(), count, "{output}");
        assert!(answers.iter().all(|answer| field(answer, "Hostname").as_deref() == Some(POD)), "{output}");
        assert_eq!(accepted.load(Ordering::SeqCst), connections, "connections of {scheme}");
    }
}

#[tokio::test]
async fn a_redirect_and_an_error_are_told_and_not_followed() {
    for (head, status, name, value) in [
        ("302 Found\r\nLocation: http://127.0.0.1:1/\r\nX-Header-Set: set", "302", "Location", "http://127.0.0.1:1/"),
        ("404 Not Found\r\nX-Header-Set: a:b", "404", "X-Header-Set", "a:b"),
    ] {
        let server = say(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n")).await;
        let output = ask(&format!("http://{server}/")).await.unwrap();
        assert_eq!(field(&output, "StatusCode").as_deref(), Some(status), "{output}");
        assert_eq!(header(&output, "ResponseHeader", name).as_deref(), Some(value), "{output}");
        assert_eq!(field(&output, "Hostname"), None, "{output}");
        assert_eq!(answers(&output).len(), 1);
    }
}

#[tokio::test]
async fn a_run_with_a_failed_request_fails_and_says_which() {
    let [http, ..] = serve().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (line, what) in [
        (format!("http://{closed}"), "connect to"),
        (format!("grpc://{closed}"), "connect to"),
        // Not HTTP/2, so the call cannot be made.
        (format!("grpc://{}", say("HTTP/1.1 400 Bad Request\r\n\r\n".into()).await), "request 0 to grpc://"),
        (format!("ws://{}", say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()).await), "404"),
        (format!("https://{http}"), "TLS with"),
    ] {
        let error = ask(&line).await.err().unwrap_or_else(|| panic!("{line} succeeded"));
        assert!(format!("{error:#}").contains(what), "{line}: {error:#}");
    }
}

#[tokio::test]
async fn a_call_fails_with_the_status_that_it_was_given() {
    let [http, _, grpc, _] = serve().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let refusal = |_| async {
            let answer = Response::builder().header("grpc-status", "14").header("grpc-message", "nobody is there");
            answer.body(Full::<Bytes>::default())
        };
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service_fn(refusal)).await;
    });
    for (server, what) in [(refusing, "status 14 of gRPC: nobody is there"), (http, "without a status of gRPC")] {
        let error = ask(&format!("grpc://{server}")).await.unwrap_err();
        assert!(format!("{error:#}").contains(what), "{error:#}");
    }

    let stream = TokioIo::new(TcpStream::connect(grpc).await.unwrap());
    let (mut sender, link) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(link);
    for (call, body, status) in [("Other", &b"\0\0\0\0\0"[..], "12"), ("Echo", b"\x01\0\0\0\0", "3")] {
        let request = Request::post(format!("http://{grpc}/proto.EchoTestService/{call}"));
        let answer = sender.send_request(request.body(Full::new(Bytes::from_static(body))).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], status, "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_waited_for_five_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let start = tokio::time::Instant::now();
    let error = ask(&url).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(format!("{error:#}").contains("no answer within 5s"), "{error:#}");
}

/// Passes connections on to `server` and counts them.
async fn relay(server: SocketAddr, accepted: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    addr
}

/// Answers one connection with `text` once it has said something.
async fn say(text: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(text.as_bytes()).await;
    });
    addr
}
