//! Endpoints of which any will do, and the choice among them.

use std::sync::Arc;

use super::maglev::Maglev;
use super::ring::Ring;
use super::{By, Standing, Tables};
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
    ring: Option<Ring>,
    maglev: Option<Maglev>,
}

/// One position of Walker's alias method: below `keep` it stays, else `other` is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) keep: u32,
    pub(super) other: u32,
    weight: u32,
}

impl Pool {
    pub(super) fn new(members: &[Arc<Workload>], indexes: Vec<u32>, tables: Tables) -> Self {
        let member = |i: &u32| &members[*i as usize];
        let weights: Vec<u32> = indexes.iter().map(|i| member(i).capacity).collect();
        let equal = weights.windows(2).all(|w| w[0] == w[1]);
        // By name, which an endpoint keeps when it is made anew at another address.
        let keys = indexes.iter().map(|i| hash(member(i).uid.as_str().as_bytes()));
        let endpoints = keys.zip(weights.iter().copied());
        Self {
            ring: tables.ring.then(|| Ring::new(endpoints.clone())),
            maglev: tables.maglev.then(|| Maglev::new(endpoints)),
            table: (!equal).then(|| alias_table(&weights)),
            indexes: indexes.into(),
        }
    }

    /// An endpoint that `may` be taken, by its number in the list of members.
    pub(super) fn choose(&self, by: By, entropy: u64, may: &impl Fn(u32) -> Option<Standing>) -> Option<u32> {
        let may_be = |position: usize| self.indexes.get(position).is_some_and(|index| may(*index).is_some());
        let position = match (by, &self.ring, &self.maglev) {
            (By::Ring(key), Some(ring), _) => ring.choose(key, may_be)?,
            (By::Maglev(key), _, Some(maglev)) => maglev.choose(key, may_be)?,
            (By::Turn(turn), ..) => match self.in_turn(turn, may) {
                Some(position) => position,
                None => self.drawn(&mut Numbers(entropy), may)?.0,
            },
            (By::Random, ..) => self.drawn(&mut Numbers(entropy), may)?.0,
            (By::LessBusy | By::Service | By::Ring(_) | By::Maglev(_), ..) => self.less_busy(entropy, may)?,
        };
        self.indexes.get(position).copied()
    }

    /// Of two drawn by weight the one with fewer connections for its weight.
    fn less_busy(&self, entropy: u64, may: &impl Fn(u32) -> Option<Standing>) -> Option<usize> {
        let mut numbers = Numbers(entropy);
        let (first, standing) = self.drawn(&mut numbers, may)?;
        let another = |position: usize| if position == first { None } else { self.at(position, may) };
        let second = (0..MAX_SECOND_DRAWS).find_map(|_| {
            let number = numbers.next();
            another(self.draw(number)?).filter(|(_, standing)| standing.is_up(number))
        });
        let second = second.or_else(|| another((first + 1) % self.indexes.len()));
        let busy = |standing: Standing, other: (usize, Standing)| {
            u128::from(standing.connections) * u128::from(self.weight(other.0)) * u128::from(other.1.warmth())
        };
        match second {
            Some((second, other)) if busy(other, (first, standing)) < busy(standing, (second, other)) => Some(second),
            Some(_) | None => Some(first),
        }
    }

    /// One drawn by weight, with its standing.
    fn drawn(&self, numbers: &mut Numbers, may: &impl Fn(u32) -> Option<Standing>) -> Option<(usize, Standing)> {
        let mut cold = None;
        for _ in 0..MAX_DRAWS {
            let number = numbers.next();
            match self.at(self.draw(number)?, may) {
                Some((position, standing)) if standing.is_up(number) => return Some((position, standing)),
                Some(other) => cold = cold.or(Some(other)),
                None => {}
            }
        }
        cold.or_else(|| self.walk(numbers.next()).find_map(|position| self.at(position, may)))
    }

    /// The one whose turn it is: each as often as it weighs. `None` if it may not be taken.
    fn in_turn(&self, turn: u64, may: &impl Fn(u32) -> Option<Standing>) -> Option<usize> {
        let n = self.indexes.len() as u64;
        let (round, at) = (turn.checked_div(n)?, turn.checked_rem(n)? as usize);
        // Multiples of the golden ratio fall evenly, so that a slot keeps and gives away its turns in proportion.
        let even = (round.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32;
        let position = match self.table.as_deref() {
            Some(table) => table.get(at).map(|slot| if even < slot.keep { at } else { slot.other as usize })?,
            None => at,
        };
        self.at(position, may).filter(|(_, standing)| standing.is_up(mix(turn))).map(|(position, _)| position)
    }

    fn at(&self, position: usize, may: &impl Fn(u32) -> Option<Standing>) -> Option<(usize, Standing)> {
        Some((position, may(*self.indexes.get(position)?)?))
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
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The same in every process and version: a caller stays with its endpoint when its proxy is replaced.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
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
