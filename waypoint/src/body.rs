//! Bodies on their way through: counted, kept as far as they may have to be sent again, and never collected.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use loam_core::http::headers::{strip_hop_by_hop, strip_owned};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes kept of a body that may have to be sent again, with what keeping them costs. A longer one is sent once.
pub const MAX_REPLAY_BYTES: usize = 64 << 10;

/// Most bytes kept of all bodies together. One for which there is no room is sent once.
pub const MAX_KEPT_BYTES: usize = 64 << 20;

/// What keeping a piece costs beside its bytes: many tiny ones must not cost more than they count.
const PIECE_BYTES: usize = 64;

/// The error of a body: hyper's, or ours.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request on its way to an upstream.
pub struct RequestBody {
    source: Source,
    counter: Arc<AtomicU64>,
}

enum Source {
    Empty,
    /// As it comes.
    Once(Incoming),
    /// Kept while it is sent.
    Again {
        kept: Arc<Kept>,
        /// Which try this is.
        turn: u64,
        at: usize,
    },
    /// Known to its end.
    Whole {
        pieces: std::vec::IntoIter<Bytes>,
        trailers: Option<HeaderMap>,
        size: u64,
    },
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Empty, counter: Arc::default() }
    }

    /// A body that has come to its end, with what follows it.
    pub fn whole(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Self {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { source: Source::Whole { pieces: pieces.into_iter(), trailers, size }, counter: Arc::default() }
    }

    /// `incoming`, to be sent once; its bytes are added to `counter`.
    pub fn once(incoming: Incoming, counter: Arc<AtomicU64>) -> Self {
        match incoming.is_end_stream() {
            true => Self { source: Source::Empty, counter },
            false => Self { source: Source::Once(incoming), counter },
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestBody")
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => None,
            Source::Once(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    this.counter.fetch_add(length(frame), Ordering::Relaxed);
                }
                frame.map(|frame| frame.map(passed_on).map_err(Into::into))
            }
            Source::Again { kept, turn, at } => ready!(kept.poll_frame(cx, *turn, at, &this.counter)),
            Source::Whole { pieces, trailers, .. } => {
                let data = pieces.next().map(Frame::data);
                data.or_else(|| trailers.take().map(Frame::trailers)).map(Ok)
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Once(incoming) => incoming.is_end_stream(),
            Source::Again { .. } => false,
            Source::Whole { pieces, trailers, .. } => pieces.len() == 0 && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Once(incoming) => incoming.size_hint(),
            Source::Again { kept, .. } => kept.size,
            Source::Whole { trailers: Some(_), .. } => SizeHint::default(),
            Source::Whole { size, .. } => SizeHint::with_exact(*size),
        }
    }
}

/// A frame as it is passed on: what is taken off headers must not come back as a trailer.
fn passed_on(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            strip_hop_by_hop(&mut trailers);
            strip_owned(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// A body that is kept while it is sent, as long as it is short enough.
pub struct Kept {
    state: Mutex<State>,
    size: SizeHint,
}

struct State {
    incoming: Incoming,
    /// The try that may read. An earlier one may still be polled by a connection that has not noticed its end.
    turn: u64,
    pieces: Vec<Bytes>,
    /// What they cost.
    bytes: usize,
    /// Room for all bodies, and what this one has of it.
    room: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Some of it was sent and is not kept.
    lost: bool,
}

impl State {
    /// Keeps a piece, or gives up keeping this body.
    fn keep(&mut self, data: &[u8]) {
        let cost = data.len() + PIECE_BYTES;
        self.bytes = self.bytes.saturating_add(cost);
        if self.lost || self.bytes > MAX_REPLAY_BYTES || !self.take_room(cost) {
            self.lost = true;
            self.pieces = Vec::new();
            self.taken = None;
            return;
        }
        // A copy: what was read lies in a buffer that may be far longer.
        self.pieces.push(Bytes::copy_from_slice(data));
    }

    fn take_room(&mut self, bytes: usize) -> bool {
        let room = u32::try_from(bytes).ok().and_then(|bytes| self.room.clone().try_acquire_many_owned(bytes).ok());
        let Some(room) = room else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(room),
            None => self.taken = Some(room),
        }
        true
    }
}

impl Kept {
    /// `None` when there is no body, which can be sent as often as one likes. What is kept takes of `room`.
    pub fn new(incoming: Incoming, room: &Arc<Semaphore>) -> Option<Arc<Self>> {
        if incoming.is_end_stream() {
            return None;
        }
        let size = incoming.size_hint();
        let state = State {
            incoming,
            turn: 0,
            pieces: Vec::new(),
            bytes: 0,
            room: room.clone(),
            taken: None,
            trailers: None,
            ended: false,
            lost: false,
        };
        Some(Arc::new(Self { state: Mutex::new(state), size }))
    }

    /// The body from its beginning, for one try; its bytes are added to `counter` when they are sent for the first
    /// time. The bodies of earlier tries fail from here on.
    pub fn body(self: &Arc<Self>, counter: Arc<AtomicU64>) -> RequestBody {
        let turn = {
            let mut state = self.lock();
            state.turn += 1;
            state.turn
        };
        RequestBody { source: Source::Again { kept: self.clone(), turn, at: 0 }, counter }
    }

    /// Whether it can be sent from its beginning.
    pub fn is_whole(&self) -> bool {
        !self.lock().lost
    }

    /// All of it, with what follows it, once it has come to its end and if it was kept.
    pub fn complete(&self) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
        let state = self.lock();
        (state.ended && !state.lost).then(|| (state.pieces.clone(), state.trailers.clone()))
    }

    fn poll_frame(
        &self,
        cx: &mut Context<'_>,
        turn: u64,
        at: &mut usize,
        counter: &AtomicU64,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.turn != turn {
            return Poll::Ready(Some(Err("another try sends this body".into())));
        }
        if let Some(piece) = state.pieces.get(*at).filter(|_| !state.lost) {
            *at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if state.ended {
            // The trailers are the piece after the last.
            let is_next = *at == state.pieces.len();
            *at = state.pieces.len() + 1;
            return Poll::Ready(state.trailers.clone().filter(|_| is_next).map(|t| Ok(Frame::trailers(t))));
        }
        let Some(frame) = ready!(Pin::new(&mut state.incoming).poll_frame(cx)) else {
            state.ended = true;
            *at = state.pieces.len() + 1;
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => passed_on(frame),
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        counter.fetch_add(length(&frame), Ordering::Relaxed);
        match frame.into_data() {
            Ok(data) => {
                // A body whose length is known is not asked for what is behind it.
                state.ended = state.incoming.is_end_stream();
                state.keep(&data);
                *at = state.pieces.len();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                state.trailers = Some(trailers.clone());
                state.ended = true;
                *at = state.pieces.len() + 1;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the pieces whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What `read` finds in the body of a request with `text` as its body, where there is `room` to keep it.
    async fn check<F: Future<Output = ()>>(text: &str, room: usize, read: impl Fn(Arc<Kept>) -> F) {
        let room = Arc::new(Semaphore::new(room));
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let length = text.len();
        let ask = format!("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}");
        client.write_all(ask.as_bytes()).await.unwrap();
        let service = service_fn(|request: Request<Incoming>| {
            let reading = read(Kept::new(request.into_body(), &room).unwrap());
            async move {
                reading.await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await.unwrap();
    }

    async fn all(body: RequestBody) -> Result<Bytes, BodyError> {
        body.collect().await.map(|collected| collected.to_bytes())
    }

    #[tokio::test]
    async fn a_body_is_sent_as_often_as_it_is_short_enough_to_be_kept() {
        check("short", MAX_KEPT_BYTES, |kept| async move {
            let counter = Arc::<AtomicU64>::default();
            for _ in 0..2 {
                assert_eq!(all(kept.body(counter.clone())).await.unwrap(), "short");
            }
            assert_eq!(counter.load(Ordering::Relaxed), 5, "it is counted once");
        })
        .await;
        check(&"x".repeat(MAX_REPLAY_BYTES + 1), MAX_KEPT_BYTES, |kept| async move {
            assert_eq!(all(kept.body(Arc::default())).await.unwrap().len(), MAX_REPLAY_BYTES + 1);
            assert!(!kept.is_whole() && kept.complete().is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn bodies_are_kept_only_while_there_is_room_for_all_of_them() {
        check("body", PIECE_BYTES + 3, |kept| async move {
            assert_eq!(all(kept.body(Arc::default())).await.unwrap(), "body");
            assert!(!kept.is_whole());
        })
        .await;
        check("body", PIECE_BYTES + 4, |kept| async move {
            assert_eq!(all(kept.body(Arc::default())).await.unwrap(), "body");
            assert!(kept.is_whole());
            let room = kept.lock().room.clone();
            assert_eq!(room.available_permits(), 0);
            drop(kept);
            assert_eq!(room.available_permits(), PIECE_BYTES + 4, "what was taken is given back");
        })
        .await;
    }

    #[tokio::test]
    async fn a_try_that_was_given_up_takes_nothing_from_the_next() {
        check("body", MAX_KEPT_BYTES, |kept| async move {
            let (first, second) = (kept.body(Arc::default()), kept.body(Arc::default()));
            assert!(all(first).await.is_err());
            assert_eq!(all(second).await.unwrap(), "body");
        })
        .await;
    }
}
