//! Client and server over an in-memory connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use loam_api::node::Node;
use loam_xds::client::{Client, Connect, Connection, Rejected, Sink, Update};
use loam_xds::server::{Ads, Quiet};
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
        let ads = Ads::new(
            [(T, store)],
            |metadata: &MetadataMap| match metadata.get("authorization") {
                Some(value) if value == "Bearer good" => Ok("node".to_owned()),
                _ => Err(Status::unauthenticated("no token of ours")),
            },
            Quiet,
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
