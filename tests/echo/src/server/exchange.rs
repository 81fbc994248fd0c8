//! One request and its answer.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use super::websocket;
use crate::answer::{self, Arrival, Place};
use crate::grpc;

/// Longest body of a request.
const MAX_BODY_BYTES: usize = 1 << 20;

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Answers a request of HTTP; one that asks for a WebSocket gets its answer there.
pub(super) async fn http(
    place: Arc<Place>,
    arrival: Arrival,
    mut request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    if let Some(key) = websocket::key(request.headers()) {
        let upgrade = hyper::upgrade::on(&mut request);
        let text = answer::http(&place, &arrival, &request.into_parts().0);
        websocket::answer_on(upgrade, text);
        return Ok(websocket::agreement(&key).map(|()| Full::default().boxed_unsync()));
    }
    let (head, body) = request.into_parts();
    let mut answer = Response::new(Full::default().boxed_unsync());
    match read(body).await {
        Some(_) => {
            let text = answer::http(&place, &arrival, &head);
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *answer.body_mut() = Full::from(text).boxed_unsync();
        }
        None => *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE,
    }
    Ok(answer)
}

/// Answers a call of gRPC.
pub(super) async fn grpc(
    place: Arc<Place>,
    arrival: Arrival,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = read(body).await.ok_or("the body is too long or did not come");
    let message = body.and_then(|body| grpc::unframe(&body));
    let mut answer = match (head.uri.path(), message) {
        (grpc::CALL, Ok(message)) => {
            let framed = grpc::frame(&answer::grpc(&place, &arrival, &head, &message));
            let mut trailers = HeaderMap::new();
            trailers.insert(grpc::STATUS, HeaderValue::from_static("0"));
            Response::new(Full::new(framed).with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync())
        }
        (grpc::CALL, Err(why)) => refusal(grpc::INVALID_ARGUMENT, why),
        _ => refusal(grpc::UNIMPLEMENTED, "there is no such call"),
    };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(grpc::CONTENT_TYPE));
    Ok(answer)
}

/// An answer that is only its status.
fn refusal(status: &'static str, why: &'static str) -> Answer {
    let mut answer = Response::new(Full::default().boxed_unsync());
    answer.headers_mut().insert(grpc::STATUS, HeaderValue::from_static(status));
    answer.headers_mut().insert(grpc::REASON, HeaderValue::from_static(why));
    answer
}

/// The whole body; none when it is too long or breaks off.
async fn read(body: Incoming) -> Option<Bytes> {
    Some(Limited::new(body, MAX_BODY_BYTES).collect().await.ok()?.to_bytes())
}
