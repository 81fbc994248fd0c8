//! What the keeper holds, and the hands of its machine: events go in, the actions that come out are done here.

use super::LOOK_INTERVAL;
use super::dns::DnsSockets;
use super::machine::{Action, Event, Incarnation, MAX_KEPT, Machine, ProxyId, RequestId};
use super::peers::{ConnectionId, Fds, Outbox, Report};
use super::place::{Held, Listening, Place, SharedListeners, identify};
use super::reset::Resetting;
use super::slots::Stores;
use loam_node::message::{
    AddPod, Added, Checked, EnrolPod, FromAgent, FromZtunnel, KeptPod, MAX_PODS_PART_BYTES, Need, PodRef, Pods,
    RemovePod, Removed, Retire, SnapshotSent, Sockets, Stored, ToAgent, ToZtunnel, Unknown, cut, from_agent,
    from_ztunnel, to_agent, to_ztunnel,
};
use loam_node::{Kind, ListenerKind, MAX_OPEN_NEEDS, MAX_PODS, Socket};
use prost::Message as _;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// What threads report. Each pod has at most one of each under way.
const MAX_FINDINGS: usize = 2 * MAX_KEPT;

/// How long listeners offered by a ztunnel are kept for a pod that the agent has not added.
const HELD_FOR: Duration = Duration::from_secs(60);

/// Everything of value.
pub(super) struct Custody {
    machine: Machine,
    stores: Option<Stores>,
    holdings: HashMap<Incarnation, Holding>,
    agent: Option<Agent>,
    proxies: HashMap<ProxyId, Proxy>,
    findings: mpsc::Sender<Finding>,
    found: mpsc::Receiver<Finding>,
}

/// What belongs to one incarnation of a pod. Another one in the same namespace may share it.
struct Holding {
    place: Place,
    listeners: Option<(SharedListeners, u64)>,
    resetting: Option<Resetting>,
}

struct Agent {
    id: ConnectionId,
    outbox: Outbox,
    socket: Arc<Socket>,
}

struct Proxy {
    outbox: Outbox,
    needs: Arc<Semaphore>,
    /// Listeners that it brought from a former keeper, until their pod is added.
    held: HashMap<String, Held>,
    connected: Instant,
}

/// What a thread has to say.
enum Finding {
    Made { incarnation: Incarnation, result: Result<Listening, String> },
    Deserted { incarnation: Incarnation },
}

impl Custody {
    pub(super) fn new(grace: Duration) -> Self {
        let (findings, found) = mpsc::channel(MAX_FINDINGS);
        Self {
            machine: Machine::new(Instant::now(), grace),
            stores: None,
            holdings: HashMap::new(),
            agent: None,
            proxies: HashMap::new(),
            findings,
            found,
        }
    }

    /// Serves until nobody can report any more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Report>) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.machine.next_deadline();
            let timer = sleep_until(deadline.unwrap_or_else(Instant::now));
            tokio::select! {
                report = inbox.recv() => match report {
                    Some(report) => self.on_report(report),
                    None => return,
                },
                Some(finding) = self.found.recv() => self.on_finding(finding),
                () = timer, if deadline.is_some() => self.drive(Event::Tick, None),
                _ = look.tick() => self.look(),
            }
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::AgentHello { id, outbox, socket, reply } => self.greet_agent(Agent { id, outbox, socket }, reply),
            Report::FromAgent { id, message, fds } => {
                if self.agent.as_ref().is_some_and(|agent| agent.id == id) {
                    self.on_agent(message, fds);
                }
            }
            Report::AgentGone { id } => {
                if self.agent.as_ref().is_some_and(|agent| agent.id == id) {
                    self.agent = None;
                    self.drive(Event::AgentGone, None);
                }
            }
            Report::ProxyHello { id, outbox, leaving } => {
                let proxy = Proxy {
                    outbox,
                    needs: Arc::new(Semaphore::new(MAX_OPEN_NEEDS)),
                    held: HashMap::new(),
                    connected: Instant::now(),
                };
                self.proxies.insert(ProxyId(id.0), proxy);
                self.drive(Event::ProxyConnected { proxy: ProxyId(id.0), leaving }, None);
            }
            Report::FromProxy { id, message, fds } => self.on_proxy(ProxyId(id.0), message, fds),
            Report::ProxyGone { id } => {
                self.proxies.remove(&ProxyId(id.0));
                self.drive(Event::ProxyGone { proxy: ProxyId(id.0) }, None);
            }
        }
    }

    /// Lets an agent in unless another lives. A dead one may not have been noticed yet.
    fn greet_agent(&mut self, agent: Agent, reply: oneshot::Sender<Result<(), String>>) {
        if self.agent.as_ref().is_some_and(|former| !former.socket.is_peer_gone()) {
            // Whoever asked may be gone again.
            let _ = reply.send(Err("another agent is connected".into()));
            return;
        }
        if self.agent.replace(agent).is_some() {
            self.drive(Event::AgentGone, None);
        }
        let _ = reply.send(Ok(()));
    }

    fn on_finding(&mut self, finding: Finding) {
        match finding {
            Finding::Made { incarnation, result } => {
                let Some(holding) = self.holdings.get_mut(&incarnation) else { return };
                let result = result.map(|(listeners, cookie)| {
                    holding.listeners = Some((Arc::new(listeners), cookie));
                    cookie
                });
                self.drive(Event::Made { incarnation, result }, None);
            }
            Finding::Deserted { incarnation } => self.drive(Event::Deserted { incarnation }, None),
        }
    }

    /// Looks at what can end without anybody saying so.
    fn look(&mut self) {
        for incarnation in self.machine.draining().collect::<Vec<_>>() {
            let Some(holding) = self.holdings.get(&incarnation) else { continue };
            let findings = self.findings.clone();
            let looked = holding.place.is_deserted(move |deserted| {
                if deserted {
                    // The keeper stops when nobody takes findings.
                    let _ = findings.blocking_send(Finding::Deserted { incarnation });
                }
            });
            if let Err(error) = looked {
                tracing::debug!(%error, "a pod that drains cannot be looked at");
            }
        }
        for proxy in self.proxies.values_mut().filter(|proxy| proxy.connected.elapsed() > HELD_FOR) {
            proxy.held.clear();
        }
    }

    // ---- the agent ----

    fn on_agent(&mut self, message: FromAgent, mut fds: Vec<OwnedFd>) {
        use from_agent::Asked;
        let id = message.id;
        // Both are present and have their descriptors: the message has been checked.
        let Some(asked) = message.asked else {
            tracing::debug!(id, "the agent asks what this keeper does not know");
            return self.answer(id, to_agent::Answer::Unknown(Unknown {}));
        };
        match asked {
            Asked::Stores(_) => {
                let error = match (fds.pop(), fds.pop()) {
                    (Some(exempt), Some(listeners)) => self.store(listeners, exempt).err().unwrap_or_default(),
                    _ => "two maps are needed".into(),
                };
                self.answer(id, to_agent::Answer::Stored(Stored { error: cut(error) }));
            }
            Asked::AddPod(EnrolPod { index, info }) => {
                let (Some(info), Some(netns)) = (info, fds.pop()) else { return };
                let uid = info.uid.clone();
                let admitted = self.may_add(index, &netns);
                match admitted {
                    Ok(netns_id) => {
                        tracing::info!(pod = %info, uid, index, "agent adds pod");
                        let event = Event::AddPod { request: RequestId(id), index, info, netns: netns_id };
                        self.drive(event, Some((netns, netns_id)));
                    }
                    Err(error) => {
                        tracing::warn!(pod = %info, error, "agent adds pod, refused");
                        let added = Added { uid, error: cut(error), ..Added::default() };
                        self.answer(id, to_agent::Answer::Added(added));
                    }
                }
            }
            Asked::RemovePod(remove) => {
                let found = self.machine.check(&remove.uid).is_some();
                tracing::info!(uid = remove.uid, found, "agent removes pod");
                self.drive(Event::RemovePod { uid: remove.uid.clone() }, None);
                self.answer(id, to_agent::Answer::Removed(Removed { uid: remove.uid, found }));
            }
            Asked::List(_) => self.list(id),
            Asked::Check(check) => {
                let checked = self.check(check.uid);
                self.answer(id, to_agent::Answer::Checked(checked));
            }
        }
    }

    /// Takes the maps, and puts into them what should be there.
    fn store(&mut self, listeners: OwnedFd, exempt: OwnedFd) -> Result<(), String> {
        self.stores = Some(Stores::new(listeners, exempt)?);
        for (incarnation, index) in self.machine.filled().collect::<Vec<_>>() {
            let result = self.fill(incarnation, index);
            self.drive(Event::Slots { incarnation, result }, None);
        }
        Ok(())
    }

    fn may_add(&self, index: u32, netns: &OwnedFd) -> Result<crate::sys::netns::NetnsId, String> {
        let Some(stores) = &self.stores else { return Err("no maps have been given yet".into()) };
        if !stores.has(index) {
            return Err(format!("index {index} is beyond the map of listeners"));
        }
        identify(netns).map_err(|error| error.to_string())
    }

    fn list(&mut self, id: u64) {
        let mut part: Vec<KeptPod> = Vec::new();
        let mut bytes = 0;
        for pod in self.machine.kept() {
            bytes += pod.encoded_len();
            part.push(pod);
            if bytes > MAX_PODS_PART_BYTES {
                self.answer(id, to_agent::Answer::Pods(Pods { pods: std::mem::take(&mut part), more: true }));
                bytes = 0;
            }
        }
        self.answer(id, to_agent::Answer::Pods(Pods { pods: part, more: false }));
    }

    /// Looks at a pod's listeners, and fills its slots again: whatever lay in them, they are right afterwards.
    fn check(&mut self, uid: String) -> Checked {
        let Some(view) = self.machine.check(&uid) else {
            return Checked { uid, problem: "the keeper does not have this pod".into(), ..Checked::default() };
        };
        if view.filled {
            let result = self.fill(view.incarnation, view.index);
            self.drive(Event::Slots { incarnation: view.incarnation, result }, None);
        }
        let view = self.machine.check(&uid).unwrap_or(view);
        let listeners = self.holdings.get(&view.incarnation).and_then(|holding| holding.listeners.as_ref());
        let listens = |fd: &OwnedFd| socket2::SockRef::from(fd).is_listener().unwrap_or(false);
        let listening = view.ready && listeners.is_some_and(|(listeners, _)| listeners.tcp().all(listens));
        let problem = match (listening, view.problem.is_empty()) {
            (false, true) => "its listeners do not listen".into(),
            _ => view.problem,
        };
        Checked { uid, listening, serving: view.serving, problem: cut(problem) }
    }

    fn answer(&self, id: u64, answer: to_agent::Answer) {
        if let Some(agent) = &self.agent {
            agent.outbox.send(&ToAgent { id, answer: Some(answer) }, Fds::None, None);
        }
    }

    // ---- ztunnels ----

    fn on_proxy(&mut self, proxy: ProxyId, message: FromZtunnel, fds: Vec<OwnedFd>) {
        use from_ztunnel::Said;
        // All parts are present: the message has been checked.
        let Some(said) = message.said else {
            return tracing::debug!(proxy = proxy.0, "a ztunnel says what this keeper does not know");
        };
        let event = match said {
            Said::Need(Need { pod: Some(pod), kind, count }) => return self.on_need(proxy, pod, kind, count),
            Said::PodAck(ack) => {
                let Some(pod) = ack.pod else { return };
                let result = if ack.error.is_empty() { Ok(()) } else { Err(ack.error) };
                tracing::debug!(proxy = proxy.0, uid = pod.uid, ?result, "ztunnel answers for pod");
                Event::Acked { proxy, incarnation: Incarnation(pod.incarnation), result }
            }
            Said::Serving(_) => Event::Serving { proxy },
            Said::PodDrained(drained) => {
                let Some(pod) = drained.pod else { return };
                Event::Drained { proxy, incarnation: Incarnation(pod.incarnation) }
            }
            Said::Leaving(_) => Event::Leaving { proxy },
            Said::Held(held) => return self.on_held(proxy, held.uid, fds),
            Said::Need(Need { pod: None, .. }) => return,
        };
        self.drive(event, None);
    }

    fn on_held(&mut self, id: ProxyId, uid: String, mut fds: Vec<OwnedFd>) {
        let Some(proxy) = self.proxies.get_mut(&id) else { return };
        // A pod that is ready has its listeners. One that is being made may fail for want of these, and is tried again.
        if self.machine.check(&uid).is_none_or(|view| !view.ready) && proxy.held.len() < MAX_PODS {
            let dns = fds.split_off(fds.len().min(ListenerKind::ALL.len()));
            proxy.held.insert(uid.clone(), Held { mesh: fds.try_into().ok(), dns });
        }
        self.drive(Event::Held { proxy: id, uid }, None);
    }

    fn on_need(&mut self, id: ProxyId, pod: PodRef, kind: i32, count: u32) {
        let Some(proxy) = self.proxies.get(&id) else { return };
        let outbox = proxy.outbox.clone();
        let refuse = |pod, error: String| {
            let refused = to_ztunnel::Said::Sockets(Sockets { pod: Some(pod), kind, error: cut(error) });
            proxy.outbox.send(&ToZtunnel::from(refused), Fds::None, None);
        };
        let Ok(permit) = proxy.needs.clone().try_acquire_owned() else {
            return refuse(pod, format!("more than {MAX_OPEN_NEEDS} needs are open"));
        };
        if !self.machine.is_offered(id, &pod) {
            return refuse(pod, "the pod is not there".into());
        }
        let (Some(holding), Some(stores)) = (self.holdings.get(&Incarnation(pod.incarnation)), &self.stores) else {
            return refuse(pod, "the pod is not there".into());
        };
        let Ok(kind) = Kind::try_from(kind) else {
            return refuse(pod, format!("sockets of kind {kind} are not known to this keeper"));
        };
        let (needs_pod, send) = (pod.clone(), move |pod, made| send_sockets(&outbox, pod, kind, made, permit));
        let asked = holding.place.dial(kind, count as usize, stores, move |made| send(pod, made));
        if let Err(error) = asked {
            refuse(needs_pod, error.to_string());
        }
    }

    // ---- the machine ----

    /// Feeds the machine and does what it says. `netns` is the namespace of the pod that the event adds, if it does.
    fn drive(&mut self, event: Event, mut netns: Option<(OwnedFd, crate::sys::netns::NetnsId)>) {
        // Doing one thing may bring the next event, never more than one per action.
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.on(Instant::now(), event) {
                events.extend(self.act(action, &mut netns));
            }
        }
    }

    fn act(&mut self, action: Action, netns: &mut Option<(OwnedFd, crate::sys::netns::NetnsId)>) -> Option<Event> {
        match action {
            Action::Make { incarnation, uid, dns, reuse } => {
                return self.make(incarnation, &uid, dns, reuse, netns.take());
            }
            Action::Fill { incarnation, index } => {
                let result = self.fill(incarnation, index);
                return Some(Event::Slots { incarnation, result });
            }
            Action::Empty { incarnation, index } => {
                let listeners = self.holdings.get(&incarnation).and_then(|holding| holding.listeners.as_ref());
                if let Some(Err(error)) = listeners.and_then(|(it, _)| it.dns.as_ref()).map(DnsSockets::refuse) {
                    tracing::warn!(%error, "questions to name servers are not refused");
                }
                if let Some(Err(error)) = self.stores.as_ref().map(|stores| stores.empty(index)) {
                    tracing::error!(error, index, "slots stay filled");
                }
            }
            Action::StartResetting { incarnation } => {
                let holding = self.holdings.get_mut(&incarnation)?;
                let (listeners, _) = holding.listeners.as_ref()?;
                match Resetting::start(listeners) {
                    Ok(resetting) => holding.resetting = Some(resetting),
                    Err(error) => tracing::warn!(%error, "waiting connections are not reset"),
                }
            }
            Action::StopResetting { incarnation } => {
                if let Some(holding) = self.holdings.get_mut(&incarnation) {
                    holding.resetting = None;
                }
            }
            Action::Release { incarnation } => {
                tracing::info!(incarnation = incarnation.0, "pod released");
                self.holdings.remove(&incarnation);
            }
            Action::SendAdd { proxy, incarnation, info } => {
                let listeners = self.holdings.get(&incarnation).and_then(|holding| holding.listeners.as_ref());
                if let Some((listeners, _)) = listeners {
                    let fds = Fds::Listeners { listeners: listeners.clone(), dns: info.dns };
                    let add = to_ztunnel::Said::AddPod(AddPod { incarnation: incarnation.0, info: Some(info) });
                    self.tell(proxy, add, fds);
                }
            }
            Action::SendRemove { proxy, pod } => {
                self.tell(proxy, to_ztunnel::Said::RemovePod(RemovePod { pod: Some(pod) }), Fds::None);
            }
            Action::SendSnapshotSent { proxy } => {
                self.tell(proxy, to_ztunnel::Said::SnapshotSent(SnapshotSent {}), Fds::None);
            }
            Action::SendRetire { proxy } => {
                tracing::info!(proxy = proxy.0, "ztunnel retires");
                self.tell(proxy, to_ztunnel::Said::Retire(Retire {}), Fds::None);
            }
            Action::Answer { request, added } => {
                tracing::info!(
                    uid = added.uid,
                    serving = added.serving,
                    problem = added.problem,
                    error = added.error,
                    "agent is answered"
                );
                let added = Added { problem: cut(added.problem), error: cut(added.error), ..added };
                self.answer(request.0, to_agent::Answer::Added(added));
            }
        }
        None
    }

    /// Has listeners made in the namespace, or takes what another incarnation has there.
    fn make(
        &mut self,
        incarnation: Incarnation,
        uid: &str,
        dns: bool,
        reuse: Option<Incarnation>,
        netns: Option<(OwnedFd, crate::sys::netns::NetnsId)>,
    ) -> Option<Event> {
        let former = reuse.and_then(|former| self.holdings.get(&former));
        let begun = match former.and_then(|former| Some((former, former.listeners.as_ref()?))) {
            Some((former, (listeners, cookie))) if listeners.dns.is_some() || !dns => {
                let (place, listeners, cookie) = (former.place.clone(), listeners.clone(), *cookie);
                let holding = Holding { place, listeners: Some((listeners, cookie)), resetting: None };
                self.holdings.insert(incarnation, holding);
                return Some(Event::Made { incarnation, result: Ok(cookie) });
            }
            // The former one had no sockets for names.
            Some((former, (listeners, _))) => {
                let clones: io::Result<Vec<OwnedFd>> = listeners.mesh.iter().map(OwnedFd::try_clone).collect();
                let place = former.place.clone();
                clones.map_err(|error| format!("share the listeners: {error}")).and_then(|mesh| {
                    self.begin(incarnation, place, Held { mesh: mesh.try_into().ok(), dns: Vec::new() }, dns)
                })
            }
            None => {
                let held = self.take_held(uid).unwrap_or_default();
                let place = netns
                    .ok_or_else(|| "no network namespace came with it".to_owned())
                    .and_then(|(netns, id)| Place::start(netns, id).map_err(|error| error.to_string()));
                place.and_then(|place| self.begin(incarnation, place, held, dns))
            }
        };
        begun.err().map(|error| Event::Made { incarnation, result: Err(error) })
    }

    fn begin(&mut self, incarnation: Incarnation, place: Place, held: Held, dns: bool) -> Result<(), String> {
        let findings = self.findings.clone();
        let then = move |result| {
            // The keeper stops when nobody takes findings.
            let _ = findings.blocking_send(Finding::Made { incarnation, result });
        };
        place.listen(held, dns, then).map_err(|error| error.to_string())?;
        self.holdings.insert(incarnation, Holding { place, listeners: None, resetting: None });
        Ok(())
    }

    /// The listeners of a pod that the newest ztunnel brought.
    fn take_held(&mut self, uid: &str) -> Option<Held> {
        let with = self.proxies.iter_mut().filter(|(_, proxy)| proxy.held.contains_key(uid));
        with.max_by_key(|(id, _)| **id)?.1.held.remove(uid)
    }

    fn fill(&self, incarnation: Incarnation, index: u32) -> Result<(), String> {
        let stores = self.stores.as_ref().ok_or("no maps have been given yet")?;
        let holding = self.holdings.get(&incarnation).and_then(|holding| holding.listeners.as_ref());
        let (listeners, _) = holding.ok_or("it has no listeners")?;
        stores.fill(index, listeners)?;
        let Some(dns) = &listeners.dns else { return Ok(()) };
        for socket in dns.udp() {
            // Answers to a program that asks from port 53 must not be taken for questions.
            stores.exempt(socket).map_err(|error| format!("exempt a socket for names: {error}"))?;
        }
        dns.accept().map_err(|error| format!("open the sockets for names: {error}"))
    }

    fn tell(&self, proxy: ProxyId, said: to_ztunnel::Said, fds: Fds) {
        if let Some(proxy) = self.proxies.get(&proxy) {
            proxy.outbox.send(&ToZtunnel::from(said), fds, None);
        }
    }
}

fn send_sockets(
    outbox: &Outbox,
    pod: PodRef,
    kind: Kind,
    made: Result<Vec<OwnedFd>, String>,
    permit: OwnedSemaphorePermit,
) {
    let (fds, error) = match made {
        Ok(sockets) => (Fds::Own(sockets), String::new()),
        Err(error) => (Fds::None, cut(error)),
    };
    let sockets = Sockets { pod: Some(pod), kind: kind as i32, error };
    outbox.send(&ToZtunnel::from(to_ztunnel::Said::Sockets(sockets)), fds, Some(permit));
}
