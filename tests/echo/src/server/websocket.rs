//! A WebSocket on which one message is answered: RFC 6455.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Longest life of one.
const LIFE: Duration = Duration::from_secs(30);
/// Longest message taken.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The key of a request that asks for a WebSocket.
pub(super) fn key(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked).cloned()
}

/// The answer that agrees to it.
pub(super) fn agreement(key: &HeaderValue) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 fits in a header");
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Waits for the first message and answers it with `text`, its status, and itself.
pub(super) fn answer_on(upgrade: OnUpgrade, text: String) {
    let work = async move {
        let stream = TokioIo::new(upgrade.await.ok()?);
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await;
        let message = socket.next().await?.ok()?.into_text().ok()?;
        socket.send(format!("{text}StatusCode=200\nEcho={}\n", message.escape_debug()).into()).await.ok()?;
        socket.close(None).await.ok()
    };
    // The exchange must end before the connection becomes a WebSocket, so this lives beside it, for a limited time.
    tokio::spawn(tokio::time::timeout(LIFE, work));
}
