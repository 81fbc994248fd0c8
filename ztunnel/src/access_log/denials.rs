//! The denials by policy that came last, for people who ask why.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use loam_core::reason::Reason;
use serde::Serialize;

use super::{Facts, PeerView};

/// Most denials that are remembered: a few screens, and a few hundred kilobytes.
pub const MAX_DENIALS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<VecDeque<DenialView>>);

impl Denials {
    pub(super) fn push(&self, denial: DenialView) {
        let mut denials = self.lock();
        if denials.len() == MAX_DENIALS {
            denials.pop_front();
        }
        denials.push_back(denial);
    }

    pub(super) fn list(&self, limit: usize) -> Vec<DenialView> {
        self.lock().iter().rev().take(limit).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<DenialView>> {
        // A panic elsewhere leaves the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One denial.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the other fields are those of the access log")]
pub struct DenialView {
    pub time: String,
    pub id: u64,
    pub src: PeerView,
    pub dst: PeerView,
    pub reason: &'static str,
    /// The policy that decided; left out where none allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Why, in words.
    pub detail: String,
    /// Whether the connection was carried until a change denied it.
    pub cut: bool,
}

impl DenialView {
    pub(super) fn new(
        facts: &Facts,
        id: u64,
        reason: Reason,
        policy: Option<&str>,
        detail: &dyn Display,
        cut: bool,
    ) -> Self {
        Self {
            time: Timestamp::now().to_string(),
            id,
            src: PeerView::of(facts.downstream, &facts.source),
            dst: PeerView::of(facts.addr, &facts.destination),
            reason: reason.as_str(),
            policy: policy.map(str::to_owned),
            detail: detail.to_string(),
            cut,
        }
    }
}
