//! The address in a hook's context: what the application gave, or what it is about to be shown.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::programs::SockAddrContext;
use loam_ebpf_common::Ip;

/// The IPv4 address.
#[inline(always)]
pub(crate) fn read4(ctx: &SockAddrContext) -> Ip {
    // SAFETY: the kernel passes a valid context. Volatile and before any branch: the verifier only accepts loads at
    // constant offsets, which the compiler would otherwise merge into one at a computed offset.
    Ip::from_v4(unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_ip4)) })
}

/// The IPv6 address, which may be a mapped IPv4 one.
#[inline(always)]
pub(crate) fn read6(ctx: &SockAddrContext) -> Ip {
    // SAFETY: as in `read4`; the field has four words.
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

/// Replaces the address in the context of an IPv4 hook.
#[inline(always)]
pub(crate) fn write4(ctx: &SockAddrContext, ip: &Ip) {
    // SAFETY: as in `read4`; the hooks of names and connections may write this field.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip4), ip.words()[3]) }
}

/// Replaces the address in the context of an IPv6 hook.
#[inline(always)]
pub(crate) fn write6(ctx: &SockAddrContext, ip: &Ip) {
    let [a, b, c, d] = ip.words();
    // SAFETY: as in `write4`; the field has four words.
    unsafe {
        let words = addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u32>();
        write_volatile(words, a);
        write_volatile(words.add(1), b);
        write_volatile(words.add(2), c);
        write_volatile(words.add(3), d);
    }
}

/// The port.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as in `read4`. The field holds the port in network order in its first two bytes.
    u16::from_be(unsafe { read_volatile(addr_of!((*ctx.sock_addr).user_port)) } as u16)
}

/// Replaces the port.
#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: as in `write4`.
    unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_port), u32::from(port.to_be())) }
}
