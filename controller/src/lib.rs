//! The controller: reads what is declared, compiles what proxies may know, and serves it with the certificates.

pub mod app;
pub mod ca;
pub mod config;
pub mod debug;
pub mod index;
pub mod owner;
pub mod policy;
pub mod publish;
pub mod resource;
pub mod serve;
