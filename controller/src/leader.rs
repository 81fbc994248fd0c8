//! Which of several controllers writes. All of them serve.
//!
//! The leader holds a Lease and renews it. Others watch the record with their own clock: only when it did not change
//! for as long as it says do they take it, so that no two clocks are compared.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use loam_kube::Client;
use loam_rt::explain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Name of the Lease.
const LEASE: &str = "loam-controller-leader";
/// After this time without a renewal others take over.
const LEASE_SECONDS: i32 = 15;
/// A leader that could not renew for so long writes no more. What it had begun by then, and the look that found out, is
/// over before others take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(6);
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long the API server may take for one.
const DEADLINE: Duration = Duration::from_secs(3);

/// What a look at the Lease leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is none.
    Create,
    /// It is ours.
    Renew,
    /// It is nobody's any more.
    Take,
    /// It is somebody else's.
    Wait,
}

/// A candidate, and what it saw.
struct Candidate {
    name: String,
    /// The record as it was seen, and since when it has been so.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    fn turn(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Turn {
        let Some(spec) = lease else { return Turn::Create };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.name {
            return Turn::Renew;
        }
        if holder.is_empty() {
            return Turn::Take;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS)).unwrap_or(0);
                if now.saturating_duration_since(*since) > Duration::from_secs(seconds) {
                    Turn::Take
                } else {
                    Turn::Wait
                }
            }
            Some(_) | None => {
                self.seen = Some((spec.clone(), now));
                Turn::Wait
            }
        }
    }

    /// The record that we write.
    fn claim(&self, old: Option<&LeaseSpec>, turn: Turn) -> LeaseSpec {
        let now = MicroTime(jiff::Timestamp::now());
        let kept = old.filter(|_| turn == Turn::Renew);
        let changes = old.and_then(|old| old.lease_transitions).unwrap_or(0);
        LeaseSpec {
            acquire_time: kept.and_then(|old| old.acquire_time.clone()).or(Some(now.clone())),
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            lease_transitions: Some(if turn == Turn::Take { changes.saturating_add(1) } else { changes }),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

/// Stands for election as `name` for as long as it is polled, and says whether it leads.
pub async fn stand(client: Client, namespace: &str, name: String, leads: watch::Sender<bool>) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut candidate = Candidate { name, seen: None };
    let mut renewed: Option<Instant> = None;
    let mut told = None;
    loop {
        // The lease counts from before it was asked for.
        let asked = Instant::now();
        match timeout(DEADLINE, look(&leases, &mut candidate)).await {
            Ok(Ok(held)) => {
                renewed = held.then_some(asked);
                told = None;
            }
            Ok(Err(error)) => tell(&mut told, reason(&error)),
            Err(_) => tell(&mut told, format!("no answer within {} s", DEADLINE.as_secs())),
        }
        let now = renewed.is_some_and(|at| at.elapsed() < RENEW_DEADLINE);
        leads.send_if_modified(|before| {
            if *before != now {
                tracing::info!(name = candidate.name, leads = now, "leadership changed");
            }
            std::mem::replace(before, now) != now
        });
        sleep(LOOK).await;
    }
}

/// Looks at the Lease and does what follows. Returns whether it is ours.
async fn look(leases: &Api<Lease>, candidate: &mut Candidate) -> Result<bool, kube::Error> {
    let lease = leases.get_opt(LEASE).await?;
    let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
    // A record without content is nobody's.
    let empty = LeaseSpec::default();
    let known = lease.as_ref().map(|_| spec.unwrap_or(&empty));
    let turn = candidate.turn(known, Instant::now());
    let claim = Some(candidate.claim(spec, turn));
    let written = match (turn, lease) {
        (Turn::Wait, _) => return Ok(false),
        (Turn::Create, _) | (_, None) => {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            leases.create(&PostParams::default(), &Lease { metadata, spec: claim }).await
        }
        // The version goes along: whoever wrote in between wins.
        (Turn::Renew | Turn::Take, Some(lease)) => {
            leases.replace(LEASE, &PostParams::default(), &Lease { spec: claim, ..lease }).await
        }
    };
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "forbidden; a Role of this program's service account must have the rule {{apiGroups: [coordination.k8s.io], \
             resources: [leases], verbs: [get, create, update]}}: {}",
            status.message
        ),
        other => explain(other),
    }
}

/// Says once what keeps us from the Lease.
fn tell(told: &mut Option<String>, error: String) {
    if told.as_ref() != Some(&error) {
        tracing::warn!(error, "the Lease {LEASE} cannot be held, and the roots are left to others");
        *told = Some(error);
    }
}

#[cfg(test)]
mod tests;
