//! How much memory a controller takes on a large cluster: an API server that makes its objects up as they are asked
//! for, and the built controller beside it.
//!
//! `cargo run -p loam-controller --example large_cluster -- target/release/loam-controller [PODS [SERVICES]]`
#![expect(clippy::print_stdout, reason = "an example shows what it found")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NODES: usize = 500;
const NAMESPACES: usize = 50;
/// Where the controller is asked.
const ADMIN: &str = "127.0.0.1:25014";
/// Longest start of a controller that was built without optimisation.
const START: Duration = Duration::from_secs(300);
/// Memory of a burst is given back some seconds later.
const SETTLED: Duration = Duration::from_secs(30);

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().context("name the program of the controller")?;
    let number = |text: Option<String>, default| text.map_or(Ok(default), |text| text.parse::<usize>());
    let (pods, services) = (number(arguments.next(), 50_000)?, number(arguments.next(), 5_000)?);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let cluster = Arc::new(Cluster { pods, services, written: Mutex::default() });
    tokio::spawn(serve(listener, Arc::clone(&cluster)));
    let kubeconfig = std::env::temp_dir().join(format!("large-cluster-{}.json", std::process::id()));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(&kubeconfig, config.to_string())?;

    let started = Instant::now();
    let mut controller = tokio::process::Command::new(&program)
        .args(["--source", "kubernetes", "--listen", "127.0.0.1:0", "--admin", ADMIN, "--log-filter", "warn"])
        .env("KUBECONFIG", &kubeconfig)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    while !get("/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        ensure!(controller.try_wait()?.is_none(), "the controller has ended");
        ensure!(started.elapsed() < START, "the controller is not ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ready = started.elapsed();
    let id = controller.id().context("the controller has ended")?;
    let peak = memory(id, "VmHWM")?;
    tokio::time::sleep(SETTLED).await;
    println!("{pods} pods, {services} services: ready in {ready:.1?}");
    println!("{} MiB at most until then, {} MiB {SETTLED:?} later", peak >> 10, memory(id, "VmRSS")? >> 10);
    let metrics = get("/metrics").await?;
    for line in metrics.lines().filter(|line| line.starts_with("loam_controller") || line.starts_with("pilot_services"))
    {
        println!("{line}");
    }
    controller.kill().await?;
    std::fs::remove_file(kubeconfig).context("remove the kubeconfig")
}

/// One number of a process in KiB.
fn memory(id: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.context("the kernel does not say")?.parse().context("read a number")
}

async fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(ADMIN).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A cluster in which nothing changes but what the controller writes.
struct Cluster {
    pods: usize,
    services: usize,
    written: Mutex<BTreeMap<String, Value>>,
}

async fn serve(listener: TcpListener, cluster: Arc<Cluster>) {
    while let Ok((stream, _)) = listener.accept().await {
        let cluster = Arc::clone(&cluster);
        let service = service_fn(move |request: Request<Incoming>| {
            let cluster = Arc::clone(&cluster);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let query = head.uri.query().unwrap_or_default();
                Ok::<_, hyper::Error>(cluster.answer(&head.method, head.uri.path(), query, &body))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl Cluster {
    fn answer(&self, method: &Method, path: &str, query: &str, body: &Bytes) -> Response<Body> {
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if let Some(seconds) = query.get("timeoutSeconds").and_then(|seconds| seconds.parse::<u64>().ok()) {
            return silence(Duration::from_secs(seconds));
        }
        let limit = query.get("limit").and_then(|limit| limit.parse::<usize>().ok());
        let Some(limit) = limit else { return self.keep(method, path, body) };
        let from = query.get("continue").and_then(|token| token.parse::<usize>().ok()).unwrap_or(0);
        let page = |all: usize, object: fn(usize, &Self) -> Value| {
            let range: Range<usize> = from..all.min(from + limit);
            let next = if range.end < all { range.end.to_string() } else { String::new() };
            let items: Vec<Value> = range.map(|index| object(index, self)).collect();
            whole(200, &json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": items}))
        };
        match path {
            "/api/v1/pods" => page(self.pods, pod),
            "/api/v1/services" => page(self.services, service),
            "/apis/discovery.k8s.io/v1/endpointslices" => page(self.services, slice),
            "/api/v1/namespaces" => page(
                NAMESPACES,
                |i, _| json!({"metadata": {"name": format!("ns{i}"), "labels": {"istio.io/dataplane-mode": "ambient"}}}),
            ),
            "/api/v1/nodes" => page(NODES, |i, _| json!({"metadata": {"name": format!("node{i}")}})),
            _ => page(0, |_, _| Value::Null),
        }
    }

    /// What the controller itself writes and reads again.
    fn keep(&self, method: &Method, path: &str, body: &Bytes) -> Response<Body> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let object: Value = serde_json::from_slice(body).unwrap_or_default();
        match *method {
            Method::POST => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                written.insert(format!("{path}/{name}"), object.clone());
                whole(201, &object)
            }
            Method::PUT => {
                written.insert(path.to_owned(), object.clone());
                whole(200, &object)
            }
            _ => match written.get(path) {
                Some(object) => whole(200, object),
                None => {
                    let missing = json!({"code": 404, "reason": "NotFound", "message": path});
                    whole(404, &missing)
                }
            },
        }
    }
}

fn metadata(name: &str, namespace: usize, labels: &Value) -> Value {
    // As large as what servers remember of who wrote which field.
    let fields = json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": "x".repeat(1_500)});
    json!({
        "name": name,
        "namespace": format!("ns{}", namespace % NAMESPACES),
        "uid": format!("00000000-0000-4000-8000-{namespace:012}"),
        "resourceVersion": "1",
        "labels": labels,
        "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields}],
    })
}

fn ip(index: usize) -> String {
    format!("10.{}.{}.{}", index / 62_500, index / 250 % 250, index % 250 + 1)
}

fn pod(index: usize, cluster: &Cluster) -> Value {
    let app = index % cluster.services;
    let labels = json!({"app": format!("app{app}"), "version": "v1", "pod-template-hash": "5d8f", "team": "blue"});
    let variables: Vec<Value> = (0..20).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "value"})).collect();
    json!({
        "metadata": metadata(&format!("app{app}-5d8f-{index}"), app, &labels),
        "spec": {
            "nodeName": format!("node{}", index % NODES),
            "serviceAccountName": format!("app{app}"),
            "containers": [{
                "name": "c", "image": "registry/app:1", "env": variables, "ports": [{"name": "http", "containerPort": 8080}]
            }],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip(index),
            "podIPs": [{"ip": ip(index)}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}],
        },
    })
}

fn service(index: usize, _: &Cluster) -> Value {
    json!({
        "metadata": metadata(&format!("app{index}"), index, &json!({"app": format!("app{index}")})),
        "spec": {
            "clusterIP": format!("172.16.{}.{}", index / 250, index % 250 + 1),
            "selector": {"app": format!("app{index}")},
            "ports": [{"port": 80, "targetPort": "http"}],
        },
    })
}

fn slice(index: usize, cluster: &Cluster) -> Value {
    let pods = (index..cluster.pods).step_by(cluster.services);
    let endpoints: Vec<Value> = pods
        .map(|pod| {
            let name = format!("app{index}-5d8f-{pod}");
            let namespace = format!("ns{}", index % NAMESPACES);
            json!({
                "addresses": [ip(pod)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node{}", pod % NODES),
                "targetRef": {"kind": "Pod", "name": name, "namespace": namespace},
            })
        })
        .collect();
    let labels = json!({"kubernetes.io/service-name": format!("app{index}")});
    json!({
        "metadata": metadata(&format!("app{index}-x"), index, &labels),
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    })
}

/// A watch in which nothing happens.
fn silence(time: Duration) -> Response<Body> {
    let wait = async move {
        tokio::time::sleep(time).await;
        Ok(Frame::data(Bytes::new()))
    };
    Response::new(UnsyncBoxBody::new(StreamBody::new(stream::once(wait))))
}

fn whole(code: u16, value: &Value) -> Response<Body> {
    let body = UnsyncBoxBody::new(Full::new(Bytes::from(value.to_string())));
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    answer
}
