//! A gRPC server that says that it is well, in the words of the kubelet's probes: grpc.health.v1.Health of gRPC's health
//! checking protocol.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::task::{Context, Poll};

use anyhow::Context as _;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// `ServingStatus.SERVING` of the protocol.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Serves for ever.
pub(crate) async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let incoming = TcpIncoming::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("serving");
    Server::builder().add_service(Health).serve_with_incoming(incoming).await.context("serve")
}

/// Answers the method `Check`; nobody here asks for the other one.
#[derive(Debug, Clone, Copy)]
struct Health;

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl UnaryService<HealthCheckRequest> for Health {
    type Response = HealthCheckResponse;
    type Future = Ready<Result<Response<HealthCheckResponse>, Status>>;

    fn call(&mut self, _: Request<HealthCheckRequest>) -> Self::Future {
        ready(Ok(Response::new(HealthCheckResponse { status: SERVING })))
    }
}

impl Service<http::Request<Body>> for Health {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Health, request).await) })
    }
}

#[cfg(test)]
mod tests {
    use tonic::client::Grpc as Client;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn whoever_asks_hears_that_it_is_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving =
            tokio::spawn(Server::builder().add_service(Health).serve_with_incoming(TcpIncoming::from(listener)));
        let mut client = Client::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let question = Request::new(HealthCheckRequest { service: String::new() });
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        assert_eq!(client.unary(question, path, codec).await.unwrap().into_inner().status, SERVING);
        serving.abort();
    }
}
