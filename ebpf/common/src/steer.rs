//! Which listener of a pod gets a connection that arrives in its network namespace.

use crate::Ip;
use crate::layout::{Entrance, Kind};

/// Port of HBONE tunnels.
pub const HBONE_PORT: u16 = 15008;

/// What is known of the first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Where it goes to.
    pub local: Ip,
    /// See `local`.
    pub local_port: u16,
    /// Where it comes from.
    pub remote: Ip,
    /// Whether it was routed to the loopback interface: by the mark's rule, or because it goes to a loopback address.
    /// A packet to the pod's own address without a mark carries that address's interface instead.
    pub on_loopback: bool,
}

/// Who gets the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Whoever listens there: the application, as if there were no mesh.
    Untouched,
    /// This listener of the ztunnel, or nobody.
    Listener(Kind),
}

/// Decides for one pod. `by_kubelet` says whether it is the kubelet that opened the connection.
#[inline(always)]
pub fn decide(entrance: &Entrance, arrival: &Arrival, by_kubelet: impl FnOnce() -> bool) -> Verdict {
    let Entrance { steered: pod, probed } = entrance;
    let Arrival { local, local_port, remote, on_loopback } = arrival;
    if *on_loopback {
        let delivery = pod.owns(local) && !pod.owns(remote);
        return match local.is_local() || delivery {
            true => Verdict::Untouched,
            false => Verdict::Listener(Kind::Outbound),
        };
    }
    // No mark and yet from the pod to itself: the ztunnel completes a call of the pod to itself. From outside, the
    // answer to such a packet would never leave the pod, so it opens nothing.
    if pod.owns(remote) || remote == local {
        return Verdict::Untouched;
    }
    match *local_port {
        HBONE_PORT => Verdict::Listener(Kind::Hbone),
        port if probed.has(port) && by_kubelet() => Verdict::Untouched,
        _ => Verdict::Listener(Kind::Inbound),
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::layout::Steered;
    use crate::probe::Probed;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// The port that the kubelet probes.
    const PROBED: u16 = 8081;

    fn decided(interface: &str, remote: &str, local: &str, local_port: u16, by_kubelet: bool) -> Verdict {
        let steered = Steered::new(7, ["10.0.0.7", "fd00::7"].map(ip)).unwrap();
        let entrance = Entrance { steered, probed: Probed::new(&[PROBED, HBONE_PORT]).unwrap() };
        let on_loopback = interface == "lo";
        let arrival = Arrival { local: ip(local), local_port, remote: ip(remote), on_loopback };
        decide(&entrance, &arrival, || by_kubelet)
    }

    /// Whoever opened it.
    fn check(interface: &str, remote: &str, local: &str, local_port: u16, expected: Verdict) {
        for by_kubelet in [true, false] {
            let verdict = decided(interface, remote, local, local_port, by_kubelet);
            assert_eq!(verdict, expected, "{remote} -> {local}:{local_port} on {interface}");
        }
    }

    #[test]
    fn the_kubelet_reaches_what_it_probes_and_nobody_else_does() {
        for (remote, local) in [("10.0.0.1", "10.0.0.7"), ("fd00::1", "fd00::7")] {
            assert_eq!(decided("eth0", remote, local, PROBED, true), UNTOUCHED);
            assert_eq!(decided("eth0", remote, local, PROBED, false), INBOUND);
            assert_eq!(decided("eth0", remote, local, PROBED + 1, true), INBOUND);
            assert_eq!(decided("eth0", remote, local, HBONE_PORT, true), HBONE);
        }
    }

    const UNTOUCHED: Verdict = Verdict::Untouched;
    const OUTBOUND: Verdict = Verdict::Listener(Kind::Outbound);
    const INBOUND: Verdict = Verdict::Listener(Kind::Inbound);
    const HBONE: Verdict = Verdict::Listener(Kind::Hbone);

    #[test]
    fn what_the_pod_dials_goes_to_the_outbound_listener() {
        check("lo", "10.0.0.7", "10.0.0.9", 80, OUTBOUND);
        check("lo", "fd00::7", "fd00::9", 80, OUTBOUND);
        check("lo", "10.0.0.7", "10.0.0.9", HBONE_PORT, OUTBOUND);
    }

    #[test]
    fn what_the_pod_dials_at_its_own_address_goes_to_the_outbound_listener() {
        check("lo", "10.0.0.7", "10.0.0.7", 80, OUTBOUND);
        check("lo", "fd00::7", "fd00::7", 80, OUTBOUND);
    }

    #[test]
    fn loopback_is_left_alone() {
        check("lo", "127.0.0.1", "127.0.0.1", 80, UNTOUCHED);
        check("lo", "127.0.0.1", "127.0.0.1", HBONE_PORT, UNTOUCHED);
        check("lo", "::1", "::1", 80, UNTOUCHED);
        check("lo", "10.0.0.7", "127.0.0.1", 80, UNTOUCHED);
    }

    #[test]
    fn what_the_ztunnel_delivers_with_the_clients_address_reaches_the_application() {
        check("lo", "10.0.0.9", "10.0.0.7", 80, UNTOUCHED);
        check("lo", "fd00::9", "fd00::7", 80, UNTOUCHED);
    }

    #[test]
    fn a_self_call_is_completed_at_the_application() {
        check("eth0", "10.0.0.7", "10.0.0.7", 80, UNTOUCHED);
        check("eth0", "fd00::7", "fd00::7", 80, UNTOUCHED);
        check("eth0", "10.0.0.7", "10.0.0.7", HBONE_PORT, UNTOUCHED);
    }

    #[test]
    fn what_comes_over_the_wire_goes_to_the_ztunnel_whatever_the_port() {
        check("eth0", "10.0.0.9", "10.0.0.7", 80, INBOUND);
        check("eth0", "10.0.0.9", "10.0.0.7", 15001, INBOUND);
        check("eth0", "fd00::9", "fd00::7", 80, INBOUND);
        check("eth0", "10.0.0.9", "10.0.0.7", HBONE_PORT, HBONE);
        check("eth0", "fd00::9", "fd00::7", HBONE_PORT, HBONE);
    }

    #[test]
    fn a_loopback_address_on_the_wire_is_not_taken_as_loopback() {
        check("eth0", "10.0.0.9", "127.0.0.1", 80, INBOUND);
        check("eth0", "127.0.0.1", "10.0.0.7", 80, INBOUND);
    }

    #[test]
    fn an_address_that_the_mesh_does_not_know_is_never_a_way_around_it() {
        check("eth0", "fe80::9", "fe80::7", 80, INBOUND);
        check("eth0", "192.168.0.9", "192.168.0.7", 80, INBOUND);
        check("lo", "192.168.0.7", "10.0.0.9", 80, OUTBOUND);
    }

    #[test]
    fn the_ztunnel_can_complete_a_self_call_at_an_address_that_the_mesh_does_not_know() {
        check("eth0", "192.168.0.7", "192.168.0.7", 80, UNTOUCHED);
    }

    #[test]
    fn an_unused_place_for_an_address_matches_nothing_real() {
        let v4_only = Steered::new(7, [ip("10.0.0.7")]).unwrap();
        assert!(!v4_only.owns(&ip("0.0.0.0")));
        assert!(!v4_only.owns(&ip("::1")));
    }
}
