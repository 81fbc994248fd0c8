//! A table in which a key finds its endpoint at once, the same in all proxies (Maglev, Eisenbud et al. 2016, 3.4).
//!
//! Endpoints fill the table in turn, each with the free slot that it likes best; so each has nearly its share, and when
//! one comes or goes few slots change hands.

use super::pool::mix;

/// Sizes of tables, all prime. The first that has a hundred slots for each endpoint is taken, or the last.
const SIZES: [usize; 5] = [251, 1021, 4093, 16381, 65537];

/// Slots for each endpoint, from which the shares differ by about a hundredth.
const SLOTS: usize = 100;

/// The lightest endpoint counts as this part of the heaviest at least, which bounds the rounds in which they take turns.
const LEAST_WEIGHT: u64 = 256;

/// Keys that are tried in place of one whose endpoint may not be taken.
const MAX_TRIES: u64 = 64;

/// Positions of endpoints in their pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Maglev {
    slots: Box<[u32]>,
    endpoints: usize,
}

impl Maglev {
    /// A table of endpoints, each with the number by which it is known everywhere, and its weight.
    pub(super) fn new(endpoints: impl Iterator<Item = (u64, u32)>) -> Self {
        let endpoints: Vec<(u64, u32)> = endpoints.collect();
        let wanted = endpoints.len().saturating_mul(SLOTS);
        let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
        let Some(heaviest) = endpoints.iter().map(|(_, weight)| u64::from((*weight).max(1))).max() else {
            return Self { slots: Box::default(), endpoints: 0 };
        };
        // Where an endpoint begins to look for its next slot, by how much it goes on, and what it has saved of turns.
        let mut walks: Vec<(u64, u64, u64)> = endpoints
            .iter()
            .map(|(key, _)| (mix(*key) % size as u64, mix(key ^ 1) % (size as u64 - 1) + 1, 0))
            .collect();
        let mut slots = vec![u32::MAX; size];
        let mut free = size;
        while free > 0 {
            for (position, (walk, (_, weight))) in (0u32..).zip(walks.iter_mut().zip(&endpoints)) {
                let (at, step, saved) = walk;
                // The heaviest has every turn, the others so many of them as they weigh beside it.
                *saved += u64::from(*weight).max(heaviest.div_ceil(LEAST_WEIGHT));
                if *saved < heaviest {
                    continue;
                }
                *saved -= heaviest;
                while slots[*at as usize] != u32::MAX {
                    *at = (*at + *step) % size as u64;
                }
                slots[*at as usize] = position;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self { slots: slots.into(), endpoints: endpoints.len() }
    }

    /// The position of the endpoint of `key` among those that `may` be taken.
    pub(super) fn choose(&self, key: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = |key: u64| self.slots[(mix(key) % self.slots.len() as u64) as usize] as usize;
        let tried = (0..MAX_TRIES).map(|n| slot(if n == 0 { key } else { mix(key ^ mix(n)) })).find(|at| may(*at));
        // Where few may be taken, the keys of all others go round the pool.
        tried.or_else(|| {
            let from = (mix(key) % self.endpoints as u64) as usize;
            (0..self.endpoints.min(MAX_TRIES as usize)).map(|n| (from + n) % self.endpoints).find(|at| may(*at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(keys: &[u64], weight: impl Fn(u64) -> u32) -> Maglev {
        Maglev::new(keys.iter().map(|key| (mix(*key), weight(*key))))
    }

    fn home(maglev: &Maglev, keys: &[u64], key: u64) -> u64 {
        keys[maglev.choose(key, |_| true).unwrap()]
    }

    #[test]
    fn endpoints_have_their_shares() {
        for n in [1, 2, 3, 10, 100, 300] {
            let keys: Vec<u64> = (1..=n).collect();
            let weight = |key: u64| if key.is_multiple_of(3) { 3 } else { 1 };
            let maglev = table(&keys, weight);
            let total: u32 = keys.iter().map(|key| weight(*key)).sum();
            for (at, key) in keys.iter().enumerate() {
                let slots = maglev.slots.iter().filter(|slot| **slot as usize == at).count() as f64;
                let wanted = maglev.slots.len() as f64 * f64::from(weight(*key)) / f64::from(total);
                assert!((slots / wanted - 1.0).abs() < 0.1, "{key} of {n}: {slots} slots of {wanted}");
            }
        }
    }

    #[test]
    fn few_keys_move_when_an_endpoint_goes() {
        let keys: Vec<u64> = (1..=20).collect();
        let all = table(&keys, |_| 1);
        for gone in [1, 10, 20] {
            let left: Vec<u64> = keys.iter().copied().filter(|key| *key != gone).collect();
            let after = table(&left, |_| 1);
            let stayed = |key: &u64| home(&all, &keys, *key) != gone;
            let moved = (0..5000).filter(stayed).filter(|key| home(&all, &keys, *key) != home(&after, &left, *key));
            let moved = moved.count();
            assert!(moved < 500, "{moved} of 5000 keys moved without need");
        }
    }

    #[test]
    fn an_endpoint_that_may_not_be_taken_leaves_its_keys_to_others() {
        let keys: Vec<u64> = (1..=10).collect();
        let maglev = table(&keys, |_| 1);
        for key in 0..1000 {
            let first = maglev.choose(key, |_| true).unwrap();
            let other = maglev.choose(key, |at| at != first).unwrap();
            assert_ne!(first, other);
            assert_eq!(maglev.choose(key, |at| at == 7), Some(7));
        }
        assert_eq!(maglev.choose(1, |_| false), None);
        assert_eq!(Maglev::new([].into_iter()).choose(1, |_| true), None);
        assert!(Maglev::new([(1, 0), (2, 0)].into_iter()).choose(1, |_| true).is_some());
    }
}
