//! The body of a response on its way to the client. Its end is the end of the request's record.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use loam_core::http::failure::Failure;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::access_log::Record;
use crate::body::BodyError;
use crate::endpoints::Busy;
use crate::ledger::Entry;
use crate::mirror::Copies;
use crate::upstream::Lease;

/// The trailer and header that tells how a request of gRPC ended.
pub const GRPC_STATUS: &str = "grpc-status";

/// The body of a response.
pub struct Reply {
    source: Source,
    /// Taken when it ends.
    ongoing: Option<Box<Ongoing>>,
}

enum Source {
    Empty,
    Whole(Bytes),
    Upstream(Incoming),
}

/// What lasts as long as a response does.
pub struct Ongoing {
    /// The request's record.
    pub record: Record,
    /// The connection on which the response comes.
    pub lease: Option<Lease>,
    /// Counts the request at its endpoint.
    pub busy: Option<Busy>,
    /// Counts the request at its service.
    pub entry: Option<Entry>,
    /// When the whole request has taken too long.
    pub deadline: Option<Pin<Box<Sleep>>>,
    /// Copies that are made when the body of the request is complete.
    pub copies: Option<Copies>,
    /// Room for the request.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Ongoing {
    /// A request that nobody but this process answers.
    pub fn new(record: Record) -> Self {
        Self { record, lease: None, busy: None, entry: None, deadline: None, copies: None, permit: None }
    }

    fn end(self, failure: Option<Failure>) {
        let Self { mut record, lease, busy, entry, deadline: _, copies, permit } = self;
        match (failure, lease) {
            (None, Some(lease)) => lease.finish(),
            (Some(failure), lease) => {
                record.facts().failure.get_or_insert(failure);
                drop(lease);
            }
            (None, None) => {}
        }
        drop((busy, entry));
        record.finish();
        if let Some(copies) = copies {
            copies.send();
        }
        drop(permit);
    }
}

impl Reply {
    /// A body of our own.
    pub fn whole(body: Bytes, ongoing: Ongoing) -> Self {
        let source = if body.is_empty() { Source::Empty } else { Source::Whole(body) };
        Self { source, ongoing: Some(Box::new(ongoing)) }
    }

    /// The body that an upstream sends.
    pub fn upstream(body: Incoming, ongoing: Ongoing) -> Self {
        Self { source: Source::Upstream(body), ongoing: Some(Box::new(ongoing)) }
    }

    /// No body, and nothing that lasts.
    pub fn none() -> Self {
        Self { source: Source::Empty, ongoing: None }
    }

    fn end(&mut self, failure: Option<Failure>) {
        if let Some(ongoing) = self.ongoing.take() {
            ongoing.end(failure);
        }
    }

    fn sent(&mut self, bytes: usize) {
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.record.facts().sent += bytes as u64;
        }
    }
}

/// The status of gRPC in headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let incoming = match &mut this.source {
            Source::Empty => {
                this.end(None);
                return Poll::Ready(None);
            }
            Source::Whole(body) => {
                let body = std::mem::take(body);
                this.source = Source::Empty;
                this.sent(body.len());
                return Poll::Ready(Some(Ok(Frame::data(body))));
            }
            Source::Upstream(incoming) => incoming,
        };
        if let Some(deadline) = this.ongoing.as_mut().and_then(|ongoing| ongoing.deadline.as_mut())
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.end(Some(Failure::Timeout));
            this.source = Source::Empty;
            return Poll::Ready(Some(Err("the request took too long".into())));
        }
        match ready!(Pin::new(incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let n = data.len();
                    this.sent(n);
                } else if let (Some(trailers), Some(ongoing)) = (frame.trailers_ref(), &mut this.ongoing) {
                    let status = grpc_status(trailers);
                    ongoing.record.facts().grpc = status.or(ongoing.record.facts().grpc);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.end(Some(Failure::UpstreamReset));
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.end(None);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Whole(_) => false,
            Source::Upstream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Source::Upstream(incoming) => incoming.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // A body of known length may be dropped when all of it was taken, and one of ours is not taken where a
        // response has none, as to HEAD.
        let failure = match &self.source {
            Source::Upstream(incoming) if !incoming.is_end_stream() => Some(Failure::ClientGone),
            Source::Upstream(_) | Source::Whole(_) | Source::Empty => None,
        };
        self.end(failure);
    }
}
