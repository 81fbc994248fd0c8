//! Marks the TCP connections that enrolled pods open, so that the pod's rule brings them to the ztunnel.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::programs::SockAddrContext;
use loam_ebpf_common::layout::{Kind, slot};
use loam_ebpf_common::{Ip, mark};

use crate::error::Refused;
use crate::maps::{EXEMPT, PODS, is_listening};

const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
/// Index of the loopback interface, the first of every network namespace.
const LOOPBACK: u32 = 1;

/// The IPv4 address given to `connect()`.
#[inline(always)]
pub(crate) fn dialled4(ctx: &SockAddrContext) -> Ip {
    // SAFETY: the kernel passes a valid context. Volatile and before any branch: the verifier only accepts loads at
    // constant offsets, which the compiler would otherwise merge into one at a computed offset.
    Ip::from_v4(unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip4)) })
}

/// The IPv6 address given to `connect()`.
#[inline(always)]
pub(crate) fn dialled6(ctx: &SockAddrContext) -> Ip {
    // SAFETY: as in `dialled4`; the field has four words.
    unsafe {
        let words = addr_of!((*ctx.sock_addr).user_ip6).cast::<u32>();
        Ip::from_v6([
            read_volatile(words),
            read_volatile(words.add(1)),
            read_volatile(words.add(2)),
            read_volatile(words.add(3)),
        ])
    }
}

/// Gives a connection to the ztunnel of the pod that opens it; one of anybody else stays as it is.
#[inline(always)]
pub(crate) fn capture(ctx: &SockAddrContext, dialled: Ip) -> Result<(), Refused> {
    // SAFETY: the kernel passes a valid context.
    let protocol = unsafe { read_volatile(addr_of!((*ctx.sock_addr).protocol)) };
    if protocol != IPPROTO_TCP {
        return Ok(());
    }
    // SAFETY: the helper takes the context of any socket address hook.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the entry is a number that is never changed in place.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else { return Ok(()) };
    if dialled.is_local() || dialled.is_link_local6() {
        return Ok(());
    }
    // A mark would not do: every container with CAP_NET_RAW can set one. This storage takes the map's descriptor.
    // SAFETY: the context's socket is valid, and only the pointer is compared.
    if !unsafe { EXEMPT.get_ptr_mut(ctx) }.is_null() {
        return Ok(());
    }
    // The stack cannot refuse it later: it has no way to answer for an address that is not its own, so the
    // application would hang instead.
    if !is_listening(slot(pod.index(), Kind::Outbound)) {
        return Err(Refused::NoListener);
    }
    unbind(ctx)?;
    match set(ctx, SO_MARK, mark::APP) {
        true => Ok(()),
        false => Err(Refused::NotMarked),
    }
}

/// Frees the socket from an interface it is bound to, which would keep it from the loopback interface and so send it
/// around the ztunnel.
#[inline(always)]
fn unbind(ctx: &SockAddrContext) -> Result<(), Refused> {
    // SAFETY: the kernel passes a valid context, whose socket is never null and may be read at this field.
    let bound_to = unsafe {
        let socket = read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk));
        read_volatile(addr_of!((*socket).bound_dev_if))
    };
    if bound_to == 0 || bound_to == LOOPBACK {
        return Ok(());
    }
    const NO_NAME: u32 = 0;
    match set(ctx, SO_BINDTODEVICE, NO_NAME) {
        true => Ok(()),
        false => Err(Refused::BoundToInterface),
    }
}

/// Sets a socket option of four bytes.
#[inline(always)]
fn set(ctx: &SockAddrContext, option: i32, mut value: u32) -> bool {
    // SAFETY: the value is on the stack and four bytes long, as the last argument says.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, option, (&raw mut value).cast(), 4) == 0 }
}
