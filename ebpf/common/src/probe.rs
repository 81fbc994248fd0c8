//! Connections of the kubelet to the ports that it probes: they reach the application as if there were no mesh.

use crate::Ip;

/// Most ports of one pod that the kubelet may probe.
pub const MAX_PROBED: usize = 32;

/// A connection, as both of its ends know it: key of [`crate::layout::PROBES`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub from: Ip,
    /// To whom.
    pub to: Ip,
    /// Port of `from`.
    pub from_port: u32,
    /// Port of `to`.
    pub to_port: u32,
}

/// The ports of one pod that the kubelet probes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed([u16; MAX_PROBED]);

impl Probed {
    /// These ports; none if there are more than [`MAX_PROBED`].
    pub fn new(ports: &[u16]) -> Option<Self> {
        let mut probed = [0; MAX_PROBED];
        probed.get_mut(..ports.len())?.copy_from_slice(ports);
        Some(Self(probed))
    }

    /// Whether the port is among them. No connection has port 0, which an unused place holds.
    #[inline(always)]
    pub fn has(&self, port: u16) -> bool {
        let mut found = false;
        // Over all of them, since the verifier follows every way out of a loop.
        for probed in &self.0 {
            found |= *probed == port;
        }
        found
    }
}

/// What becomes of a connection, as the hook of the kubelet's sockets hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its first packet is about to be sent.
    Begins,
    /// It is over: others may use its ports.
    Ends,
    /// Anything else.
    Other,
}

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`, `BPF_SOCK_OPS_STATE_CB` and `BPF_TCP_CLOSE`, linux/bpf.h.
const CONNECTS: u32 = 3;
const CHANGES_STATE: u32 = 10;
const CLOSED: u32 = 7;

/// The step that a call of the hook is about: `op` is what happens, `state` the socket's next state.
#[inline(always)]
pub fn step(op: u32, state: u32) -> Step {
    match op {
        CONNECTS => Step::Begins,
        CHANGES_STATE if state == CLOSED => Step::Ends,
        _ => Step::Other,
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for a promise about the bytes of a map's key or value")]
mod user {
    // SAFETY: it is `repr(C)`, made of u32 only, so it has no padding and every bit pattern is a value.
    unsafe impl aya::Pod for super::Connection {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_probed_are_known_and_others_are_not() {
        let probed = Probed::new(&[80, 65535]).unwrap();
        assert_eq!([80, 65535, 8080].map(|port| probed.has(port)), [true, true, false]);
        assert!(Probed::new(&[1; MAX_PROBED]).is_some());
        assert!(Probed::new(&[1; MAX_PROBED + 1]).is_none());
    }

    #[test]
    fn a_connection_begins_with_its_first_packet_and_ends_when_it_is_closed() {
        const ESTABLISHED: u32 = 1;
        assert_eq!(step(CONNECTS, 0), Step::Begins);
        assert_eq!(step(CHANGES_STATE, CLOSED), Step::Ends);
        assert_eq!(step(CHANGES_STATE, ESTABLISHED), Step::Other);
        assert_eq!(step(4, CLOSED), Step::Other);
    }
}
