//! The maps. `loam_ebpf_common::layout` says what is in each and why it has its size.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, SkStorage, SockMap};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use loam_ebpf_common::dns::Asked;
use loam_ebpf_common::layout::{Entrance, MAX_LISTENERS, MAX_PODS, MAX_PROBES, Pod};
use loam_ebpf_common::probe::Connection;

#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, { MAX_PODS as usize }> = HashMap::new();

#[btf_map]
pub(crate) static LISTENERS: SockMap<{ MAX_LISTENERS as usize }> = SockMap::new();

#[btf_map]
pub(crate) static PROBES: LruHashMap<Connection, u32, { MAX_PROBES as usize }> = LruHashMap::new();

#[btf_map]
pub(crate) static STEERED: Array<Entrance, 1> = Array::new();

#[btf_map]
pub(crate) static EXEMPT: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub(crate) static ASKED: SkStorage<Asked> = SkStorage::new();

/// The pod in whose network namespace the context's socket is, if it is enrolled.
#[inline(always)]
pub(crate) fn pod(ctx: &SockAddrContext) -> Option<&'static Pod> {
    // SAFETY: the helper takes the context of any socket address hook.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: an entry is replaced as a whole, and none is freed while a program runs that found it.
    unsafe { PODS.get(cookie) }
}

/// Whether the context's socket is one that the keeper made for the ztunnel. A mark would not do: every container with
/// CAP_NET_RAW can set one, while this storage takes the map's descriptor.
#[inline(always)]
pub(crate) fn is_exempt(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context's socket is valid, and only the pointer is compared.
    !unsafe { EXEMPT.get_ptr_mut(ctx) }.is_null()
}

/// Whether a socket is in this slot of LISTENERS. A closed socket leaves its slot by itself.
#[inline(always)]
pub(crate) fn is_listening(slot: u32) -> bool {
    // SAFETY: the map's key is a u32, and `slot` outlives the call.
    let socket = unsafe { bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const slot).cast()) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: looking up a socket takes a reference, which is given back here, once, after the check for null.
    unsafe { bpf_sk_release(socket.cast::<bpf_sock>().cast()) };
    true
}
