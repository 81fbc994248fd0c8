//! The certificate authority of the mesh: decides who gets which certificate and makes it.
//!
//! A request proves possession of a key and asks for an identity; everything else it says is ignored. The caller is a
//! node, and gets only identities of workloads that run on it.

pub mod authority;
pub mod csr;
pub mod files;
pub mod limit;
pub mod review;
pub mod secrets;
pub mod seen;
pub mod service;
pub mod serving;
pub mod token;

pub use authority::{Authority, AuthorityError};
pub use review::{Account, Reviews};
pub use service::{Authenticate, CaService, Caller, Entitled, Refused};
pub use token::{TokenError, Tokens};

#[cfg(test)]
mod scratch;
