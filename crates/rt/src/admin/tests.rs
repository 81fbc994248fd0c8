use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::*;

/// A served `Server`; it ends with this value.
struct Served {
    addr: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn new(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(listener, async move {
            let _ = ended.await;
        }));
        Self { addr, end: Some(end), task }
    }

    /// Status and body of the answer to raw `bytes`.
    async fn raw(&self, bytes: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A refusal while the body is still on its way ends in a reset after the answer.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    async fn ask(&self, method: &str, target: &str) -> (u16, String) {
        self.raw(format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await
    }
}

fn ok(text: &str) -> Response {
    Response::text(StatusCode::OK, text)
}

fn example() -> Routes {
    Routes::default()
        .get("/look", "looks", |_| async { ok("seen") })
        .post("/change", "changes", |request| async move {
            ok(&format!("{}:{}", request.query("to").unwrap_or_default(), request.body().len()))
        })
        .index("example")
}

#[tokio::test]
async fn get_looks_and_post_changes_and_nothing_else() {
    let served = Served::new(Server::new(example())).await;
    assert_eq!(served.ask("GET", "/look").await, (200, "seen".into()));
    assert_eq!(served.ask("HEAD", "/look").await, (200, String::new()));
    assert_eq!(served.ask("POST", "/change?to=a%2Fb+c").await, (200, "a/b c:0".into()));
    assert_eq!(served.ask("POST", "/look").await.0, 405);
    assert_eq!(served.ask("GET", "/change").await.0, 405);
    assert_eq!(served.ask("DELETE", "/change").await.0, 405);
    assert_eq!(served.ask("GET", "/nowhere").await.0, 404);
    assert_eq!(served.ask("GET", "/look/").await.0, 404);
}

#[tokio::test]
async fn the_index_lists_what_there_is() {
    let served = Served::new(Server::new(example())).await;
    let (status, text) = served.ask("GET", "/").await;
    assert_eq!(status, 200);
    assert!(text.contains("GET        /look") && text.contains("POST       /change"), "{text}");
}

#[tokio::test]
async fn a_host_name_is_refused_unless_anyone_may_call() {
    let request = b"GET /look HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(Served::new(Server::new(example())).await.raw(request).await.0, 403);
    assert_eq!(Served::new(Server::new(example()).callers(Callers::Any)).await.raw(request).await.0, 200);
}

#[tokio::test]
async fn only_open_routes_serve_all_who_are_elsewhere() {
    let routes = Routes::default().get("/metrics", "open", |_| async { ok("1") }).open();
    let routes = routes.get("/debug", "not open", |_| async { ok("2") });
    let served = Served::new(Server::new(routes).callers(Callers::Machine)).await;
    let by_name = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: istiod\r\nconnection: close\r\n\r\n");
    assert_eq!(served.raw(by_name("/metrics").as_bytes()).await.0, 200);
    assert_eq!(served.raw(by_name("/debug").as_bytes()).await.0, 403);
    assert_eq!(served.ask("GET", "/debug").await.0, 200);
}

#[tokio::test]
async fn a_large_body_is_refused() {
    let served = Served::new(Server::new(example())).await;
    let post = |size: usize| {
        let head =
            format!("POST /change HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + size, b'x');
        request
    };
    assert_eq!(served.raw(&post(MAX_BODY_BYTES)).await, (200, format!(":{MAX_BODY_BYTES}")));
    assert_eq!(served.raw(&post(MAX_BODY_BYTES + 1)).await.0, 413);
}

#[tokio::test]
async fn a_large_head_and_what_is_not_http_are_refused() {
    let served = Served::new(Server::new(example())).await;
    let long = format!("GET /look HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEADER_BYTES));
    assert_eq!(served.raw(long.as_bytes()).await.0, 431);
    let many = format!("GET /look HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(100));
    assert_eq!(served.raw(many.as_bytes()).await.0, 431);
    assert_eq!(served.raw(b"\x16\x03\x01 hello\r\n\r\n").await.0, 400);
    assert_eq!(served.ask("GET", "/look").await.0, 200);
}

#[tokio::test]
async fn more_dumps_than_allowed_are_told_to_come_back() {
    let (began, mut begun) = mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let routes = Routes::default().dump("/dump", "a dump", move |_| {
        began.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        ok("done")
    });
    let served = Arc::new(Served::new(Server::new(routes)).await);
    let mut dumps = tokio::task::JoinSet::new();
    for _ in 0..MAX_DUMPS {
        let served = Arc::clone(&served);
        dumps.spawn(async move { served.ask("GET", "/dump").await });
        begun.recv().await.unwrap();
    }
    assert_eq!(served.ask("GET", "/dump").await.0, 429);
    for _ in 0..MAX_DUMPS {
        release.send(()).unwrap();
        assert_eq!(dumps.join_next().await.unwrap().unwrap(), (200, "done".into()));
    }
    release.send(()).unwrap();
    assert_eq!(served.ask("GET", "/dump").await.0, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_room_comes_back() {
    let served = Served::new(Server::new(example())).await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(b"GET /look HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await.unwrap();
        held.push(stream);
    }
    assert_eq!(served.ask("GET", "/look").await.0, 0);
    drop(held);
    while served.ask("GET", "/look").await.0 != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_ends_drops_its_connections() {
    let mut served = Served::new(Server::new(example())).await;
    let mut idle = TcpStream::connect(served.addr).await.unwrap();
    assert_eq!(served.ask("GET", "/look").await.0, 200);
    drop(served.end.take());
    served.task.await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(served.addr).await.is_err());
}

#[tokio::test]
async fn readiness_shows_what_is_pending() {
    let ready = Ready::default();
    let gate = ready.gate("configuration");
    let served = Served::new(Server::new(Routes::default().ready(&ready))).await;
    let (status, text) = served.ask("GET", "/healthz/ready").await;
    assert_eq!(status, 500);
    assert!(text.contains("configuration: not yet"), "{text}");
    gate.open();
    assert_eq!(served.ask("GET", "/healthz/ready").await, (200, "ready\n".into()));
}

#[tokio::test]
async fn metrics_are_negotiated() {
    let registry = Registry::default();
    registry.gauge("living", "Living.", || 1);
    let served = Served::new(Server::new(Routes::default().metrics(&registry))).await;
    assert_eq!(
        served.ask("GET", "/stats/prometheus").await.1,
        "# HELP living Living.\n# TYPE living gauge\nliving 1\n"
    );
    let (_, text) = served
        .raw(
            b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
              accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n",
        )
        .await;
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn a_query_is_read_by_key() {
    let request = |query: &str| Request { query: query.into(), ..Request::default() };
    assert_eq!(request("level=a%3Ddebug&x").query("level").as_deref(), Some("a=debug"));
    assert_eq!(request("level=a=debug").query("level").as_deref(), Some("a=debug"));
    assert_eq!(request("reset").query("reset").as_deref(), Some(""));
    assert_eq!(request("a=1").query("b"), None);
    assert_eq!(request("a=%zz%4&a=2").query("a").as_deref(), Some("%zz%4"));
    assert_eq!(request("a=%ff").query("a").as_deref(), Some("\u{fffd}"));
}

#[tokio::test]
async fn log_levels_are_changed_by_post_only() {
    let (telemetry, _subscriber) =
        crate::telemetry::detached(crate::telemetry::LogFormat::Plain, "info", Box::new(std::io::sink())).unwrap();
    let served = Served::new(Server::new(Routes::default().logging(telemetry.filter()))).await;
    assert_eq!(served.ask("GET", "/logging?level=debug").await, (200, "info\n".into()));
    assert_eq!(served.ask("POST", "/logging?level=a=debug").await.0, 200);
    assert!(served.ask("GET", "/logging").await.1.contains("a=debug"));
    let (status, text) = served.ask("POST", "/logging?level=loud").await;
    assert_eq!(status, 400);
    assert!(text.contains("loud"), "{text}");
    assert_eq!(served.ask("POST", "/logging?reset").await, (200, "info\n".into()));
}
