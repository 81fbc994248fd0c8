//! A control plane that hands on what another one says, and breaks what is named so that it asks for it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll};
use std::time::SystemTime;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt};
use loam_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use loam_api::security::Authorization;
use loam_api::workload::{Address, address};
use loam_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use loam_controller::ca::authority::{Authority, ROOT_FILE};
use loam_controller::serve;
use loam_core::ids::TrustDomain;
use loam_tls::channel::{ControlPlane, channel, tcp};
use prost::Message;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// A pod or policy of this name comes without its last byte.
const TRUNCATED: &str = "truncated";
/// A pod of this name has a tunnel protocol that nobody knows, a policy an action.
const UNKNOWN_ENUM: &str = "unknown-enum";
/// A policy of this name does not come.
const WITHHELD: &str = "withheld";
/// The first message with a pod of this name ends before its end.
const CUT_MESSAGE: &str = "cut-message";
/// A number that none of the enumerations has.
const UNKNOWN: i32 = 4711;

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Stands between proxies and the control plane at `upstream`, with the same authority. Says what proxies refuse.
pub(crate) async fn run(listen: SocketAddr, upstream: String, data_dir: &Path) -> Result<()> {
    let authority = Arc::new(Authority::open(data_dir, TrustDomain::default(), SystemTime::now())?);
    let tls = Arc::new(authority.serving_config(&[listen.ip().to_string()])?);
    let to = ControlPlane { address: upstream, server_name: None, root_file: data_dir.join(ROOT_FILE) };
    let upstream = channel(&to, authority.roots_pem().as_bytes(), tcp())?;
    let router = Server::builder().add_service(Relay { upstream, has_cut: Arc::default() });
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind {listen}"))?;
    println!("serving");
    serve::serve(listener, tls, router, std::future::pending()).await.context("serve")
}

#[derive(Debug, Clone)]
struct Relay {
    upstream: Channel,
    has_cut: Arc<AtomicBool>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for Relay {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for Relay {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let stream = OneStream(self.clone());
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(stream, request).await) })
    }
}

/// The relay as the service of one stream.
struct OneStream(Relay);

impl StreamingService<Bytes> for OneStream {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Relay { upstream, has_cut } = self.0.clone();
        Box::pin(async move {
            let (metadata, _, requests) = request.into_parts();
            let requests = requests.filter_map(|request| std::future::ready(request.ok())).inspect(tell_refusal);
            let mut call = Request::new(requests);
            *call.metadata_mut() = metadata;
            let mut client = tonic::client::Grpc::new(upstream).max_decoding_message_size(usize::MAX);
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(METHOD);
            let responses = client.streaming(call, path, Raw).await?.into_inner();
            let tampered = responses.map(move |response| response.map(|bytes| tamper(bytes, &has_cut)));
            Ok(Response::new(Box::pin(tampered) as Self::ResponseStream))
        })
    }
}

/// Prints what a proxy refused, one line for each answer.
fn tell_refusal(request: &Bytes) {
    if let Ok(request) = DeltaDiscoveryRequest::decode(request.clone())
        && let Some(status) = request.error_detail
    {
        println!("refused {}", status.message.replace('\n', " "));
    }
}

fn tamper(bytes: Bytes, has_cut: &AtomicBool) -> Bytes {
    let Ok(mut response) = DeltaDiscoveryResponse::decode(bytes.clone()) else { return bytes };
    let is_in = |name: &str| response.resources.iter().any(|resource| is_called(resource, name));
    let cut = is_in(CUT_MESSAGE) && !has_cut.swap(true, Ordering::Relaxed);
    response.resources.retain(|resource| response.type_url != AUTHORIZATION_TYPE || !is_called(resource, WITHHELD));
    response.resources.iter_mut().for_each(|resource| spoil(resource, &response.type_url));
    let mut bytes = response.encode_to_vec();
    if cut {
        println!("cut");
        bytes.pop();
    }
    bytes.into()
}

fn is_called(resource: &Resource, name: &str) -> bool {
    resource.name.rsplit('/').next() == Some(name)
}

fn spoil(resource: &mut Resource, type_url: &str) {
    let (truncated, unknown) = (is_called(resource, TRUNCATED), is_called(resource, UNKNOWN_ENUM));
    let Some(body) = &mut resource.resource else { return };
    if truncated {
        body.value.truncate(body.value.len().saturating_sub(1));
    }
    if unknown
        && type_url == AUTHORIZATION_TYPE
        && let Ok(mut policy) = Authorization::decode(&*body.value)
    {
        policy.action = UNKNOWN;
        body.value = policy.encode_to_vec().into();
    }
    if unknown
        && type_url == ADDRESS_TYPE
        && let Ok(mut address) = Address::decode(&*body.value)
        && let Some(address::Type::Workload(workload)) = &mut address.r#type
    {
        workload.tunnel_protocol = UNKNOWN;
        body.value = address.encode_to_vec().into();
    }
}

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
