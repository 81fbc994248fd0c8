//! The ztunnels that are connected: which of them accept, which pods each was offered, and what it says of them.

use super::{Action, Incarnation, MAX_KEPT, ProxyId};
use loam_node::message::{PodInfo, PodRef};
use std::collections::{BTreeMap, BTreeSet};

/// Every ztunnel, oldest first.
#[derive(Debug, Default)]
pub(super) struct Proxies(BTreeMap<ProxyId, Proxy>);

#[derive(Debug, Default)]
struct Proxy {
    /// It was told to retire or said that it leaves: it accepts no more.
    retired: bool,
    snapshot_sent: bool,
    serving_said: bool,
    /// The uids of pods that it has from a former keeper, at most [`MAX_KEPT`].
    held: BTreeSet<String>,
    /// The pods it was offered and has not given back.
    pods: BTreeMap<Incarnation, Offer>,
}

#[derive(Debug)]
struct Offer {
    ack: Option<Result<(), String>>,
    taken_back: bool,
}

impl Proxies {
    /// One has said hello.
    pub(super) fn connected(&mut self, proxy: ProxyId, leaving: bool) {
        self.0.insert(proxy, Proxy { retired: leaving, ..Proxy::default() });
    }

    /// One has a pod from a former keeper.
    pub(super) fn held(&mut self, proxy: ProxyId, uid: String) {
        if let Some(proxy) = self.0.get_mut(&proxy)
            && proxy.held.len() < MAX_KEPT
        {
            proxy.held.insert(uid);
        }
    }

    /// One is gone.
    pub(super) fn gone(&mut self, proxy: ProxyId) {
        self.0.remove(&proxy);
    }

    /// One answers about a pod.
    pub(super) fn acked(&mut self, proxy: ProxyId, incarnation: Incarnation, result: Result<(), String>) {
        if let Some(offer) = self.offered(proxy, incarnation) {
            offer.ack = Some(result);
        }
    }

    /// One serves its snapshot.
    pub(super) fn serving(&mut self, proxy: ProxyId) {
        if let Some(proxy) = self.0.get_mut(&proxy) {
            proxy.serving_said = true;
        }
    }

    /// One accepts no more.
    pub(super) fn leaving(&mut self, proxy: ProxyId) {
        if let Some(proxy) = self.0.get_mut(&proxy) {
            proxy.retired = true;
        }
    }

    /// One has ended its last connection of a pod. Only what was taken back can be given back: a pod that is kept stays
    /// offered.
    pub(super) fn drained(&mut self, proxy: ProxyId, incarnation: Incarnation) {
        if self.offered(proxy, incarnation).is_some_and(|offer| offer.taken_back)
            && let Some(proxy) = self.0.get_mut(&proxy)
        {
            proxy.pods.remove(&incarnation);
        }
    }

    /// A pod is let go.
    pub(super) fn forget(&mut self, incarnation: Incarnation) {
        for proxy in self.0.values_mut() {
            proxy.pods.remove(&incarnation);
        }
    }

    /// Whether there is one that accepts.
    pub(super) fn any_accepts(&self) -> bool {
        self.0.values().any(|proxy| !proxy.retired)
    }

    /// Whether this one has this pod.
    pub(super) fn has(&self, proxy: ProxyId, incarnation: Incarnation) -> bool {
        self.0.get(&proxy).is_some_and(|proxy| proxy.pods.contains_key(&incarnation))
    }

    /// Whether one that accepts serves a pod.
    pub(super) fn serve(&self, incarnation: Incarnation) -> bool {
        let serves = |proxy: &Proxy| matches!(proxy.pods.get(&incarnation), Some(Offer { ack: Some(Ok(())), .. }));
        self.0.values().any(|proxy| !proxy.retired && serves(proxy))
    }

    /// Why the newest one that accepts does not serve a pod, if it said so and no other serves it.
    pub(super) fn failure(&self, incarnation: Incarnation) -> Option<&str> {
        let newest = self.0.values().rev().find(|proxy| !proxy.retired)?;
        match newest.pods.get(&incarnation)?.ack.as_ref()? {
            Err(error) if !self.serve(incarnation) => Some(error),
            _ => None,
        }
    }

    /// Retires every one that is older than one that serves. When it does is its own word: it alone knows whether a pod
    /// that it cannot serve yet is worth waiting for.
    pub(super) fn retire_older(&mut self, out: &mut Vec<Action>) {
        let serves = |proxy: &Proxy| !proxy.retired && proxy.snapshot_sent && proxy.serving_said;
        let newest = self.0.iter().rev().find(|(_, proxy)| serves(proxy)).map(|(id, _)| *id);
        let Some(newest) = newest else { return };
        for (id, older) in self.0.range_mut(..newest) {
            if !std::mem::replace(&mut older.retired, true) {
                out.push(Action::SendRetire { proxy: *id });
            }
        }
    }

    /// Offers these pods to all that accept and do not have them. One that accepts no more is offered what it has from a
    /// former keeper: its open connections, and those that still come in its open tunnels, need sockets.
    pub(super) fn offer<'a>(
        &mut self,
        pods: impl Iterator<Item = (Incarnation, &'a PodInfo)> + Clone,
        out: &mut Vec<Action>,
    ) {
        for (id, proxy) in &mut self.0 {
            for (incarnation, info) in pods.clone() {
                if proxy.retired && !proxy.held.contains(&info.uid) {
                    continue;
                }
                proxy.pods.entry(incarnation).or_insert_with(|| {
                    out.push(Action::SendAdd { proxy: *id, incarnation, info: info.clone() });
                    Offer { ack: None, taken_back: false }
                });
            }
            if !proxy.retired && !std::mem::replace(&mut proxy.snapshot_sent, true) {
                out.push(Action::SendSnapshotSent { proxy: *id });
            }
        }
    }

    /// Takes a pod back from all that have it; whether one still has it.
    pub(super) fn take_back(&mut self, incarnation: Incarnation, uid: &str, out: &mut Vec<Action>) -> bool {
        let mut held = false;
        for (id, proxy) in &mut self.0 {
            let Some(offer) = proxy.pods.get_mut(&incarnation) else { continue };
            held = true;
            if !std::mem::replace(&mut offer.taken_back, true) {
                let pod = PodRef { uid: uid.into(), incarnation: incarnation.0 };
                out.push(Action::SendRemove { proxy: *id, pod });
            }
        }
        held
    }

    fn offered(&mut self, proxy: ProxyId, incarnation: Incarnation) -> Option<&mut Offer> {
        self.0.get_mut(&proxy)?.pods.get_mut(&incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Incarnation = Incarnation(1);

    fn connected(proxies: &[u64]) -> Proxies {
        let mut all = Proxies::default();
        for &proxy in proxies {
            all.connected(ProxyId(proxy), false);
        }
        all.offer([(POD, &PodInfo::default())].into_iter(), &mut Vec::new());
        all
    }

    #[test]
    fn a_pod_is_offered_once_and_only_to_those_that_accept() {
        let mut proxies = connected(&[1, 2]);
        proxies.leaving(ProxyId(1));
        let mut out = Vec::new();
        proxies.offer([(POD, &PodInfo::default()), (Incarnation(2), &PodInfo::default())].into_iter(), &mut out);
        let expected = Action::SendAdd { proxy: ProxyId(2), incarnation: Incarnation(2), info: PodInfo::default() };
        assert_eq!(out, [expected]);
    }

    #[test]
    fn a_failure_counts_only_while_nobody_serves() {
        let mut proxies = connected(&[1, 2]);
        proxies.acked(ProxyId(2), POD, Err("no certificate".into()));
        assert_eq!(proxies.failure(POD), Some("no certificate"));
        proxies.acked(ProxyId(1), POD, Ok(()));
        assert_eq!((proxies.failure(POD), proxies.serve(POD)), (None, true));
        proxies.leaving(ProxyId(1));
        assert_eq!((proxies.failure(POD), proxies.serve(POD)), (Some("no certificate"), false));
    }

    #[test]
    fn what_was_not_taken_back_is_not_given_back() {
        let mut proxies = connected(&[1]);
        proxies.drained(ProxyId(1), POD);
        assert!(proxies.has(ProxyId(1), POD));
        assert!(proxies.take_back(POD, "a", &mut Vec::new()));
        proxies.drained(ProxyId(1), POD);
        assert!(!proxies.take_back(POD, "a", &mut Vec::new()));
    }
}
