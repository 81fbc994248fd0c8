//! A circle on which a caller finds the endpoint that it has in common with all proxies, without a table of callers.
//!
//! Every endpoint has some points on the circle, which follow from its name, and every caller some probes, which follow
//! from the caller. The endpoint that has a point closest behind one of the probes is the caller's (multi-probe
//! consistent hashing, Appleton and O'Reilly 2015). So an endpoint that goes leaves its own callers only to others, one
//! that comes takes callers only for itself, and one that may not be taken counts as gone. Many probes spread callers
//! about as evenly as very many points would.

use std::array;

use super::pool::mix;

/// Points of an endpoint for each unit of its weight.
const POINTS: u64 = 8;

/// Probes of a caller. With eight points, the busiest of many endpoints has a fifth more callers than the average.
const PROBES: usize = 16;

/// Most points of one circle, 2 MiB. When weights would need more, all endpoints have half as many, or a quarter; but
/// one each.
const MAX_POINTS: u64 = 1 << 18;

/// Most endpoints that are passed over. One of thousands in which none of so many will do counts as if none did.
const MAX_PASSED: usize = 64;

/// The points of a pool's endpoints in order: the place on the circle, then whose it is, by position in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ring {
    points: Box<[u64]>,
    endpoints: usize,
}

/// A probe, and the point behind it that is looked at.
#[derive(Debug, Clone, Copy)]
struct Probe {
    place: u32,
    at: usize,
}

impl Ring {
    /// A circle of endpoints, each with the number by which it is known everywhere, and its weight.
    pub(super) fn new(endpoints: impl Iterator<Item = (u64, u32)> + Clone) -> Self {
        let wanted = |weight: u32, shift: u32| ((u64::from(weight) * POINTS) >> shift).max(1);
        let total = |shift: u32| endpoints.clone().map(|(_, weight)| wanted(weight, shift)).sum::<u64>();
        // A weight of 32 bits times eight fits 35; beyond that every endpoint has its one point.
        let shift = (0..36).find(|shift| total(*shift) <= MAX_POINTS).unwrap_or(36);
        let points = (0u64..).zip(endpoints.clone()).flat_map(|(position, (key, weight))| {
            let place = move |number: u64| mix(key ^ mix(number)) & !u64::from(u32::MAX);
            // Within a place the order is that of positions, which is that of names.
            (0..wanted(weight, shift)).map(move |number| place(number) | position)
        });
        let mut points: Vec<u64> = points.collect();
        points.sort_unstable();
        Self { points: points.into(), endpoints: endpoints.count() }
    }

    /// The position of the endpoint of `client` among those that `may` be taken.
    pub(super) fn choose(&self, client: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        if self.points.is_empty() {
            return None;
        }
        let mut probes: [Probe; PROBES] = array::from_fn(|number| {
            let place = (mix(client ^ mix(number as u64)) >> 32) as u32;
            Probe { place, at: self.behind(place) }
        });
        let mut passed = [usize::MAX; MAX_PASSED];
        for n in 0..MAX_PASSED.min(self.endpoints) {
            let closest =
                probes.iter().map(|probe| (self.place(probe.at).wrapping_sub(probe.place), self.owner(probe.at)));
            let (_, position) = closest.min()?;
            if may(position) {
                return Some(position);
            }
            passed[n] = position;
            if n + 1 == self.endpoints {
                return None;
            }
            for probe in &mut probes {
                while passed[..=n].contains(&self.owner(probe.at)) {
                    probe.at = (probe.at + 1) % self.points.len();
                }
            }
        }
        None
    }

    /// The first point that is not before `place`.
    fn behind(&self, place: u32) -> usize {
        let at = self.points.partition_point(|point| ((point >> 32) as u32) < place);
        if at == self.points.len() { 0 } else { at }
    }

    fn place(&self, at: usize) -> u32 {
        (self.points[at] >> 32) as u32
    }

    fn owner(&self, at: usize) -> usize {
        (self.points[at] & u64::from(u32::MAX)) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Endpoints by the number by which they are known, with their weights.
    type Endpoints = BTreeMap<u64, u32>;

    fn ring(endpoints: &Endpoints) -> Ring {
        Ring::new(endpoints.iter().map(|(key, weight)| (*key, *weight)))
    }

    /// Whose each of `callers` is.
    fn homes(endpoints: &Endpoints, callers: u64) -> Vec<u64> {
        let (ring, keys) = (ring(endpoints), endpoints.keys().copied().collect::<Vec<_>>());
        (0..callers).map(|caller| keys[ring.choose(mix(caller), |_| true).unwrap()]).collect()
    }

    /// `n` endpoints whose weights are up to `most`.
    fn endpoints(n: u64, most: u64) -> Endpoints {
        (1..=n).map(|i| (mix(i << 20), 1 + (mix(i) % most) as u32)).collect()
    }

    #[test]
    fn an_endpoint_that_goes_or_comes_moves_only_its_own_callers() {
        for (n, most) in [(1, 1), (2, 1), (3, 5), (10, 1), (10, 100), (300, 1), (300, 7)] {
            let all = endpoints(n, most);
            let before = homes(&all, 4000);
            for gone in all.keys().take(5) {
                let mut left = all.clone();
                left.remove(gone);
                if left.is_empty() {
                    continue;
                }
                for (was, is) in before.iter().zip(homes(&left, 4000)) {
                    assert!(*was == is || was == gone, "of {n} endpoints {gone} went, and a caller of {was} moved");
                }
            }
        }
    }

    #[test]
    fn an_endpoint_that_may_not_be_taken_counts_as_gone() {
        let all = endpoints(40, 3);
        let keys: Vec<u64> = all.keys().copied().collect();
        let ring = ring(&all);
        for bad in [1usize, 5, 39, 40] {
            // Every other one from the start, then all of them.
            let is_bad = |position: usize| (position * 7) % 40 < bad;
            let left: Endpoints =
                all.iter().enumerate().filter(|(i, _)| !is_bad(*i)).map(|(_, (k, w))| (*k, *w)).collect();
            let chosen = |caller: u64| ring.choose(mix(caller), |position| !is_bad(position)).map(|p| keys[p]);
            match left.is_empty() {
                true => assert!((0..100).all(|caller| chosen(caller).is_none())),
                false => {
                    for (caller, home) in (0..).zip(homes(&left, 1000)) {
                        assert_eq!(chosen(caller), Some(home));
                    }
                }
            }
        }
    }

    #[test]
    fn callers_spread_by_weight() {
        for (n, most) in [(2, 1), (3, 1), (10, 1), (10, 4), (100, 1), (100, 10), (1000, 1)] {
            let all = endpoints(n, most);
            let total: u64 = all.values().map(|w| u64::from(*w)).sum();
            // So many that chance alone keeps within a tenth.
            let callers = total * 1000;
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            homes(&all, callers).into_iter().for_each(|home| *counts.entry(home).or_default() += 1);
            let share = |key: &u64| counts.get(key).copied().unwrap_or(0) as f64 / (1000.0 * f64::from(all[key]));
            let shares: Vec<f64> = all.keys().map(share).collect();
            let (least, most) = shares.iter().fold((f64::MAX, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
            let spread = (shares.iter().map(|s| (s - 1.0).powi(2)).sum::<f64>() / n as f64).sqrt();
            assert!(most < 1.35 && least > 0.4 && spread < 0.15, "{n} endpoints: {least:.2} to {most:.2}, {spread:.3}");
        }
    }

    #[test]
    fn points_are_bounded_and_everybody_has_one() {
        let heavy: Endpoints = (0..100).map(|i| (mix(i), if i == 0 { 1 } else { u32::MAX })).collect();
        let ring = ring(&heavy);
        assert!(ring.points.len() as u64 <= MAX_POINTS, "{}", ring.points.len());
        assert!(
            ring.points
                .iter()
                .any(|point| point & 0xffff_ffff == heavy.keys().position(|k| *k == mix(0)).unwrap() as u64)
        );
        assert!(Ring::new(std::iter::empty()).choose(1, |_| true).is_none());
    }
}
