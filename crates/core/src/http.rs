//! What becomes of a request: routes, filters, backends and policies of the Gateway API as plain data, and every decision
//! about a request as a function.
//!
//! A request is put into one canonical form at the door ([`target`]); matching, policy, logs and what is sent on use
//! that form and no other. Routes are compiled once into a [`table`], in which a request finds its rule; a [`plan`] says
//! what the rule makes of it.

pub mod backend;
pub mod budget;
pub mod failure;
pub mod filter;
pub mod grpc;
pub mod headers;
pub mod host;
pub mod pattern;
pub mod plan;
pub mod retry;
pub mod route;
pub mod session;
pub mod table;
pub mod target;
pub mod traffic;
