//! The mesh as plain data and every decision about it as a function.
//!
//! Nothing here awaits, does IO, reads a clock, draws a random number, or knows protobuf or Kubernetes: facts come in
//! as arguments and an answer goes out. The proxies, the controller and the tests call the same functions.

pub mod addr;
pub mod authority;
pub mod authz;
pub mod balance;
pub mod dump;
pub mod egress;
pub mod headers;
pub mod http;
pub mod ids;
pub mod inbound;
pub mod map;
pub mod outbound;
pub mod policy;
pub mod reason;
pub mod service;
pub mod snapshot;
pub mod traversal;
pub mod waypoint;
pub mod workload;

#[cfg(test)]
mod testmesh;
