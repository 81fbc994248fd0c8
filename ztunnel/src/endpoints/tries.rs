//! One connection, tried on one endpoint after the other until one takes it.
//!
//! Until an endpoint has taken a connection, no byte of the application has left this process: it may be tried on
//! another one without anybody seeing more than a pause. An address that the application dialled itself is never
//! exchanged for another.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use loam_core::ids::Hostname;
use loam_core::outbound::{Plan, Refusal, Resolved, Unplanned};
use loam_core::reason::Reason;
use tokio::time::timeout;

use super::{Endpoints, Place};

/// Endpoints that one connection is tried on.
pub(crate) const MAX_TRIES: usize = 3;

/// Names that one connection asks for. Each may take as long as silent servers make it.
const MAX_NAMES: usize = MAX_TRIES;

/// How long one endpoint may take while a better one is there. Enough for a lost SYN to be sent again. Without a better
/// one the limits of dialling hold, so that all tries together take at most 6 s longer than one.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that looks for an endpoint.
pub(crate) trait Connection: Sync {
    /// What it gets from the endpoint that takes it.
    type Upstream;

    /// Where it goes, given where it was tried already.
    fn decide(&self, tries: &Tries) -> Result<Plan, Unplanned>;

    /// Where a name leads to, or why nowhere. Takes a bounded time.
    fn resolve(&self, host: &Hostname) -> impl Future<Output = Resolved> + Send;

    /// It is about to be tried, for the `number`th time.
    fn describe(&mut self, plan: &Plan, number: usize);

    /// Tries it. Dropping the future gives the try up.
    fn open(&self, plan: &Plan) -> impl Future<Output = Result<Self::Upstream, Failure>> + Send;
}

/// Where a connection was tried in vain.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    /// The endpoints.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Whether one of them did not prove who it is. From then on only endpoints that can prove it will do: whoever
    /// disturbs TLS must not be rewarded with plaintext.
    pub(crate) tunnels_only: bool,
    /// Names of endpoints that were asked for.
    pub(crate) names: Vec<Resolved>,
    errors: Vec<String>,
}

/// Why a try failed, and what follows from it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For metrics.
    pub(crate) reason: Reason,
    /// For the log.
    pub(crate) error: String,
    /// Whose fault it was.
    pub(crate) fault: Fault,
    /// Whether the endpoint did not prove who it is.
    pub(crate) unproven: bool,
}

/// Whose fault a failure was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The endpoint's: it refused, or its tunnel or its proxy failed.
    Endpoint,
    /// The endpoint's: it did not answer.
    Silence,
    /// That of the way to this endpoint, or of what we know about it. Another one may do, and this one may, later.
    Way,
    /// Ours, or a decision: no other endpoint is asked.
    Final,
}

impl Failure {
    fn silent(plan: &Plan) -> Self {
        let upstream = match plan {
            Plan::Direct { upstream, .. } => upstream,
            Plan::Tunnel { next_hop, .. } => next_hop,
        };
        Self {
            reason: Reason::ConnectTimeout,
            error: format!("no answer from {upstream} within {TRY_TIMEOUT:?}"),
            fault: Fault::Silence,
            unproven: false,
        }
    }
}

/// Why a connection was not taken.
#[derive(Debug)]
pub(crate) enum Unreached {
    /// It was not to be tried at all.
    Refused(Refusal),
    /// No try worked.
    Failed {
        /// Why the last one did not.
        reason: Reason,
        /// The same with all errors, for the log.
        error: String,
    },
}

/// Tries `connection` until an endpoint takes it. The place there lasts as long as what is returned for it.
pub(crate) async fn try_endpoints<C: Connection>(
    endpoints: &Arc<Endpoints>,
    connection: &mut C,
) -> Result<(C::Upstream, Option<Place>), Unreached> {
    let mut tries = Tries::default();
    let mut plan = tries.decide(connection).await.map_err(Unreached::Refused)?;
    loop {
        connection.describe(&plan, tries.errors.len() + 1);
        let place = plan.picked().map(|picked| endpoints.join(picked.endpoint));
        let failure = match attempt(connection, &plan, &mut tries).await {
            Ok(upstream) => {
                place.iter().for_each(Place::worked);
                return Ok((upstream, place));
            }
            Err(failure) => failure,
        };
        place.iter().for_each(|place| place.failed(failure.fault));
        drop(place);
        match tries.next(connection, &plan, &failure).await {
            Some(next) => plan = next,
            None => return Err(Unreached::Failed { reason: failure.reason, error: tries.told(failure.error) }),
        }
        endpoints.retried();
    }
}

/// One try. When it takes long, and there is another endpoint that is not doubted, it is over.
async fn attempt<C: Connection>(connection: &C, plan: &Plan, tries: &mut Tries) -> Result<C::Upstream, Failure> {
    let mut opening = pin!(connection.open(plan));
    let (Some(picked), true) = (plan.picked(), tries.is_there_another()) else { return opening.await };
    if let Ok(result) = timeout(TRY_TIMEOUT, &mut opening).await {
        return result;
    }
    tries.endpoints.push(picked.endpoint);
    let other = connection.decide(tries);
    tries.endpoints.pop();
    let is_better = match other {
        Ok(plan) => plan.picked().is_some_and(|picked| !picked.doubtful),
        Err(Unplanned::Unresolved(_)) => true,
        Err(Unplanned::Refused(_)) => false,
    };
    match is_better {
        true => Err(Failure::silent(plan)),
        false => opening.await,
    }
}

impl Tries {
    /// Where the connection goes, after the names were resolved that this depends on.
    async fn decide(&mut self, connection: &impl Connection) -> Result<Plan, Refusal> {
        loop {
            match connection.decide(self) {
                Ok(plan) => return Ok(plan),
                Err(Unplanned::Refused(refusal)) => return Err(refusal),
                Err(Unplanned::Unresolved(host)) if self.names.len() < MAX_NAMES => {
                    self.names.push(connection.resolve(&host).await);
                }
                Err(Unplanned::Unresolved(host)) => {
                    let detail = format!("{MAX_NAMES} names of endpoints lead nowhere, and {host} is not asked for");
                    return Err(Refusal::new(Reason::NameUnresolved, detail));
                }
            }
        }
    }

    /// Whether one more try is allowed after the present one.
    fn is_there_another(&self) -> bool {
        self.errors.len() + 1 < MAX_TRIES
    }

    /// Where to try next, after `plan` failed.
    async fn next(&mut self, connection: &impl Connection, plan: &Plan, failure: &Failure) -> Option<Plan> {
        let picked = plan.picked()?;
        let again = match failure.fault {
            Fault::Endpoint | Fault::Silence | Fault::Way => self.is_there_another(),
            Fault::Final => false,
        };
        if !again {
            return None;
        }
        self.endpoints.push(picked.endpoint);
        self.tunnels_only |= failure.unproven;
        let next = self.decide(connection).await.ok().filter(|plan| plan.picked().is_some());
        if next.is_some() {
            self.errors.push(failure.error.clone());
        }
        next
    }

    /// The last error with those before it.
    fn told(&self, last: String) -> String {
        match self.errors.is_empty() {
            true => last,
            false => format!("{last}; before that: {}", self.errors.join("; ")),
        }
    }
}
