//! Copies of requests: sent to other backends, whose answers nobody sees and for which nobody waits.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use loam_core::balance::By;
use loam_core::http::backend::BackendService;
use loam_core::http::target::Target;
use tokio::time::timeout;

use crate::body::{Kept, RequestBody};
use crate::engine::Session;
use crate::exchange::{self, Draft};

/// Copies under way; beyond it further ones are not made.
pub const MAX_COPIES: usize = 1000;

/// How long one may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(15);

/// Copies of one request, made once its body is complete.
pub struct Copies {
    /// Where they go.
    pub backends: Vec<BackendService>,
    /// Who asks.
    pub session: Arc<Session>,
    /// What for.
    pub target: Target,
    /// The head as it is sent on.
    pub draft: Draft,
    /// The body, if there is one.
    pub body: Option<Arc<Kept>>,
}

impl Copies {
    /// Sends them. A body that was too long to be kept, or that did not come to its end, is not copied.
    pub fn send(self) {
        let Self { backends, session, target, draft, body } = self;
        let body = match body.as_ref().map(|kept| kept.complete()) {
            None => None,
            Some(Some(complete)) => Some(complete),
            Some(None) => return session.engine.log.metrics().mirrored("too_long"),
        };
        for backend in backends {
            let copy = Duplicate { backend, target: target.clone(), draft: draft.clone(), body: body.clone() };
            copy.start(session.clone());
        }
    }
}

struct Duplicate {
    backend: BackendService,
    target: Target,
    draft: Draft,
    body: Option<(Vec<bytes::Bytes>, Option<HeaderMap>)>,
}

impl Duplicate {
    fn start(self, session: Arc<Session>) {
        let engine = session.engine.clone();
        if engine.mirrors.len() >= MAX_COPIES {
            return engine.log.metrics().mirrored("overload");
        }
        engine.mirrors.spawn(async move {
            let outcome = match timeout(COPY_TIMEOUT, self.send(&session)).await {
                Ok(Ok(())) => "sent",
                Ok(Err(())) => "failed",
                Err(_) => "timeout",
            };
            session.engine.log.metrics().mirrored(outcome);
        });
    }

    async fn send(self, session: &Session) -> Result<(), ()> {
        let to = exchange::backend(session, &self.backend).ok_or(())?;
        let entry = session.engine.ledger.enter(&to).ok_or(())?;
        let plan = session.engine.choose(&to, &entry, By::Service, &[], false).await.map_err(|_| ())?;
        let hop = self.draft.hop(&plan, to.app_protocol());
        let _busy = session.engine.endpoints.join(hop.place.endpoint);
        let body = match self.body {
            None => RequestBody::empty(),
            Some((pieces, trailers)) => RequestBody::whole(pieces, trailers),
        };
        let request: Request<RequestBody> = self.draft.request(&self.target, hop.version, body);
        let answered = session.engine.upstreams.send(&Arc::new(hop), request).await.map_err(|_| ())?;
        // The connection is not used again: nobody reads the answer to its end.
        drop(answered);
        Ok(())
    }
}
