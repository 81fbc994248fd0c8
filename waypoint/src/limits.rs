//! What a client or an upstream may use of this process.

use std::time::Duration;

/// Longest head of a message: request line and headers. A server of HTTP/1 answers 431 beyond it.
pub const MAX_HEAD_BYTES: usize = 64 << 10;

/// Most headers of a message, which is Envoy's number.
pub const MAX_HEADERS: usize = 100;

/// How long a client's connection may be idle, and the head of a request may take to come, which is Envoy's time.
pub const DOWNSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Streams of one HTTP/2 connection at once, in either direction.
pub const MAX_STREAMS_PER_CONNECTION: usize = 100;

/// What an HTTP/2 stream may send ahead of its reader.
pub const HTTP2_STREAM_WINDOW: u32 = 256 << 10;

/// What the streams of an HTTP/2 connection may send ahead of their readers together.
pub const HTTP2_CONNECTION_WINDOW: u32 = 16 << 20;

/// What one CONNECT's stream may send ahead of its reader: those of all streams fit into their tunnel's 64 MiB.
pub const TUNNEL_STREAM_WINDOW: u32 = 256 << 10;

/// Resets that an HTTP/2 client may have pending before its connection is ended (CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 32;

/// Resets that a client may provoke by protocol errors over the life of a connection (CVE-2025-8671).
pub const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// What an HTTP/2 stream may have queued for a peer that does not take it.
pub const MAX_SEND_BUFFER_BYTES: usize = 256 << 10;

/// Requests under way in this process; beyond it new ones are refused at once.
pub const MAX_REQUESTS: usize = 50_000;

/// Endpoints that one request is tried on because they could not be connected to.
pub const MAX_CONNECT_TRIES: usize = 3;

/// How long what is asked for may be unknown to this process: it and the caller's ztunnel learn of bindings apart.
pub const BINDING_PATIENCE: Duration = Duration::from_secs(2);
