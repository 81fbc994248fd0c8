//! Addresses that passed from one workload to another between two snapshots.

use std::collections::HashSet;
use std::net::IpAddr;

use super::Snapshot;
use super::index::Address;
use crate::map::Entry;

impl Snapshot {
    /// Addresses that belonged to a workload in `before` and do not belong to it here. What was known about who is
    /// there, and connections made to it, are out of date. The cost follows the difference of the two.
    pub fn moved_since(&self, before: &Snapshot) -> HashSet<IpAddr> {
        let mut moved = HashSet::new();
        self.addresses.diff(&before.addresses, &mut |old: Option<&Address>, new: Option<&Address>| {
            let Some(old) = old else { return };
            // Of several claims within a network the first one holds; see `Snapshot::workload_at`.
            let holder = |address: &Address, network: &str| {
                address.owners().find(|w| *w.network == *network).map(|w| w.uid.clone())
            };
            let passed = |network: &str| holder(old, network) != new.and_then(|new| holder(new, network));
            if old.owners().any(|w| passed(&w.network)) {
                moved.insert(*Entry::key(old));
            }
        });
        moved
    }
}

#[cfg(test)]
mod tests {
    use crate::testmesh::{changes, mesh};

    #[track_caller]
    fn check(before: &str, change: &str, expected: &[&str]) {
        let before = mesh(before);
        let mut moved: Vec<_> =
            before.apply(changes(change)).moved_since(&before).iter().map(ToString::to_string).collect();
        moved.sort();
        assert_eq!(moved, expected, "{change}");
    }

    const TWO: &str = "
        pod a/web-1 10.0.0.1,fd00::1 hbone
        pod a/api-1 10.0.0.2         hbone";

    #[test]
    fn an_address_moves_when_its_workload_leaves_or_gives_it_up() {
        check(TWO, "-pod a/web-1", &["10.0.0.1", "fd00::1"]);
        check(TWO, "pod a/web-1 10.0.0.1 hbone", &["fd00::1"]);
        check(TWO, "-pod a/web-1\npod a/web-2 10.0.0.1 hbone", &["10.0.0.1", "fd00::1"]);
        check(TWO, "pod a/api-1 10.0.0.9 hbone\npod a/db-1 10.0.0.2 hbone", &["10.0.0.2"]);
    }

    #[test]
    fn an_address_stays_when_its_workload_changes_otherwise() {
        check(TWO, "pod a/web-1 10.0.0.1,fd00::1 hbone unhealthy node=n2", &[]);
        check(TWO, "pod a/db-1 10.0.0.3 hbone", &[]);
        check(TWO, "-pod a/web-1\npod a/web-1 10.0.0.1,fd00::1", &[]);
        check(TWO, "pod a/zed-1 10.0.0.2", &[]);
        check(TWO, "pod far/api-1 10.0.0.2 hbone network=far", &[]);
    }

    #[test]
    fn a_better_claim_takes_an_address_over() {
        check(TWO, "pod a/aaa-1 10.0.0.2 hbone", &["10.0.0.2"]);
    }
}
