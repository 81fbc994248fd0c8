//! The L7 proxy in front of services: takes what ztunnels send for them, routes, guards and observes it request by
//! request, and sends it on to endpoints.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod arrival;
pub mod body;
pub mod config;
pub mod connect;
pub mod control;
pub mod endpoints;
pub mod engine;
pub mod exchange;
pub mod ledger;
pub mod limits;
pub mod listen;
pub mod mesh;
pub mod metrics;
pub mod mirror;
pub mod names;
pub mod own;
pub mod reply;
pub mod serve;
pub mod sniff;
pub mod stream;
pub mod tasks;
pub mod tcp;
pub mod upstream;

#[cfg(test)]
mod testing;
