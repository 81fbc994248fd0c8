//! Lets go of what is known about an address when it passes to another workload.

use std::sync::Arc;

use crate::enrolled::Proxy;

/// Follows the mesh for as long as it is polled. A new owner of an address is neither sent into tunnels to the old one
/// nor blamed for its failures.
pub async fn follow_moves(proxy: Arc<Proxy>) {
    let mut revision = proxy.mesh.watch();
    let mut before = Arc::clone(&proxy.mesh.load());
    while revision.changed().await.is_ok() {
        let now = Arc::clone(&proxy.mesh.load());
        let moved = now.moved_since(&before);
        if !moved.is_empty() {
            proxy.tunnels.retire_peers(&moved);
            proxy.endpoints.forget(&moved);
            proxy.reached.forget(&moved);
        }
        before = now;
    }
}
