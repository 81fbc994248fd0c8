//! Delta ADS, both ends. The decisions (what to ask, what to send, what to acknowledge) are plain state machines in
//! [`client::Machine`], [`server::Machine`] and [`store::Store`]; the shells drive them over gRPC. What a resource
//! means is the caller's business: here it is a name, a version and bytes.

pub mod client;
pub mod server;
pub mod store;

/// Largest message accepted, in bytes. Our own server sends pieces far below it; Istio's sends a whole mesh at once.
pub const MAX_MESSAGE_BYTES: usize = 200 << 20;
