//! Gives a new connection in a pod's network namespace to the listener that is meant for it.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::programs::SkLookupContext;
use loam_ebpf_common::Ip;
use loam_ebpf_common::layout::slot;
use loam_ebpf_common::probe::Connection;
use loam_ebpf_common::steer::{Arrival, Verdict, decide};

use crate::error::Refused;
use crate::maps::{LISTENERS, PROBES, STEERED};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
/// Index of the loopback interface, the first of every network namespace.
const LOOPBACK: u32 = 1;
/// Exactly the socket in the slot, not another of a group that somebody may have joined.
const NO_REUSEPORT: u64 = 2;

/// Passes what is not ours, gives the rest to a listener, refuses it if that slot is empty.
#[inline(always)]
pub(crate) fn steer(ctx: &SkLookupContext) -> Result<(), Refused> {
    // SAFETY: the kernel passes a valid context.
    let protocol = unsafe { read_volatile(addr_of!((*ctx.lookup).protocol)) };
    if protocol != IPPROTO_TCP {
        return Ok(());
    }
    let (arrival, from_port) = arrival(ctx);
    // The array has this one entry; without it nothing is known and so nothing may pass.
    let Some(entrance) = STEERED.get(0) else { return Err(Refused::NoListener) };
    let by_kubelet = || {
        let Arrival { local: to, remote: from, local_port, .. } = arrival;
        let connection = Connection { from, to, from_port, to_port: local_port.into() };
        // SAFETY: only whether there is an entry is asked.
        unsafe { PROBES.get(connection) }.is_some()
    };
    match decide(entrance, &arrival, by_kubelet) {
        Verdict::Untouched => Ok(()),
        Verdict::Listener(kind) => LISTENERS
            .redirect_sk_lookup(ctx, slot(entrance.steered.index(), kind), NO_REUSEPORT)
            .map_err(|_| Refused::NoListener),
    }
}

/// Reads the facts and the port at the other end out of the context, every word before any branch: the verifier only
/// accepts loads at constant offsets, and the compiler would merge those of two branches into one at a computed offset.
#[inline(always)]
fn arrival(ctx: &SkLookupContext) -> (Arrival, u32) {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context; the IPv6 fields have four words each.
    unsafe {
        let local4 = read_volatile(addr_of!((*lookup).local_ip4));
        let remote4 = read_volatile(addr_of!((*lookup).remote_ip4));
        let local6 = words(addr_of!((*lookup).local_ip6).cast());
        let remote6 = words(addr_of!((*lookup).remote_ip6).cast());
        let local_port = read_volatile(addr_of!((*lookup).local_port)) as u16;
        // Two bytes in network order.
        let from_port = u32::from(u16::from_be(read_volatile(addr_of!((*lookup).remote_port))));
        let on_loopback = read_volatile(addr_of!((*lookup).ingress_ifindex)) == LOOPBACK;
        let is_v4 = read_volatile(addr_of!((*lookup).family)) == AF_INET;
        let (local, remote) = match is_v4 {
            true => (Ip::from_v4(local4), Ip::from_v4(remote4)),
            false => (Ip::from_v6(local6), Ip::from_v6(remote6)),
        };
        (Arrival { local, local_port, remote, on_loopback }, from_port)
    }
}

/// Four words of the context.
///
/// # Safety
/// `at` points to four words of a valid context.
#[inline(always)]
pub(crate) unsafe fn words(at: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { [read_volatile(at), read_volatile(at.add(1)), read_volatile(at.add(2)), read_volatile(at.add(3))] }
}
