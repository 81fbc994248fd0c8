//! Captures what enrolled pods open: TCP connections are marked, so that the pod's rule brings them to the ztunnel;
//! those to name servers, and UDP sockets that are connected to one, go to the pod's own listener instead.

use aya_ebpf::programs::SockAddrContext;
use loam_ebpf_common::dns::{self, Question};
use loam_ebpf_common::layout::{Kind, slot};
use loam_ebpf_common::{Ip, mark};

use crate::address::port;
use crate::dns::{ask, connect};
use crate::error::Refused;
use crate::maps::{is_exempt, is_listening, pod};
use crate::socket::{bound_interface, own_port, protocol, set};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;

/// Captures a `connect()` of an enrolled pod; one of anybody else stays as it is. `rewrite` puts another address into
/// the context.
#[inline(always)]
pub(crate) fn capture(ctx: &SockAddrContext, dialled: Ip, rewrite: impl FnOnce(&Ip)) -> Result<(), Refused> {
    let question = Question { server: dialled, port: port(ctx), own_port: own_port(ctx) };
    let is_udp = match protocol(ctx) {
        IPPROTO_TCP => false,
        IPPROTO_UDP if question.port == dns::PORT => true,
        _ => return Ok(()),
    };
    let Some(pod) = pod(ctx) else { return Ok(()) };
    let asks = dns::captures(pod, &question);
    if is_udp {
        return match asks {
            true => ask(ctx, pod, dialled, rewrite),
            false => Ok(()),
        };
    }
    if dialled.is_local() || dialled.is_link_local6() || is_exempt(ctx) {
        return Ok(());
    }
    if asks {
        unbind(ctx)?;
        return connect(ctx, pod, dialled, rewrite);
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
    const NO_NAME: u32 = 0;
    match bound_interface(ctx).is_none() || set(ctx, SO_BINDTODEVICE, NO_NAME) {
        true => Ok(()),
        false => Err(Refused::BoundToInterface),
    }
}
