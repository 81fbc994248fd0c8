//! One enrolled pod as this process serves it: its listeners, its workload and certificate, its connections.

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use loam_core::egress::Egress;
use loam_core::ids::Identity;
use loam_core::reason::Reason;
use loam_core::snapshot::Snapshot;
use loam_core::workload::{TunnelProtocol, Workload};
use loam_hbone::Pool;
use loam_node::ListenerKind;
use loam_rt::drain::{self, Drain, Trigger};
use loam_tls::store::Store;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::accept::accept;
use crate::access_log::AccessLog;
use crate::config::{Config, LOCAL_WORKLOAD_TIMEOUT, MAX_CONNECTIONS_PER_POD};
use crate::deliver::Deliveries;
use crate::dns::metrics::DnsMetrics;
use crate::endpoints::Endpoints;
use crate::mesh::Mesh;
use crate::names::Names;
use crate::newcomer::{Home, newcomer};
use crate::pods::Pod;
use crate::reach::Reached;
use crate::{dns, inbound, outbound};

/// How long a pod may be unknown to the mesh configuration before the agent is told that this is what it waits for.
const UNKNOWN_AFTER: Duration = Duration::from_secs(4);

/// Between two attempts to get the first certificate of a pod.
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(500);

/// What all pods share.
pub struct Proxy {
    /// Settings.
    pub config: Config,
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Certificates.
    pub identities: Store,
    /// Tunnels to other pods.
    pub tunnels: Pool,
    /// The log of connections.
    pub log: AccessLog,
    /// Peers that answered before.
    pub reached: Arc<Reached>,
    /// How endpoints fare, as seen from here.
    pub endpoints: Arc<Endpoints>,
    /// Counts of the pods' questions to name servers.
    pub dns: DnsMetrics,
}

/// An enrolled pod.
pub struct Enrolled {
    pod: Arc<Pod>,
    uid: Arc<str>,
    proxy: Arc<Proxy>,
    names: Names<Arc<Pod>>,
    deliveries: Arc<Deliveries>,
    permits: Arc<Semaphore>,
    /// The pod in the mesh configuration.
    workload: watch::Sender<Option<Arc<Workload>>>,
    /// The pod as it opens connections: one that is starting does not wait for the mesh configuration.
    caller: watch::Sender<Option<Caller>>,
    /// Counts changes after which open connections are judged again.
    judgements: watch::Sender<u64>,
    /// Counts changes after which open connections to undeclared destinations are judged again.
    egress: watch::Sender<u64>,
    drain: Drain,
}

/// A pod as it opens connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// As the mesh configuration has it.
    Known(Arc<Workload>),
    /// As its node knows it, until the mesh configuration has it.
    Newcomer(Arc<Workload>),
}

impl Caller {
    /// The pod.
    pub(crate) fn workload(&self) -> &Arc<Workload> {
        match self {
            Self::Known(workload) | Self::Newcomer(workload) => workload,
        }
    }
}

/// Holds a pod in service; it ends by [`Service::end`], or at once when dropped.
pub struct Service {
    enrolled: Arc<Enrolled>,
    trigger: Trigger,
    tasks: JoinSet<()>,
}

impl Enrolled {
    /// Serves a pod from now on. `tell` hears `Ok` once it may be captured: its certificate is there, and its workload is
    /// known to speak HBONE, for which one that is starting does not wait; before that perhaps what it waits for.
    pub fn serve(proxy: Arc<Proxy>, pod: Arc<Pod>, tell: impl FnMut(Result<(), String>) + Send + 'static) -> Service {
        let (trigger, drain) = drain::channel();
        let upstream = Arc::new(dns::upstream(&pod, proxy.dns.clone()));
        let own: Vec<IpAddr> = pod.info().ips().collect();
        let enrolled = Arc::new(Self {
            uid: pod.uid().into(),
            names: Names::new(upstream.clone(), &own, proxy.dns.clone()),
            pod,
            proxy,
            deliveries: Arc::default(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS_PER_POD)),
            workload: watch::Sender::new(None),
            caller: watch::Sender::new(None),
            judgements: watch::Sender::new(0),
            egress: watch::Sender::new(0),
            drain,
        });
        let mut tasks = JoinSet::new();
        for kind in ListenerKind::ALL {
            tasks.spawn(enrolled.clone().listen(kind));
        }
        let caller = enrolled.caller.subscribe();
        dns::serve(&enrolled.pod, &enrolled.proxy, upstream, caller, &enrolled.drain, &mut tasks);
        tasks.spawn(enrolled.clone().follow(tell));
        Service { enrolled, trigger, tasks }
    }

    /// Its sockets.
    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Its uid.
    pub(crate) fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// What all pods share.
    pub(crate) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The names of endpoints, as its own servers know them.
    pub(crate) fn names(&self) -> &Names<Arc<Pod>> {
        &self.names
    }

    /// Its connections to its application.
    pub(crate) fn deliveries(&self) -> &Arc<Deliveries> {
        &self.deliveries
    }

    /// The pod in the mesh configuration, if it is there.
    pub(crate) fn known_workload(&self) -> Option<Arc<Workload>> {
        self.workload.borrow().clone()
    }

    /// The pod in the mesh configuration. One that has just started is waited for.
    pub(crate) async fn workload(&self) -> Option<Arc<Workload>> {
        waited_for(&self.workload).await
    }

    /// The pod as it opens connections. One that has just started is waited for.
    pub(crate) async fn caller(&self) -> Option<Caller> {
        waited_for(&self.caller).await
    }

    /// Wakes when open connections are to be judged again.
    pub(crate) fn judgements(&self) -> watch::Receiver<u64> {
        self.judgements.subscribe()
    }

    /// Wakes when open connections to undeclared destinations are to be judged again.
    pub(crate) fn egress(&self) -> watch::Receiver<u64> {
        self.egress.subscribe()
    }

    /// Ready when no new connection shall begin.
    pub(crate) fn drain_begins(&self) -> impl Future<Output = ()> + Send + use<> {
        let drain = self.drain.clone();
        async move { drain.started().await }
    }

    /// Ready when connections still open must end.
    pub(crate) fn end_of_all(&self) -> impl Future<Output = Reason> + Send + use<> {
        let drain = self.drain.clone();
        async move {
            drain.forced().await;
            Reason::Drained
        }
    }

    async fn listen(self: Arc<Self>, kind: ListenerKind) {
        // The drain must not end before the last waiting connection was accepted and has its own guard.
        let _guard = self.drain.guard();
        let listener = self.pod.listener(kind);
        let (permits, end) = (self.permits.clone(), self.drain.clone());
        accept(listener, permits, end, move |socket, from, permit| {
            let (pod, hold) = (self.clone(), (permit, self.drain.guard()));
            match kind {
                ListenerKind::Outbound => spawn(outbound::carry(pod, socket, from), hold),
                ListenerKind::Inbound => spawn(inbound::plaintext(pod, socket, from), hold),
                ListenerKind::Hbone => spawn(inbound::tunnel(pod, socket, from), hold),
            }
        })
        .await;
    }

    /// Keeps the workload, its certificate and the judgements of its connections in step with the mesh.
    async fn follow(self: Arc<Self>, mut tell: impl FnMut(Result<(), String>) + Send + 'static) {
        let mut wanted = Wanted { identities: self.proxy.identities.clone(), identity: None };
        let mut revision = self.proxy.mesh.watch();
        let mut policies = None;
        let mut ready = false;
        let mut patience = pin!(sleep(UNKNOWN_AFTER));
        loop {
            revision.mark_unchanged();
            let snapshot = Arc::clone(&self.proxy.mesh.load());
            let found = self.find(&snapshot);
            let caller = self.as_caller(found.as_ref(), &snapshot);
            if *self.caller.borrow() != caller {
                // A pod that left the mesh configuration keeps its certificate if it may speak without that.
                wanted.change(caller.as_ref().map(|caller| &caller.workload().identity));
                self.workload.send_replace(found.clone());
                self.caller.send_replace(caller.clone());
            }
            // Other policies, and whatever else changes about the pod, alter no verdict.
            let rules = found.as_ref().map(|w| (snapshot.policy_version(w), w.traversal.clone()));
            if policies != rules {
                policies = rules;
                self.judgements.send_modify(|n| *n += 1);
            }
            drop(snapshot);
            // Who may go anywhere needs no judgement. For who may not, everything else may change what is declared.
            if found.as_ref().is_some_and(|workload| workload.egress != Egress::AllowAny) {
                self.egress.send_modify(|n| *n += 1);
            }
            let capturable = caller.as_ref().map(Caller::workload).filter(|w| w.protocol == TunnelProtocol::Hbone);
            if !ready && let Some(workload) = capturable {
                tokio::select! {
                    credentials = self.proxy.identities.get(&workload.identity) => match credentials {
                        Ok(_) => {
                            ready = true;
                            tell(Ok(()));
                        }
                        Err(error) => {
                            tracing::warn!(pod = %self.uid, %error, "certificate");
                            tell(Err(error.to_string()));
                            // Refused at once while the CA is being left alone: do not ask in a circle.
                            sleep(CERTIFICATE_PAUSE).await;
                            continue;
                        }
                    },
                    _ = revision.changed() => continue,
                    () = self.drain.forced() => return,
                }
            }
            tokio::select! {
                _ = revision.changed() => {}
                () = &mut patience, if !ready && !patience.is_elapsed() => {
                    tell(Err("the mesh configuration does not have it as enrolled".to_owned()));
                }
                () = self.drain.forced() => return,
            }
        }
    }

    /// The pod as it opens connections, given how the mesh configuration has it.
    fn as_caller(&self, found: Option<&Arc<Workload>>, snapshot: &Snapshot) -> Option<Caller> {
        if let Some(found) = found {
            return Some(Caller::Known(found.clone()));
        }
        // What is made up is made up once: looking for a neighbour may take a while.
        match &*self.caller.borrow() {
            Some(Caller::Newcomer(same)) => return Some(Caller::Newcomer(same.clone())),
            Some(Caller::Known(_)) | None if !self.pod.info().starting => return None,
            Some(Caller::Known(_)) | None => {}
        }
        let config = &self.proxy.config;
        let home = Home {
            node: &config.node,
            cluster: &config.cluster,
            network: &config.network,
            trust_domain: &config.trust_domain,
        };
        newcomer(self.pod.info(), home, snapshot).map(Arc::new).map(Caller::Newcomer)
    }

    /// The pod in a snapshot: by name and node, as the keeper names it; never by address.
    fn find(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let info = self.pod.info();
        snapshot
            .local(&info.namespace, &info.name, &self.proxy.config.node)
            .filter(|workload| workload.identity.service_account() == info.service_account)
            .cloned()
    }
}

/// What `sender` has, waited for as long as a pod that just appeared is.
async fn waited_for<T: Clone>(sender: &watch::Sender<Option<T>>) -> Option<T> {
    if let Some(value) = sender.borrow().clone() {
        return Some(value);
    }
    let mut receiver = sender.subscribe();
    let found = timeout(LOCAL_WORKLOAD_TIMEOUT, receiver.wait_for(Option::is_some)).await;
    found.ok()?.ok()?.clone()
}

/// Gives a connection a task that has just room for it, and keeps `hold` until it ends.
fn spawn(connection: impl Future<Output = ()> + Send + 'static, hold: impl Send + 'static) {
    tokio::spawn(async move {
        connection.await;
        drop(hold);
    });
}

impl Service {
    /// Takes no more connections, lets the living ones end, and cuts what is left when the drain limit passes.
    pub async fn end(mut self) {
        let limit = self.enrolled.proxy.config.drain_limit;
        self.enrolled.proxy.tunnels.forget_pod(self.enrolled.pod.uid());
        let ending = self.trigger.drain(limit).await;
        tracing::debug!(pod = %self.enrolled.pod.uid(), ?ending, "pod drained");
        while self.tasks.join_next().await.is_some() {}
    }

    /// What people on the node may see of it.
    pub fn describe(&self) -> serde_json::Value {
        let (info, workload) = (self.enrolled.pod.info(), self.enrolled.known_workload());
        serde_json::json!({
            "uid": info.uid,
            "namespace": info.namespace,
            "name": info.name,
            "serviceAccount": info.service_account,
            "workload": workload.as_ref().map(|workload| workload.uid.as_str()),
            "identity": workload.as_ref().map(|workload| workload.identity.to_string()),
            "connections": MAX_CONNECTIONS_PER_POD - self.enrolled.permits.available_permits(),
        })
    }

    /// The pod's sockets.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.enrolled.pod
    }
}

/// The identity whose certificate this pod keeps alive.
struct Wanted {
    identities: Store,
    identity: Option<Identity>,
}

impl Wanted {
    fn change(&mut self, to: Option<&Identity>) {
        if self.identity.as_ref() == to {
            return;
        }
        if let Some(to) = to {
            self.identities.want(to);
        }
        if let Some(from) = std::mem::replace(&mut self.identity, to.cloned()) {
            self.identities.forget(&from);
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.change(None);
    }
}
