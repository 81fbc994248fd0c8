//! Maps: what they are called, how large they are and why, and what is in them.

use crate::Ip;
use crate::probe::Probed;

/// Pods that one node can have in the mesh. Kubernetes recommends at most 110 pods per node and large nodes are run
/// with some 500; twice that costs 100 kB of locked memory.
pub const MAX_PODS: u32 = 1024;

/// Addresses of one pod. Kubernetes gives at most one per family; the rest is for secondary networks.
pub const MAX_ADDRESSES: usize = 4;

/// Places of one pod in [`LISTENERS`]: one for each [`Kind`].
pub const SLOTS_PER_POD: u32 = 4;

/// Hash from network namespace cookie to [`Pod`]: who is enrolled. One entry for each pod.
pub const PODS: &str = "PODS";

/// Sockets by [`slot`]: the listeners of all pods. A place for each pod and listener.
pub const LISTENERS: &str = "LISTENERS";
/// See [`LISTENERS`].
pub const MAX_LISTENERS: u32 = MAX_PODS * SLOTS_PER_POD;

/// Hash from [`crate::probe::Connection`] to nothing that matters: what the kubelet has open. The oldest entry makes room
/// for one too many.
pub const PROBES: &str = "PROBES";
/// See [`PROBES`]: the probes under way of all pods, and what else the kubelet talks to, many times over.
pub const MAX_PROBES: u32 = 8192;

/// Storage of sockets that the hooks let pass: those that the keeper made for the ztunnel. It lives and ends with the
/// socket, so it has no size of its own; how many there are is bounded by the ztunnel's descriptors.
pub const EXEMPT: &str = "EXEMPT";

/// Array of one [`Entrance`]: each pod's instance of `steer` has its own.
pub const STEERED: &str = "STEERED";

/// Storage of sockets that asked a name server: which ones, as [`crate::dns::Asked`]. It has no size of its own, as
/// [`EXEMPT`] has none: its memory is the socket's.
pub const ASKED: &str = "ASKED";

/// The maps that all instances share and that are pinned.
pub const SHARED: [&str; 5] = [PODS, LISTENERS, PROBES, EXEMPT, ASKED];

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
    /// What the pod asks name servers over TCP. No program picks it, since connections are sent to its address; that it
    /// lies in its slot says that names are answered.
    Dns = 3,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; SLOTS_PER_POD as usize] = [Kind::Outbound, Kind::Inbound, Kind::Hbone, Kind::Dns];
}

/// Where the listener of the pod with this index is in [`LISTENERS`].
#[inline(always)]
pub const fn slot(index: u32, kind: Kind) -> u32 {
    index * SLOTS_PER_POD + kind as u32
}

/// An enrolled pod, as the hooks see it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    steered: Steered,
    dns: u32,
}

impl Pod {
    /// A pod that `steer` knows, whose questions to name servers are captured if `dns` is set.
    pub const fn new(steered: Steered, dns: bool) -> Self {
        Self { steered, dns: dns as u32 }
    }

    /// Its number on this node, below [`MAX_PODS`].
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        self.steered.index
    }

    /// Whether its questions to name servers are captured.
    #[inline(always)]
    pub const fn has_dns(&self) -> bool {
        self.dns != 0
    }

    /// Whether the address is one of its own.
    #[inline(always)]
    pub fn owns(&self, ip: &Ip) -> bool {
        self.steered.owns(ip)
    }

    /// Its first address of the family that `ip` has.
    #[inline(always)]
    pub fn own_like(&self, ip: &Ip) -> Option<Ip> {
        let own = &self.steered.own;
        let fits = |own: &Ip| *own != Ip::NONE && own.is_v4() == ip.is_v4();
        // Written out, as in `Steered::owns`.
        match (fits(&own[0]), fits(&own[1]), fits(&own[2]), fits(&own[3])) {
            (true, ..) => Some(own[0]),
            (_, true, ..) => Some(own[1]),
            (_, _, true, _) => Some(own[2]),
            (.., true) => Some(own[3]),
            (false, false, false, false) => None,
        }
    }
}

/// The way into the pod that one instance of `steer` serves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entrance {
    /// The pod.
    pub steered: Steered,
    /// Its ports at which the kubelet reaches the application.
    pub probed: Probed,
}

/// A pod's number and addresses.
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
    // SAFETY: it is `repr(C)`, made of u32 only, so it has no padding and every bit pattern is a value.
    unsafe impl aya::Pod for super::Pod {}
    // SAFETY: `repr(C)`, made of u32 and of an even number of u16 after them, so the same holds.
    unsafe impl aya::Pod for super::Entrance {}
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
    fn a_pods_own_address_is_of_the_family_that_is_asked_for() {
        let (v4, v6, v6_again) = (Ip::from_v4(7), Ip::from_v6([1, 0, 0, 7]), Ip::from_v6([1, 0, 0, 8]));
        let pod = |own: &[Ip]| Pod::new(Steered::new(0, own.iter().copied()).unwrap(), true);
        assert_eq!(pod(&[v6, v6_again, v4]).own_like(&Ip::from_v4(9)), Some(v4));
        assert_eq!(pod(&[v4, v6, v6_again]).own_like(&Ip::LOOPBACK6), Some(v6));
        assert_eq!(pod(&[v4]).own_like(&Ip::LOOPBACK6), None);
    }

    #[test]
    fn a_pod_with_too_many_addresses_is_not_cut_short() {
        let ip = Ip::from_v4(1);
        assert!(Steered::new(0, [ip; MAX_ADDRESSES]).is_some());
        assert!(Steered::new(0, [ip; MAX_ADDRESSES + 1]).is_none());
    }

    /// What is pinned outlives the agent, and the next one of either neighbouring version takes it as it is: programs may
    /// change, and are swapped in place, but a map that is laid out otherwise would have to be made anew, and until the
    /// keeper has filled it every captured pod would be without its listeners. A map that must be different gets
    /// another name, beside the former one.
    #[test]
    fn maps_are_laid_out_as_the_version_before_pinned_them() {
        use crate::dns::Asked;
        use crate::probe::Connection;
        assert_eq!(SHARED, ["PODS", "LISTENERS", "PROBES", "EXEMPT", "ASKED"]);
        assert_eq!((size_of::<Pod>(), MAX_PODS), (72, 1024));
        assert_eq!((MAX_LISTENERS, SLOTS_PER_POD), (4096, 4));
        assert_eq!(Kind::ALL.map(|kind| kind as u32), [0, 1, 2, 3]);
        assert_eq!((size_of::<Connection>(), MAX_PROBES), (40, 8192));
        assert_eq!((size_of_val(&EXEMPTED), EXEMPTED), (4, 1));
        assert_eq!(size_of::<Asked>(), 36);
        // Within the values, too.
        let pod = Pod::new(Steered::new(7, [Ip::from_v4(1)]).unwrap(), true);
        assert_eq!((core::mem::offset_of!(Pod, dns), core::mem::offset_of!(Steered, index)), (68, 64));
        assert_eq!((pod.index(), pod.has_dns()), (7, true));
    }
}
