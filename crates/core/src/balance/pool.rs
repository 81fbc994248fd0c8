//! Endpoints of which any will do, and the choice among them.

use std::sync::Arc;

use super::Standing;
use super::ring::Ring;
use crate::service::Affinity;
use crate::workload::Workload;

/// Draws for the first candidate. When all of them meet endpoints that will not do, most of the pool is like that, and
/// it is walked instead.
const MAX_DRAWS: usize = 8;

/// Draws for a second candidate beside the first; then its neighbour is the second.
const MAX_SECOND_DRAWS: usize = 3;

/// Steps of that walk, which spread over the whole pool. One of thousands in which none of so many will do counts as if
/// none did.
const MAX_STEPS: usize = 64;

/// Endpoints with their weights. Equal weights, the usual case, need no table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    indexes: Box<[u32]>,
    /// By position, where weights differ.
    table: Option<Box<[Slot]>>,
    /// Where callers stay with their endpoint.
    ring: Option<Ring>,
}

/// One position of Walker's alias method: below `keep` it stays, else `other` is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) keep: u32,
    pub(super) other: u32,
    weight: u32,
}

impl Pool {
    pub(super) fn new(members: &[Arc<Workload>], indexes: Vec<u32>, affinity: Affinity) -> Self {
        let member = |i: &u32| &members[*i as usize];
        let weights: Vec<u32> = indexes.iter().map(|i| member(i).capacity).collect();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        let ring = match affinity {
            Affinity::None => None,
            // By name, which an endpoint keeps when it is made anew at another address.
            Affinity::ClientAddress => {
                let keys = indexes.iter().map(|i| hash(member(i).uid.as_str().as_bytes()));
                Some(Ring::new(keys.zip(weights.iter().copied())))
            }
        };
        Self { table: (!equal).then(|| alias_table(&weights)), ring, indexes: indexes.into() }
    }

    /// An endpoint that `may` be taken, by its number in the list of members: the caller's own where callers stay with
    /// theirs, else of two drawn by weight the one with fewer connections for its weight.
    pub(super) fn choose(&self, client: u64, entropy: u64, may: &impl Fn(u32) -> Option<Standing>) -> Option<u32> {
        match &self.ring {
            Some(ring) => {
                let may = |position: usize| self.indexes.get(position).is_some_and(|index| may(*index).is_some());
                self.indexes.get(ring.choose(client, may)?).copied()
            }
            None => self.less_busy(entropy, may),
        }
    }

    fn less_busy(&self, entropy: u64, may: &impl Fn(u32) -> Option<Standing>) -> Option<u32> {
        let at = |position: usize| Some((position, may(*self.indexes.get(position)?)?));
        let mut numbers = Numbers(entropy);
        let drawn = (0..MAX_DRAWS).find_map(|_| at(self.draw(numbers.next())?));
        let (first, standing) = drawn.or_else(|| self.walk(numbers.next()).find_map(at))?;
        let another = |position: usize| if position == first { None } else { at(position) };
        let second = (0..MAX_SECOND_DRAWS).find_map(|_| another(self.draw(numbers.next())?));
        let second = second.or_else(|| another((first + 1) % self.indexes.len()));
        let busy = |connections: u32, other: usize| u64::from(connections) * u64::from(self.weight(other));
        let taken = match second {
            Some((second, other)) if busy(other.connections, first) < busy(standing.connections, second) => second,
            Some(_) | None => first,
        };
        self.indexes.get(taken).copied()
    }

    pub(super) fn draw(&self, number: u64) -> Option<usize> {
        let n = self.indexes.len() as u64;
        // Two independent halves: which slot, and whether to stay there.
        let (high, low) = (number >> 32, number as u32);
        let at = ((high * n) >> 32) as usize;
        match self.table.as_deref() {
            Some(table) => table.get(at).map(|slot| if low < slot.keep { at } else { slot.other as usize }),
            None => (n > 0).then_some(at),
        }
    }

    /// Positions at equal distances, from a drawn one: neighbours in the list may well share a fate.
    fn walk(&self, number: u64) -> impl Iterator<Item = usize> + use<> {
        let n = self.indexes.len();
        let from = ((u128::from(number) * n as u128) >> 64) as usize;
        let distance = n.div_ceil(MAX_STEPS).max(1);
        (0..n).step_by(distance).map(move |step| (from + step) % n)
    }

    fn weight(&self, position: usize) -> u32 {
        self.table.as_deref().and_then(|table| table.get(position)).map_or(1, |slot| slot.weight)
    }
}

/// Numbers that follow from one. The first is that one, the others are as independent as need be (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        let number = self.0;
        self.0 = mix(number);
        number
    }
}

/// Spreads what differs in one bit over all of them.
pub(super) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The same in every process and version: a caller stays with its endpoint when its proxy is replaced.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    mix(hash ^ bytes.len() as u64)
}

/// Vose's construction in whole numbers: a slot's share is `keep / 2^32` of `1/n`.
pub(super) fn alias_table(weights: &[u32]) -> Box<[Slot]> {
    let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let n = weights.len() as u128;
    let mut share: Vec<u128> = weights.iter().map(|w| u128::from(*w) * n).collect();
    let slot = |(other, weight): (u32, &u32)| Slot { keep: u32::MAX, other, weight: *weight };
    let mut table: Vec<Slot> = (0u32..).zip(weights).map(slot).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|i| share[*i] < total);
    while let (Some(less), Some(more)) = (small.pop(), large.pop()) {
        let keep = (share[less] << 32) / total;
        table[less] = Slot { keep: u32::try_from(keep).unwrap_or(u32::MAX), other: more as u32, ..table[less] };
        share[more] -= total - share[less];
        if share[more] < total { small.push(more) } else { large.push(more) }
    }
    table.into()
}
