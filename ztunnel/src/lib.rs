//! The L4 proxy of a node: takes the connections of enrolled pods from the listeners that the keeper made for them,
//! asks `loam_core` where they go and whether they may, and carries them in HBONE tunnels.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod config;
pub mod control;
pub mod deliver;
pub mod dns;
pub mod endpoints;
pub mod enrolled;
pub mod mesh;
pub mod metrics;
pub mod names;
pub mod newcomer;
pub mod pods;
pub mod privilege;
pub mod reach;

mod accept;
mod inbound;
mod outbound;
