//! A writer that never blocks: lines wait in a bounded buffer for a thread that writes them.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most bytes of lines that wait: seconds of a busy access log. A stalled output costs at most twice this memory.
pub const MAX_WAITING_BYTES: usize = 2 << 20;

/// How long the thread lets lines gather after the first, so that a busy log costs few writes and wake-ups.
const LINGER: Duration = Duration::from_millis(5);

/// Bytes at which the thread does not linger.
const LINGER_BYTES: usize = 256 << 10;

/// Takes whole lines; clones feed the same output. The output is flushed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Sink {
    shared: Arc<Shared>,
    /// Ends the thread with the last clone.
    _last: Arc<Last>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    to_write: Condvar,
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines dropped since one was last written.
    dropped: u64,
    /// The thread holds bytes that are not written yet.
    writing: bool,
    /// The thread waits for a first line.
    asleep: bool,
    /// Nobody wants the thread to linger.
    hurry: bool,
    closed: bool,
}

#[derive(Debug)]
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.hurry = true;
        self.0.to_write.notify_one();
        drop(state);
        self.0.flush(Duration::from_secs(1));
    }
}

impl Sink {
    /// Starts the thread that writes to `output`.
    pub fn new(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("log".into()).spawn(move || writer.run(output))?;
        Ok(Self { _last: Arc::new(Last(Arc::clone(&shared))), shared })
    }

    /// Takes `line`, which ends with a newline, or drops and counts it when the output stalls.
    pub fn write(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        if state.waiting.len() + line.len() > MAX_WAITING_BYTES {
            state.dropped += 1;
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        if state.asleep || (state.waiting.len() >= LINGER_BYTES && !state.hurry) {
            state.asleep = false;
            state.hurry = state.waiting.len() >= LINGER_BYTES;
            self.shared.to_write.notify_one();
        }
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything taken is written; false when `limit` passes first.
    pub fn flush(&self, limit: Duration) -> bool {
        self.shared.flush(limit)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave the buffer half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        state.hurry = true;
        self.to_write.notify_one();
        while !state.waiting.is_empty() || state.writing {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self, mut output: impl Write) {
        let mut taken = Vec::new();
        while self.take(&mut taken) {
            // A closed output cannot be reported anywhere; the process goes on without it.
            let _ = output.write_all(&taken).and_then(|()| output.flush());
            taken.clear();
            // One burst must not keep its memory.
            taken.shrink_to(LINGER_BYTES);
        }
    }

    /// Moves what waits into `taken`; false when there is nothing and never will be.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        state.writing = false;
        self.written.notify_all();
        while state.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state.asleep = true;
            state = self.to_write.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        if !state.hurry && state.waiting.len() < LINGER_BYTES {
            state = self.to_write.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.hurry = false;
        state.writing = true;
        std::mem::swap(&mut state.waiting, taken);
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        if dropped > 0 {
            taken.extend_from_slice(format!("{dropped} log lines were dropped here: the output stalled\n").as_bytes());
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An output that keeps what is written, and can stall.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Output(Arc<(Mutex<Kept>, Condvar)>);

    #[derive(Debug, Default)]
    struct Kept {
        bytes: Vec<u8>,
        stalled: bool,
        reached: bool,
    }

    impl Output {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).unwrap()
        }

        fn stall(&self, stalled: bool) {
            self.0.0.lock().unwrap().stalled = stalled;
            self.0.1.notify_all();
        }

        fn until_reached(&self) {
            let kept = self.0.0.lock().unwrap();
            drop(self.0.1.wait_while(kept, |kept| !kept.reached).unwrap());
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.0.lock().unwrap();
            kept.reached = true;
            self.0.1.notify_all();
            let mut kept = self.0.1.wait_while(kept, |kept| kept.stalled).unwrap();
            kept.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn lines_arrive_in_order() {
        let output = Output::default();
        let sink = Sink::new(output.clone()).unwrap();
        for i in 0..1000 {
            sink.write(format!("{i}\n").as_bytes());
        }
        assert!(sink.flush(LONG));
        let expected: String = (0..1000).map(|i| format!("{i}\n")).collect();
        assert_eq!(output.text(), expected);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_stalled_output_drops_and_counts_but_never_blocks() {
        let output = Output::default();
        let sink = Sink::new(output.clone()).unwrap();
        output.stall(true);
        sink.write(b"first\n");
        output.until_reached();
        let line = [b'x'; 1024];
        let fitting = (MAX_WAITING_BYTES / line.len()) as u64;
        for _ in 0..fitting + 100 {
            sink.write(&line);
        }
        assert_eq!(sink.dropped(), 100);
        assert!(!sink.flush(Duration::from_millis(1)));
        output.stall(false);
        assert!(sink.flush(LONG));
        sink.write(b"after\n");
        assert!(sink.flush(LONG));
        let text = output.text();
        assert!(text.ends_with("100 log lines were dropped here: the output stalled\nafter\n"), "{}", text.len());
    }

    #[test]
    fn what_was_taken_is_written_when_the_sink_is_dropped() {
        let output = Output::default();
        let sink = Sink::new(output.clone()).unwrap();
        sink.write(b"last words\n");
        drop(sink);
        assert_eq!(output.text(), "last words\n");
    }

    #[test]
    fn a_closed_output_is_survived() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::new(Closed).unwrap();
        for _ in 0..3 {
            sink.write(b"x\n");
            assert!(sink.flush(LONG));
        }
    }
}
