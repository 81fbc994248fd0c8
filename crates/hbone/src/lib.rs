//! HBONE tunnels: application connections inside HTTP/2 CONNECT streams inside mutual TLS on port 15008.
//!
//! A caller hands over a connection whole and gets its [`Outcome`] back. [`Pool::open`] asks a peer for a stream and
//! [`Opened::carry`] takes the application's socket until both ends are done; [`serve`] runs an accepted tunnel and
//! gives each CONNECT to a [`Handler`], which answers with [`Incoming::accept`] and carries likewise;
//! [`relay_plain`] joins two sockets without a tunnel. Who carries connections whole never copies a byte, so tunnels,
//! framing and application sockets may move to an engine of their own behind these same calls. Who speaks a protocol
//! inside a stream, as a waypoint does, takes it as a [`TunnelStream`] instead.
//!
//! FIN stays FIN and a reset stays a reset on every path: what one side did is what the other side sees.

mod connect;
mod flow;
mod liveness;
mod outcome;
mod pool;
mod relay;
mod request;
mod serve;
mod socket;
mod stream;
mod transport;
mod unprocessed;
mod upkeep;

pub use connect::{Dial, OpenError, OpenRequest, Opened};
pub use outcome::{End, Hooks, Meter, Outcome, Relay, Side};
pub use pool::{Pool, PoolConfig, PoolStats, TunnelKey};
pub use relay::relay_plain;
pub use request::{ConnectHeaders, Malformed, Request};
pub use serve::{Handler, Incoming, Limits, ServeError, Served, serve};
pub use socket::{KEEPALIVE, Keepalive, prepare, reset};
pub use stream::TunnelStream;
pub use unprocessed::is_unprocessed;
pub use upkeep::Loss;
