//! Notes the connections that the kubelet opens, for `steer` in the network namespaces of pods to know them by.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::programs::SockOpsContext;
use loam_ebpf_common::Ip;
use loam_ebpf_common::probe::{Connection, Step, step};

use crate::maps::PROBES;
use crate::steer::words;

const AF_INET: u32 = 2;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`: hear of the socket's states, too.
const STATES: i32 = 4;

/// Notes a connection before its first packet leaves, and forgets it when it is over.
#[inline(always)]
pub(crate) fn note(ctx: &SockOpsContext) {
    let (op, state, connection) = facts(ctx);
    match step(op, state) {
        Step::Begins => {
            // Without either the connection goes to the ztunnel as any other does.
            if ctx.set_cb_flags(STATES).is_ok() {
                let _ = PROBES.insert(connection, 1, 0);
            }
        }
        Step::Ends => drop(PROBES.remove(connection)),
        Step::Other => {}
    }
}

/// Reads the context, every word before any branch; see `steer::arrival`.
#[inline(always)]
fn facts(ctx: &SockOpsContext) -> (u32, u32, Connection) {
    let ops = ctx.ops;
    // SAFETY: the kernel passes a valid context; the IPv6 fields have four words each.
    unsafe {
        let op = read_volatile(addr_of!((*ops).op));
        let state = read_volatile(addr_of!((*ops).__bindgen_anon_1.args).cast::<u32>().add(1));
        let local4 = read_volatile(addr_of!((*ops).local_ip4));
        let remote4 = read_volatile(addr_of!((*ops).remote_ip4));
        let local6 = words(addr_of!((*ops).local_ip6).cast());
        let remote6 = words(addr_of!((*ops).remote_ip6).cast());
        // This one is in network order, as a word.
        let to_port = u32::from_be(read_volatile(addr_of!((*ops).remote_port)));
        let from_port = read_volatile(addr_of!((*ops).local_port));
        let (from, to) = match read_volatile(addr_of!((*ops).family)) == AF_INET {
            true => (Ip::from_v4(local4), Ip::from_v4(remote4)),
            false => (Ip::from_v6(local6), Ip::from_v6(remote6)),
        };
        (op, state, Connection { from, to, from_port, to_port })
    }
}
