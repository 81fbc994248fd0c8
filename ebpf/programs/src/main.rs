//! The kernel programs: entries that collect facts, ask, and answer with a verdict.
//!
//! Nothing here runs for each packet. The connect hooks run once for each `connect()` of the node's processes, the hooks
//! of messages for each UDP message that is sent to an address or received with one, those of names for each
//! `getpeername()` and `getsockname()`, `steer` once for each new connection of one pod, and `kubelet` when one of the
//! kubelet's connections begins, is there, and ends. Their decisions are in
//! `loam-ebpf-common`, where they are tested.
#![no_std]
#![no_main]

mod address;
mod connect;
mod dns;
mod error;
mod kubelet;
mod maps;
mod socket;
mod steer;

use aya_ebpf::bindings::sk_action;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};

use crate::address::{read4, read6, write4, write6};
use crate::error::Refused;

/// What a hook returns so that the call goes on. Those that only show an address may return nothing else.
const PERMITTED: i32 = 1;

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    permit(connect::capture(&ctx, read4(&ctx), |ip| write4(&ctx, ip)))
}

/// `connect()` of an IPv6 socket, which may dial a mapped IPv4 address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    permit(connect::capture(&ctx, read6(&ctx), |ip| write6(&ctx, ip)))
}

/// A UDP message to an IPv4 address, from a socket of either family.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    permit(dns::send(&ctx, read4(&ctx), |ip| write4(&ctx, ip)))
}

/// A UDP message to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    permit(dns::send(&ctx, read6(&ctx), |ip| write6(&ctx, ip)))
}

/// The sender of a message that an IPv4 socket receives.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    dns::show_server(&ctx, read4(&ctx), |ip| write4(&ctx, ip));
    PERMITTED
}

/// The sender of a message that an IPv6 socket receives, who may have a mapped IPv4 address.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    dns::show_server(&ctx, read6(&ctx), |ip| write6(&ctx, ip));
    PERMITTED
}

/// `getpeername()` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    dns::show_server(&ctx, read4(&ctx), |ip| write4(&ctx, ip));
    PERMITTED
}

/// `getpeername()` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    dns::show_server(&ctx, read6(&ctx), |ip| write6(&ctx, ip));
    PERMITTED
}

/// `getsockname()` of an IPv4 socket.
#[cgroup_sock_addr(getsockname4)]
fn getsockname4(ctx: SockAddrContext) -> i32 {
    dns::show_own(&ctx, read4(&ctx), |ip| write4(&ctx, ip));
    PERMITTED
}

/// `getsockname()` of an IPv6 socket.
#[cgroup_sock_addr(getsockname6)]
fn getsockname6(ctx: SockAddrContext) -> i32 {
    dns::show_own(&ctx, read6(&ctx), |ip| write6(&ctx, ip));
    PERMITTED
}

/// A new connection in the network namespace of one pod.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    match steer::steer(&ctx) {
        Ok(()) => sk_action::SK_PASS,
        Err(_) => sk_action::SK_DROP,
    }
}

/// What becomes of a TCP connection that a process of the kubelet's cgroup opens.
#[sock_ops]
fn kubelet(ctx: SockOpsContext) -> u32 {
    kubelet::note(&ctx);
    // Nobody reads it.
    1
}

/// What a hook returns that may refuse: go on, or fail with the errno of the refusal.
#[inline(always)]
fn permit(outcome: Result<(), Refused>) -> i32 {
    let Err(refused) = outcome else { return PERMITTED };
    // Without an errno of our own the caller would see EPERM, which programs do not retry.
    // SAFETY: the helper only takes a number; the hooks that may refuse may call it.
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
