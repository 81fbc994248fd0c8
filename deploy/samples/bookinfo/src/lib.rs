//! A bookshop in four services, to see a mesh at work: `productpage` asks `details` and `reviews`, and two of the three
//! versions of `reviews` ask `ratings`.
//!
//! It knows nothing of the mesh: plain HTTP/1.1, one connection per request, so that every request may reach another
//! endpoint. Each answer says which pod gave it and from which address it was asked.

pub mod app;
pub mod call;
pub mod details;
pub mod page;
pub mod productpage;
pub mod ratings;
pub mod reviews;
pub mod serve;
pub mod traffic;
