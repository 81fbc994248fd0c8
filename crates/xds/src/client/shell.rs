//! Keeps one stream to the server, for ever.

use std::future::Future;
use std::time::Duration;

use loam_api::discovery::DeltaDiscoveryRequest;
use loam_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use loam_api::node::Node;
use loam_rt::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use super::machine::{Machine, Rejected, Update};
use crate::MAX_MESSAGE_BYTES;

/// Shortest wait between two connections.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// Longest wait between two connections.
const MAX_DELAY: Duration = Duration::from_secs(15);

/// Longest wait for the server to accept the stream, and for its first answer of each type. A server that took the
/// stream and says nothing would otherwise be waited for for ever; afterwards silence only means that nothing changed.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Takes what arrives. What it does not return is applied when it returns.
pub trait Sink: Send + 'static {
    /// Applies an update but for the resources that it returns.
    fn apply(&mut self, update: &Update) -> Vec<Rejected>;
}

/// A channel to the server and what to say with the request, such as a token.
#[derive(Debug)]
pub struct Connection {
    /// The transport.
    pub channel: Channel,
    /// Headers of the stream.
    pub metadata: MetadataMap,
}

/// Makes a connection anew each time: the server's address, our token and the roots may have changed.
pub trait Connect: Send + Sync + 'static {
    /// One attempt.
    fn connect(&self) -> impl Future<Output = Result<Connection, Box<dyn std::error::Error + Send + Sync>>> + Send;
}

/// How the client stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Every type arrived once; never lost again, since what is held stays in use.
    pub synced: bool,
    /// A stream is open.
    pub connected: bool,
    /// Streams that ended, by being refused or broken.
    pub disconnects: u64,
    /// Why the last one ended.
    pub last_error: Option<String>,
}

/// A client of the discovery service.
#[derive(Debug)]
pub struct Client<C, S> {
    machine: Machine,
    connect: C,
    sink: S,
    state: watch::Sender<State>,
}

impl<C: Connect, S: Sink> Client<C, S> {
    /// Asks as `node` for everything of `types`.
    pub fn new(node: Node, types: impl IntoIterator<Item = &'static str>, connect: C, sink: S) -> Self {
        Self { machine: Machine::new(node, types), connect, sink, state: watch::Sender::default() }
    }

    /// Asks only for `names` of a type, each of which may be the beginning of names, as in `shop/waypoint/*`.
    #[must_use]
    pub fn only(mut self, type_url: &'static str, names: impl IntoIterator<Item = String>) -> Self {
        self.machine.only(type_url, names);
        self
    }

    /// How the client stands, as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) -> std::convert::Infallible {
        let mut backoff = Backoff::new(MIN_DELAY, MAX_DELAY);
        loop {
            let ended = self.session(&mut backoff).await;
            let why = match ended {
                Ok(()) => "the server closed the stream".to_owned(),
                Err(error) => loam_rt::explain(&*error),
            };
            self.state.send_modify(|state| {
                state.connected = false;
                state.disconnects += 1;
                state.last_error = Some(why.clone());
            });
            let delay = backoff.fail(rand::random());
            tracing::warn!(error = why, retry_in = ?delay, "configuration stream ended");
            tokio::time::sleep(delay).await;
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Connection { channel, metadata } = self.connect.connect().await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let first = self.machine.subscribe();
        // Room for the subscriptions and for one answer per type: each response is answered before the next is read.
        let (out, requests) = mpsc::channel::<DeltaDiscoveryRequest>(2 * first.len().max(1));
        for request in first {
            out.send(request).await?;
        }
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = metadata;
        let mut responses = timeout(MAX_SILENCE, client.delta_aggregated_resources(request)).await??.into_inner();
        self.state.send_modify(|state| state.connected = true);
        loop {
            let response = match self.machine.is_synced() {
                true => responses.message().await?,
                false => timeout(MAX_SILENCE, responses.message()).await??,
            };
            let Some(response) = response else { return Ok(()) };
            let Some((nonce, update)) = self.machine.receive(response) else { continue };
            backoff.succeed();
            let rejected = self.sink.apply(&update);
            for Rejected { name, why } in &rejected {
                tracing::warn!(type_url = update.type_url, name, why, "resource rejected");
            }
            tracing::debug!(
                type_url = update.type_url,
                resources = update.resources.len(),
                removed = update.removed.len(),
                rejected = rejected.len(),
                "update applied"
            );
            let answer = self.machine.answer(nonce, &update, &rejected);
            let synced = self.machine.is_synced();
            self.state.send_if_modified(|state| !std::mem::replace(&mut state.synced, synced) && synced);
            out.send(answer).await?;
        }
    }
}
