//! Bytes that are known at both ends, unlike any others, and full of markers.

use loam_tests::report::{MARKER, TAG_BYTES};

const MARKED: usize = MARKER.len() + TAG_BYTES;
/// A block is a marker and as many bytes again that depend on the seed and the position.
const BLOCK: usize = 64;

/// The payload of one connection's direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload {
    seed: u64,
    marker: [u8; MARKED],
}

/// The marker with `tag`, cut or filled to its length.
pub(crate) fn marker(tag: &str) -> String {
    format!("{MARKER}{tag:-<TAG_BYTES$.TAG_BYTES$}")
}

impl Payload {
    /// The payload of `seed`, marked with `tag`.
    pub(crate) fn new(seed: u64, tag: &str) -> Self {
        let mut bytes = [b'-'; MARKED];
        let text = marker(tag);
        bytes.copy_from_slice(&text.as_bytes()[..MARKED]);
        Self { seed, marker: bytes }
    }

    /// Writes the bytes that stand at `offset` and after it into `buffer`.
    pub(crate) fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut at = 0;
        while at < buffer.len() {
            let position = offset + at as u64;
            let block = self.block(position / BLOCK as u64);
            let from = (position % BLOCK as u64) as usize;
            let n = (BLOCK - from).min(buffer.len() - at);
            buffer[at..at + n].copy_from_slice(&block[from..from + n]);
            at += n;
        }
    }

    fn block(&self, index: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..MARKED].copy_from_slice(&self.marker);
        let mut state = Mix(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for chunk in block[MARKED..].chunks_mut(8) {
            let word = state.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        block
    }
}

/// SplitMix64: enough to make bytes differ and sizes vary, and the same in every run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix(pub u64);

impl Mix {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A size from 1 to `max`, each power of two as likely as the next.
    pub(crate) fn size(&mut self, max: u64) -> u64 {
        let bits = self.next() % (u64::from(max.ilog2()) + 1);
        let low = 1 << bits;
        (low + self.next() % low).min(max)
    }
}

/// Checksum of a stream of bytes (FNV-1a over words, cheap in a build without optimisation).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sum {
    state: u64,
    bytes: u64,
    word: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325, bytes: 0, word: 0 }
    }
}

impl Sum {
    /// Takes more bytes; how they are cut into pieces does not matter.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.word = self.word << 8 | u64::from(byte);
            self.bytes += 1;
            if self.bytes.is_multiple_of(8) {
                self.mix();
            }
        }
    }

    fn mix(&mut self) {
        self.state = (self.state ^ self.word).wrapping_mul(0x0100_0000_01b3);
        self.state ^= self.state >> 32;
        self.word = 0;
    }

    /// Number of bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The checksum.
    pub(crate) fn value(mut self) -> u64 {
        self.word ^= self.bytes << 56;
        self.mix();
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_the_same_however_it_is_cut() {
        let payload = Payload::new(7, "t");
        let mut whole = vec![0; 1000];
        payload.fill(0, &mut whole);
        let mut pieces = vec![0; 1000];
        let (mut at, mut n) = (0, 1);
        while at < 1000 {
            let end = (at + n).min(1000);
            payload.fill(at as u64, &mut pieces[at..end]);
            (at, n) = (end, n + 3);
        }
        assert_eq!(whole, pieces);
        assert!(whole.windows(MARKED).any(|w| w == marker("t").as_bytes()));
    }

    #[test]
    fn a_checksum_knows_order_and_length() {
        let sum = |parts: &[&[u8]]| {
            let mut sum = Sum::default();
            parts.iter().for_each(|p| sum.add(p));
            sum.value()
        };
        assert_eq!(sum(&[b"abc", b"defghijkl"]), sum(&[b"abcdefgh", b"ijkl"]));
        assert_ne!(sum(&[b"ab"]), sum(&[b"ba"]));
        assert_ne!(sum(&[b""]), sum(&[b"\0"]));
    }

    #[test]
    fn sizes_stay_within_their_bound() {
        let mut mix = Mix(1);
        let sizes: Vec<u64> = (0..1000).map(|_| mix.size(1 << 20)).collect();
        assert!(sizes.iter().all(|&s| (1..=1 << 20).contains(&s)));
        assert!(sizes.iter().any(|&s| s < 4) && sizes.iter().any(|&s| s > 1 << 19));
    }
}
