//! The harness of the network tests and of the demo: a private piece of network with nodes and pods in it, the mesh
//! on top, and tools that make traffic and watch the wire.
//!
//! Everything lives in namespaces whose first process ends when we do, however we end: nothing stays behind.

pub mod bin;
pub mod bookshop;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod eventually;
pub mod host;
pub mod init;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod mesh;
pub mod metrics;
pub mod pages;
pub mod process;
pub mod release;
pub mod report;
pub mod scene;
pub mod sweep;
pub mod tenant;
pub mod testing;
pub mod topology;
pub mod waypoint;

pub use eventually::eventually;
pub use lab::Lab;
pub use mesh::Mesh;
pub use process::{Output, Process};
pub use scene::Scene;
pub use testing::in_lab;
pub use topology::{Node, Pod};
