//! A connection that has to go through a waypoint, where the mesh configuration does not say how: it waits for news.
//!
//! Nodes learn within moments of each other that a waypoint is switched on, off or over. A sender that is a moment late
//! finds no waypoint where there will be one, or is sent back by a peer that it went past; one that is a moment early is
//! sent back by a peer that has not heard yet. None of it ends a connection.

use std::sync::Arc;
use std::time::Duration;

use loam_core::outbound::Refusal;
use loam_core::reason::Reason;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::tries::{Connection, Unreached, try_endpoints};
use super::{Endpoints, Place};

/// How long a connection waits for news of its waypoint. A longer absence is one that somebody should see.
const NEWS_TIMEOUT: Duration = Duration::from_secs(2);

/// Least time between two attempts: most news of a busy mesh says nothing about this connection.
const NEWS_PAUSE: Duration = Duration::from_millis(50);

/// Tries `connection` until an endpoint takes it, and again after each change of the mesh while all it lacks is a
/// waypoint. A peer that sent it back is also asked again without news, after ever longer pauses.
pub(crate) async fn reach<C: Connection>(
    endpoints: &Arc<Endpoints>,
    connection: &mut C,
    mut news: watch::Receiver<u64>,
) -> Result<(C::Upstream, Option<Place>), Unreached> {
    let patience = Instant::now() + NEWS_TIMEOUT;
    let mut pause = NEWS_PAUSE;
    loop {
        news.mark_unchanged();
        let unreached = match try_endpoints(endpoints, connection).await {
            Err(unreached) if unreached.lacks_waypoint() => unreached,
            decided => return decided,
        };
        let quiet = if unreached.reason() == Reason::WaypointRequired { pause } else { NEWS_TIMEOUT };
        let waited = async {
            let _ = timeout(quiet, news.changed()).await;
            sleep(NEWS_PAUSE).await;
        };
        if timeout_at(patience, waited).await.is_err() {
            return Err(unreached);
        }
        pause *= 2;
    }
}

impl Unreached {
    /// Whether the waypoint that it had to go through is not there, or it went past one.
    fn lacks_waypoint(&self) -> bool {
        matches!(self.reason(), Reason::WaypointMissing | Reason::WaypointNotReady | Reason::WaypointRequired)
    }

    fn reason(&self) -> Reason {
        let (Self::Refused(Refusal { reason, .. }) | Self::Failed { reason, .. }) = self;
        *reason
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use loam_core::addr::OrigDst;
    use loam_core::ids::{Hostname, Identity, ServiceKey, WorkloadUid};
    use loam_core::outbound::{Plan, Query, Resolved, Unplanned, plan};
    use loam_core::service::{AppProtocol, Port, Service, ServiceAddr};
    use loam_core::snapshot::{Change, Snapshot};
    use loam_core::workload::{GatewayAddr, GatewayDestination, ServicePorts, TunnelProtocol, Workload};

    use super::super::{Failure, Fault, Tries};
    use super::*;

    const VIP: [u8; 4] = [10, 1, 0, 1];
    const WAYPOINT: &str = "shop/wp.shop.svc";

    /// A pod that serves `service`, or none.
    fn pod(name: &str, last: u8, service: Option<&str>) -> Change {
        let identity: Identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
        let serves = |key: &str| ServicePorts { service: key.parse().unwrap(), ports: Arc::new([]) };
        Change::Workload(Workload {
            addresses: vec![[10, 0, 0, last].into()],
            protocol: TunnelProtocol::Hbone,
            services: service.map(serves).into_iter().collect(),
            ..Workload::new(WorkloadUid::of_pod("c", "shop", name), name, identity)
        })
    }

    fn service(key: &str, waypoint: Option<&str>) -> Change {
        let key: ServiceKey = key.parse().unwrap();
        let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Tcp };
        let gateway = |key: &str| {
            let destination = GatewayDestination::Service(key.parse().unwrap());
            Arc::new(GatewayAddr { destination, hbone_port: 15008, bypass: false })
        };
        let vip = ServiceAddr { network: "".into(), range: IpAddr::from(VIP).into() };
        let is_api = key.hostname.as_str().starts_with("api");
        Change::Service(Service {
            addresses: is_api.then_some(vip).into_iter().collect(),
            ports: vec![port],
            waypoint: waypoint.map(gateway),
            ..Service::new(key.clone(), "svc")
        })
    }

    /// A mesh that changes, in which shop/web calls the service shop/api.
    struct World {
        mesh: Mutex<Snapshot>,
        revision: watch::Sender<u64>,
        /// Whether the pods of the service take connections from their waypoint alone.
        guarded: AtomicBool,
    }

    impl World {
        fn new(guarded: bool, waypoint: Option<&str>) -> Arc<Self> {
            let api = "shop/api.shop.svc";
            let changes = vec![pod("web", 1, None), pod("api", 2, Some(api)), service(api, waypoint)];
            let mesh = Mutex::new(Snapshot::default().apply(changes));
            Arc::new(Self { mesh, revision: watch::Sender::new(0), guarded: AtomicBool::new(guarded) })
        }

        fn learn(&self, changes: Vec<Change>) {
            let mut mesh = self.mesh.lock().unwrap();
            *mesh = mesh.apply(changes);
            self.revision.send_replace(mesh.revision());
        }

        /// Calls the service; where the connection went in the end, and after how many tries.
        fn call(self: &Arc<Self>) -> tokio::task::JoinHandle<(Result<String, Reason>, usize)> {
            let mut call = Call { world: self.clone(), tries: 0 };
            tokio::spawn(async move {
                let news = call.world.revision.subscribe();
                let reached = match reach(&Arc::default(), &mut call, news).await {
                    Ok((upstream, _)) => Ok(upstream),
                    Err(Unreached::Refused(refusal)) => Err(refusal.reason),
                    Err(Unreached::Failed { reason, .. }) => Err(reason),
                };
                (reached, call.tries)
            })
        }
    }

    struct Call {
        world: Arc<World>,
        tries: usize,
    }

    impl Connection for Call {
        type Upstream = String;

        fn decide(&self, tries: &Tries) -> Result<Plan, Unplanned> {
            let mesh = self.world.mesh.lock().unwrap();
            let source = mesh.workload(&WorkloadUid::of_pod("c", "shop", "web")).unwrap();
            let dialled = OrigDst::new((VIP, 80).into());
            plan(&mesh, &Query { tried: &tries.endpoints, ..Query::new(source, dialled, 0) })
        }

        async fn resolve(&self, _: &Hostname) -> Resolved {
            unreachable!("nothing is known by name")
        }

        fn describe(&mut self, _: &Plan, _: usize) {
            self.tries += 1;
        }

        async fn open(&self, plan: &Plan) -> Result<String, Failure> {
            let Plan::Tunnel { next_hop, .. } = plan else { panic!("{plan:?}") };
            let is_pod = next_hop.ip() == IpAddr::from([10, 0, 0, 2]);
            match is_pod && self.world.guarded.load(Ordering::Relaxed) {
                true => Err(Failure {
                    reason: Reason::WaypointRequired,
                    error: "421".into(),
                    fault: Fault::Final,
                    unproven: false,
                }),
                false => Ok(next_hop.ip().to_string()),
            }
        }
    }

    /// Lets other tasks do all they can without time passing.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn waypoint() -> Vec<Change> {
        vec![service(WAYPOINT, None), pod("wp", 5, Some(WAYPOINT))]
    }

    #[tokio::test(start_paused = true)]
    async fn a_waypoint_that_comes_in_time_is_waited_for() {
        let world = World::new(false, Some(WAYPOINT));
        let call = world.call();
        settle().await;
        world.learn(vec![pod("else", 9, None)]);
        settle().await;
        assert!(!call.is_finished());
        world.learn(waypoint());
        let began = Instant::now();
        assert_eq!(call.await.unwrap(), (Ok("10.0.0.5".into()), 1));
        assert!(began.elapsed() <= 2 * NEWS_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_is_the_reason_after_the_wait() {
        for (known, reason) in
            [(vec![], Reason::WaypointMissing), (vec![service(WAYPOINT, None)], Reason::WaypointNotReady)]
        {
            let world = World::new(false, Some(WAYPOINT));
            world.learn(known);
            let began = Instant::now();
            let call = world.call();
            for last in 10..50 {
                settle().await;
                world.learn(vec![pod("else", last, None)]);
            }
            assert_eq!(call.await.unwrap(), (Err(reason), 0));
            assert!(began.elapsed() >= NEWS_TIMEOUT && began.elapsed() <= NEWS_TIMEOUT + NEWS_PAUSE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_sent_back_for_going_past_a_waypoint_learns_of_it_and_goes_through() {
        let world = World::new(true, None);
        let call = world.call();
        settle().await;
        assert!(!call.is_finished());
        world.learn([waypoint(), vec![service("shop/api.shop.svc", Some(WAYPOINT))]].concat());
        assert_eq!(call.await.unwrap(), (Ok("10.0.0.5".into()), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_not_heard_yet_is_asked_again_a_few_times() {
        let world = World::new(true, None);
        let (call, began) = (world.call(), Instant::now());
        sleep(NEWS_TIMEOUT / 4).await;
        world.guarded.store(false, Ordering::Relaxed);
        let (reached, tries) = call.await.unwrap();
        assert_eq!(reached, Ok("10.0.0.2".into()));
        assert!(began.elapsed() < NEWS_TIMEOUT && tries <= 5, "{tries} tries in {:?}", began.elapsed());

        let world = World::new(true, None);
        let began = Instant::now();
        assert_eq!(world.call().await.unwrap(), (Err(Reason::WaypointRequired), 6));
        assert_eq!(began.elapsed(), NEWS_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_else_is_waited_for() {
        let world = World::new(false, None);
        world.learn(vec![Change::RemoveWorkload(WorkloadUid::of_pod("c", "shop", "api"))]);
        let began = Instant::now();
        assert_eq!(world.call().await.unwrap(), (Err(Reason::NoHealthyUpstream), 0));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
