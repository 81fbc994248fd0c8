//! What a pod's question to DNS gets: the mesh's own names from a snapshot, everything else from the pod's servers.
//!
//! Nothing here does IO, reads a clock or draws a random number. A [`Query`] is read from a message, [`Query::decide`]
//! asks the snapshot, and the outcome is either the bytes of an answer or a [`Forward`], which knows what to send to a
//! server of the pod and which of the messages that come back is its reply. A [`Lookup`] is a question of our own, for the
//! addresses of an endpoint that is known by name only.

mod answer;
mod client;
mod find;
mod forward;
mod lookup;
mod query;

pub use answer::Outcome;
pub use client::Client;
pub use forward::{Forward, NotOurs, Reply, Verdict};
pub use lookup::{Family, Found, Lookup};
pub use query::{Query, Transport, Unanswered};

/// Longest message that DNS knows.
pub const MAX_MESSAGE_BYTES: usize = 65_535;

/// Longest question that is read. A question with every option that resolvers send stays below 1 KiB.
pub const MAX_QUERY_BYTES: usize = 4096;

#[cfg(test)]
mod testmesh;
#[cfg(test)]
mod tests;
