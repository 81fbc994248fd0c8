//! How much to read at once.

/// The sizes a read may have. Below 64 KiB a system call costs more than the bytes it moves; beyond 256 KiB nothing is
/// gained and the processor's cache is left.
const SIZES: [usize; 4] = [2 << 10, 16 << 10, 64 << 10, 256 << 10];

/// Grows with reads that fill the buffer and shrinks with those that leave it nearly empty, so that a burst is fast
/// after three reads and a quiet connection costs 2 KiB, and that only while bytes are there.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ChunkSize(usize);

impl ChunkSize {
    /// Bytes of the next read.
    pub(super) fn bytes(self) -> usize {
        SIZES[self.0]
    }

    /// Learns from a read of `n` bytes into a buffer of `capacity`.
    pub(super) fn learn(&mut self, n: usize, capacity: usize) {
        if n == self.bytes() {
            self.0 = (self.0 + 1).min(SIZES.len() - 1);
        } else if n < capacity && n < self.bytes() / 8 {
            self.0 = self.0.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_reads_grow_the_chunk_and_small_ones_shrink_it() {
        let mut size = ChunkSize::default();
        let mut seen = vec![size.bytes()];
        for _ in 0..4 {
            size.learn(size.bytes(), size.bytes());
            seen.push(size.bytes());
        }
        assert_eq!(seen, [2 << 10, 16 << 10, 64 << 10, 256 << 10, 256 << 10]);
        size.learn(100 << 10, size.bytes());
        assert_eq!(size.bytes(), 256 << 10, "a half full read says nothing");
        for _ in 0..4 {
            size.learn(100, size.bytes());
        }
        assert_eq!(size.bytes(), 2 << 10);
    }

    #[test]
    fn a_read_cut_short_by_flow_control_does_not_shrink_the_chunk() {
        let mut size = ChunkSize(3);
        size.learn(100, 100);
        assert_eq!(size.bytes(), 256 << 10);
    }
}
