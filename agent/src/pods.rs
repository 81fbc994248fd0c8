//! Which pods are ours, and how far each is.

pub mod discovery;
pub mod probes;
pub mod record;
pub mod registry;
pub mod resolv;
pub mod sandbox;
pub mod search;
pub mod source;
pub mod spec;

pub use registry::Registry;
pub use spec::{PodSpec, Uid};
