//! What all requests and connections of this process share.

use std::net::SocketAddr;
use std::sync::Arc;

use loam_core::balance::By;
use loam_core::outbound::{Plan, Query, Refusal, Resolved, Unplanned, plan_held};
use loam_core::reason::Reason;
use loam_core::waypoint::Target;
use loam_rt::drain::Drain;
use tokio::sync::Semaphore;

use crate::access_log::{AccessLog, Origin};
use crate::body::MAX_KEPT_BYTES;
use crate::connect::{Place, Unreached};
use crate::endpoints::{Busy, Endpoints};
use crate::ledger::{Entry, Ledger};
use crate::limits::{MAX_CONNECT_TRIES, MAX_REQUESTS};
use crate::mesh::Mesh;
use crate::names::Names;
use crate::own::Own;
use crate::stream::Stream;
use crate::tasks::Tasks;
use crate::upstream::Upstreams;

/// Names that one request or connection asks for. Each may take as long as silent servers make it.
const MAX_NAMES: usize = 3;

/// What all requests and connections share.
pub struct Engine {
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// This waypoint.
    pub own: Arc<Own>,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// How endpoints fare.
    pub endpoints: Arc<Endpoints>,
    /// Names of endpoints.
    pub names: Names,
    /// The log.
    pub log: AccessLog,
    /// Copies of requests under way.
    pub mirrors: Tasks,
    /// Connections that speak something else since an upgrade.
    pub upgrades: Tasks,
    /// Dealings with services.
    pub ledger: Ledger,
    /// The end of this process.
    pub drain: Drain,
    /// Room for requests.
    pub requests: Arc<Semaphore>,
    /// Room for bodies that are kept.
    pub kept: Arc<Semaphore>,
}

impl Engine {
    /// An engine with nothing under way.
    pub fn new(
        mesh: Arc<Mesh>,
        own: Arc<Own>,
        upstreams: Upstreams,
        endpoints: Arc<Endpoints>,
        log: AccessLog,
        drain: Drain,
    ) -> Self {
        Self {
            ledger: Ledger::new(mesh.clone()),
            mesh,
            own,
            upstreams,
            endpoints,
            names: Names::default(),
            log,
            mirrors: Tasks::default(),
            upgrades: Tasks::default(),
            drain,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            kept: Arc::new(Semaphore::new(MAX_KEPT_BYTES)),
        }
    }

    /// An endpoint of `target` for what `entry` stands for, other than those that were `tried`, chosen as `by` says.
    pub async fn choose(
        &self,
        target: &Target,
        entry: &Entry,
        by: By,
        tried: &[SocketAddr],
        tunnels_only: bool,
    ) -> Result<Plan, Refusal> {
        if entry.wants_tls() {
            let detail =
                "its endpoints are to be reached by TLS, which this waypoint does not speak to endpoints".to_owned();
            return Err(Refusal::new(Reason::NoHealthyUpstream, detail));
        }
        let local = self.own.workload();
        let entropy = rand::random();
        let mut names: Vec<Resolved> = Vec::new();
        loop {
            // In a block of its own: what is known of endpoints is not held while names are asked for.
            let planned = {
                let standings = entry.standings(&self.endpoints);
                let query = Query {
                    standings: &standings,
                    tried,
                    tunnels_only,
                    names: &names,
                    by,
                    ..Query::new(&local, target.asked(), entropy)
                };
                target.plan(&self.mesh.load(), &query)
            };
            match planned {
                Ok(plan) => return Ok(plan),
                Err(Unplanned::Refused(refusal)) => return Err(refusal),
                Err(Unplanned::Unresolved(host)) if names.len() < MAX_NAMES => {
                    names.push(self.names.resolve(&host).await);
                }
                Err(Unplanned::Unresolved(host)) => {
                    let detail = format!("{MAX_NAMES} names of endpoints lead nowhere, and {host} is not asked for");
                    return Err(Refusal::new(Reason::NameUnresolved, detail));
                }
            }
        }
    }

    /// The endpoint of `target` that a session holds, by its name, if it may still be used for what `entry` stands for.
    pub fn held(&self, target: &Target, entry: &Entry, endpoint: &str) -> Option<Plan> {
        let Target::Service { service, asked, .. } = target else { return None };
        if entry.wants_tls() {
            return None;
        }
        let (local, uid) = (self.own.workload(), endpoint.parse().ok()?);
        plan_held(&self.mesh.load(), &Query::new(&local, *asked, 0), service, &uid)
    }

    /// Connects to an endpoint of `target`: until one takes the connection, up to [`MAX_CONNECT_TRIES`] are tried.
    pub async fn reach(&self, target: &Target) -> Result<Reached, NotReached> {
        let full = || NotReached { reason: Reason::Overload, error: "the limit of the service is reached".to_owned() };
        let entry = self.ledger.enter(target).ok_or_else(full)?;
        let mut tried = Tried::default();
        loop {
            let plan = self.choose(target, &entry, By::Service, &tried.endpoints, tried.tunnels_only).await;
            let plan =
                plan.map_err(|refusal| NotReached { reason: refusal.reason, error: tried.told(refusal.detail) })?;
            let place = Place::of(&plan);
            let busy = self.endpoints.join(place.endpoint);
            match self.upstreams.connect(&place).await {
                Ok(stream) => {
                    busy.worked();
                    return Ok(Reached { stream, plan, place, busy, entry });
                }
                Err(error) => {
                    if error.endpoint {
                        busy.failed();
                    }
                    if !tried.may_go_on(&plan, &error) {
                        return Err(NotReached { reason: error.reason, error: tried.told(error.error) });
                    }
                }
            }
        }
    }
}

/// A connection to an endpoint.
pub struct Reached {
    /// It.
    pub stream: Stream,
    /// How it was decided.
    pub plan: Plan,
    /// The endpoint.
    pub place: Place,
    /// Counts it there.
    pub busy: Busy,
    /// Counts it at the service.
    pub entry: Entry,
}

/// Why no endpoint took a connection.
#[derive(Debug)]
pub struct NotReached {
    /// Why, for metrics.
    pub reason: Reason,
    /// Why, for the log.
    pub error: String,
}

/// Where a request or connection was tried in vain, nothing of it having been taken.
#[derive(Debug, Default)]
pub struct Tried {
    /// The endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Whether one of them did not prove who it is. From then on only endpoints that can prove it will do: whoever
    /// disturbs TLS must not be rewarded with plaintext.
    pub tunnels_only: bool,
    errors: Vec<String>,
}

impl Tried {
    /// Notes that `plan` failed. Whether another endpoint may be tried.
    pub fn may_go_on(&mut self, plan: &Plan, error: &Unreached) -> bool {
        let Some(picked) = plan.picked() else { return false };
        if !error.another || self.endpoints.len() + 1 >= MAX_CONNECT_TRIES {
            return false;
        }
        self.endpoints.push(picked.endpoint);
        self.tunnels_only |= error.reason == Reason::TlsFailure;
        self.errors.push(error.error.clone());
        true
    }

    /// The last error with those before it.
    pub fn told(&self, last: String) -> String {
        match self.errors.is_empty() {
            true => last,
            false => format!("{last}; before that: {}", self.errors.join("; ")),
        }
    }
}

/// One CONNECT: who asks for what.
pub struct Session {
    /// What all share.
    pub engine: Arc<Engine>,
    /// Who asks.
    pub origin: Arc<Origin>,
    /// What for.
    pub target: Target,
}

impl Session {
    /// Namespace of who asks, as proven.
    pub fn caller_namespace(&self) -> Option<&str> {
        self.origin.source.identity.as_ref().map(|identity| identity.namespace())
    }
}
