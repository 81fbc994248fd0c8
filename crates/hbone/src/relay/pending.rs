//! What arrived in a stream and waits for its application.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// A piece below this size is copied when it has to wait: it would keep alive the whole buffer it arrived in, and a
/// peer that sends single bytes would make us hold thousands of times what the window allows.
const COPY_BELOW: usize = 2 << 10;

/// Copies of small pieces are gathered in buffers of this size.
const GATHER_BYTES: usize = 8 << 10;

/// Pieces given to the kernel at once.
pub(super) const MAX_SLICES: usize = 64;

/// A queue of bytes, bounded by the stream's window.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: VecDeque<Bytes>,
    /// Small pieces behind all others.
    tail: BytesMut,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Takes a piece that will be written at once.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.seal();
        self.pieces.push_back(piece);
    }

    /// Takes a piece that has to wait.
    pub(super) fn push_waiting(&mut self, piece: Bytes) {
        if piece.len() >= COPY_BELOW {
            return self.push(piece);
        }
        if self.tail.capacity() - self.tail.len() < piece.len() {
            self.seal();
            self.tail = BytesMut::with_capacity(GATHER_BYTES);
        }
        self.tail.extend_from_slice(&piece);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The first bytes, for one vectored write.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let all = self.pieces.iter().map(|p| &p[..]).chain((!self.tail.is_empty()).then_some(&self.tail[..]));
        let mut n = 0;
        for (slot, piece) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(piece);
            n += 1;
        }
        n
    }

    /// Forgets the first `n` bytes, which were written.
    pub(super) fn advance(&mut self, mut n: usize) {
        while let Some(first) = self.pieces.front_mut() {
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.pieces.pop_front();
        }
        self.tail.advance(n);
        if self.is_empty() {
            // Nothing is held while nothing waits.
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(pending: &Pending) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let n = pending.slices(&mut slices);
        slices[..n].iter().flat_map(|s| s.to_vec()).collect()
    }

    #[test]
    fn bytes_keep_their_order_whatever_the_sizes_of_pieces() {
        let big = vec![b'B'; COPY_BELOW];
        let mut pending = Pending::default();
        let mut expected = Vec::new();
        for piece in [b"a".as_slice(), &big, b"b", b"c", &big, b"d"] {
            pending.push_waiting(Bytes::copy_from_slice(piece));
            expected.extend_from_slice(piece);
        }
        assert_eq!(contents(&pending), expected);
        let mut left = expected.len();
        for step in [1, 1000, COPY_BELOW, 1, 1] {
            pending.advance(step);
            left -= step;
            assert_eq!(contents(&pending), expected[expected.len() - left..]);
        }
        pending.advance(left);
        assert!(pending.is_empty());
    }

    #[test]
    fn single_bytes_that_wait_are_gathered() {
        let mut pending = Pending::default();
        for _ in 0..100_000 {
            pending.push_waiting(Bytes::from_static(b"x"));
        }
        assert!(pending.pieces.len() <= 100_000 / GATHER_BYTES + 1);
    }
}
