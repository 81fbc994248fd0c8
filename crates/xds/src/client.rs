//! The asking end.

mod machine;
mod shell;

pub use machine::{Machine, Rejected, Resource, Update};
pub use shell::{Client, Connect, Connection, Sink, State};
