//! The serving end.

mod machine;
mod shell;

pub use machine::{MAX_FOREIGN_TYPES, MAX_NAMES, MAX_RESPONSE_BYTES, Machine, Received, Violation};
pub use shell::{Ads, Authenticating, MAX_STALL, MAX_STREAMS_PER_CALLER, Observer, Quiet, Responses};
