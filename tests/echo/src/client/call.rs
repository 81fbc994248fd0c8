//! One request over the protocol that the URL names.

use std::future::Future;
use std::pin::pin;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::connect::{Addresses, Stream, Tls};
use super::reply::Reply;
use super::{Flags, Scheme};
use crate::{grpc, tls};

/// Longest answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Name of the header that numbers the calls of gRPC.
const NUMBER: &str = "x-request-id";

type Body = Full<Bytes>;

/// The connection that calls of gRPC share, which somebody must drive.
pub(super) type Link = http2::Connection<TokioIo<Box<dyn Stream>>, Body, TokioExecutor>;

/// What all requests of a run have in common.
pub(super) struct Calls<'a> {
    flags: &'a Flags,
    /// The host that is asked for.
    authority: Authority,
    addresses: Addresses,
    tls: Option<Tls>,
    way: Way,
}

/// How a request is made. All but those of gRPC have a connection each.
enum Way {
    Http1,
    Http2,
    Grpc(http2::SendRequest<Body>),
    Tcp,
    WebSocket,
}

impl<'a> Calls<'a> {
    pub(super) async fn prepare(flags: &'a Flags) -> Result<(Self, Option<Link>)> {
        let target = &flags.url;
        let named = flags.headers.iter().find(|(name, _)| *name == HOST).map(|(_, value)| value);
        let authority = match named {
            Some(value) => Authority::try_from(value.as_bytes()).with_context(|| format!("{value:?} is no host"))?,
            None => target.authority.clone(),
        };
        let addresses = Addresses::of(target).await?;
        let (mut tls, mut link) = (None, None);
        if target.scheme == Scheme::Https {
            let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = name.try_into().with_context(|| format!("{authority} is no name for TLS"))?;
            tls = Some(Tls { config: tls::client(&[if flags.http2 { "h2" } else { "http/1.1" }])?, name });
        }
        let way = match target.scheme {
            Scheme::Http | Scheme::Https if flags.http2 => Way::Http2,
            Scheme::Http | Scheme::Https => Way::Http1,
            Scheme::Grpc => {
                let stream = addresses.connect(None).await?;
                let (sender, driven) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                link = Some(driven);
                Way::Grpc(sender)
            }
            Scheme::Tcp => Way::Tcp,
            Scheme::Ws => Way::WebSocket,
        };
        Ok((Self { flags, authority, addresses, tls, way }, link))
    }

    /// Makes request `index` of the run.
    pub(super) async fn ask(&self, index: u32) -> Result<Reply> {
        let connect = || self.addresses.connect(self.tls.as_ref());
        match &self.way {
            Way::Http1 => self.http1(connect().await?).await,
            Way::Http2 => self.http2(connect().await?).await,
            Way::Grpc(sender) => self.call(sender.clone(), index).await,
            Way::Tcp => self.tcp(connect().await?).await,
            Way::WebSocket => self.websocket(connect().await?).await,
        }
    }

    async fn http1(&self, stream: Box<dyn Stream>) -> Result<Reply> {
        let (mut sender, link) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = self.request(Uri::from(self.flags.url.path.clone()));
        request.headers_mut().insert(HOST, HeaderValue::from_str(self.authority.as_str())?);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        beside(link, async { reply(sender.send_request(request).await?).await }).await
    }

    async fn http2(&self, stream: Box<dyn Stream>) -> Result<Reply> {
        let (mut sender, link) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let request = self.request(self.uri(scheme, self.flags.url.path.as_str())?);
        beside(link, async { reply(sender.send_request(request).await?).await }).await
    }

    async fn call(&self, mut sender: http2::SendRequest<Body>, index: u32) -> Result<Reply> {
        let mut request = self.request(self.uri("http", grpc::CALL)?);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.body_mut() = Full::new(grpc::frame(&self.flags.msg));
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(NUMBER, index.into());
        let (head, body) = sender.send_request(request).await?.into_parts();
        ensure!(head.status == StatusCode::OK, "answered with status {} of HTTP", head.status);
        let body = collect(body).await?;
        // A failed call has no body, and its status among the headers.
        let end = body.trailers().filter(|trailers| trailers.contains_key(grpc::STATUS)).unwrap_or(&head.headers);
        let text = |name| end.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let status = text(grpc::STATUS).context("answered without a status of gRPC")?;
        ensure!(status == "0", "failed with status {status} of gRPC: {}", text(grpc::REASON).unwrap_or_default());
        let message = grpc::unframe(&body.to_bytes()).map_err(|why| anyhow::anyhow!("cannot be read: {why}"))?;
        Ok(Reply { status: None, headers: head.headers, body: message.into() })
    }

    async fn websocket(&self, stream: Box<dyn Stream>) -> Result<Reply> {
        let mut request = self.uri("ws", self.flags.url.path.as_str())?.into_client_request()?;
        request.headers_mut().extend(self.headers());
        let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        socket.send(self.flags.msg.as_str().into()).await?;
        let message = socket.next().await.context("the connection ended before a message came")??;
        socket.close(None).await?;
        let body = message.into_text()?.as_str().to_owned().into();
        Ok(Reply { status: None, headers: answer.headers().clone(), body })
    }

    async fn tcp(&self, mut stream: Box<dyn Stream>) -> Result<Reply> {
        stream.write_all(format!("{}\n", self.flags.msg).as_bytes()).await?;
        stream.flush().await?;
        let mut body = Vec::new();
        stream.take(MAX_ANSWER_BYTES as u64).read_to_end(&mut body).await?;
        Ok(Reply { status: None, headers: HeaderMap::new(), body: body.into() })
    }

    fn uri(&self, scheme: &str, path: &str) -> Result<Uri> {
        Ok(Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(path).build()?)
    }

    fn request(&self, uri: Uri) -> Request<Body> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = self.flags.method.clone();
        *request.uri_mut() = uri;
        let name = HeaderValue::from_static(concat!("loam-echo/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, name);
        request.headers_mut().extend(self.headers());
        request
    }

    /// The headers that are asked for; each value counts.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in self.flags.headers.iter().filter(|(name, _)| *name != HOST) {
            headers.append(name, value.clone());
        }
        headers
    }
}

async fn reply(response: http::Response<Incoming>) -> Result<Reply> {
    let (head, body) = response.into_parts();
    Ok(Reply { status: Some(head.status), headers: head.headers, body: collect(body).await?.to_bytes() })
}

async fn collect(body: Incoming) -> Result<http_body_util::Collected<Bytes>> {
    Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| anyhow::anyhow!(error))
}

/// Drives a connection until `work` is done.
pub(super) async fn beside<T>(
    link: impl Future<Output = hyper::Result<()>>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (mut link, mut work) = (pin!(link), pin!(work));
    tokio::select! {
        done = &mut work => done,
        // Its end may come with the last bytes of the answer.
        _ = &mut link => work.await,
    }
}
