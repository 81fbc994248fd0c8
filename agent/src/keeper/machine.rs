//! What the keeper decides: whose listeners lie in the slots, which ztunnel is current, when the grace ends, whom to
//! retire, when the agent gets its answer. Events and the time come in, actions go out; nothing here waits or fails.

mod proxies;

use crate::sys::netns::NetnsId;
use loam_node::MAX_PODS;
use loam_node::message::{Added, KeptPod, PodInfo, PodRef};
use proxies::Proxies;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long an agent waits for a ztunnel to serve a pod that it added.
pub(super) const SERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most pods kept, those included that drain: a node's pods and as many that were removed with open connections.
/// Beyond it the pod that drains longest is let go.
pub(super) const MAX_KEPT: usize = 2 * MAX_PODS;

/// Most additions without an answer: one per pod, and as many of an agent that asks again.
pub(super) const MAX_WAITING: usize = 2 * MAX_PODS;

/// One stay of a pod at the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Incarnation(pub(super) u64);

/// A connection of a ztunnel; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProxyId(pub(super) u64);

/// A request of the agent, to be answered once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RequestId(pub(super) u64);

/// What has happened.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The agent asks to keep a pod.
    AddPod { request: RequestId, index: u32, info: PodInfo, netns: NetnsId },
    /// A pod's listeners are made, with the cookie of its namespace, or could not be.
    Made { incarnation: Incarnation, result: Result<u64, String> },
    /// Filling a pod's slots succeeded, or did not.
    Slots { incarnation: Incarnation, result: Result<(), String> },
    /// The agent gives up a pod.
    RemovePod { uid: String },
    /// A pod that drains has lost its interfaces: nothing of it can be alive.
    Deserted { incarnation: Incarnation },
    /// The agent is gone, and nobody waits for its answers.
    AgentGone,
    /// A ztunnel has said hello.
    ProxyConnected { proxy: ProxyId, leaving: bool },
    /// A ztunnel has a pod from a former keeper, and may have open connections of it.
    Held { proxy: ProxyId, uid: String },
    /// A ztunnel's answer about a pod.
    Acked { proxy: ProxyId, incarnation: Incarnation, result: Result<(), String> },
    /// A ztunnel serves its snapshot.
    Serving { proxy: ProxyId },
    /// A ztunnel accepts no more.
    Leaving { proxy: ProxyId },
    /// A ztunnel's last connection of a removed pod has ended.
    Drained { proxy: ProxyId, incarnation: Incarnation },
    /// A ztunnel is gone.
    ProxyGone { proxy: ProxyId },
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Make the listeners of a pod, those for names as well if `dns` is set, or take those of another incarnation in the
    /// same namespace, and report.
    Make { incarnation: Incarnation, uid: String, dns: bool, reuse: Option<Incarnation> },
    /// Put the listeners into the slots, take questions to name servers, and report.
    Fill { incarnation: Incarnation, index: u32 },
    /// Empty the slots, and refuse questions to name servers.
    Empty { incarnation: Incarnation, index: u32 },
    /// Reset what waits in the listeners and what comes.
    StartResetting { incarnation: Incarnation },
    /// Leave what waits to a ztunnel.
    StopResetting { incarnation: Incarnation },
    /// Close the listeners and the namespace.
    Release { incarnation: Incarnation },
    /// Offer a pod.
    SendAdd { proxy: ProxyId, incarnation: Incarnation, info: PodInfo },
    /// Take a pod back.
    SendRemove { proxy: ProxyId, pod: PodRef },
    /// All pods are offered.
    SendSnapshotSent { proxy: ProxyId },
    /// Another ztunnel serves.
    SendRetire { proxy: ProxyId },
    /// Tell the agent about the pod it added.
    Answer { request: RequestId, added: Added },
}

/// What the keeper knows of a pod, for the agent's check.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) incarnation: Incarnation,
    pub(super) index: u32,
    pub(super) ready: bool,
    pub(super) filled: bool,
    pub(super) serving: bool,
    pub(super) problem: String,
}

#[derive(Debug)]
pub(super) struct Machine {
    grace: Duration,
    pods: BTreeMap<Incarnation, Pod>,
    proxies: Proxies,
    waiting: Vec<Waiting>,
    service: Service,
    last_incarnation: u64,
}

/// Whether somebody takes the connections that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// A ztunnel that accepts is connected.
    Live,
    /// None yet, or the last one went away; connections wait for the next until then.
    Grace { until: Instant },
    /// Nobody: connections are refused.
    Over,
}

#[derive(Debug)]
struct Pod {
    info: PodInfo,
    index: u32,
    netns: NetnsId,
    phase: Phase,
    cookie: u64,
    filled: bool,
    resetting: bool,
    slot_problem: Option<String>,
    /// Whether sockets for names were asked for when its listeners were.
    makes_dns: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its listeners are being made; if it was removed meanwhile, it goes when they are.
    Making { removed: bool },
    /// It is kept.
    Ready,
    /// It was removed; ztunnels may need sockets for its open connections.
    Removing,
}

impl Phase {
    /// Whether the agent believes that we keep it.
    fn is_current(self) -> bool {
        matches!(self, Self::Ready | Self::Making { removed: false })
    }
}

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    incarnation: Incarnation,
    deadline: Instant,
}

impl Machine {
    /// A keeper without pods and ztunnels, which lets connections wait this long for the next ztunnel. The first one has as
    /// long: where another keeper was before, ztunnels come back while connections wait in listeners that live on.
    pub(super) fn new(now: Instant, grace: Duration) -> Self {
        Self {
            grace,
            pods: BTreeMap::new(),
            proxies: Proxies::default(),
            waiting: Vec::new(),
            service: Service::Grace { until: now + grace },
            last_incarnation: 0,
        }
    }

    /// Takes in an event; what to do about it.
    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::AddPod { request, index, info, netns } => {
                if let Err(refused) = self.add(now, request, index, &info, netns, &mut out) {
                    let added = Added { uid: info.uid, error: refused, ..Added::default() };
                    out.push(Action::Answer { request, added });
                }
            }
            Event::Made { incarnation, result } => self.made(incarnation, result, &mut out),
            Event::Slots { incarnation, result } => {
                if let Some(pod) = self.pods.get_mut(&incarnation) {
                    pod.slot_problem = result.err();
                }
            }
            Event::RemovePod { uid } => {
                if let Some(incarnation) = self.current(&uid) {
                    self.remove(incarnation, "the pod was removed", &mut out);
                }
            }
            Event::Deserted { incarnation } => {
                if self.pods.get(&incarnation).is_some_and(|pod| pod.phase == Phase::Removing) {
                    self.release(incarnation, &mut out);
                }
            }
            Event::AgentGone => self.waiting.clear(),
            Event::ProxyConnected { proxy, leaving } => self.proxies.connected(proxy, leaving),
            Event::Held { proxy, uid } => self.proxies.held(proxy, uid),
            Event::Acked { proxy, incarnation, result } => self.proxies.acked(proxy, incarnation, result),
            Event::Serving { proxy } => self.proxies.serving(proxy),
            Event::Leaving { proxy } => self.proxies.leaving(proxy),
            Event::Drained { proxy, incarnation } => self.proxies.drained(proxy, incarnation),
            Event::ProxyGone { proxy } => self.proxies.gone(proxy),
            Event::Tick => {}
        }
        self.settle(now, &mut out);
        out
    }

    /// When a tick is due at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let grace = match self.service {
            Service::Grace { until } => Some(until),
            Service::Live | Service::Over => None,
        };
        self.waiting.iter().map(|waiting| waiting.deadline).chain(grace).min()
    }

    /// How a pod is; None if it is not kept.
    pub(super) fn check(&self, uid: &str) -> Option<View> {
        let incarnation = self.current(uid)?;
        let pod = self.pods.get(&incarnation)?;
        Some(View {
            incarnation,
            index: pod.index,
            ready: pod.phase == Phase::Ready,
            filled: pod.filled,
            serving: self.proxies.serve(incarnation),
            problem: self.problem(incarnation, pod).unwrap_or_default(),
        })
    }

    /// The pods that are kept.
    pub(super) fn kept(&self) -> impl Iterator<Item = KeptPod> {
        self.pods.iter().filter(|(_, pod)| pod.phase.is_current()).map(|(incarnation, pod)| KeptPod {
            info: Some(pod.info.clone()),
            index: pod.index,
            netns_cookie: pod.cookie,
            serving: self.proxies.serve(*incarnation),
        })
    }

    /// The pods whose listeners should lie in the slots, to be filled again when the map is another one.
    pub(super) fn filled(&self) -> impl Iterator<Item = (Incarnation, u32)> {
        self.pods.iter().filter(|(_, pod)| pod.filled).map(|(incarnation, pod)| (*incarnation, pod.index))
    }

    /// The removed pods whose connections may live.
    pub(super) fn draining(&self) -> impl Iterator<Item = Incarnation> {
        self.pods.iter().filter(|(_, pod)| pod.phase == Phase::Removing).map(|(incarnation, _)| *incarnation)
    }

    /// Whether this ztunnel may have sockets of this pod.
    pub(super) fn is_offered(&self, proxy: ProxyId, pod: &PodRef) -> bool {
        let incarnation = Incarnation(pod.incarnation);
        self.proxies.has(proxy, incarnation) && self.pods.get(&incarnation).is_some_and(|kept| kept.info.uid == pod.uid)
    }

    fn add(
        &mut self,
        now: Instant,
        request: RequestId,
        index: u32,
        info: &PodInfo,
        netns: NetnsId,
        out: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(format!("more than {MAX_WAITING} additions are without an answer"));
        }
        for pod in self.pods.values().filter(|pod| pod.phase != Phase::Removing && pod.info.uid != info.uid) {
            if pod.netns == netns {
                return Err(format!("its network namespace is that of pod {} ({})", pod.info, pod.info.uid));
            }
            if pod.index == index && pod.phase.is_current() {
                return Err(format!("its index {index} is that of pod {} ({})", pod.info, pod.info.uid));
            }
        }
        // What ztunnels were told about an incarnation never changes: other facts make another one.
        let same = self.pods.iter().find(|(_, pod)| match pod.phase {
            Phase::Making { .. } => pod.info.uid == info.uid && pod.netns == netns,
            Phase::Ready => pod.info == *info && pod.netns == netns,
            Phase::Removing => false,
        });
        let same = same.map(|(incarnation, _)| *incarnation);
        // One that was removed while it was being made may come back after another took its name.
        if let Some(former) = self.current(&info.uid).filter(|former| Some(*former) != same) {
            self.remove(former, "the agent added the pod anew", out);
        }
        let incarnation = match same {
            Some(incarnation) => {
                self.amend(incarnation, index, info, out);
                incarnation
            }
            None => self.admit(index, info, netns, out)?,
        };
        self.waiting.push(Waiting { request, incarnation, deadline: now + SERVE_TIMEOUT });
        Ok(())
    }

    /// Takes over what the agent says anew about a pod that is there.
    fn amend(&mut self, incarnation: Incarnation, index: u32, info: &PodInfo, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(&incarnation) else { return };
        if let Phase::Making { removed } = &mut pod.phase {
            *removed = false;
        }
        if pod.index != index {
            if std::mem::take(&mut pod.filled) {
                out.push(Action::Empty { incarnation, index: pod.index });
            }
            pod.index = index;
        }
        pod.info.clone_from(info);
    }

    /// Begins to keep a pod.
    fn admit(
        &mut self,
        index: u32,
        info: &PodInfo,
        netns: NetnsId,
        out: &mut Vec<Action>,
    ) -> Result<Incarnation, String> {
        if self.kept_count() >= MAX_PODS {
            return Err(format!("the keeper has {MAX_PODS} pods, more are not supported"));
        }
        let longest = self.draining().next();
        if let Some(longest) = longest.filter(|_| self.pods.len() >= MAX_KEPT) {
            self.release(longest, out);
        }
        self.last_incarnation += 1;
        let incarnation = Incarnation(self.last_incarnation);
        // A namespace whose former pod still drains has its listeners; a second set could not be bound. Of several the
        // one is taken that has sockets for names.
        let drains = |(_, pod): &(&Incarnation, &Pod)| pod.netns == netns && pod.phase == Phase::Removing;
        let formers = self.pods.iter().filter(drains);
        let reuse = formers.max_by_key(|(_, pod)| pod.makes_dns).map(|(incarnation, _)| *incarnation);
        let pod = Pod {
            info: info.clone(),
            index,
            netns,
            phase: Phase::Making { removed: false },
            cookie: 0,
            filled: false,
            resetting: false,
            slot_problem: None,
            makes_dns: info.dns,
        };
        self.pods.insert(incarnation, pod);
        out.push(Action::Make { incarnation, uid: info.uid.clone(), dns: info.dns, reuse });
        Ok(incarnation)
    }

    fn made(&mut self, incarnation: Incarnation, result: Result<u64, String>, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(&incarnation) else { return };
        let Phase::Making { removed } = pod.phase else { return };
        let result = match result {
            // The agent asks again.
            Ok(_) if pod.info.dns != pod.makes_dns => Err("capture of its questions was switched on or off".to_owned()),
            result => result,
        };
        match result {
            Ok(cookie) if !removed => {
                pod.cookie = cookie;
                pod.phase = Phase::Ready;
            }
            Ok(_) => self.release(incarnation, out),
            Err(error) => {
                let error = format!("pod {}: {error}", pod.info);
                self.fail_waiting(incarnation, &error, out);
                self.release(incarnation, out);
            }
        }
    }

    fn remove(&mut self, incarnation: Incarnation, why: &str, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(&incarnation) else { return };
        match &mut pod.phase {
            Phase::Making { removed } => *removed = true,
            phase => *phase = Phase::Removing,
        }
        self.fail_waiting(incarnation, why, out);
    }

    fn fail_waiting(&mut self, incarnation: Incarnation, why: &str, out: &mut Vec<Action>) {
        let uid = self.pods.get(&incarnation).map(|pod| pod.info.uid.clone()).unwrap_or_default();
        for waiting in self.waiting.extract_if(.., |waiting| waiting.incarnation == incarnation) {
            let added = Added { uid: uid.clone(), error: why.into(), ..Added::default() };
            out.push(Action::Answer { request: waiting.request, added });
        }
    }

    fn release(&mut self, incarnation: Incarnation, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.remove(&incarnation) else { return };
        if pod.resetting {
            out.push(Action::StopResetting { incarnation });
        }
        if pod.filled {
            out.push(Action::Empty { incarnation, index: pod.index });
        }
        self.proxies.forget(incarnation);
        out.push(Action::Release { incarnation });
    }

    /// Makes the world what it should be after an event. Everything that depends on more than one fact is here.
    fn settle(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.proxies.retire_older(out);
        self.service = match self.service {
            _ if self.proxies.any_accepts() => Service::Live,
            Service::Live => Service::Grace { until: now + self.grace },
            Service::Grace { until } if now >= until => Service::Over,
            other => other,
        };
        // Withdraw before offering: a slot or a queue never has two owners.
        for (incarnation, pod) in &mut self.pods {
            let (fill, reset) = pod.wanted(self.service);
            if pod.resetting && !reset {
                pod.resetting = false;
                out.push(Action::StopResetting { incarnation: *incarnation });
            }
            if pod.filled && !fill {
                pod.filled = false;
                pod.slot_problem = None;
                out.push(Action::Empty { incarnation: *incarnation, index: pod.index });
            }
        }
        let ready = self.pods.iter().filter(|(_, pod)| pod.phase == Phase::Ready);
        self.proxies.offer(ready.map(|(incarnation, pod)| (*incarnation, &pod.info)), out);
        for (incarnation, pod) in &mut self.pods {
            let (fill, reset) = pod.wanted(self.service);
            if fill && !pod.filled {
                pod.filled = true;
                out.push(Action::Fill { incarnation: *incarnation, index: pod.index });
            }
            if reset && !pod.resetting {
                pod.resetting = true;
                out.push(Action::StartResetting { incarnation: *incarnation });
            }
        }
        self.take_back(out);
        self.answer(now, out);
    }

    /// Takes removed pods back from the ztunnels and lets go of those that no ztunnel has.
    fn take_back(&mut self, out: &mut Vec<Action>) {
        let removing: Vec<Incarnation> = self.draining().collect();
        for incarnation in removing {
            let Some(pod) = self.pods.get(&incarnation) else { continue };
            if !self.proxies.take_back(incarnation, &pod.info.uid, out) {
                self.release(incarnation, out);
            }
        }
    }

    fn answer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|waiting| match self.verdict(waiting, now) {
            Some(added) => {
                out.push(Action::Answer { request: waiting.request, added });
                false
            }
            None => true,
        });
        self.waiting = waiting;
    }

    fn verdict(&self, waiting: &Waiting, now: Instant) -> Option<Added> {
        let pod = self.pods.get(&waiting.incarnation)?;
        let uid = pod.info.uid.clone();
        if pod.phase != Phase::Ready {
            let error = format!("its listeners were not made within {SERVE_TIMEOUT:?}");
            return (now >= waiting.deadline).then(|| Added { uid, error, ..Added::default() });
        }
        let problem = self.problem(waiting.incarnation, pod);
        let settled =
            problem.is_none() || pod.slot_problem.is_some() || self.proxies.failure(waiting.incarnation).is_some();
        (settled || now >= waiting.deadline).then(|| Added {
            uid,
            netns_cookie: pod.cookie,
            serving: problem.is_none(),
            problem: problem.unwrap_or_default(),
            error: String::new(),
        })
    }

    /// Why a pod is not served; None if it is.
    fn problem(&self, incarnation: Incarnation, pod: &Pod) -> Option<String> {
        if pod.phase != Phase::Ready {
            return Some("its listeners are being made".into());
        }
        if let Some(problem) = &pod.slot_problem {
            return Some(problem.clone());
        }
        if self.proxies.serve(incarnation) {
            return None;
        }
        Some(match self.proxies.failure(incarnation) {
            Some(error) => format!("the ztunnel does not serve it: {error}"),
            None if self.service == Service::Live => "the ztunnel has not acknowledged it".into(),
            None => "no ztunnel is connected".into(),
        })
    }

    fn current(&self, uid: &str) -> Option<Incarnation> {
        let matches = |pod: &Pod| pod.phase.is_current() && pod.info.uid == uid;
        self.pods.iter().find(|(_, pod)| matches(pod)).map(|(incarnation, _)| *incarnation)
    }

    fn kept_count(&self) -> usize {
        self.pods.values().filter(|pod| pod.phase.is_current()).count()
    }
}

impl Pod {
    /// Whether its slots should be filled, and whether its queues should be reset.
    fn wanted(&self, service: Service) -> (bool, bool) {
        match (self.phase, service) {
            (Phase::Ready, Service::Live) => (true, false),
            (Phase::Ready, Service::Grace { .. }) => (self.filled, false),
            (Phase::Ready, Service::Over) => (false, true),
            (Phase::Making { .. } | Phase::Removing, _) => (false, false),
        }
    }
}

#[cfg(test)]
mod tests;
