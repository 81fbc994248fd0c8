//! Streams over gRPC, each driven by its [`Machine`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use loam_api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use loam_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use loam_api::rpc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::machine::{Machine, Received};
use crate::MAX_MESSAGE_BYTES;
use crate::store::Store;

/// Longest time for which a response may wait to be taken by a client before the client is given up.
pub const MAX_STALL: Duration = Duration::from_secs(60);

/// Streams one caller may have at a time: a proxy has one, and while it is replaced two; the rest is room for a proxy
/// whose broken connections have not been noticed yet.
pub const MAX_STREAMS_PER_CALLER: usize = 16;

/// Is told what happens on streams, for logs and metrics.
pub trait Observer: Send + Sync + 'static {
    /// A client connected.
    fn connected(&self, _client: &str) {}
    /// A stream ended.
    fn disconnected(&self, _client: &str) {}
    /// A response was sent.
    fn sent(&self, _client: &str, _response: &DeltaDiscoveryResponse) {}
    /// A client refused (part of) a response.
    fn nacked(&self, _client: &str, _type_url: &str, _status: &rpc::Status) {}
}

/// Observes nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Observer for Quiet {}

/// The name of a caller, once it is found out, or its refusal.
pub type Authenticating = Pin<Box<dyn Future<Output = Result<String, Status>> + Send>>;

/// Names the caller from the metadata of its request, or refuses it.
type Authenticate = Arc<dyn Fn(&MetadataMap) -> Authenticating + Send + Sync>;

/// The discovery service over one store per type.
#[derive(Clone)]
pub struct Ads {
    stores: Arc<BTreeMap<&'static str, Arc<Store>>>,
    authenticate: Authenticate,
    observer: Arc<dyn Observer>,
    callers: Callers,
}

/// How many streams each caller has.
type Callers = Arc<Mutex<HashMap<String, usize>>>;

/// One stream of a caller, counted as long as it lives.
struct Seat {
    caller: String,
    callers: Callers,
}

impl Seat {
    fn take(caller: String, callers: &Callers) -> Result<Self, Status> {
        let mut count = callers.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = count.entry(caller.clone()).or_default();
        if *streams >= MAX_STREAMS_PER_CALLER {
            return Err(Status::resource_exhausted(format!("{caller} has {MAX_STREAMS_PER_CALLER} streams already")));
        }
        *streams += 1;
        Ok(Self { caller, callers: callers.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut count = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        match count.get_mut(&self.caller) {
            Some(streams) if *streams > 1 => *streams -= 1,
            _ => drop(count.remove(&self.caller)),
        }
    }
}

impl fmt::Debug for Ads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ads").field("types", &self.stores.keys()).finish_non_exhaustive()
    }
}

impl Ads {
    /// Serves `stores` by type URL to whom `authenticate` names.
    pub fn new(
        stores: impl IntoIterator<Item = (&'static str, Arc<Store>)>,
        authenticate: impl Fn(&MetadataMap) -> Authenticating + Send + Sync + 'static,
        observer: impl Observer,
    ) -> Self {
        Self {
            stores: Arc::new(stores.into_iter().collect()),
            authenticate: Arc::new(authenticate),
            observer: Arc::new(observer),
            callers: Callers::default(),
        }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// One client's responses.
pub type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let client = Seat::take((self.authenticate)(request.metadata()).await?, &self.callers)?;
        // One response waits while the transport takes another: what is beyond stays in the store.
        let (out, responses) = mpsc::channel(1);
        let session = Session {
            client,
            stores: self.stores.clone(),
            observer: self.observer.clone(),
            machine: Machine::default(),
            out,
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

struct Session {
    client: Seat,
    stores: Arc<BTreeMap<&'static str, Arc<Store>>>,
    observer: Arc<dyn Observer>,
    machine: Machine,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Session {
    async fn run(mut self, mut requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin) {
        self.observer.connected(&self.client.caller);
        if let Err(status) = self.serve(&mut requests).await {
            // The client may be gone already, then nobody needs the reason.
            let _ = self.out.try_send(Err(status));
        }
        self.observer.disconnected(&self.client.caller);
    }

    async fn serve(
        &mut self,
        requests: &mut (impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin),
    ) -> Result<(), Status> {
        let stores = self.stores.clone();
        let mut changes = stream::select_all(
            stores.iter().map(|(url, store)| WatchStream::from_changes(store.watch()).map(move |_| *url)),
        );
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    None => return Ok(()),
                    Some(Err(status)) => return Err(status),
                    Some(Ok(request)) => self.request(request).await?,
                },
                Some(url) = changes.next() => self.push(url).await?,
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        let stores = self.stores.clone();
        let received = self
            .machine
            .receive(request, |url| stores.contains_key(url))
            .map_err(|violation| Status::resource_exhausted(violation.to_string()))?;
        match received {
            Received::Nacked(status) => self.observer.nacked(&self.client.caller, &type_url, &status),
            Received::Foreign(answer) => return self.send(answer).await,
            Received::Subscribed | Received::Acked | Received::Ignored => {}
        }
        self.push(&type_url).await
    }

    async fn push(&mut self, type_url: &str) -> Result<(), Status> {
        let Some(store) = self.stores.get(type_url) else { return Ok(()) };
        let next = self.machine.next(type_url, store).map_err(|violation| Status::aborted(violation.to_string()))?;
        match next {
            Some(response) => self.send(response).await,
            None => Ok(()),
        }
    }

    async fn send(&self, response: DeltaDiscoveryResponse) -> Result<(), Status> {
        self.observer.sent(&self.client.caller, &response);
        match tokio::time::timeout(MAX_STALL, self.out.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the client is gone")),
            Err(_) => Err(Status::deadline_exceeded("the client takes no responses")),
        }
    }
}
