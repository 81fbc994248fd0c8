//! Whole tunnels over loopback: applications at both ends, a pool and a server between them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod mesh;
mod pool;
mod relay;
mod serve;
mod stream;
