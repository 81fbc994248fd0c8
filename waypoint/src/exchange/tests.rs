use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use loam_core::http::backend::{BackendService, Upstream};
use loam_core::http::filter::{Filter, HeaderEdits, Mirror, Redirect, Share};
use loam_core::http::route::{Kind, Match, PathMatch, Rule, Timeouts};
use loam_core::http::traffic::{Algorithm, Limits, Outliers, Retry, RetryOn, Roots, Session, Tls, Token, Traffic};
use loam_core::service::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::body::MAX_REPLAY_BYTES;
use crate::testing::{Bench, Endpoint, Wish, answer, http, key, raw, says, to, until};

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or("nothing")
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Reads the head of a message, and gives it back.
async fn head(io: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn retry(attempts: u32, on: RetryOn) -> Option<Retry> {
    Some(Retry { attempts, on, backoff: Duration::from_millis(25), max_backoff: Duration::from_millis(250) })
}

#[tokio::test(start_paused = true)]
async fn a_request_reaches_an_endpoint_and_its_answer_comes_back() {
    let bench = Bench::new(vec![says(201, "hello")]);
    let response = bench
        .ask(
            "POST /a/../b?c=d HTTP/1.1\r\nhost: API.shop:80\r\nconnection: close, x-mine\r\nx-mine: 1\r\n\
             x-forwarded-client-cert: By=evil\r\nx-app: 1\r\ncontent-length: 4\r\n\r\nbody",
        )
        .await;
    assert_eq!((status(&response), body(&response)), ("201", "hello"));
    let seen = bench.seen().remove(0);
    assert_eq!((seen.method.as_str(), &*seen.uri, &*seen.body), ("POST", "/b?c=d", b"body".as_slice()));
    assert_eq!(seen.headers.get("host").unwrap(), "api.shop:80");
    assert_eq!(seen.headers.get("x-app").unwrap(), "1");
    assert_eq!(seen.headers.get("x-request-id").unwrap().len(), 36);
    for gone in ["x-mine", "connection", "x-forwarded-client-cert"] {
        assert!(!seen.headers.contains_key(gone), "{gone} was passed on");
    }
    let labels =
        ["istio_requests_total", "response_code=\"201\"", "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\""];
    assert!(bench.counted(&labels));
    assert!(bench.counted(&["istio_request_bytes_sum", "response_code=\"201\"", " 4.0"]));
    assert!(bench.counted(&["istio_response_bytes_sum", "response_code=\"201\"", " 5.0"]));
}

#[tokio::test(start_paused = true)]
async fn requests_of_many_clients_share_kept_connections() {
    let bench = Bench::new(vec![says(200, "")]);
    for _ in 0..5 {
        assert_eq!(status(&bench.get("/").await), "200");
    }
    assert_eq!((bench.seen().len(), bench.dials()), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn requests_that_no_route_is_for_are_not_found() {
    let only = Match { path: Some(PathMatch::Exact("/only".into())), ..Match::default() };
    let rule = || Rule { matches: vec![only.clone()], ..to("api") };
    let bench = Bench::with_rule(vec![says(200, "")], rule());
    assert_eq!(status(&bench.get("/only").await), "200");
    assert_eq!(status(&bench.get("/other").await), "404");
    let grpc = "POST /a.B/C HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\nconnection: close\r\n\r\n";
    let response = bench.ask(grpc).await;
    assert!(status(&response) == "200" && response.contains("grpc-status: 12\r\n"), "{response}");
    assert!(bench.counted(&["istio_requests_total", "response_code=\"404\"", "response_flags=\"NR\""]));
    assert!(bench.counted(&["istio_requests_total", "request_protocol=\"grpc\"", "grpc_response_status=\"12\""]));
}

#[tokio::test(start_paused = true)]
async fn a_rule_without_backends_fails_and_a_service_without_endpoints_is_unavailable() {
    let bench = Bench::with_rule(vec![says(200, "")], Rule::default());
    assert_eq!(status(&bench.get("/").await), "500");
    let bench = Bench::new(Vec::new());
    assert_eq!(status(&bench.get("/").await), "503");
    assert!(bench.counted(&["istio_requests_total", "response_flags=\"UH\""]));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_is_passed_over_as_long_as_there_is_another() {
    let bench = Bench::new(vec![Endpoint::Refusing, says(200, ""), Endpoint::Refusing]);
    for _ in 0..20 {
        assert_eq!(status(&bench.get("/").await), "200");
    }
    let bench = Bench::new(vec![Endpoint::Refusing]);
    assert_eq!(status(&bench.get("/").await), "503");
    assert!(bench.counted(&["istio_requests_total", "response_flags=\"UF\""]));
}

#[tokio::test(start_paused = true)]
async fn filters_edit_and_redirect() {
    let edits = |name: &'static str| HeaderEdits {
        set: vec![(name.parse().unwrap(), HeaderValue::from_static("1"))],
        ..HeaderEdits::default()
    };
    let filters = vec![Filter::RequestHeaders(edits("x-in")), Filter::ResponseHeaders(edits("x-out"))];
    let bench = Bench::with_rule(vec![says(200, "")], Rule { filters, ..to("api") });
    let response = bench.get("/").await;
    assert!(response.contains("x-out: 1\r\n"), "{response}");
    assert_eq!(bench.seen().remove(0).headers.get("x-in").unwrap(), "1");

    let redirect = Redirect {
        scheme: None,
        host: Some("other.org".into()),
        port: None,
        path: None,
        status: http::StatusCode::FOUND,
    };
    let filters = vec![Filter::Redirect(redirect)];
    let bench = Bench::with_rule(vec![says(200, "")], Rule { filters, ..Rule::default() });
    let response = bench.get("/a?b").await;
    assert!(status(&response) == "302" && response.contains("location: http://other.org/a?b\r\n"), "{response}");
    assert_eq!(bench.dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_that_its_server_has_closed_costs_no_request() {
    // Closes each connection with the second request, before it answers.
    let endpoint = raw(|mut io| async move {
        head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        head(&mut io).await;
    });
    let bench = Bench::new(vec![endpoint.clone()]);
    for _ in 0..3 {
        assert_eq!(status(&bench.get("/").await), "200");
    }
    assert_eq!(bench.dials(), 3);

    let bench = Bench::new(vec![endpoint]);
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&bench.ask(post).await), "200");
    assert_eq!(status(&bench.ask(post).await), "503", "it may have been served, and is not to be served twice");
}

/// The head and the payload of a frame of HTTP/2 (RFC 9113 4.1).
async fn frame(io: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    io.read_exact(&mut payload).await?;
    Ok((head[3], head[8], payload))
}

#[tokio::test(start_paused = true)]
async fn what_a_server_of_http2_has_not_begun_with_is_sent_again() {
    /// The frame that denies a stream.
    type Deny = fn(u8) -> Vec<u8>;
    // RST_STREAM with REFUSED_STREAM, and GOAWAY with NO_ERROR, whose last stream is the one before.
    let refused = |stream: u8| vec![0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 7];
    let going = |_: u8| vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // What was begun with is not.
    let cancelled = |stream: u8| vec![0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 8];
    let denials: [(Deny, &str); 3] = [(refused, "200"), (going, "200"), (cancelled, "503")];
    for (deny, expected) in denials {
        let denied = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let endpoint = raw(move |mut io| {
            let denied = denied.clone();
            async move {
                let mut preface = [0; crate::sniff::PREFACE.len()];
                io.read_exact(&mut preface).await.unwrap();
                io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                while let Ok((kind, stream, _)) = frame(&mut io).await {
                    if kind != 1 {
                        continue;
                    }
                    // HEADERS with END_HEADERS and END_STREAM: `:status 200` (RFC 7541 A).
                    let answer = match denied.swap(true, std::sync::atomic::Ordering::Relaxed) {
                        false => deny(stream),
                        true => vec![0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88],
                    };
                    io.write_all(&answer).await.unwrap();
                }
            }
        });
        let bench = Bench::with(vec![endpoint], Wish { protocol: AppProtocol::Http2, ..Wish::default() });
        assert_eq!(status(&bench.get("/").await), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_retried_is_sent_again_with_its_body() {
    let flaky = || {
        let count = std::sync::atomic::AtomicUsize::new(0);
        http(move |_| {
            let first = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 < 2;
            async move { if first { answer(503, "no") } else { answer(200, "yes") } }
        })
    };
    let on = RetryOn { statuses: vec![http::StatusCode::SERVICE_UNAVAILABLE], ..RetryOn::default() };
    let bench = Bench::with_rule(vec![flaky()], Rule { retry: retry(2, on.clone()), ..to("api") });
    let post = |n: usize| {
        let body = "x".repeat(n);
        format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n{body}")
    };
    let began = Instant::now();
    assert_eq!(body(&bench.ask(&post(5)).await), "yes");
    assert!(began.elapsed() >= Duration::from_millis(75), "25 ms and 50 ms");
    let bodies: Vec<_> = bench.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, ["xxxxx"; 3]);

    let bench = Bench::with_rule(vec![flaky()], Rule { retry: retry(1, on.clone()), ..to("api") });
    assert_eq!(status(&bench.get("/").await), "503", "there are no more attempts");
    let bench = Bench::with_rule(vec![flaky()], Rule { retry: retry(2, on), ..to("api") });
    assert_eq!(status(&bench.ask(&post(MAX_REPLAY_BYTES + 1)).await), "503", "the body was not kept");
    assert_eq!(bench.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn retries_never_exceed_the_budget() {
    let on = RetryOn { any_5xx: true, ..RetryOn::default() };
    let bench = Bench::with_rule(vec![says(500, "")], Rule { retry: retry(1, on), ..to("api") });
    for _ in 0..200 {
        assert_eq!(status(&bench.get("/").await), "500");
    }
    let (seen, allowed) = (bench.seen().len(), 200 + 200 / 5 + 10 * 10);
    assert!(seen > 200 && seen <= allowed, "{seen} requests, of which {allowed} are allowed");
}

#[tokio::test(start_paused = true)]
async fn requests_and_tries_that_take_too_long_end() {
    let hangs = || raw(|io| async move { drop((io, std::future::pending::<()>().await)) });
    let timeouts = Timeouts { request: Some(Duration::from_secs(3)), backend_request: None };
    let bench = Bench::with_rule(vec![hangs()], Rule { timeouts, ..to("api") });
    let began = Instant::now();
    assert_eq!(status(&bench.get("/").await), "504");
    assert_eq!(began.elapsed().as_millis(), 3000);
    assert!(bench.counted(&["istio_requests_total", "response_flags=\"UT\""]));

    let timeouts = Timeouts { backend_request: Some(Duration::from_secs(1)), ..timeouts };
    let on = RetryOn { timeout: true, ..RetryOn::default() };
    let bench = Bench::with_rule(vec![hangs(), hangs()], Rule { timeouts, retry: retry(1, on), ..to("api") });
    let began = Instant::now();
    assert_eq!(status(&bench.get("/").await), "504");
    assert_eq!((began.elapsed().as_secs(), bench.dials()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_too_long_is_cut_and_never_looks_whole() {
    let slow = raw(|mut io| async move {
        head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    });
    let timeouts = Timeouts { request: Some(Duration::from_secs(3)), backend_request: None };
    let bench = Bench::with_rule(vec![slow], Rule { timeouts, ..to("api") });
    let response = bench.get("/").await;
    assert_eq!((status(&response), body(&response)), ("200", "half"));
}

#[tokio::test(start_paused = true)]
async fn bodies_pass_as_they_come_and_trailers_behind_them() {
    let (pieces, coming) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let coming = std::sync::Mutex::new(Some(coming));
    let endpoint = http(move |_| {
        let mut coming = coming.lock().unwrap().take().unwrap();
        let frames = futures_util::stream::poll_fn(move |cx| coming.poll_recv(cx).map(|frame| frame.map(Ok)));
        async move { Response::builder().header("trailer", "x-end").body(BodyExt::boxed(StreamBody::new(frames))).unwrap() }
    });
    let bench = Bench::new(vec![endpoint]);
    let (mut client, _served) = bench.connect();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n").await.unwrap();
    head(&mut client).await;
    for piece in ["one", "two"] {
        pieces.send(Frame::data(Bytes::from_static(piece.as_bytes()))).unwrap();
        let mut chunk = [0; 8];
        client.read_exact(&mut chunk).await.unwrap();
        assert_eq!(chunk, *format!("3\r\n{piece}\r\n").as_bytes(), "it came before the next was sent");
    }
    pieces
        .send(Frame::trailers(HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static("1"))])))
        .unwrap();
    drop(pieces);
    let end = head(&mut client).await;
    assert!(end.starts_with("0\r\n"), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stops_its_upstream() {
    let written = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = written.clone();
    let endpoint = raw(move |mut io| {
        let written = counted.clone();
        async move {
            head(&mut io).await;
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await.unwrap();
            while io.write_all(&[0; 1024]).await.is_ok() {
                written.fetch_add(1024, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let bench = Bench::new(vec![endpoint]);
    let (mut client, _served) = bench.connect();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let waiting = written.load(std::sync::atomic::Ordering::Relaxed);
    assert!(waiting < 2 << 20, "{waiting} bytes wait for a client that reads nothing");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_handed_over_after_an_upgrade() {
    let echo = raw(|mut io| async move {
        let asked = head(&mut io).await.to_ascii_lowercase();
        assert!(asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
        io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        let (mut read, mut write) = tokio::io::split(io);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let bench = Bench::new(vec![echo]);
    let (mut client, served) = bench.connect();
    let ask = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly";
    client.write_all(ask).await.unwrap();
    let switched = head(&mut client).await;
    assert_eq!(status(&switched), "101");
    client.write_all(b" late").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "early late");
    served.await.unwrap();
    until(|| bench.counted(&["istio_requests_total", "response_code=\"101\"", "response_flags=\"-\""])).await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_to_http2_is_not_passed_on() {
    let bench = Bench::new(vec![says(200, "")]);
    let ask = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n\
               http2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert_eq!(status(&bench.ask(ask).await), "200");
    let seen = bench.seen().remove(0);
    assert!(!seen.headers.contains_key("upgrade") && !seen.headers.contains_key("http2-settings"));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_keeps_failing_is_ejected_and_returns() {
    let outliers = Outliers { consecutive_gateway: 3, max_percent: 50, ..Outliers::default() };
    let traffic = Traffic { algorithm: Algorithm::RoundRobin, outliers: Some(outliers), ..Traffic::default() };
    let wish = Wish { traffic: Some(traffic), ..Wish::default() };
    let bench = Bench::with(vec![says(503, ""), says(200, "")], wish);
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(status(&bench.get("/").await) == "503");
    }
    assert_eq!(failed, 3);
    assert!(bench.counted(&["loam_endpoint_ejections_total 1"]));
    sleep(outliers.base_ejection).await;
    let mut returned = false;
    for _ in 0..4 {
        returned |= status(&bench.get("/").await) == "503";
    }
    assert!(returned, "it is tried again after its time");
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_reached_by_tls_is_not_reached_in_the_clear() {
    let tls = Tls { server_name: "api.shop".parse().unwrap(), names: Vec::new(), roots: Roots::System };
    let wish = Wish { traffic: Some(Traffic { tls: Some(tls), ..Traffic::default() }), ..Wish::default() };
    let bench = Bench::with(vec![says(200, "")], wish);
    assert_eq!((status(&bench.get("/").await), bench.dials()), ("503", 0));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_of_a_service_requests_are_refused_at_once() {
    let limits = Limits { requests: 1, ..Limits::default() };
    let wish = Wish { traffic: Some(Traffic { limits, ..Traffic::default() }), ..Wish::default() };
    let bench = Bench::with(
        vec![http(|_| async {
            sleep(Duration::from_secs(1)).await;
            answer(200, "")
        })],
        wish,
    );
    let (first, second) = tokio::join!(bench.get("/1"), async {
        until(|| bench.dials() == 1).await;
        bench.get("/2").await
    });
    assert_eq!((status(&first), status(&second)), ("200", "503"));
    assert!(bench.counted(&["istio_requests_total", "response_flags=\"UO\""]));
    assert_eq!(status(&bench.get("/3").await), "200", "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_session_stays_with_its_endpoint() {
    let token = Token::Cookie { name: "sid".into(), path: "/".into(), permanent: false };
    let session = Some(Session { token, absolute_timeout: None, idle_timeout: None });
    let bench = Bench::with_rule(vec![says(200, ""), says(200, ""), says(200, "")], Rule { session, ..to("api") });
    let first = bench.get("/").await;
    let (_, cookie) = first.split_once("set-cookie: ").expect("the client is told of its session");
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let ask = format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: a=b; {cookie}\r\nconnection: close\r\n\r\n");
    for _ in 0..20 {
        assert!(!bench.ask(&ask).await.contains("set-cookie"), "it is not told twice");
    }
    let places: std::collections::BTreeSet<_> = bench.seen().into_iter().map(|seen| seen.endpoint).collect();
    assert_eq!(places.len(), 1);
    let made_up = ask.replace("sid=", "sid=x");
    assert!(bench.ask(&made_up).await.contains("set-cookie"), "what cannot be read begins a session");
}

#[tokio::test(start_paused = true)]
async fn copies_go_to_mirrors_and_their_answers_nowhere() {
    let mirror = |name: &str| {
        let upstream = Upstream::Service(BackendService { service: key(name), port: 80, subset: None });
        Filter::Mirror(Mirror { upstream, share: Share::ALL })
    };
    let hangs = http(|_| std::future::pending());
    let rule = Rule { filters: vec![mirror("copy"), mirror("hangs")], ..to("api") };
    let others = vec![("copy", says(500, "copied")), ("hangs", hangs)];
    let bench = Bench::with(vec![says(200, "main")], Wish { routes: vec![rule], others, ..Wish::default() });
    let post = "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
    assert_eq!(body(&bench.ask(post).await), "main");
    until(|| bench.seen().len() == 3).await;
    for seen in bench.seen() {
        assert_eq!((&*seen.uri, &*seen.body), ("/p", b"body".as_slice()), "{}", seen.endpoint);
    }
    until(|| bench.counted(&["loam_request_mirrors_total", "outcome=\"timeout\"", " 1"])).await;
    assert!(bench.counted(&["loam_request_mirrors_total", "outcome=\"sent\"", " 1"]));
}

#[tokio::test(start_paused = true)]
async fn grpc_is_http2_on_both_sides_with_its_trailers() {
    let endpoint = http(|seen| async move {
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("7"))]);
        let body = Full::new(seen.body).with_trailers(std::future::ready(Some(Ok(trailers))));
        Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
    });
    // Whatever the port says.
    let wish = Wish { routes: vec![to("api")], kind: Kind::Grpc, protocol: AppProtocol::Http11, ..Wish::default() };
    let bench = Bench::with(vec![endpoint], wish);
    let (client, _served) = bench.connect();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::post("http://api.shop/a.B/C").header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(Full::new(Bytes::from_static(b"frame"))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap().get("grpc-status").unwrap(), "7");
    assert_eq!(collected.to_bytes(), "frame");
    let seen = bench.seen().remove(0);
    assert_eq!(&*seen.uri, "http://api.shop/a.B/C");
    assert_eq!(seen.headers.get("te").unwrap(), "trailers");
    assert!(seen.trailers.is_none());
    until(|| bench.counted(&["istio_requests_total", "grpc_response_status=\"7\"", "response_code=\"200\""])).await;
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_off_headers_is_no_trailer_either() {
    let bench = Bench::new(vec![says(200, "")]);
    let ask = "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te, close\r\ntransfer-encoding: chunked\r\n\
               trailer: x-sum, x-envoy-retries\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\nx-envoy-retries: 1\r\n\r\n";
    assert_eq!(status(&bench.ask(ask).await), "200");
    let seen = bench.seen().remove(0);
    let trailers = seen.trailers.unwrap();
    assert_eq!((trailers.len(), trailers.get("x-sum").unwrap().as_bytes()), (1, b"1".as_slice()));
    let header = |name: &str| seen.headers.get(name).unwrap().as_bytes();
    assert_eq!((header("te"), header("connection")), (b"trailers".as_slice(), b"te".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn what_two_servers_could_read_differently_is_refused_and_the_connection_closed() {
    let bench = Bench::new(vec![says(200, "")]);
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n", "400"),
        ("GET /a%2fb HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET /a%00 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n", "400"),
        ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "405"),
    ] {
        // What follows is not taken for a request.
        let response = bench.ask(&format!("{request}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(status(&response), expected, "{request:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{request:?}: {response}");
    }
    assert!(bench.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_length_beside_a_coding_counts_for_nothing_and_ends_the_connection() {
    let (length, coding) = ("content-length: 4\r\n", "transfer-encoding: chunked\r\n");
    for headers in [format!("{length}{coding}"), format!("{coding}{length}")] {
        let bench = Bench::new(vec![says(200, "")]);
        let ask = format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n2\r\nab\r\n0\r\n\r\n");
        let response = bench.ask(&format!("{ask}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!((status(&response), response.matches("HTTP/1.1 ").count()), ("200", 1), "{response}");
        let seen = bench.seen();
        assert_eq!((seen.len(), &*seen[0].body), (1, b"ab".as_slice()));
        assert!(!seen[0].headers.contains_key("content-length"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_one_length_or_none() {
    for (headers, pieces, expected) in [
        ("content-length: 1\r\ntransfer-encoding: chunked\r\n", "2\r\nab\r\n0\r\n\r\n", "2\r\nab\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ncontent-length: 1\r\n", "2\r\nab\r\n0\r\n\r\n", "2\r\nab\r\n0\r\n\r\n"),
        ("content-length: 2\r\ncontent-length: 2\r\n", "ab", "ab"),
        ("content-length: 2, 2\r\n", "ab", "ab"),
    ] {
        let bench = Bench::new(vec![raw(move |mut io| async move {
            head(&mut io).await;
            io.write_all(format!("HTTP/1.1 200 OK\r\n{headers}\r\n{pieces}").as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        })]);
        let response = bench.get("/").await;
        assert_eq!((status(&response), body(&response)), ("200", expected), "{headers:?}: {response}");
        let lengths = response.matches("content-length: 2\r\n").count();
        assert_eq!(lengths, usize::from(expected == "ab"), "{headers:?}: {response}");
    }
    let bench = Bench::new(vec![raw(|mut io| async move {
        head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
    })]);
    assert_eq!(status(&bench.get("/").await), "502");
}

#[tokio::test(start_paused = true)]
async fn limits_on_heads_are_answered_as_such() {
    let bench = Bench::new(vec![says(200, "")]);
    let many: String = (0..101).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(status(&bench.ask(&format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await), "431");
    let long = "a".repeat(9000);
    let ask = format!("GET /{long} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert_eq!(status(&bench.ask(&ask).await), "414");
    assert!(bench.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_is_asked_for_when_an_endpoint_takes_it() {
    let bench = Bench::new(vec![says(200, "")]);
    let (mut client, _served) = bench.connect();
    let ask = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    client.write_all(ask).await.unwrap();
    assert_eq!(status(&head(&mut client).await), "100");
    client.write_all(b"body").await.unwrap();
    assert_eq!(status(&head(&mut client).await), "200");
    assert_eq!(bench.seen().remove(0).body, "body");

    let refused = Bench::with_rule(vec![says(200, "")], Rule::default());
    let (mut client, _served) = refused.connect();
    client.write_all(ask).await.unwrap();
    assert_eq!(status(&head(&mut client).await), "500", "nobody wants the body");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_connections_with_their_next_response() {
    let mut bench = Bench::new(vec![says(200, "")]);
    let (mut client, served) = bench.connect();
    let ask = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(ask).await.unwrap();
    assert!(!head(&mut client).await.contains("connection: close"));
    let draining = tokio::spawn(bench.trigger.take().unwrap().drain(Duration::from_secs(20)));
    sleep(Duration::from_secs(1)).await;
    client.write_all(ask).await.unwrap();
    assert!(head(&mut client).await.contains("connection: close\r\n"));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    served.await.unwrap();
    assert_eq!(draining.await.unwrap(), loam_rt::drain::Ending::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_http2_to_go_elsewhere_and_lets_requests_end() {
    let slow = http(|_| async {
        sleep(Duration::from_secs(2)).await;
        answer(200, "late")
    });
    let mut bench = Bench::new(vec![slow]);
    let (client, served) = bench.connect();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = || http::Request::get("http://api.shop/").body(Full::<Bytes>::default()).unwrap();
    let under_way = tokio::spawn(sender.send_request(request()));
    until(|| bench.dials() == 1).await;
    let draining = tokio::spawn(bench.trigger.take().unwrap().drain(Duration::from_secs(20)));
    sleep(Duration::from_secs(1)).await;
    assert!(sender.send_request(request()).await.is_err(), "it was told to go elsewhere");
    let response = under_way.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    driver.await.unwrap().unwrap();
    served.await.unwrap();
    assert_eq!((draining.await.unwrap(), bench.dials()), (loam_rt::drain::Ending::Drained, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_is_counted_as_such_and_its_upstream_hears_of_it() {
    let hangs = raw(|mut io| async move {
        head(&mut io).await;
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
    });
    let bench = Bench::new(vec![hangs]);
    let (mut client, served) = bench.connect();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until(|| bench.dials() == 1).await;
    drop(client);
    served.await.unwrap();
    assert!(bench.counted(&["istio_requests_total", "response_code=\"0\"", "response_flags=\"DC\""]));
    until(|| bench.engine.upstreams.count() == 0).await;
}
