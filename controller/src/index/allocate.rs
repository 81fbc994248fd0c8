//! Virtual addresses for hosts that have none of their own.
//!
//! An address follows from the host's key alone, so it is the same after a restart, on every controller, and in
//! whatever order objects arrive. Of two keys that fall on one address the elder keeps it, and the other takes the
//! next free one: whoever comes later moves nobody who was there, unless nobody says when they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loam_core::ids::ServiceKey;

/// Addresses of 240.240.0.0/16 that do not end in 0 or 255, which some systems take for those of networks.
const SLOTS: u32 = 256 * HOSTS;
const HOSTS: u32 = 254;

/// A place in 240.240.0.0/16 and the same place in 2001:2::/48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(u16);

impl Slot {
    /// Its addresses.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        let slot = u32::from(self.0);
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(240, 240, 0, 1)) + (slot / HOSTS) * 256 + slot % HOSTS);
        let v6 = Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)) | u128::from(u32::from(v4)));
        [v4.into(), v6.into()]
    }
}

/// Gives each key a slot, the eldest first. `taken` are addresses that somebody asked for by number. Who is missing in
/// the answer came when everything was given away.
pub(super) fn allocate(
    eldest_first: impl IntoIterator<Item = ServiceKey>,
    taken: impl Fn(IpAddr) -> bool,
) -> BTreeMap<ServiceKey, Slot> {
    let mut used = BTreeSet::new();
    let mut given = BTreeMap::new();
    for key in eldest_first {
        let first = hash(&key) % SLOTS;
        let mut slots = (0..SLOTS).filter_map(|i| u16::try_from((first + i) % SLOTS).ok()).map(Slot);
        let free = |slot: &Slot| !used.contains(slot) && !slot.addresses().into_iter().any(&taken);
        let Some(slot) = slots.find(free) else { break };
        used.insert(slot);
        given.insert(key, slot);
    }
    given
}

/// FNV-1a. Addresses follow from it, so it is for ever.
fn hash(key: &ServiceKey) -> u32 {
    let text = key.to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: usize) -> Vec<ServiceKey> {
        (0..n).map(|i| format!("shop/host-{i}.example").parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_for_ever() {
        let given = allocate(keys(1), |_| false);
        let [v4, v6] = given.values().next().unwrap().addresses();
        assert_eq!((v4.to_string(), v6.to_string()), ("240.240.149.62".into(), "2001:2::f0f0:953e".into()));
    }

    #[test]
    fn every_slot_is_a_host_of_its_range_and_no_two_are_the_same() {
        let all: BTreeSet<_> = (0..SLOTS).map(|i| Slot(u16::try_from(i).unwrap()).addresses()).collect();
        assert_eq!(all.len(), SLOTS as usize);
        for [v4, _] in all {
            let IpAddr::V4(v4) = v4 else { panic!() };
            let [a, b, _, d] = v4.octets();
            assert!((a, b) == (240, 240) && d != 0 && d != 255, "{v4}");
        }
    }

    #[test]
    fn who_comes_later_moves_nobody() {
        let mut before = BTreeMap::new();
        // Far more than a birthday needs to collide.
        let all = keys(3_000);
        for n in [1, 10, 1_000, 3_000] {
            let given = allocate(all[..n].iter().cloned(), |_| false);
            assert_eq!(given.values().collect::<BTreeSet<_>>().len(), n);
            assert!(before.iter().all(|(key, slot)| given.get(key) == Some(slot)), "{n}");
            before = given;
        }
    }

    #[test]
    fn what_somebody_asked_for_is_not_given_away_and_a_full_range_is_full() {
        let key = keys(1);
        let first = allocate(key.clone(), |_| false)[&key[0]];
        let second = allocate(key.clone(), |ip| ip == first.addresses()[0])[&key[0]];
        assert_ne!(first, second);
        assert!(allocate(key, |_| true).is_empty());
    }
}
