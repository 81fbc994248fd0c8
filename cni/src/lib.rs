//! A chained CNI plugin: between the pod's network and the pod's first process it asks the agent of the node to bring
//! the pod into the mesh, and fails the sandbox if that cannot be had, so that no pod of the mesh starts outside it.
//!
//! The program is installed on nodes and run by the container runtime, so it has few dependencies and no state. What it
//! decides is in [`plugin`], what it says to the agent in [`ask`].

pub mod ask;
pub mod plugin;

/// The plugin's name: its program's, and the `type` of its entry in a network configuration.
pub const NAME: &str = "loam-cni";

/// File name of the agent's socket in its run directory.
pub const SOCKET: &str = "cni.sock";
