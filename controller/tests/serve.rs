//! A whole controller in this process, with files on one side and a proxy's calls on the other.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use loam_api::ADDRESS_TYPE;
use loam_api::AUTHORIZATION_TYPE;
use loam_api::ca::IstioCertificateRequest;
use loam_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use loam_api::convert::Decoder;
use loam_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use loam_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use loam_controller::app::{self, Running};
use loam_controller::config::{Command, Token, parse};
use loam_core::snapshot::Change;
use loam_core::workload::TunnelProtocol;
use loam_tls::channel::{ControlPlane, channel, tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

const WAIT: Duration = Duration::from_secs(20);

const MESH: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\n";

fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: []}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

/// A controller over a directory of manifests; both go with the test.
struct World {
    dir: PathBuf,
    running: Option<Running>,
}

impl World {
    async fn new(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("loam-controller-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("manifests")).unwrap();
        for (name, text) in files {
            fs::write(dir.join("manifests").join(name), text).unwrap();
        }
        let line = format!(
            "loam-controller --source dir:{0}/manifests --data-dir {0}/data --listen 127.0.0.1:0 --admin 127.0.0.1:0",
            dir.display()
        );
        let Ok(Command::Serve(config)) = parse(line.split(' ').map(Into::into)) else { panic!("{line}") };
        let running = Some(app::start(*config, None).await.unwrap());
        Self { dir, running }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join("manifests").join(name), text).unwrap();
    }

    fn token(&self, node: &str) -> String {
        let ttl = Duration::from_secs(60);
        app::token(&Token { data_dir: self.dir.join("data"), node: node.to_owned(), ttl }).unwrap()
    }

    fn channel(&self) -> Channel {
        let root_file = self.dir.join("data/root-cert.pem");
        let roots = fs::read(&root_file).unwrap();
        let to = ControlPlane { address: self.running().address.to_string(), server_name: None, root_file };
        channel(&to, &roots, tcp()).unwrap()
    }

    async fn proxy(&self, node: &str) -> Proxy {
        let (requests, outgoing) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel());
        for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            let request = DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() };
            requests.send(request).await.unwrap();
        }
        let request = with_token(Request::new(ReceiverStream::new(outgoing)), &self.token(node));
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Proxy { requests, responses, held: BTreeMap::new() }
    }

    async fn sign(&self, token: Option<&str>, identity: &str) -> Result<usize, Code> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let whom = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())) };
        let fields = BTreeMap::from([("ImpersonatedIdentity".to_owned(), whom)]);
        let message =
            IstioCertificateRequest { csr, validity_duration: 3600, metadata: Some(prost_types::Struct { fields }) };
        let request = match token {
            Some(token) => with_token(Request::new(message), token),
            None => Request::new(message),
        };
        let answer = IstioCertificateServiceClient::new(self.channel()).create_certificate(request).await;
        answer.map(|a| a.into_inner().cert_chain.len()).map_err(|status| status.code())
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.running().admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn with_token<T>(mut request: Request<T>, token: &str) -> Request<T> {
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// What a proxy holds, kept up to date by the responses it acknowledges.
struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    held: BTreeMap<String, Change>,
}

impl Proxy {
    /// Takes one response of a type and acknowledges it. Returns the names it is about.
    async fn take(&mut self) -> (String, BTreeSet<String>) {
        let response = tokio::time::timeout(WAIT, self.responses.message()).await.unwrap().unwrap().unwrap();
        let mut names = BTreeSet::new();
        for resource in response.resources {
            let body = resource.resource.unwrap().value;
            let change = Decoder::default().decode(&response.type_url, &resource.name, &body).unwrap();
            names.insert(format!("+{}", resource.name));
            self.held.insert(resource.name, change);
        }
        for name in response.removed_resources {
            self.held.remove(&name);
            names.insert(format!("-{name}"));
        }
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        (response.type_url, names)
    }

    /// Takes the first answer of both types.
    async fn sync(&mut self) {
        let types = [self.take().await.0, self.take().await.0];
        assert_eq!(BTreeSet::from(types), BTreeSet::from([ADDRESS_TYPE.to_owned(), AUTHORIZATION_TYPE.to_owned()]));
    }

    fn names(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_told_the_mesh_and_then_what_changes() {
    let first = format!("{MESH}{}{}", pod("a", "n1", "10.0.0.1"), pod("b", "n2", "10.0.0.2"));
    let mut world = World::new(&[("m.yaml", &first)]).await;
    let mut proxy = world.proxy("n1").await;
    proxy.sync().await;
    let names = ["Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b", "shop/web.shop.svc.cluster.local"];
    assert_eq!(proxy.names(), names);
    let Change::Workload(a) = &proxy.held["Kubernetes//Pod/shop/a"] else { panic!("not a workload") };
    assert_eq!(a.protocol, TunnelProtocol::Hbone);
    assert_eq!(a.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/a");
    assert_eq!(a.services[0].ports[0].target_port, 8080);

    world.write("m.yaml", &format!("{MESH}{}{}", pod("a", "n1", "10.0.0.1"), pod("c", "n2", "10.0.0.3")));
    let told = proxy.take().await.1;
    assert_eq!(told, BTreeSet::from(["+Kubernetes//Pod/shop/c".to_owned(), "-Kubernetes//Pod/shop/b".to_owned()]));

    // A broken file loses nothing and tells where it is broken; what comes beside it counts.
    world.write("m.yaml", &format!("{MESH}{}kind: [\n", pod("a", "n1", "10.0.0.1")));
    world.write("n.yaml", &pod("d", "n1", "10.0.0.4"));
    assert_eq!(proxy.take().await.1, BTreeSet::from(["+Kubernetes//Pod/shop/d".to_owned()]));
    assert_eq!(proxy.held.len(), 4, "{:?}", proxy.names());
    let problems = world.get("/debug/problems").await;
    assert!(problems.contains("m.yaml") && problems.contains("\"line\": 16"), "{problems}");
    assert!(world.get("/debug/workloads").await.contains("\"workloadIps\""));
    assert!(world.get("/metrics").await.contains("loam_controller_pods 3"));
    assert!(world.get("/ready").await.starts_with("HTTP/1.1 200"));
    assert!(world.get("/debug/nodes").await.contains("\"n1\""));

    let address = world.running().address;
    tokio::time::timeout(WAIT, world.running.take().unwrap().end()).await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_anything_without_a_token_of_ours() {
    let world = World::new(&[("m.yaml", &pod("a", "n1", "10.0.0.1"))]).await;
    let other = World::new(&[]).await;
    for token in [None, Some("x".to_owned()), Some(other.token("n1"))] {
        let (_requests, outgoing) = mpsc::channel::<DeltaDiscoveryRequest>(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = &token {
            request = with_token(request, token);
        }
        let answer = AggregatedDiscoveryServiceClient::new(world.channel()).delta_aggregated_resources(request).await;
        let status = answer.map(|_| ()).unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "not authenticated"));
        let signed = world.sign(token.as_deref(), "spiffe://cluster.local/ns/shop/sa/a").await;
        assert_eq!(signed, Err(Code::Unauthenticated));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_its_own_pods_only() {
    let first = format!("{MESH}{}{}", pod("a", "n1", "10.0.0.1"), pod("b", "n2", "10.0.0.2"));
    let world = World::new(&[("m.yaml", &first)]).await;
    let token = world.token("n1");
    let sign = async |who: &str| world.sign(Some(&token), &format!("spiffe://{who}")).await;
    assert_eq!(sign("cluster.local/ns/shop/sa/a").await, Ok(2));
    for who in ["cluster.local/ns/shop/sa/b", "cluster.local/ns/other/sa/a", "other.domain/ns/shop/sa/a"] {
        assert_eq!(sign(who).await, Err(Code::PermissionDenied), "{who}");
    }
    // It is denied from the moment the pod is gone.
    let mut proxy = world.proxy("n1").await;
    proxy.sync().await;
    world.write("m.yaml", MESH);
    proxy.take().await;
    assert_eq!(sign("cluster.local/ns/shop/sa/a").await, Err(Code::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_there_or_a_port_that_is_taken_is_said_so() {
    let world = World::new(&[]).await;
    let line = |source: &str, listen: &str| {
        let dir = world.dir.display();
        let line = format!(
            "loam-controller --source dir:{source} --data-dir {dir}/data --listen {listen} --admin 127.0.0.1:0"
        );
        match parse(line.split(' ').map(Into::into)) {
            Ok(Command::Serve(config)) => config,
            other => panic!("{other:?}"),
        }
    };
    let missing = app::start(*line("/nonexistent", "127.0.0.1:0"), None).await.unwrap_err();
    assert!(format!("{missing:#}").starts_with("read the directory of manifests /nonexistent: No such file"));
    let taken = world.running().address.to_string();
    let busy = app::start(*line("/tmp", &taken), None).await.unwrap_err();
    assert!(format!("{busy:#}").starts_with(&format!("listen on {taken} for proxies: Address already in use")));
}
