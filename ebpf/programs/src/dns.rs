//! Sends what an enrolled pod asks name servers to the pod's own listener, and shows the application the server that it
//! asked.

use aya_ebpf::programs::SockAddrContext;
use loam_ebpf_common::Ip;
use loam_ebpf_common::dns::{Asked, LISTENER_PORT, PORT, Question, captures, lane};
use loam_ebpf_common::layout::{Kind, Pod, slot};

use crate::address::{port, set_port};
use crate::error::Refused;
use crate::maps::{ASKED, is_exempt, is_listening, pod};
use crate::socket::{bound_interface, own_port};

/// A message of a UDP socket to an address. `rewrite` puts another into the context.
#[inline(always)]
pub(crate) fn send(ctx: &SockAddrContext, server: Ip, rewrite: impl FnOnce(&Ip)) -> Result<(), Refused> {
    let question = Question { server, port: port(ctx), own_port: own_port(ctx) };
    // Almost every message ends here, so this comes before the look at the pod.
    if question.port != PORT {
        return Ok(());
    }
    match pod(ctx) {
        Some(pod) if captures(pod, &question) => ask(ctx, pod, server, rewrite),
        _ => Ok(()),
    }
}

/// A question of a UDP socket, by message or for good, that [`captures`] has.
#[inline(always)]
pub(crate) fn ask(ctx: &SockAddrContext, pod: &Pod, server: Ip, rewrite: impl FnOnce(&Ip)) -> Result<(), Refused> {
    // A UDP socket that is bound to an interface says by which way it asks; loopback cannot be reached from there.
    if is_exempt(ctx) || bound_interface(ctx).is_some() {
        return Ok(());
    }
    answering(pod)?;
    let asked = remembered(ctx, server)?;
    // SAFETY: the storage is the socket's, which is locked while its hook runs.
    let lane = unsafe { (*asked).ask(server) };
    rewrite(&server.loopback());
    set_port(ctx, LISTENER_PORT + lane as u16);
    Ok(())
}

/// A connection of a TCP socket to a name server that [`captures`] has and that is not exempt.
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, pod: &Pod, server: Ip, rewrite: impl FnOnce(&Ip)) -> Result<(), Refused> {
    answering(pod)?;
    let asked = remembered(ctx, server)?;
    // A connection has one server, and the only lane with a TCP listener is the first.
    // SAFETY: as in `ask`.
    unsafe { *asked = Asked::first(server) };
    rewrite(&server.loopback());
    set_port(ctx, LISTENER_PORT);
    Ok(())
}

/// Shows the server that was asked instead of the listener that answered: the sender of a message, the peer of a socket.
#[inline(always)]
pub(crate) fn show_server(ctx: &SockAddrContext, from: Ip, rewrite: impl FnOnce(&Ip)) {
    let Some(lane) = lane(port(ctx)) else { return };
    if from != from.loopback() {
        return;
    }
    // SAFETY: the context's socket is valid.
    let asked = unsafe { ASKED.get_ptr_mut(ctx) };
    if asked.is_null() {
        return;
    }
    // SAFETY: not null, and the socket has it for as long as it lives.
    if let Some(server) = unsafe { (*asked).server(lane) } {
        rewrite(&server);
        set_port(ctx, PORT);
    }
}

/// Shows the pod's address instead of loopback, from which a socket that asked is connected.
#[inline(always)]
pub(crate) fn show_own(ctx: &SockAddrContext, local: Ip, rewrite: impl FnOnce(&Ip)) {
    if local != local.loopback() {
        return;
    }
    // SAFETY: as in `show_server`.
    if unsafe { ASKED.get_ptr_mut(ctx) }.is_null() {
        return;
    }
    if let Some(own) = pod(ctx).and_then(|pod| pod.own_like(&local)) {
        rewrite(&own);
    }
}

/// Refuses at once what nobody would answer.
#[inline(always)]
fn answering(pod: &Pod) -> Result<(), Refused> {
    match is_listening(slot(pod.index(), Kind::Dns)) {
        true => Ok(()),
        false => Err(Refused::NoListener),
    }
}

/// What the socket asked before, or that it asks this server first.
#[inline(always)]
fn remembered(ctx: &SockAddrContext, server: Ip) -> Result<*mut Asked, Refused> {
    let mut first = Asked::first(server);
    // SAFETY: the context's socket is valid, and the kernel copies the value.
    let asked = unsafe { ASKED.get_or_insert_ptr_mut(ctx, Some(&mut first)) };
    match asked.is_null() {
        true => Err(Refused::NotRemembered),
        false => Ok(asked),
    }
}
