//! What the chart calls the parts of the mesh, and what they listen on.

/// The Deployment of the controller.
pub const CONTROLLER: &str = "istiod";
/// Selects its pods.
pub const CONTROLLER_LABELS: &str = "app=istiod";
/// The DaemonSet of the nodes.
pub const NODE: &str = "ztunnel";
/// Selects its pods.
pub const NODE_LABELS: &str = "app=ztunnel";
/// The container of the proxy.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// The label that tells us from others that use the same names, and its value.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "loam");

/// Where the controller tells what it serves.
pub const CONTROLLER_PORT: u16 = 15014;
/// Where a node's proxy tells what it knows.
pub const PROXY_PORT: u16 = 15000;

/// Says that a pod's traffic is redirected.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The reason of [`ENROLLED`] on a pod that is captured and that NetworkPolicies keep tunnels from.
pub const BLOCKED: &str = "TunnelsBlocked";
/// The condition by which an agent says how a pod fares.
pub const ENROLLED: &str = "loam.dev/Enrolled";
