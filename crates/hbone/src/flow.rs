//! Windows, frames and buffers of a tunnel: how much of a connection may wait in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// What one stream may send ahead of its reader. It fills a path of 1 ms at 8 Gb/s; with more, the queue only moves
/// into the receiver's socket, where a small request beside a bulk stream waits behind it.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;

/// The window of every stream while too much lies unread: slow readers keep going, but hold sixteen times less.
pub(crate) const TIGHT_STREAM_WINDOW: u32 = 64 << 10;

/// Unread bytes of a tunnel at which its streams get the tight window, and half of which gives the wide one back.
pub(crate) const MAX_UNREAD_BYTES: usize = 16 << 20;

/// What a tunnel may hold unread at most: the bound on memory that a peer cannot talk us out of. Stalled readers never
/// fill it: the tight window applies from [`MAX_UNREAD_BYTES`] on, and 200 tight streams hold 12.5 MiB more; the
/// remaining half is for what is under way when the peer learns of it. So readers that stop never freeze the others.
pub(crate) const CONNECTION_WINDOW: u32 = 64 << 20;

/// Longest frame we accept. A frame is delivered when it is whole, so long ones add delay; writes are batched across
/// frames anyway.
pub(crate) const MAX_FRAME_BYTES: u32 = 64 << 10;

/// What a stream may have queued for a tunnel that does not take it, beside what the kernel holds.
pub(crate) const MAX_SEND_BUFFER_BYTES: usize = 512 << 10;

/// Decoded size of a request's header list, as Istio allows.
pub(crate) const MAX_REQUEST_HEADER_BYTES: u32 = 64 << 10;

/// Decoded size of a response's header list: baggage and little else.
pub(crate) const MAX_RESPONSE_HEADER_BYTES: u32 = 16 << 10;

/// Overhead of DATA frames below 256 bytes that may lie unread. We take frames out as they arrive, so even a peer that
/// sends single bytes stays far below; one that floods is told to calm down.
pub(crate) const DATA_FRAME_BUDGET: usize = 1 << 20;

/// Streams that a peer opened and reset before we looked at them (CVE-2023-44487, RUSTSEC-2023-0034).
pub(crate) const MAX_PENDING_RESETS: usize = 32;

/// Resets that a peer provoked by protocol errors over the life of a tunnel (CVE-2025-8671).
pub(crate) const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// Bytes that arrived in a tunnel and were not yet taken by their applications.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    bytes: AtomicUsize,
    /// The task that owns the tunnel.
    owner: AtomicWaker,
}

impl Unread {
    fn add(&self, bytes: usize) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before < MAX_UNREAD_BYTES && before + bytes >= MAX_UNREAD_BYTES {
            self.owner.wake();
        }
    }

    fn sub(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > MAX_UNREAD_BYTES / 2 && before - bytes <= MAX_UNREAD_BYTES / 2 {
            self.owner.wake();
        }
    }
}

/// The part of [`Unread`] that one stream answers for; given back when the stream is gone.
#[derive(Debug)]
pub(crate) struct UnreadShare {
    tunnel: Arc<Unread>,
    bytes: usize,
}

impl UnreadShare {
    pub(crate) fn new(tunnel: Arc<Unread>) -> Self {
        Self { tunnel, bytes: 0 }
    }

    pub(crate) fn arrived(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.tunnel.add(bytes);
    }

    pub(crate) fn taken(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.tunnel.sub(bytes);
    }
}

impl Drop for UnreadShare {
    fn drop(&mut self) {
        self.tunnel.sub(self.bytes);
    }
}

/// Decides which stream window a tunnel announces.
#[derive(Debug)]
pub(crate) struct Windows {
    unread: Arc<Unread>,
    announced: u32,
}

impl Windows {
    pub(crate) fn new(unread: Arc<Unread>) -> Self {
        Self { unread, announced: STREAM_WINDOW }
    }

    /// The window to announce instead of the announced one, if any; the owner is woken when the answer may change.
    pub(crate) fn wanted(&self, cx: &mut Context<'_>) -> Option<u32> {
        // Registered before reading: a change after the reading wakes.
        self.unread.owner.register(cx.waker());
        let unread = self.unread.bytes.load(Ordering::Relaxed);
        let wanted = match self.announced {
            STREAM_WINDOW if unread >= MAX_UNREAD_BYTES => TIGHT_STREAM_WINDOW,
            TIGHT_STREAM_WINDOW if unread <= MAX_UNREAD_BYTES / 2 => STREAM_WINDOW,
            other => other,
        };
        (wanted != self.announced).then_some(wanted)
    }

    /// Notes that `window` was announced.
    pub(crate) fn announced(&mut self, window: u32) {
        self.announced = window;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn much_unread_tightens_the_windows_and_reading_widens_them() {
        let unread = Arc::new(Unread::default());
        let mut windows = Windows::new(unread.clone());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut share = UnreadShare::new(unread.clone());

        share.arrived(MAX_UNREAD_BYTES - 1);
        assert_eq!(windows.wanted(cx), None);
        share.arrived(1);
        assert_eq!(windows.wanted(cx), Some(TIGHT_STREAM_WINDOW));
        windows.announced(TIGHT_STREAM_WINDOW);
        share.taken(MAX_UNREAD_BYTES / 2 - 1);
        assert_eq!(windows.wanted(cx), None);
        share.taken(1);
        assert_eq!(windows.wanted(cx), Some(STREAM_WINDOW));
    }

    #[test]
    fn a_stream_that_ends_gives_back_what_it_never_delivered() {
        let unread = Arc::new(Unread::default());
        let mut share = UnreadShare::new(unread.clone());
        share.arrived(1000);
        share.taken(400);
        drop(share);
        assert_eq!(unread.bytes.load(Ordering::Relaxed), 0);
    }
}
