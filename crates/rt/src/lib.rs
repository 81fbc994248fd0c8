//! What every process of Loam needs around its work: logs, metrics, an admin server, readiness, and a polite end.
//!
//! It stands alone: no other crate of the mesh is known here.

pub mod admin;
pub mod backoff;
pub mod drain;
pub mod exit;
mod explain;
pub mod metrics;
pub mod ready;
pub mod shutdown;
pub mod telemetry;

pub use explain::explain;
