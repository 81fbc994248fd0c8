//! When to look at a directory after something moved in it, and which files to leave alone a little longer.
//!
//! Pure: it is told what happened and when, and answers when to look.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Look when nothing has moved for so long: an editor's write, rename and change of mode come within a few
/// milliseconds of each other.
const QUIET: Duration = Duration::from_millis(40);

/// Look at the latest so long after the first movement, however busy the directory is.
const LATEST: Duration = Duration::from_millis(120);

/// Leave a file alone for so long while somebody writes it. A writer that keeps it open longer is read as it stands.
const MAX_WRITING: Duration = Duration::from_secs(1);

/// Files that can be under way at once; beyond it a half-written file may be read, and read again when it is whole.
const MAX_WRITERS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Settle {
    /// The first and the last movement since the last look.
    moved: Option<(Instant, Instant)>,
    /// Files with a write that was not followed by a close.
    writing: HashMap<String, Instant>,
}

impl Settle {
    /// Something moved.
    pub(crate) fn moved(&mut self, now: Instant) {
        let first = self.moved.map_or(now, |(first, _)| first);
        self.moved = Some((first, now));
    }

    /// Somebody writes to a file and has it open.
    pub(crate) fn writing(&mut self, file: &str, now: Instant) {
        self.moved(now);
        if self.writing.len() < MAX_WRITERS && !self.writing.contains_key(file) {
            self.writing.insert(file.to_owned(), now);
        }
    }

    /// A file is whole: it was closed, or came whole by a rename.
    pub(crate) fn whole(&mut self, file: &str, now: Instant) {
        self.moved(now);
        self.writing.remove(file);
    }

    /// When to look.
    pub(crate) fn due(&self) -> Option<Instant> {
        let moved = self.moved.map(|(first, last)| (last + QUIET).min(first + LATEST));
        let written = self.writing.values().min().map(|since| *since + MAX_WRITING);
        moved.into_iter().chain(written).min()
    }

    /// A look begins: what moves after this is for the next one.
    pub(crate) fn look(&mut self, now: Instant) {
        self.moved = None;
        self.writing.retain(|_, since| now < *since + MAX_WRITING);
    }

    /// Whether to leave a file alone at this look.
    pub(crate) fn is_busy(&self, file: &str) -> bool {
        self.writing.contains_key(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_is_looked_at_once_when_it_is_over() {
        let t = Instant::now();
        let mut settle = Settle::default();
        assert_eq!(settle.due(), None);
        settle.moved(t);
        settle.moved(t + ms(10));
        assert_eq!(settle.due(), Some(t + ms(50)));
        settle.look(t + ms(50));
        assert_eq!(settle.due(), None);
    }

    #[test]
    fn a_directory_that_never_rests_is_looked_at_all_the_same() {
        let t = Instant::now();
        let mut settle = Settle::default();
        (0..50).for_each(|i| settle.moved(t + ms(10 * i)));
        assert_eq!(settle.due(), Some(t + ms(120)));
    }

    #[test]
    fn a_file_under_way_is_left_alone_until_it_is_closed() {
        let t = Instant::now();
        let mut settle = Settle::default();
        settle.writing("a.yaml", t);
        settle.look(t + ms(40));
        assert!(settle.is_busy("a.yaml") && !settle.is_busy("b.yaml"));
        settle.whole("a.yaml", t + ms(300));
        assert_eq!(settle.due(), Some(t + ms(340)));
        settle.look(t + ms(340));
        assert!(!settle.is_busy("a.yaml"));
    }

    #[test]
    fn a_file_that_is_never_closed_is_read_after_a_second() {
        let t = Instant::now();
        let mut settle = Settle::default();
        settle.writing("a.yaml", t);
        settle.look(t + ms(40));
        assert_eq!(settle.due(), Some(t + ms(1000)));
        settle.look(t + ms(1000));
        assert!(!settle.is_busy("a.yaml"));
        assert_eq!(settle.due(), None);
    }
}
