//! Writes what is wished to the API server, while this controller leads: waypoints with their parts, and the status of
//! gateways, classes, routes, policies and whoever names a waypoint.

mod api;
mod done;
mod make;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use loam_kube::Client;
use loam_manifest::{Key, Kind};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::index::{Wish, Wishes};
use crate::provision::Template;
use crate::resource::Name;
use crate::resource::gateway::{CLASS, CONTROLLER};
use crate::status::gateway::Waypoint;
use crate::status::{Condition, patch};
use api::{Api, Trouble};
use done::{Done, Task};

/// Objects that are looked at in one go, and so many at one time: hundreds in a second, and never all at once.
const BATCH: usize = 64;
const AT_ONCE: usize = 8;
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(250);

/// A definition of the Gateway API, and where it says its version.
const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gatewayclasses.gateway.networking.k8s.io";
const VERSION: &str = "/metadata/annotations/gateway.networking.k8s.io~1bundle-version";

/// Writes for as long as it is polled. Without a `template` no waypoint is made.
pub async fn keep(
    client: Client,
    template: Option<Template>,
    mut wishes: watch::Receiver<Arc<Wishes>>,
    mut leads: watch::Receiver<bool>,
) {
    let writer = Writer { api: Api::new(client), template: template.map(Arc::new) };
    let mut done = Done::default();
    let mut told = BTreeSet::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ended = tokio::select! {
            changed = wishes.changed() => changed.is_err(),
            changed = leads.changed() => changed.is_err(),
            _ = look.tick() => false,
        };
        if ended {
            return;
        }
        if !*leads.borrow() {
            // Whoever leads meanwhile may have written something else.
            done = Done::default();
            continue;
        }
        loop {
            let wished = Arc::clone(&wishes.borrow_and_update());
            done.forget(&wished, Instant::now());
            let due = done.due(&wished, Instant::now(), BATCH);
            if due.is_empty() || !*leads.borrow() {
                break;
            }
            for (task, outcome) in writer.work(due).await {
                tell(&mut told, &task, &outcome);
                done.note(task, outcome.is_ok(), Instant::now());
            }
        }
    }
}

/// Most texts that are remembered, so as not to say them again.
const MAX_TOLD: usize = 1_000;

/// Says once what cannot be written.
fn tell(told: &mut BTreeSet<String>, task: &Task, outcome: &Result<(), Trouble>) {
    match outcome {
        Ok(()) | Err(Trouble::Outrun | Trouble::Absent) => {}
        Err(Trouble::Failed(why)) => {
            let text = format!("{task}: {why}");
            if told.len() > MAX_TOLD {
                told.clear();
            }
            if told.insert(text.clone()) {
                tracing::warn!(error = text, "cannot be written to the API server, and is tried again");
            }
        }
    }
}

#[derive(Clone)]
struct Writer {
    api: Api,
    template: Option<Arc<Template>>,
}

impl Writer {
    async fn work(&self, due: Vec<Task>) -> Vec<(Task, Result<(), Trouble>)> {
        let mut outcomes = Vec::new();
        let mut running = JoinSet::new();
        for task in due {
            if running.len() >= AT_ONCE {
                outcomes.extend(running.join_next().await.and_then(Result::ok));
            }
            let writer = self.clone();
            running.spawn(async move {
                let outcome = writer.one(&task).await;
                (task, outcome)
            });
        }
        while let Some(outcome) = running.join_next().await {
            outcomes.extend(outcome.ok());
        }
        outcomes
    }

    async fn one(&self, task: &Task) -> Result<(), Trouble> {
        match task {
            Task::Class => self.make_class().await,
            Task::Waypoint(name, waypoint) => self.waypoint(name, waypoint).await,
            Task::Told(key, wish) => self.told(key, wish).await,
            Task::Unbound(key) => self.unbound(key).await,
        }
    }

    /// Makes the class of waypoints, so that nobody has to.
    async fn make_class(&self) -> Result<(), Trouble> {
        let class = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": CONTROLLER, "description": "Waypoints of the ambient mesh"},
        });
        match self.api.create("/apis/gateway.networking.k8s.io/v1/gatewayclasses", &class).await {
            // Somebody was faster: it comes with the next news.
            Ok(_) | Err(Trouble::Outrun) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    async fn waypoint(&self, name: &Name, waypoint: &Waypoint) -> Result<(), Trouble> {
        let made = match &self.template {
            Some(template) => make::make(&self.api, template, name, waypoint).await?,
            None => Ok(()),
        };
        let key = Key { kind: Kind::Gateway, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) };
        let generation = waypoint.gateway.generation;
        self.api
            .status(&key, generation, |current, now| {
                crate::status::gateway::gateway(current, waypoint, made.as_ref().copied(), now)
            })
            .await
            .map(drop)
    }

    async fn told(&self, key: &Key, wish: &Wish) -> Result<(), Trouble> {
        let of = |current: Option<&Value>, field: &str| current.and_then(|current| current.get(field)).cloned();
        match wish {
            Wish::Route(route) => {
                let status = |current: Option<&Value>, now: &str| {
                    let old = of(current, "parents");
                    json!({"parents": patch::parents(old.as_ref(), &route.parents, route.generation, now)})
                };
                self.api.status(key, route.generation, status).await.map(drop)
            }
            Wish::Policy(generation, ancestors) => {
                let status = |current: Option<&Value>, now: &str| {
                    let old = of(current, "ancestors");
                    json!({"ancestors": patch::ancestors(old.as_ref(), ancestors, *generation, now)})
                };
                self.api.status(key, *generation, status).await.map(drop)
            }
            Wish::Class(generation) => {
                let definition = self.api.get(DEFINITION).await?;
                let version = definition.as_ref().and_then(|d| d.pointer(VERSION)).and_then(Value::as_str);
                let status = |current: Option<&Value>, now: &str| {
                    crate::status::gateway::class(current, *generation, version, now)
                };
                self.api.status(key, *generation, status).await.map(drop)
            }
            Wish::Bound(generation, condition) => {
                let status = |current: Option<&Value>, now: &str| {
                    let old = of(current, "conditions");
                    let wished = std::slice::from_ref(condition);
                    json!({"conditions": patch::conditions(old.as_ref(), wished, &[condition.kind], *generation, now)})
                };
                match self.api.status(key, *generation, status).await? {
                    Some(object) if !condition.holds => self.warn(key, &object, condition).await,
                    Some(_) | None => Ok(()),
                }
            }
        }
    }

    /// Takes back what was told to somebody who names no waypoint any more.
    async fn unbound(&self, key: &Key) -> Result<(), Trouble> {
        let status = |current: Option<&Value>, now: &str| {
            let old = current.and_then(|current| current.get("conditions"));
            json!({"conditions": patch::conditions(old, &[], &[crate::index::WAYPOINT_BOUND], None, now)})
        };
        self.api.status(key, None, status).await.map(drop)
    }

    /// An Event about somebody whose waypoint is not there. News, and never an input: one that is lost is lost.
    async fn warn(&self, key: &Key, object: &Value, condition: &Condition) -> Result<(), Trouble> {
        let now = jiff::Timestamp::now();
        let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("{}.{:x}", key.name, now.as_nanosecond()), "namespace": &*key.namespace},
            "involvedObject": {
                "apiVersion": key.kind.api_versions()[0],
                "kind": key.kind.as_str(),
                "namespace": &*key.namespace,
                "name": &*key.name,
                "uid": object.pointer("/metadata/uid"),
            },
            "type": "Warning",
            "reason": condition.reason.to_string(),
            "message": condition.message,
            "source": {"component": "loam-controller"},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        });
        match self.api.create(&format!("/api/v1/namespaces/{}/events", key.namespace), &event).await {
            Err(Trouble::Failed(why)) => {
                tracing::debug!(why, "an Event was not written");
                Ok(())
            }
            Ok(_) | Err(Trouble::Absent | Trouble::Outrun) => Ok(()),
        }
    }
}
