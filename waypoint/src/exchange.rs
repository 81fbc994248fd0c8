//! One request: find its rule, send it on, answer it.

mod attempt;
mod draft;
mod respond;
mod route;
mod session;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use loam_core::http::failure::Failure;
use loam_core::http::grpc::is_grpc;
use loam_core::http::headers::{strip_hop_by_hop, strip_owned};
use loam_core::http::target::{Head, PathRules, Request as Asked, Scheme, Target};
use tokio::time::sleep;

use crate::access_log::{Facts, Record};
use crate::engine::Session;
use crate::metrics::Peer;
use crate::reply::Reply;
pub use draft::Draft;
use route::Routed;
pub use route::{backend, route_opaque};

/// The header by which logs of several proxies are put together.
const REQUEST_ID: &str = "x-request-id";

/// A request that is being answered.
struct Call {
    session: Arc<Session>,
    record: Record,
    target: Target,
    draft: Draft,
    /// Counts the bytes of its body.
    received: Arc<AtomicU64>,
    /// What becomes of the connection if the upstream agrees to an upgrade.
    upgrade: Option<OnUpgrade>,
    is_grpc: bool,
}

/// Answers `request`.
pub async fn exchange(session: Arc<Session>, request: Request<Incoming>) -> Response<Reply> {
    let (version, drain) = (request.version(), session.engine.drain.clone());
    let mut response = answer(session, request).await;
    if version < Version::HTTP_2 && drain.has_started() && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        // The client is to go elsewhere, and knows that this connection takes no further request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(session: Arc<Session>, mut request: Request<Incoming>) -> Response<Reply> {
    let wants_upgrade = request.version() == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE);
    let on_upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let target = Target::of(
        &Head {
            method: &head.method,
            uri: &head.uri,
            version: head.version,
            headers: &head.headers,
            extended_connect: false,
        },
        Scheme::Http,
        &PathRules::default(),
    );
    let is_grpc = is_grpc(&head.headers);
    let upgrade = strip_hop_by_hop(&mut head.headers).filter(|protocol| on_upgrade.is_some() && !is_http2(protocol));
    strip_owned(&mut head.headers);
    // Answered here as soon as the body is wanted.
    head.headers.remove(header::EXPECT);
    give_id(&mut head.headers);

    let received = Arc::<AtomicU64>::default();
    let facts = Facts {
        origin: session.origin.clone(),
        method: head.method.clone(),
        path: match &target {
            Ok(target) => target.path_and_query().to_string(),
            Err(_) => head.uri.to_string(),
        },
        version: head.version,
        authority: match &target {
            Ok(target) => target.authority().to_string(),
            Err(_) => head.headers.get(header::HOST).map_or_else(String::new, |host| format!("{host:?}")),
        },
        user_agent: head.headers.get(header::USER_AGENT).cloned(),
        forwarded_for: head.headers.get("x-forwarded-for").cloned(),
        request_id: head.headers.get(REQUEST_ID).cloned(),
        is_grpc,
        route: None,
        service: None,
        destination: Peer::default(),
        upstream: None,
        transport_failure: None,
        upstream_took: None,
        status: None,
        grpc: None,
        failure: None,
        received: received.clone(),
        sent: 0,
    };
    let record = session.engine.log.begin(facts);
    let target = match target {
        Ok(target) => target,
        Err(malformed) => {
            let mut response = respond::failure(record, Failure::Malformed(malformed), is_grpc);
            // What follows on this connection may not be where it seems to begin.
            if head.version < Version::HTTP_2 {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
    };
    let Ok(permit) = session.engine.requests.clone().try_acquire_owned() else {
        return respond::failure(record, Failure::Overload, is_grpc);
    };
    let asked = Asked { method: &head.method, target: &target, headers: &head.headers };
    let routed = route::route(&session, &asked);
    let draft = Draft { method: head.method, headers: head.headers, downstream: head.version, http2: is_grpc, upgrade };
    let upgrade = on_upgrade.filter(|_| draft.upgrade.is_some());
    let call = Call { session, record, target, draft, received, upgrade, is_grpc };
    match routed {
        Routed::Go(course) => {
            wait(course.delay).await;
            call.go(*course, body, permit).await
        }
        Routed::Answer { answer, delay } => {
            wait(delay).await;
            respond::answer(call.record, answer)
        }
        Routed::Fail { failure, delay } => {
            wait(delay).await;
            respond::failure(call.record, failure, is_grpc)
        }
    }
}

async fn wait(delay: Option<Duration>) {
    if let Some(delay) = delay {
        sleep(delay).await;
    }
}

/// HTTP/2 is not begun by an upgrade any more (RFC 9113 3.1).
fn is_http2(protocol: &HeaderValue) -> bool {
    let text = protocol.to_str().unwrap_or_default();
    text.split(',').any(|one| one.trim().eq_ignore_ascii_case("h2c"))
}

/// A request that has no id gets one (RFC 9562, version 4).
fn give_id(headers: &mut HeaderMap) {
    if headers.contains_key(REQUEST_ID) {
        return;
    }
    let bits = (rand::random::<u128>() & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests;
