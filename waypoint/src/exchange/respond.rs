//! Answers of the proxy's own.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use loam_core::http::failure::Failure;
use loam_core::http::plan::Answer;

use crate::access_log::Record;
use crate::reply::{GRPC_STATUS, Ongoing, Reply};

static TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The answer that a filter gives.
pub(super) fn answer(mut record: Record, answer: Answer) -> Response<Reply> {
    let Answer { status, headers, body } = answer;
    record.facts().status = Some(status);
    let mut response = Response::new(Reply::whole(Bytes::copy_from_slice(body.as_bytes()), Ongoing::new(record)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if !body.is_empty() && !response.headers().contains_key(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, TEXT.clone());
    }
    response
}

/// The answer to a request that is not served. To gRPC it is a response of trailers only.
pub(super) fn failure(mut record: Record, failure: Failure, is_grpc: bool) -> Response<Reply> {
    let facts = record.facts();
    facts.failure = Some(failure);
    let status = if is_grpc { StatusCode::OK } else { failure.status() };
    facts.status = Some(status);
    if is_grpc {
        facts.grpc = Some(failure.grpc().number());
        let mut response = Response::new(Reply::whole(Bytes::new(), Ongoing::new(record)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(failure.grpc().number()));
        headers.insert("grpc-message", HeaderValue::from_static(failure.as_str()));
        return response;
    }
    let text = match failure {
        Failure::Malformed(malformed) => format!("{malformed}\n"),
        other => format!("{}\n", other.as_str()),
    };
    let mut response = Response::new(Reply::whole(text.into(), Ongoing::new(record)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT.clone());
    response
}
