//! An address as maps and programs hold it.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one mapped into it, as four words in network order.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip([u32; 4]);

/// Third word of a mapped IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();
/// Last word of `::1`.
const ONE: u32 = 1_u32.to_be();

impl Ip {
    /// No address: what an unused place holds. No packet carries it.
    pub const NONE: Ip = Ip([0; 4]);

    /// 127.0.0.1.
    pub const LOOPBACK4: Ip = Ip::from_v4(0x7f00_0001_u32.to_be());

    /// ::1.
    pub const LOOPBACK6: Ip = Ip([0, 0, 0, ONE]);

    /// An IPv4 address from its word in network order.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// An IPv6 address from its words in network order.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Its four words in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// An IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The loopback address of its family.
    #[inline(always)]
    pub const fn loopback(&self) -> Ip {
        match self.is_v4() {
            true => Self::LOOPBACK4,
            false => Self::LOOPBACK6,
        }
    }

    /// Loopback or unspecified, which `connect` takes as loopback: 127/8, 0.0.0.0, ::1, :: and the mapped forms.
    #[inline(always)]
    pub fn is_local(&self) -> bool {
        if self.0[0] | self.0[1] != 0 {
            return false;
        }
        match self.0[2] {
            MAPPED => u32::from_be(self.0[3]) >> 24 == 127 || self.0[3] == 0,
            0 => self.0[3] == ONE || self.0[3] == 0,
            _ => false,
        }
    }

    /// In fe80::/10. Such a destination names its interface, so no rule can bring it elsewhere, and no workload of the
    /// mesh is known by such an address.
    #[inline(always)]
    pub fn is_link_local6(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        let v6 = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let octets = v6.octets();
        let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        let mut octets = [0; 16];
        for (word, bytes) in ip.0.iter().zip(octets.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn what_connect_takes_as_loopback_is_local() {
        for text in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            assert!(ip(text).is_local(), "{text}");
        }
        for text in ["128.0.0.1", "126.0.0.1", "0.0.0.1", "10.0.0.127", "::2", "::7f00:1", "1::1", "fe80::1"] {
            assert!(!ip(text).is_local(), "{text}");
        }
    }

    #[test]
    fn an_address_has_the_loopback_of_its_family() {
        for (of, expected) in [("10.0.0.7", "127.0.0.1"), ("::ffff:10.0.0.7", "127.0.0.1"), ("fd00::7", "::1")] {
            assert_eq!(ip(of).loopback(), ip(expected), "{of}");
        }
    }

    #[test]
    fn only_fe80_is_link_local() {
        for text in ["fe80::1", "febf::1"] {
            assert!(ip(text).is_link_local6(), "{text}");
        }
        for text in ["fec0::1", "fe7f::1", "fd80::1", "169.254.0.1", "::fe80:1"] {
            assert!(!ip(text).is_link_local6(), "{text}");
        }
    }

    #[test]
    fn both_families_are_read_back_as_they_were_written() {
        for text in ["10.0.0.7", "2001:db8::7"] {
            assert_eq!(IpAddr::from(ip(text)), text.parse::<IpAddr>().unwrap());
        }
        assert_eq!(ip("10.0.0.7"), Ip::from_v4(u32::from_ne_bytes([10, 0, 0, 7])));
        assert_eq!(ip("::ffff:10.0.0.7"), ip("10.0.0.7"));
    }
}
