//! The mesh as plain data and every decision about it as a function.
//!
//! Nothing here awaits, does IO, reads a clock, draws a random number, or knows protobuf or Kubernetes: facts come in
//! as arguments and an answer goes out. The proxies, the controller and the tests call the same functions.

pub mod addr;
pub mod ids;
pub mod reason;
pub mod service;
pub mod workload;
