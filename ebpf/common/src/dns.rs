//! Questions to name servers: which ones are captured, where they go, and whose answer the application is shown.

use crate::Ip;
use crate::layout::Pod;

/// Port of name servers.
pub const PORT: u16 = 53;

/// Port of the pod's own listener on its loopback addresses; each further lane is one port further.
pub const LISTENER_PORT: u16 = 15053;

/// Ports on which the pod's own listener takes questions. A socket that asks two servers sends to one port for each, so
/// that the answers can be told apart: they all come from loopback.
pub const LANES: u32 = 2;

/// What is known of a message, or of a connection that is being opened.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Where it goes to.
    pub server: Ip,
    /// See `server`.
    pub port: u16,
    /// The port that the socket is bound to; 0 if none yet.
    pub own_port: u16,
}

/// Whether the pod's own listener gets it.
#[inline(always)]
pub fn captures(pod: &Pod, question: &Question) -> bool {
    let Question { server, port, own_port } = question;
    // A socket on port 53 is a name server's, which answers others from there.
    let asks = *port == PORT && *own_port != PORT;
    // A resolver on loopback is the pod's own; what that one asks is captured. A link-local server is on an interface
    // that the question must leave by.
    pod.has_dns() && asks && !server.is_local() && !server.is_link_local6() && !pod.owns(server)
}

/// The lane that a port stands for.
#[inline(always)]
pub fn lane(port: u16) -> Option<u32> {
    let lane = u32::from(port.wrapping_sub(LISTENER_PORT));
    (lane < LANES).then_some(lane)
}

/// The servers that a socket asked, by lane. Of more than [`LANES`] the ones asked last are known.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    servers: [Ip; LANES as usize],
    last: u32,
}

impl Asked {
    /// A socket whose first question goes to this server, in lane 0.
    #[inline(always)]
    pub const fn first(server: Ip) -> Self {
        Self { servers: [server, Ip::NONE], last: 0 }
    }

    /// The lane of the next question, which goes to this server.
    #[inline(always)]
    pub fn ask(&mut self, server: Ip) -> u32 {
        // Written out, because the verifier would want every index proven.
        let lane = match (self.servers[0] == server, self.servers[1] == server) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) if self.last == 0 => {
                self.servers[1] = server;
                1
            }
            (false, false) => {
                self.servers[0] = server;
                0
            }
        };
        self.last = lane;
        lane
    }

    /// The server that answers in this lane.
    #[inline(always)]
    pub fn server(&self, lane: u32) -> Option<Ip> {
        let server = match lane {
            0 => self.servers[0],
            _ => self.servers[1],
        };
        (server != Ip::NONE).then_some(server)
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::layout::Steered;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[track_caller]
    fn check(server: &str, port: u16, own_port: u16, expected: bool) {
        let steered = Steered::new(7, ["10.0.0.7", "fd00::7"].map(ip)).unwrap();
        let question = Question { server: ip(server), port, own_port };
        assert_eq!(captures(&Pod::new(steered, true), &question), expected, "{server}:{port} from {own_port}");
        assert!(!captures(&Pod::new(steered, false), &question), "a pod that has it switched off");
    }

    #[test]
    fn every_name_server_on_the_network_is_captured() {
        for server in ["10.96.0.10", "8.8.8.8", "169.254.20.10", "fd00::10", "::ffff:10.96.0.10"] {
            check(server, 53, 0, true);
            check(server, 53, 40000, true);
        }
    }

    #[test]
    fn other_ports_are_not() {
        for port in [0, 52, 54, 443, 853, 5353, 15053] {
            check("10.96.0.10", port, 0, false);
        }
    }

    #[test]
    fn the_pods_own_resolver_is_left_alone() {
        for server in ["127.0.0.1", "127.0.0.53", "0.0.0.0", "::1", "::", "10.0.0.7", "fd00::7", "fe80::53"] {
            check(server, 53, 0, false);
        }
    }

    #[test]
    fn what_a_name_server_sends_is_left_alone() {
        check("10.0.0.9", 53, 53, false);
    }

    #[test]
    fn a_port_names_its_lane_and_others_name_none() {
        for (port, expected) in [(15052, None), (15053, Some(0)), (15054, Some(1)), (15055, None), (0, None)] {
            assert_eq!(lane(port), expected, "{port}");
        }
    }

    #[test]
    fn two_servers_of_one_socket_keep_their_lanes() {
        let [a, b] = ["10.96.0.10", "fd00::10"].map(ip);
        let mut asked = Asked::first(a);
        let lanes = [a, b, b, a, b].map(|server| asked.ask(server));
        assert_eq!(lanes, [0, 1, 1, 0, 1]);
        assert_eq!([asked.server(0), asked.server(1)], [Some(a), Some(b)]);
    }

    #[test]
    fn a_third_server_takes_the_lane_of_the_one_asked_longest_ago() {
        let [a, b, c] = ["10.96.0.10", "10.96.0.11", "10.96.0.12"].map(ip);
        let mut asked = Asked::first(a);
        assert_eq!([asked.ask(b), asked.ask(a), asked.ask(c)], [1, 0, 1]);
        assert_eq!([asked.server(0), asked.server(1)], [Some(a), Some(c)]);
    }

    #[test]
    fn a_lane_that_nobody_asked_in_has_no_server() {
        assert_eq!(Asked::first(ip("10.96.0.10")).server(1), None);
    }
}
