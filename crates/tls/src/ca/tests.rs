use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use loam_api::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::Response;
use tonic::codegen::tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;

use super::*;
use crate::channel::{Accepted, Wire};
use crate::key::Key;
use crate::testing::{Spec, TestCa, pem};

/// Token, cluster and message of a request.
type Asked = (String, Option<String>, IstioCertificateRequest);

/// A control plane behind an in-memory wire. It notes what it was asked.
struct Bench {
    ca: Arc<TestCa>,
    asked: Arc<Mutex<Vec<Asked>>>,
    dials: Arc<AtomicUsize>,
    serving: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    client: CaClient,
    dir: Dir,
}

struct Service {
    ca: Arc<TestCa>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| request.metadata().get(name).map(|v| v.to_str().unwrap().to_owned());
        let (token, cluster) = (header("authorization").unwrap_or_default(), header("clusterid"));
        self.asked.lock().unwrap().push((token.clone(), cluster, request.get_ref().clone()));
        if token != "Bearer good" {
            return Err(Status::unauthenticated("request authenticate failure"));
        }
        let request = rcgen::CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap();
        let issued = self.ca.issue_deep(&request.public_key, &Spec::of(WEB), 1);
        let mut cert_chain: Vec<_> = issued.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        cert_chain.push(format!("{}{}", self.ca.root_pem(), TestCa::new("old.example").root_pem()));
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A directory of this test alone.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("loam-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

impl Bench {
    fn new() -> Self {
        let (dir, ca) = (Dir::new(), Arc::new(TestCa::new("cluster.local")));
        let (asked, dials) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let serving = Arc::new(Mutex::new(ca.control_plane(&["controller.loam-system.svc"])));
        let (wires, arrivals) = mpsc::unbounded_channel();
        let service = IstioCertificateServiceServer::new(Service { ca: ca.clone(), asked: Arc::clone(&asked) });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming(arrivals, serving.clone())));
        let counter = dials.clone();
        let dial: Dial = Arc::new(move |_, _| {
            counter.fetch_add(1, Ordering::SeqCst);
            let (near, far) = duplex(64 * 1024);
            let sent = wires.send(far).map_err(|_| io::ErrorKind::ConnectionRefused.into());
            Box::pin(async move { sent.map(|()| Box::new(near) as Box<dyn Wire>) })
        });
        let control_plane = ControlPlane {
            address: "127.0.0.1:15012".into(),
            server_name: Some("controller.loam-system.svc".into()),
            root_file: dir.write("root.pem", &ca.root_pem()),
        };
        let token_file = dir.write("token", "good\n");
        let config = CaConfig { control_plane, token_file, cluster: "Kubernetes".into(), ttl: DEFAULT_TTL };
        let client = CaClient::dialling(config, dial);
        Self { ca, asked, dials, serving, client, dir }
    }

    async fn sign(&self) -> Result<(Key, Issued), SignError> {
        let key = Key::generate().unwrap();
        let identity: Identity = WEB.parse().unwrap();
        let request = key.request(&identity).unwrap();
        self.client.sign(&identity, &request).await.map(|issued| (key, issued))
    }
}

fn incoming(
    arrivals: mpsc::UnboundedReceiver<DuplexStream>,
    serving: Arc<Mutex<Arc<rustls::ServerConfig>>>,
) -> impl Stream<Item = io::Result<Accepted<DuplexStream>>> {
    let wires = tonic::codegen::tokio_stream::StreamExt::then(Arrivals(arrivals), move |wire| {
        let config = serving.lock().unwrap().clone();
        async move { TlsAcceptor::from(config).accept(wire).await.map(Accepted) }
    });
    // tonic ends at the first error.
    wires.filter(Result::is_ok)
}

struct Arrivals(mpsc::UnboundedReceiver<DuplexStream>);

impl Stream for Arrivals {
    type Item = DuplexStream;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<DuplexStream>> {
        self.0.poll_recv(cx)
    }
}

#[tokio::test]
async fn a_request_names_the_workload_and_carries_the_token() {
    let bench = Bench::new();
    let (key, issued) = bench.sign().await.unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (2, 2));
    let trust = crate::Trust::new("cluster.local".parse().unwrap(), []);
    let identity = WEB.parse().unwrap();
    crate::Credentials::new(&identity, key, issued, &trust, std::time::SystemTime::now()).unwrap();

    let (token, cluster, request) = bench.asked.lock().unwrap().remove(0);
    assert_eq!((token.as_str(), cluster.as_deref()), ("Bearer good", Some("Kubernetes")));
    assert_eq!(request.validity_duration, 24 * 3600);
    let fields = request.metadata.unwrap().fields;
    assert_eq!(fields["ImpersonatedIdentity"].kind, Some(Kind::StringValue(WEB.into())));
}

#[tokio::test]
async fn the_token_is_read_for_every_call() {
    let bench = Bench::new();
    bench.sign().await.unwrap();
    bench.dir.write("token", "stale");
    let error = bench.sign().await.unwrap_err();
    assert_eq!(error.to_string(), "the CA refused: Unauthenticated: request authenticate failure");
    bench.dir.write("token", "good");
    bench.sign().await.unwrap();
    assert_eq!(bench.dials.load(Ordering::SeqCst), 1, "one channel serves all");
}

#[tokio::test]
async fn a_token_file_that_is_missing_empty_or_binary_is_named() {
    let bench = Bench::new();
    for (text, error) in [("", "is empty"), (" \n", "is empty"), ("a\nb", "has characters that no token has")] {
        bench.dir.write("token", text);
        let path = bench.dir.0.join("token");
        assert_eq!(bench.sign().await.unwrap_err().to_string(), format!("token file {}: {error}", path.display()));
    }
    std::fs::remove_file(bench.dir.0.join("token")).unwrap();
    assert!(bench.sign().await.unwrap_err().to_string().contains("token: No such file"));
    assert!(bench.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_control_plane_with_another_root_or_name_gets_no_token() {
    let bench = Bench::new();
    *bench.serving.lock().unwrap() = TestCa::new("cluster.local").control_plane(&["controller.loam-system.svc"]);
    let error = bench.sign().await.unwrap_err();
    assert!(matches!(&error, SignError::Unreachable(why) if why.contains("UnknownIssuer")), "{error}");

    *bench.serving.lock().unwrap() = bench.ca.control_plane(&["other.loam-system.svc"]);
    let error = bench.sign().await.unwrap_err();
    assert!(matches!(&error, SignError::Unreachable(why) if why.contains("not valid for name")), "{error}");
    assert!(bench.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_root_file_that_changes_counts_for_the_next_call() {
    let bench = Bench::new();
    bench.sign().await.unwrap();
    let next = TestCa::new("cluster.local");
    *bench.serving.lock().unwrap() = next.control_plane(&["controller.loam-system.svc"]);
    bench.dir.write("root.pem", &next.root_pem());
    bench.sign().await.unwrap();
    assert_eq!(bench.dials.load(Ordering::SeqCst), 2);

    for broken in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let path = bench.dir.write("root.pem", broken);
        let error = bench.sign().await.unwrap_err().to_string();
        assert_eq!(error, format!("{}: no certificate that can be used as a root", path.display()));
    }
}

#[test]
fn answers_that_are_no_chain_are_refused() {
    let ca = TestCa::new("cluster.local");
    let pem = ca.root_pem();
    let root = pem.as_str();
    let answer =
        |chain: &[&str]| issued(IstioCertificateResponse { cert_chain: chain.iter().map(|&s| s.to_owned()).collect() });
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for chain in [&[][..], &[root], &[broken, root], &[root, broken], &[root; 7]] {
        assert!(matches!(answer(chain), Err(SignError::Malformed(_))), "{chain:?}");
    }
    assert!(answer(&[root, root]).is_ok());
}

#[test]
fn an_address_without_port_is_refused() {
    let to = ControlPlane { address: "no-port".into(), server_name: None, root_file: "/nonexistent".into() };
    let error = crate::channel::channel(&to, b"", tcp()).unwrap_err().to_string();
    assert_eq!(error, "control plane address \"no-port\": is not host:port");
}
