//! Maps: what they are called, how large they are and why, and what is in them.

use crate::Ip;

/// Pods that one node can have in the mesh. Kubernetes recommends at most 110 pods per node and large nodes are run
/// with some 500; twice that costs 100 kB of locked memory.
pub const MAX_PODS: u32 = 1024;

/// Addresses of one pod. Kubernetes gives at most one per family; the rest is for secondary networks.
pub const MAX_ADDRESSES: usize = 4;

/// Places of one pod in [`LISTENERS`]: its three listeners and one to spare, so that a place is found by a shift.
pub const SLOTS_PER_POD: u32 = 4;

/// Hash from network namespace cookie to [`Pod`]: who is enrolled. One entry for each pod.
pub const PODS: &str = "PODS";

/// Sockets by [`slot`]: the listeners of all pods. A place for each pod and listener.
pub const LISTENERS: &str = "LISTENERS";
/// See [`LISTENERS`].
pub const MAX_LISTENERS: u32 = MAX_PODS * SLOTS_PER_POD;

/// Storage of sockets that the hooks let pass: those that the keeper made for the ztunnel. It lives and ends with the
/// socket, so it has no size of its own; how many there are is bounded by the ztunnel's descriptors.
pub const EXEMPT: &str = "EXEMPT";

/// Array of one [`Steered`]: each pod's instance of `steer` has its own.
pub const STEERED: &str = "STEERED";

/// The maps that all instances share and that are pinned.
pub const SHARED: [&str; 3] = [PODS, LISTENERS, EXEMPT];

/// Value of [`EXEMPT`].
pub const EXEMPTED: u32 = 1;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// What the pod dials.
    Outbound = 0,
    /// What reaches the pod in the clear.
    Inbound = 1,
    /// Tunnels that reach the pod.
    Hbone = 2,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Outbound, Kind::Inbound, Kind::Hbone];
}

/// Where the listener of the pod with this index is in [`LISTENERS`].
#[inline(always)]
pub const fn slot(index: u32, kind: Kind) -> u32 {
    index * SLOTS_PER_POD + kind as u32
}

/// An enrolled pod, as the connect hooks see it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    index: u32,
}

impl Pod {
    /// The pod with this index.
    pub const fn new(index: u32) -> Self {
        Self { index }
    }

    /// Its number on this node, below [`MAX_PODS`].
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        self.index
    }
}

/// The pod that one instance of `steer` serves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steered {
    own: [Ip; MAX_ADDRESSES],
    index: u32,
}

impl Steered {
    /// The pod with this index and these addresses; none if there are more than [`MAX_ADDRESSES`].
    pub fn new(index: u32, addresses: impl IntoIterator<Item = Ip>) -> Option<Self> {
        let mut own = [Ip::NONE; MAX_ADDRESSES];
        for (at, address) in addresses.into_iter().enumerate() {
            *own.get_mut(at)? = address;
        }
        Some(Self { own, index })
    }

    /// Its number on this node.
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Whether the address is one of its own.
    #[inline(always)]
    pub fn owns(&self, ip: &Ip) -> bool {
        // Written out, because a loop would cost the verifier more than four comparisons cost the processor.
        self.own[0] == *ip || self.own[1] == *ip || self.own[2] == *ip || self.own[3] == *ip
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for a promise about the bytes of a map's key or value")]
mod user {
    // SAFETY: both are `repr(C)`, made of u32 only, so they have no padding and every bit pattern is a value.
    unsafe impl aya::Pod for super::Pod {}
    // SAFETY: as above; `Ip` is an array of u32.
    unsafe impl aya::Pod for super::Steered {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_listeners_share_a_slot_and_the_last_one_fits() {
        let mut seen = [false; MAX_LISTENERS as usize];
        for index in 0..MAX_PODS {
            for kind in Kind::ALL {
                assert!(!core::mem::replace(&mut seen[slot(index, kind) as usize], true));
            }
        }
    }

    #[test]
    fn a_pod_with_too_many_addresses_is_not_cut_short() {
        let ip = Ip::from_v4(1);
        assert!(Steered::new(0, [ip; MAX_ADDRESSES]).is_some());
        assert!(Steered::new(0, [ip; MAX_ADDRESSES + 1]).is_none());
    }
}
