//! HTTP with a client, in one stream of a tunnel.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::engine::Session;
use crate::exchange::exchange;
use crate::limits::{
    DOWNSTREAM_IDLE_TIMEOUT, HTTP2_CONNECTION_WINDOW, HTTP2_STREAM_WINDOW, MAX_HEAD_BYTES, MAX_HEADERS,
    MAX_LOCAL_ERROR_RESETS, MAX_PENDING_RESETS, MAX_SEND_BUFFER_BYTES, MAX_STREAMS_PER_CONNECTION,
};
use crate::stream::Io;

/// Serves HTTP/1 on `io` until the client ends it, or this process ends. When a drain begins, the connection ends with
/// the next response: closing it while it is idle would meet requests that are on their way.
pub async fn http1(session: Arc<Session>, io: impl Io) {
    let drain = session.engine.drain.clone();
    let _guard = drain.guard();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = exchange(session.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DOWNSTREAM_IDLE_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "client connection ended");
        },
        () = drain.forced() => {}
    }
}

/// Serves HTTP/2 on `io` until the client ends it, or this process ends. When a drain begins, the client is told to
/// send its requests elsewhere.
pub async fn http2(session: Arc<Session>, io: impl Io) {
    let drain = session.engine.drain.clone();
    let _guard = drain.guard();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = exchange(session.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION as u32)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS)
            .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service)
    );
    let mut draining = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "client connection ended");
                }
                return;
            }
            () = drain.started(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.forced() => return,
        }
    }
}
