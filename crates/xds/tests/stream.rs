//! Client and server over an in-memory connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use loam_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use loam_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use loam_api::node::Node;
use loam_xds::client::{Client, Connect, Connection, Rejected, Sink, Update};
use loam_xds::server::{Ads, MAX_STREAMS_PER_CALLER, Observer, Quiet};
use loam_xds::store::Store;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::{Endpoint, Server};

const T: &str = "type";

/// A server whose connections the test can cut.
#[derive(Clone)]
struct World {
    dial: mpsc::Sender<tokio::io::DuplexStream>,
    cut: watch::Sender<u64>,
    token: &'static str,
}

impl World {
    fn serve(store: Arc<Store>, token: &'static str) -> Self {
        Self::observed(store, token, Quiet)
    }

    fn observed(store: Arc<Store>, token: &'static str, observer: impl Observer) -> Self {
        let ads = Ads::new(
            [(T, store)],
            |metadata: &MetadataMap| {
                let caller = match metadata.get("authorization") {
                    Some(value) if value == "Bearer good" => Ok("node".to_owned()),
                    _ => Err(Status::unauthenticated("no token of ours")),
                };
                Box::pin(std::future::ready(caller))
            },
            observer,
        );
        let (dial, mut dialled) = mpsc::channel(8);
        let incoming = async_stream(move |cx| dialled.poll_recv(cx));
        tokio::spawn(Server::builder().add_service(ads.into_server()).serve_with_incoming(incoming));
        Self { dial, cut: watch::Sender::new(0), token }
    }
}

fn async_stream<T: Unpin>(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin,
) -> impl futures_util::Stream<Item = Result<T, std::io::Error>> {
    futures_util::stream::poll_fn(move |cx| poll(cx).map(|item| item.map(Ok)))
}

impl Connect for World {
    async fn connect(&self) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let (world, mut cut) = (self.clone(), self.cut.subscribe());
        cut.mark_unchanged();
        let connector = tower::service_fn(move |_| {
            let (world, mut cut) = (world.clone(), cut.clone());
            async move {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                let (mut middle, mut far) = (theirs, tokio::io::duplex(1 << 16));
                world.dial.send(far.1).await.map_err(std::io::Error::other)?;
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut middle, &mut far.0) => {}
                        _ = cut.changed() => {}
                    }
                });
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(ours))
            }
        });
        let channel = Endpoint::from_static("http://server").connect_with_connector(connector).await?;
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", self.token.parse()?);
        Ok(Connection { channel, metadata })
    }
}

/// Holds what it was given; refuses names that begin with `bad`.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Holdings>>);

#[derive(Default)]
struct Holdings {
    bodies: BTreeMap<String, Bytes>,
    /// Resources per update.
    updates: Vec<usize>,
}

impl Sink for Held {
    fn apply(&mut self, update: &Update) -> Vec<Rejected> {
        let mut held = self.0.lock().expect("no test panics while holding");
        held.updates.push(update.resources.len());
        for name in &update.removed {
            held.bodies.remove(name);
        }
        let (bad, good): (Vec<_>, Vec<_>) = update.resources.iter().partition(|r| r.name.starts_with("bad"));
        held.bodies.extend(good.into_iter().map(|r| (r.name.clone(), r.body.clone())));
        bad.into_iter().map(|r| Rejected { name: r.name.clone(), why: "is bad".into() }).collect()
    }
}

impl Held {
    fn names(&self) -> Vec<String> {
        self.0.lock().expect("no test panics while holding").bodies.keys().cloned().collect()
    }

    async fn eventually(&self, want: &[&str]) {
        let deadline = tokio::time::timeout(Duration::from_secs(20), async {
            while self.names() != want {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(deadline.await.is_ok(), "held {:?}, wanted {want:?}", self.names());
    }
}

fn put(name: &str, body: &str) -> (Arc<str>, Option<Bytes>) {
    (name.into(), Some(Bytes::copy_from_slice(body.as_bytes())))
}

#[tokio::test(start_paused = true)]
async fn changes_reach_the_client_and_a_broken_stream_costs_only_what_changed_meanwhile() {
    let store = Arc::new(Store::default());
    store.apply([put("a", "1"), put("b", "1"), put("c", "1")]);
    let world = World::serve(store.clone(), "Bearer good");
    let held = Held::default();
    let client = Client::new(Node::default(), [T], world.clone(), held.clone());
    let state = client.state();
    let running = tokio::spawn(client.run());
    held.eventually(&["a", "b", "c"]).await;
    store.apply([put("d", "1"), ("a".into(), None)]);
    held.eventually(&["b", "c", "d"]).await;

    world.cut.send_modify(|n| *n += 1);
    store.apply([put("e", "1"), ("b".into(), None)]);
    held.eventually(&["c", "d", "e"]).await;
    assert_eq!(held.0.lock().unwrap().updates, [3, 1, 1], "resources per update");
    assert!(state.borrow().synced && state.borrow().disconnects >= 1);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_bad_resource_is_refused_and_its_siblings_apply() {
    let store = Arc::new(Store::default());
    store.apply([put("bad", "1"), put("good", "1")]);
    let world = World::serve(store.clone(), "Bearer good");
    let held = Held::default();
    let running = tokio::spawn(Client::new(Node::default(), [T], world, held.clone()).run());
    held.eventually(&["good"]).await;
    store.apply([put("later", "1")]);
    held.eventually(&["good", "later"]).await;
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_a_token_is_told_nothing() {
    let store = Arc::new(Store::default());
    store.apply([put("secret", "1")]);
    let world = World::serve(store, "Bearer bad");
    let held = Held::default();
    let client = Client::new(Node::default(), [T], world, held.clone());
    let mut state = client.state();
    let running = tokio::spawn(client.run());
    let seen = state.wait_for(|state| state.disconnects >= 3).await.unwrap().clone();
    assert!(seen.last_error.unwrap().contains("no token of ours"));
    assert!(!seen.synced && held.names().is_empty());
    running.abort();
}

/// Decodes every resource as the mesh would and keeps the names of those that can be read.
#[derive(Clone, Default)]
struct Decoding(Held);

impl Sink for Decoding {
    fn apply(&mut self, update: &Update) -> Vec<Rejected> {
        let mut decoder = loam_api::convert::Decoder::default();
        let mut rejected = Vec::new();
        let mut held = self.0.0.lock().expect("no test panics while holding");
        for resource in &update.resources {
            match decoder.decode(loam_api::ADDRESS_TYPE, &resource.name, &resource.body) {
                Ok(_) => drop(held.bodies.insert(resource.name.clone(), resource.body.clone())),
                Err(error) => rejected.push(Rejected { name: resource.name.clone(), why: error.to_string() }),
            }
        }
        rejected
    }
}

#[tokio::test(start_paused = true)]
async fn a_truncated_message_costs_only_itself_and_the_server_learns_why() {
    #[derive(Clone, Default)]
    struct Nacks(Arc<Mutex<Vec<String>>>);
    impl Observer for Nacks {
        fn nacked(&self, client: &str, _: &str, status: &loam_api::rpc::Status) {
            let text = format!("{client}: {}", status.message);
            self.0.lock().expect("no test panics while holding").push(text);
        }
    }
    let workload = |name: &str| {
        let message = loam_api::workload::Workload {
            uid: name.into(),
            namespace: "shop".into(),
            addresses: vec![Bytes::from_static(&[10, 0, 0, 1])],
            ..Default::default()
        };
        let (name, body) = loam_api::encode::workload(&message.try_into().expect("the test's workload is valid"));
        (Arc::<str>::from(name), Some(body))
    };
    let store = Arc::new(Store::default());
    let (name, body) = workload("c//Pod/shop/cut");
    let cut = body.map(|body| body.slice(..body.len() - 1));
    store.apply([(name, cut), workload("c//Pod/shop/good")]);
    let nacks = Nacks::default();
    let world = World::observed(store.clone(), "Bearer good", nacks.clone());
    let held = Decoding::default();
    let running = tokio::spawn(Client::new(Node::default(), [T], world, held.clone()).run());
    held.0.eventually(&["c//Pod/shop/good"]).await;
    store.apply([workload("c//Pod/shop/later")]);
    held.0.eventually(&["c//Pod/shop/good", "c//Pod/shop/later"]).await;
    let nacks = nacks.0.lock().unwrap().clone();
    assert_eq!(nacks.len(), 1);
    assert!(nacks[0].starts_with("node: c//Pod/shop/cut: c//Pod/shop/cut: message: "), "{nacks:?}");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_large_mesh_arrives_whole_and_in_pieces() {
    let store = Arc::new(Store::default());
    let body = "x".repeat(100);
    store.apply((0..100_000).map(|i| put(&format!("workload-{i}"), &body)));
    let world = World::serve(store.clone(), "Bearer good");
    let held = Held::default();
    let client = Client::new(Node::default(), [T], world, held.clone());
    let mut state = client.state();
    let running = tokio::spawn(client.run());
    state.wait_for(|state| state.synced).await.unwrap();
    let whole = async {
        while held.0.lock().unwrap().bodies.len() < 100_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), whole).await.unwrap();
    let pieces = held.0.lock().unwrap().updates.len();
    assert!((10..100).contains(&pieces), "{pieces} pieces");
    running.abort();
}

/// A stream that the test drives by hand: what it sends, and what the server answers.
async fn by_hand(world: &World) -> (mpsc::Sender<DeltaDiscoveryRequest>, tonic::Streaming<DeltaDiscoveryResponse>) {
    let Connection { channel, metadata } = world.connect().await.expect("the server of the test takes connections");
    let (requests, stream) = mpsc::channel(8);
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(stream));
    *request.metadata_mut() = metadata;
    let subscribe = DeltaDiscoveryRequest { type_url: T.into(), ..Default::default() };
    requests.send(subscribe).await.expect("the receiver is alive");
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.delta_aggregated_resources(request).await.expect("the token is good");
    (requests, responses.into_inner())
}

fn ack(nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: T.into(), response_nonce: nonce.into(), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_is_owed_one_response_however_much_changes() {
    let store = Arc::new(Store::default());
    store.apply([put("a", "0")]);
    let world = World::serve(store.clone(), "Bearer good");
    let (requests, mut responses) = by_hand(&world).await;
    let first = responses.message().await.unwrap().unwrap();
    for i in 1..1000 {
        store.apply([put("a", &i.to_string()), put(&format!("r{i}"), "1"), (format!("r{}", i - 1).into(), None)]);
        tokio::task::yield_now().await;
    }
    let silence = tokio::time::timeout(Duration::from_secs(5), responses.message()).await;
    assert!(silence.is_err(), "something was sent before the first response was answered");
    // An answer to a response that never was is not an answer.
    requests.send(ack("0")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), responses.message()).await.is_err());
    requests.send(ack(&first.nonce)).await.unwrap();
    let next = responses.message().await.unwrap().unwrap();
    let names: Vec<_> = next.resources.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["a", "r999"], "each name once, in its newest state");
    assert_eq!(next.resources[0].resource.as_ref().unwrap().value, "999");
    // A nonce that was used is not an answer to what came after it.
    store.apply([put("a", "last")]);
    requests.send(ack(&first.nonce)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), responses.message()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_left() {
    struct Silent(Arc<Mutex<Vec<tokio::io::DuplexStream>>>);
    impl Connect for Silent {
        async fn connect(&self) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
            let kept = self.0.clone();
            let connector = tower::service_fn(move |_| {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                kept.lock().expect("no test panics while holding").push(theirs);
                async { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(ours)) }
            });
            let channel = Endpoint::from_static("http://server").connect_with_connector(connector).await?;
            Ok(Connection { channel, metadata: MetadataMap::new() })
        }
    }
    let client = Client::new(Node::default(), [T], Silent(Arc::default()), Held::default());
    let mut state = client.state();
    let running = tokio::spawn(client.run());
    let before = tokio::time::Instant::now();
    state.wait_for(|state| state.disconnects >= 2).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(120));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_a_bounded_number_of_streams_and_gets_them_back() {
    let store = Arc::new(Store::default());
    let world = World::serve(store, "Bearer good");
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS_PER_CALLER {
        let mut stream = by_hand(&world).await;
        stream.1.message().await.unwrap().unwrap();
        streams.push(stream);
    }
    let refused = || async {
        let Connection { channel, metadata } = world.connect().await.unwrap();
        let mut request = tonic::Request::new(futures_util::stream::pending());
        *request.metadata_mut() = metadata;
        AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await
    };
    assert_eq!(refused().await.unwrap_err().code(), tonic::Code::ResourceExhausted);
    streams.pop();
    let regained = async {
        while refused().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), regained).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_is_in_step_with_a_server_that_does_not_know_all_of_its_types() {
    let store = Arc::new(Store::default());
    store.apply([put("a", "1")]);
    let world = World::serve(store.clone(), "Bearer good");
    let held = Held::default();
    let client = Client::new(Node::default(), [T, "of a newer version"], world, held.clone());
    let mut state = client.state();
    let running = tokio::spawn(client.run());
    let synced = tokio::time::timeout(Duration::from_secs(20), state.wait_for(|state| state.synced)).await.is_ok();
    assert!(synced, "the client waits for a type that is not served");
    store.apply([put("b", "1")]);
    held.eventually(&["a", "b"]).await;
    assert_eq!(state.borrow().disconnects, 0);
    running.abort();
}
