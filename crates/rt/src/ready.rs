//! Whether the process may receive traffic: named gates, all of which must be open.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The gates of a process. Make every gate before readiness is served: without a pending gate it is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    gates: Arc<watch::Sender<Gates>>,
}

/// Name of each gate, and what it waits for while it is pending.
type Gates = BTreeMap<&'static str, Option<String>>;

/// One condition of readiness. It starts pending, and a gate dropped while pending stays so: its owner failed.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    gates: Arc<watch::Sender<Gates>>,
}

impl Default for Ready {
    fn default() -> Self {
        Self { gates: Arc::new(watch::Sender::new(Gates::new())) }
    }
}

impl Ready {
    /// A pending gate. Names are for people: `configuration`, `pods`.
    pub fn gate(&self, name: &'static str) -> Gate {
        self.gates.send_modify(|gates| {
            gates.insert(name, Some(String::from("not yet")));
        });
        Gate { name, gates: Arc::clone(&self.gates) }
    }

    /// Whether no gate is pending.
    pub fn is_ready(&self) -> bool {
        is_ready(&self.gates.borrow())
    }

    /// Ready once no gate is pending.
    pub async fn wait(&self) {
        // The sender is in `self`, so the channel cannot close while this waits.
        let _ = self.gates.subscribe().wait_for(is_ready).await;
    }

    /// What is waited for, one line per gate; empty when ready.
    pub fn pending(&self) -> String {
        let gates = self.gates.borrow();
        let pending = gates.iter().filter_map(|(name, why)| Some(format!("{name}: {}\n", why.as_ref()?)));
        pending.collect()
    }
}

fn is_ready(gates: &Gates) -> bool {
    gates.values().all(Option::is_none)
}

impl Gate {
    /// The condition holds.
    pub fn open(&self) {
        self.set(None);
    }

    /// The condition does not hold (any more), and why.
    pub fn lose(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    fn set(&self, why: Option<String>) {
        self.gates.send_if_modified(|gates| match gates.get_mut(self.name) {
            Some(current) if *current != why => {
                *current = why;
                true
            }
            Some(_) | None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_gate_is_open() {
        let ready = Ready::default();
        let (configuration, pods) = (ready.gate("configuration"), ready.gate("pods"));
        assert!(!ready.is_ready());
        configuration.open();
        assert_eq!(ready.pending(), "pods: not yet\n");
        pods.open();
        assert!(ready.is_ready());
        assert_eq!(ready.pending(), "");
    }

    #[test]
    fn an_open_gate_can_be_lost() {
        let ready = Ready::default();
        let pods = ready.gate("pods");
        pods.open();
        pods.lose("the keeper is gone");
        assert!(!ready.is_ready());
        assert_eq!(ready.pending(), "pods: the keeper is gone\n");
        pods.open();
        assert!(ready.is_ready());
    }

    #[test]
    fn a_gate_dropped_while_pending_keeps_the_process_unready() {
        let ready = Ready::default();
        drop(ready.gate("pods"));
        assert!(!ready.is_ready());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_gate() {
        let ready = Ready::default();
        let gate = ready.gate("pods");
        let waiting = tokio::spawn({
            let ready = ready.clone();
            async move { ready.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.open();
        waiting.await.unwrap();
    }
}
