//! The agent of a node and its keeper: two processes of one program.
//!
//! The agent ([`app`]) knows which pods belong to the mesh, prepares their network namespaces, attaches the kernel
//! programs and verifies all of it; it may end at any time. The [`keeper`] owns what must not end with it.

pub mod app;
pub mod cleanup;
pub mod config;
pub mod enrol;
pub mod keeper;
pub mod keeper_link;
pub mod netns;
pub mod pods;
pub mod redirect;
pub mod status;
pub mod sys;
