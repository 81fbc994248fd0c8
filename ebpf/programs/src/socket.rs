//! The socket behind a hook's context.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::programs::SockAddrContext;

const SOL_SOCKET: i32 = 1;
/// Index of the loopback interface, the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Its protocol.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).protocol)) }
}

/// The port that it is bound to; 0 if none yet.
#[inline(always)]
pub(crate) fn own_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the kernel passes a valid context, whose socket is never null and may be read at this field.
    unsafe {
        let socket = read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk));
        read_volatile(addr_of!((*socket).src_port)) as u16
    }
}

/// The interface that it is bound to, if that is another than loopback.
#[inline(always)]
pub(crate) fn bound_interface(ctx: &SockAddrContext) -> Option<u32> {
    // SAFETY: as in `own_port`.
    let bound_to = unsafe {
        let socket = read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk));
        read_volatile(addr_of!((*socket).bound_dev_if))
    };
    (bound_to != 0 && bound_to != LOOPBACK).then_some(bound_to)
}

/// Sets a socket option of four bytes.
#[inline(always)]
pub(crate) fn set(ctx: &SockAddrContext, option: i32, mut value: u32) -> bool {
    // SAFETY: the value is on the stack and four bytes long, as the last argument says.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, option, (&raw mut value).cast(), 4) == 0 }
}
