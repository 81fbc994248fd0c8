//! What keeps a client with its endpoint (GEP-1619). A token names an endpoint of the rule's own backends, and counts
//! only as long as that is one: whoever makes one up chooses among endpoints that anyone may get.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use loam_core::http::backend::BackendService;
use loam_core::http::session::Held;
use loam_core::http::traffic::Session;

/// The session of a request: one that lasts, or one that may begin.
pub(super) struct Sticky {
    session: Session,
    /// The rule it is one of.
    scope: u64,
    /// What the client brought.
    pub(super) held: Option<Held>,
    now: u64,
}

impl Sticky {
    /// Reads what a client brings.
    pub(super) fn read(session: &Session, scope: u64, headers: &HeaderMap) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let brought = session.token(headers).and_then(|token| URL_SAFE_NO_PAD.decode(token).ok());
        let held = brought.and_then(|text| Held::decode(std::str::from_utf8(&text).ok()?));
        let held = held.filter(|held| session.lasts(held, scope, now));
        Self { session: session.clone(), scope, held, now }
    }

    /// The endpoint that serves the session, if it is one of `backend`.
    pub(super) fn endpoint(&self, backend: &BackendService) -> Option<&Arc<str>> {
        self.held.as_ref().filter(|held| held.backend == *backend).map(|held| &held.endpoint)
    }

    /// Tells the client in `headers` by which endpoint of `backend` it was served, where it does not know it yet.
    pub(super) fn tell(&self, backend: &BackendService, endpoint: &Arc<str>, headers: &mut HeaderMap) {
        let (held, told) = self.session.renewed(self.held.as_ref(), self.scope, backend, endpoint, self.now);
        if !told {
            return;
        }
        let token = URL_SAFE_NO_PAD.encode(held.encode());
        if let Some((name, value)) = self.session.header(&token, &held, self.now) {
            headers.append(name, value);
        }
    }
}
