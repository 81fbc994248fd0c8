//! What the kernel programs, the agent and the keeper agree on: numbers, map layouts, and the decisions themselves.
//!
//! The decisions are plain functions over a few facts, so that they are tested on the host. The programs only collect
//! the facts, ask, and turn the answer into a verdict.
#![no_std]

pub mod dns;
pub mod ip;
pub mod layout;
pub mod mark;
pub mod probe;
pub mod steer;

pub use ip::Ip;
