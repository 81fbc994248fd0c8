//! Packet marks. Inside an enrolled pod one rule sends packets whose mark is [`ROUTED`] under [`MASK`] to the loopback
//! interface, where `steer` picks a listener.

/// A connection that the application opens: on its way to the outbound listener.
pub const APP: u32 = 0x6d01;
/// A connection that the ztunnel opens to the application, with the client's address.
pub const DELIVER: u32 = 0x6d02;
/// A connection that the ztunnel opens to the network: no rule matches it.
pub const PROXY: u32 = 0x0539;

/// What [`APP`] and [`DELIVER`] have in common.
pub const ROUTED: u32 = 0x6d00;
/// Bits that the rule compares.
pub const MASK: u32 = 0xff00;

const _: () = assert!(APP & MASK == ROUTED && DELIVER & MASK == ROUTED && PROXY & MASK != ROUTED);
