//! The kernel programs: entries that collect facts, ask, and answer with a verdict.
//!
//! Nothing here runs for each packet. The connect hooks run once for each `connect()` of the node's processes, `steer`
//! once for each new connection of one pod. Their decisions are in `loam-ebpf-common`, where they are tested.
#![no_std]
#![no_main]

mod connect;
mod error;
mod maps;
mod steer;

use aya_ebpf::bindings::sk_action;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext};

use crate::error::Refused;

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    permit(connect::capture(&ctx, connect::dialled4(&ctx)))
}

/// `connect()` of an IPv6 socket, which may dial a mapped IPv4 address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    permit(connect::capture(&ctx, connect::dialled6(&ctx)))
}

/// A new connection in the network namespace of one pod.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    match steer::steer(&ctx) {
        Ok(()) => sk_action::SK_PASS,
        Err(_) => sk_action::SK_DROP,
    }
}

/// What a connect hook returns: go on, or fail with the errno of the refusal.
#[inline(always)]
fn permit(outcome: Result<(), Refused>) -> i32 {
    let Err(refused) = outcome else { return 1 };
    // Without an errno of our own the caller would see EPERM, which programs do not retry.
    // SAFETY: the helper only takes a number; every cgroup socket address hook may call it.
    unsafe { bpf_set_retval(-refused.errno()) };
    0
}

/// None of the helpers asks for the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that could come here.
    loop {}
}
