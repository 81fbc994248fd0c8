//! Whether a connection may reach the pod: asked when it arrives, and again whenever policies that apply change.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use loam_core::authz::{self, Facts, Verdict};
use loam_core::ids::Identity;
use loam_core::reason::Reason;
use loam_core::workload::Workload;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};

use crate::access_log::{Late, Record};
use crate::enrolled::Enrolled;

/// Longest wait of a connection for a policy that applies to it and has not arrived. The control plane sends both
/// pieces of news within moments of each other, so a longer absence means that something is wrong.
const POLICY_WAIT: Duration = Duration::from_secs(5);

/// A connection that reached the pod: what policy looks at.
pub(super) struct Arrival {
    pub(super) source: Option<Identity>,
    pub(super) source_ip: IpAddr,
    pub(super) upstream: SocketAddr,
    /// Wakes when policies that apply changed, since before the first verdict: no change is missed.
    judgements: watch::Receiver<u64>,
}

/// Why a connection is not carried, and its text.
pub(super) type Refused = (Reason, String);

impl Arrival {
    pub(super) fn new(pod: &Enrolled, source: Option<Identity>, source_ip: IpAddr, upstream: SocketAddr) -> Self {
        Self { source, source_ip, upstream, judgements: pod.judgements() }
    }

    /// Asks the policies, and notes in the record what they said. One that applies and has not arrived is waited for.
    pub(super) async fn permit(
        &mut self,
        pod: &Enrolled,
        known: &Arc<Workload>,
        record: &mut Record,
    ) -> Result<(), Refused> {
        let current = || pod.known_workload().unwrap_or_else(|| known.clone());
        let snapshot = || Arc::clone(&pod.proxy().mesh.load());
        let (mut asked, mut local) = (snapshot(), current());
        let mut verdict = authz::judge(&asked, &local, &self.facts());
        if verdict.is_pending() {
            let mut judgements = self.judgements.clone();
            let settled = settled(&mut judgements, || authz::judge(&snapshot(), &current(), &self.facts()));
            tokio::select! {
                biased;
                _ = timeout(POLICY_WAIT, settled) => {}
                reason = pod.end_of_all() => return Err((reason, "this process ends".to_owned())),
            }
            (asked, local) = (snapshot(), current());
            verdict = authz::judge(&asked, &local, &self.facts());
        }
        let facts = record.facts();
        facts.addr = self.upstream;
        facts.dry_run = authz::dry_run(&asked, &local, &self.facts()).map(Box::new);
        facts.verdict = Some(verdict.clone());
        match verdict {
            Verdict::Allow => Ok(()),
            Verdict::Deny { reason, .. } => Err((reason, authz::explain(&asked, &local, &self.facts()).to_string())),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.upstream.ip(),
            destination_port: self.upstream.port(),
        }
    }

    /// When the connection, which is carried now, must end although neither side wants it to: its pod or this process
    /// ends, or the policies changed their mind.
    pub(super) fn end(self, pod: Arc<Enrolled>, late: Late) -> impl Future<Output = Reason> + Send + use<> {
        let mut judgements = self.judgements;
        async move {
            let judge = || {
                let local = pod.known_workload()?;
                Some(authz::judge(&pod.proxy().mesh.load(), &local, &late.facts().for_policy()))
            };
            let verdict = tokio::select! {
                reason = pod.end_of_all() => return reason,
                verdict = denied(&mut judgements, judge) => verdict,
            };
            let (Some(verdict), Some(local)) = (verdict, pod.known_workload()) else { return Reason::WorkloadGone };
            let explanation = authz::explain(&pod.proxy().mesh.load(), &local, &late.facts().for_policy());
            late.deny(verdict, explanation.to_string())
        }
    }
}

/// The first verdict that is not pending; for ever if nothing changes.
async fn settled(judgements: &mut watch::Receiver<u64>, judge: impl Fn() -> Verdict) -> Verdict {
    loop {
        judgements.mark_unchanged();
        let verdict = judge();
        if !verdict.is_pending() || judgements.changed().await.is_err() {
            return verdict;
        }
    }
}

/// The denial of a connection that lives, when one of the changes to come brings it; `None` when no more come. A policy
/// that has not arrived ends a connection as late as it refuses one: it may turn out to allow it.
async fn denied(judgements: &mut watch::Receiver<u64>, judge: impl Fn() -> Option<Verdict>) -> Option<Verdict> {
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    loop {
        let overdue = tokio::select! {
            changed = judgements.changed() => {
                changed.ok()?;
                false
            }
            () = async { patience.as_mut().expect("there is a sleep").await }, if patience.is_some() => true,
        };
        match judge() {
            // The pod left the configuration: whether its connections end is not a question of policy.
            None => {}
            Some(Verdict::Allow) => patience = None,
            Some(verdict) if verdict.is_pending() && !overdue => {
                patience.get_or_insert_with(|| Box::pin(sleep(POLICY_WAIT)));
            }
            Some(verdict) => return Some(verdict),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    /// Policies whose verdict a test sets.
    struct Policies {
        verdict: Mutex<Option<Verdict>>,
        changes: watch::Sender<u64>,
    }

    fn policies(verdict: Option<Verdict>) -> Arc<Policies> {
        Arc::new(Policies { verdict: Mutex::new(verdict), changes: watch::Sender::new(0) })
    }

    impl Policies {
        fn now(&self) -> Option<Verdict> {
            self.verdict.lock().unwrap().clone()
        }

        fn become_(&self, verdict: Option<Verdict>) {
            *self.verdict.lock().unwrap() = verdict;
            self.changes.send_modify(|n| *n += 1);
        }

        fn spawn_denied(self: &Arc<Self>) -> tokio::task::JoinHandle<Option<Verdict>> {
            let (policies, mut judgements) = (self.clone(), self.changes.subscribe());
            tokio::spawn(async move { denied(&mut judgements, || policies.now()).await })
        }
    }

    fn deny() -> Verdict {
        Verdict::Deny { reason: Reason::Denied, policy: Some("shop/p".into()) }
    }

    fn pending() -> Verdict {
        Verdict::Deny { reason: Reason::PolicyPending, policy: Some("shop/late".into()) }
    }

    /// Lets other tasks do all they can without time passing.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_waits_for_its_policy_and_no_longer() {
        let policies = policies(Some(pending()));
        let (waiting, mut judgements) = (policies.clone(), policies.changes.subscribe());
        let waiting = tokio::spawn(async move { settled(&mut judgements, || waiting.now().unwrap()).await });
        settle().await;
        assert!(!waiting.is_finished());
        policies.become_(Some(Verdict::Allow));
        let before = Instant::now();
        assert_eq!(waiting.await.unwrap(), Verdict::Allow);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_connection_is_denied_by_the_change_that_denies_it() {
        let policies = policies(Some(Verdict::Allow));
        let end = policies.spawn_denied();
        settle().await;
        policies.become_(Some(Verdict::Allow));
        policies.become_(None);
        settle().await;
        assert!(!end.is_finished());
        policies.become_(Some(deny()));
        let before = Instant::now();
        assert_eq!(end.await.unwrap(), Some(deny()));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_comes_in_time_ends_no_open_connection() {
        let policies = policies(Some(Verdict::Allow));
        let end = policies.spawn_denied();
        settle().await;
        policies.become_(Some(pending()));
        settle().await;
        tokio::time::advance(POLICY_WAIT - Duration::from_millis(1)).await;
        policies.become_(Some(Verdict::Allow));
        settle().await;
        tokio::time::advance(2 * POLICY_WAIT).await;
        settle().await;
        assert!(!end.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_does_not_come_ends_open_connections_after_the_wait() {
        let policies = policies(Some(Verdict::Allow));
        let end = policies.spawn_denied();
        settle().await;
        policies.become_(Some(pending()));
        let before = Instant::now();
        settle().await;
        // Other news does not prolong it.
        tokio::time::advance(POLICY_WAIT / 2).await;
        policies.become_(Some(pending()));
        assert_eq!(end.await.unwrap(), Some(pending()));
        assert_eq!(before.elapsed(), POLICY_WAIT);
    }
}
