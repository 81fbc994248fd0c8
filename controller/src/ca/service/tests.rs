use std::collections::BTreeMap;
use std::io;

use loam_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use loam_tls::channel::{Accepted, ControlPlane, Dial, Wire};
use loam_tls::key::Key;
use loam_tls::store::{IdentityState, Settings};
use loam_tls::{CaClient, CaConfig, Store, Trust};
use prost_types::{Struct, Value};
use rcgen::PublicKeyData;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::transport::Server;

use super::*;
use crate::ca::Tokens;
use crate::ca::authority::ROOT_FILE;
use crate::ca::limit::BURST;
use crate::ca::scratch::Scratch;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// `web` and `cache` run on `node-1`, `db` on `node-2`.
struct Plan;

impl Entitled for Plan {
    fn runs_on(&self, identity: &Identity, node: &str) -> bool {
        let workload = (identity.namespace(), identity.service_account());
        matches!((workload, node), (("shop", "web" | "cache"), "node-1") | (("shop", "db"), "node-2"))
    }

    fn has_waypoint(&self, account: &Account, node: &str) -> bool {
        (account.to_string().as_str(), node) == ("shop/waypoint", "node-1")
    }
}

struct Bench {
    service: CaService<Plan>,
    now: (SystemTime, Instant),
    _scratch: Scratch,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new();
        let authenticate: Authenticate = Arc::new(|metadata| {
            let node = metadata.get("node").and_then(|node| node.to_str().ok());
            Box::pin(std::future::ready(caller(node)))
        });
        let service = CaService::new(Arc::new(scratch.authority()), authenticate, Plan);
        Self { service, now: (SystemTime::now(), Instant::now()), _scratch: scratch }
    }

    fn ask(&self, node: Option<&str>, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        self.service.answer(caller(node), request, self.now.0, self.now.1)
    }

    fn refused(&self, request: &IstioCertificateRequest) -> (Code, String) {
        let status = self.ask(Some("node-1"), request).expect_err("the request was granted");
        (status.code(), status.message().to_owned())
    }
}

fn caller(node: Option<&str>) -> Result<Caller, Refused> {
    let caller = node.map(Caller::of_node);
    caller.ok_or_else(|| Refused::Stranger("there is no token".into()))
}

#[test]
fn a_waypoint_gets_a_certificate_for_itself_and_nobody_else() {
    let bench = Bench::new();
    let ask = |account: &str, node: &str, identity: &str| {
        let caller = Caller { node: node.into(), account: Some(account.parse().unwrap()) };
        bench.service.answer(Ok(caller), &request(identity), bench.now.0, bench.now.1).map(drop).map_err(|s| s.code())
    };
    let waypoint = "spiffe://cluster.local/ns/shop/sa/waypoint";
    assert_eq!(ask("shop/waypoint", "node-1", WEB), Err(Code::PermissionDenied), "it runs on the same node");
    assert_eq!(ask("shop/waypoint", "node-2", waypoint), Err(Code::PermissionDenied), "there is none on that node");
    assert_eq!(ask("shop/web", "node-1", WEB), Err(Code::PermissionDenied), "web is no waypoint");
    assert_eq!(ask("shop/waypoint", "node-1", waypoint), Ok(()));
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn metadata(value: Value) -> Option<Struct> {
    Some(Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) })
}

fn request(identity: &str) -> IstioCertificateRequest {
    let csr = Key::generate().unwrap().request(&WEB.parse().unwrap()).unwrap();
    IstioCertificateRequest { csr, validity_duration: 3600, metadata: metadata(text(identity)) }
}

fn invalid() -> (Code, String) {
    (Code::InvalidArgument, "invalid request".into())
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "not permitted".into())
}

#[test]
fn a_node_gets_the_identities_that_run_on_it() {
    let bench = Bench::new();
    let answer = bench.ask(Some("node-1"), &request(WEB)).unwrap();
    let issued = loam_tls::ca::issued(answer).unwrap();
    let leaf = loam_tls::cert::leaf(&issued.chain[0]).unwrap();
    assert_eq!(leaf.identity.to_string(), WEB);
    let life = leaf.not_after.duration_since(bench.now.0).unwrap();
    assert!(life <= Duration::from_secs(3600) && life > Duration::from_secs(3590));
}

#[test]
fn an_identity_that_runs_elsewhere_or_nowhere_is_denied_alike() {
    let bench = Bench::new();
    for identity in [
        "spiffe://cluster.local/ns/shop/sa/db",
        "spiffe://cluster.local/ns/shop/sa/nobody",
        "spiffe://cluster.local/ns/other/sa/web",
        "spiffe://other.example/ns/shop/sa/web",
    ] {
        assert_eq!(bench.refused(&request(identity)), denied(), "{identity}");
    }
    assert!(bench.ask(Some("node-2"), &request(WEB)).is_err());
    assert!(bench.ask(Some("node-2"), &request("spiffe://cluster.local/ns/shop/sa/db")).is_ok());
}

#[test]
fn a_caller_that_is_not_known_learns_nothing() {
    let bench = Bench::new();
    for request in [request(WEB), IstioCertificateRequest::default()] {
        let status = bench.ask(None, &request).unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "not authenticated"));
    }
}

#[test]
fn a_caller_that_cannot_be_known_now_may_try_again() {
    let bench = Bench::new();
    let refused = Err(Refused::Unavailable("the API server is down".into()));
    let status = bench.service.answer(refused, &request(WEB), bench.now.0, bench.now.1).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("API"), "{}", status.message());
}

#[test]
fn an_identity_that_is_not_one_is_refused() {
    let bench = Bench::new();
    for identity in [
        "",
        "web",
        "spiffe://cluster.local/ns/shop/sa/web/..",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web?a=b",
        "spiffe://u@cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local/ns/shop/sa/web\0",
        &format!("spiffe://cluster.local/ns/shop/sa/{}", "w".repeat(2049)),
    ] {
        assert_eq!(bench.refused(&request(identity)), invalid(), "{identity}");
    }
    let none = |metadata| IstioCertificateRequest { metadata, ..request(WEB) };
    assert_eq!(bench.refused(&none(None)), invalid());
    assert_eq!(bench.refused(&none(Some(Struct::default()))), invalid());
    assert_eq!(bench.refused(&none(metadata(Value { kind: None }))), invalid());
    assert_eq!(bench.refused(&none(metadata(Value { kind: Some(Kind::NumberValue(1.0)) }))), invalid());
    let mut many = metadata(text(WEB)).unwrap();
    many.fields.extend((0..MAX_METADATA_KEYS).map(|i| (format!("key-{i}"), text(""))));
    assert_eq!(bench.refused(&none(Some(many))), invalid());
}

#[test]
fn a_request_that_cannot_be_read_is_refused_without_a_reason() {
    let bench = Bench::new();
    let good = request(WEB).csr;
    for csr in [
        String::new(),
        "no PEM".into(),
        format!("{good}{good}"),
        include_str!("../corpus/rsa-1024.pem").into(),
        include_str!("../corpus/ec-secp256k1.pem").into(),
    ] {
        assert_eq!(bench.refused(&IstioCertificateRequest { csr, ..request(WEB) }), invalid());
    }
}

#[test]
fn whatever_a_request_wishes_only_its_key_counts() {
    let bench = Bench::new();
    let csr = include_str!("../corpus/greedy.pem");
    let wish = IstioCertificateRequest { csr: csr.into(), ..request(WEB) };
    let issued = loam_tls::ca::issued(bench.ask(Some("node-1"), &wish).unwrap()).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert_eq!(loam_tls::cert::leaf(&issued.chain[0]).unwrap().identity.to_string(), WEB);
    assert_eq!(cert.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!cert.is_ca() && cert.subject().iter().count() == 0);
    let purposes = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(!purposes.any && !purposes.code_signing && purposes.client_auth && purposes.server_auth);
    assert_eq!(cert.public_key().raw, proven_key(csr).unwrap().subject_public_key_info());
}

#[test]
fn a_key_is_certified_for_one_identity_only() {
    let bench = Bench::new();
    let first = request(WEB);
    bench.ask(Some("node-1"), &first).unwrap();
    bench.ask(Some("node-1"), &first).unwrap();
    let other = metadata(text("spiffe://cluster.local/ns/shop/sa/cache"));
    assert_eq!(bench.refused(&IstioCertificateRequest { metadata: other.clone(), ..first }), invalid());
    bench.ask(Some("node-1"), &IstioCertificateRequest { metadata: other, ..request(WEB) }).unwrap();
}

#[test]
fn odd_wishes_about_the_life_give_the_usual_one() {
    let bench = Bench::new();
    for validity_duration in [0, -1, i64::MIN, 10 * 365 * 24 * 3600, i64::MAX] {
        let wish = IstioCertificateRequest { validity_duration, ..request(WEB) };
        let issued = loam_tls::ca::issued(bench.ask(Some("node-1"), &wish).unwrap()).unwrap();
        let life = loam_tls::cert::leaf(&issued.chain[0]).unwrap().not_after.duration_since(bench.now.0).unwrap();
        assert_eq!(life.as_secs().div_ceil(60), 24 * 60, "{validity_duration}");
    }
}

#[test]
fn a_node_that_storms_is_held_to_its_rate() {
    let bench = Bench::new();
    let bad = IstioCertificateRequest::default();
    let codes: Vec<_> = (0..2000).map(|_| bench.ask(Some("node-1"), &bad).unwrap_err().code()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == Code::InvalidArgument).count(), BURST as usize);
    assert_eq!(codes.last(), Some(&Code::ResourceExhausted));
    assert!(bench.ask(Some("node-2"), &request("spiffe://cluster.local/ns/shop/sa/db")).is_ok());
}

#[tokio::test]
async fn it_is_served_over_grpc() {
    let bench = Bench::new();
    let mut call = Request::new(request(WEB));
    call.metadata_mut().insert("node", "node-1".parse().unwrap());
    assert_eq!(bench.service.create_certificate(call).await.unwrap().get_ref().cert_chain.len(), 2);
}

#[tokio::test]
async fn a_node_with_its_token_gets_a_certificate_through_our_own_client() {
    let (scratch, now) = (Scratch::new(), SystemTime::now());
    let authority = Arc::new(scratch.authority());
    let tokens = Arc::new(Tokens::open(scratch.path()).unwrap());
    let serving = Arc::new(authority.serving_config(&["controller".to_owned()]).unwrap());
    let service = CaService::new(authority, tokens.clone().authenticate(), Plan);
    let (accepted, incoming) = mpsc::unbounded_channel::<io::Result<Accepted<DuplexStream>>>();
    let server = Server::builder().add_service(IstioCertificateServiceServer::new(service));
    tokio::spawn(server.serve_with_incoming(UnboundedReceiverStream::new(incoming)));
    let dial: Dial = Arc::new(move |_, _| {
        let (near, far) = duplex(64 * 1024);
        let (acceptor, accepted) = (TlsAcceptor::from(serving.clone()), accepted.clone());
        tokio::spawn(async move { accepted.send(acceptor.accept(far).await.map(Accepted)) });
        Box::pin(async move { Ok(Box::new(near) as Box<dyn Wire>) })
    });
    let token_file = scratch.file("token");
    let control_plane =
        ControlPlane { address: "controller:15012".into(), server_name: None, root_file: scratch.file(ROOT_FILE) };
    let ttl = Duration::from_secs(3600);
    let config = CaConfig { control_plane, token_file: token_file.clone(), cluster: "Kubernetes".into(), ttl };
    let trust = Trust::new("cluster.local".parse().unwrap(), []);
    let (store, driver) = Store::new(CaClient::dialling(config, dial), trust, Settings::default());
    tokio::spawn(driver.run());

    std::fs::write(&token_file, tokens.issue("node-1", ttl, now).unwrap()).unwrap();
    let (web, db) = (WEB.parse().unwrap(), "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap());
    store.want(&web);
    store.want(&db);
    let credentials = store.get(&web).await.unwrap();
    assert_eq!(credentials.identity(), &web);
    let refused = |state: &IdentityState| {
        state.identity == db.to_string()
            && state.last_error.as_deref() == Some("the CA refused: PermissionDenied: not permitted")
    };
    while !store.state().iter().any(refused) {
        tokio::task::yield_now().await;
    }
    assert!(store.current(&db).is_none());
}
