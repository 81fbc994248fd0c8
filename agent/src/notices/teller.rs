//! Has the objects of this node's pods say how their pods are, one write after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use loam_kube::Client;
use tokio::task::JoinSet;
use tracing::warn;

use super::{Notices, Standing, Writing};
use crate::pods::Registry;
use crate::pods::registry::State;
use crate::pods::source::Source;
use crate::pods::spec::uid;

/// Writes notices at an API server.
pub struct Teller {
    client: Client,
    node: Arc<str>,
    notices: Notices,
    writes: JoinSet<(Writing, Result<(), String>)>,
    /// Why one could not be written, told once.
    problem: Option<String>,
}

impl Teller {
    /// Of the pods of `node`.
    pub fn new(client: Client, node: Arc<str>) -> Self {
        Self { client, node, notices: Notices::default(), writes: JoinSet::new(), problem: None }
    }

    /// Begins the writes that are due.
    pub fn tell(&mut self, source: &Source, registry: &Registry) {
        let views: HashMap<_, _> = registry.views().map(|view| (view.uid, (view.state, view.reason))).collect();
        let pods: Vec<_> = source
            .pods()
            .map(|(pod, belongs)| {
                let view = views.get(&uid(pod)).copied();
                let outside = belongs.err().map(|why| why.to_string()).unwrap_or_default();
                let blocked = match view {
                    Some((State::Enrolled, _)) => {
                        source.blocking(pod).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                    }
                    Some(_) | None => String::new(),
                };
                (pod, view, outside, blocked)
            })
            .collect();
        let standing = pods.iter().map(|(pod, view, outside, blocked)| {
            let view = *view;
            (*pod, Standing { outside, view, blocked })
        });
        for writing in self.notices.next(standing, Instant::now()) {
            let (client, node) = (self.client.clone(), self.node.clone());
            self.writes.spawn(async move {
                let written = writing.write(&client, &node).await;
                (writing, written)
            });
        }
    }

    /// When the next write is due.
    pub fn due_at(&self) -> Option<Instant> {
        self.notices.due_at()
    }

    /// Waits until a write has ended, and takes note of how; for ever while there is none. May be dropped at any time.
    pub async fn settle(&mut self) {
        let Some(Ok((writing, written))) = self.writes.join_next().await else { return std::future::pending().await };
        match &written {
            Ok(()) => self.problem = None,
            Err(error) if self.problem.as_ref() == Some(error) => {}
            Err(error) => {
                let (namespace, name) = (&writing.namespace, &writing.name);
                warn!(
                    pod = format!("{namespace}/{name}"),
                    error, "cannot say on the pod's object how it is; trying again"
                );
                self.problem = Some(error.clone());
            }
        }
        self.notices.written(writing, written.is_ok(), Instant::now());
    }
}
