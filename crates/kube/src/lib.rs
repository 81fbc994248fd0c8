//! The API server of Kubernetes as a source of objects: the same values that a directory of manifests gives.
//!
//! Every kind is listed in pages and then watched. An object is gone when a watch says so, or when a complete list no
//! longer has it; whatever else happens to the connection, the last state stays. A watch is renewed before it is a
//! minute old, so that one that nothing comes through any more is noticed.
//!
//! For people who ask once there is [`Cluster`]: one question, one answer, one deadline.

mod client;
mod cluster;
mod events;
mod follow;
mod forward;
mod known;
mod objects;
mod resource;
mod trouble;
mod updates;

pub use client::{ClientError, Way, client, personal_client};
pub use cluster::{AskError, Cluster, Permission, Version};
pub use forward::{ForwardError, MAX_ANSWER_BYTES};
pub use kube::Client;
pub use objects::Objects;
pub use resource::{Selection, object_path};
pub use updates::Updates;

#[cfg(test)]
mod tests;
