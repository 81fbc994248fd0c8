//! Writes a notice on the object of a pod, and an event beside it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::notice::{CONDITION, ENABLED, Notice, REDIRECTION, condition};
use crate::pods::Uid;
use crate::pods::spec::uid;

/// Who writes.
const COMPONENT: &str = "loam-agent";

/// How long the API server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A notice that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writing {
    /// The pod's uid.
    pub uid: Uid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What to say.
    pub notice: Notice,
    /// Whether the condition's status becomes another one.
    pub turns: bool,
    /// Whether an event says so, too.
    pub tells: bool,
}

impl Writing {
    /// What makes the object of a pod say this.
    pub fn new(pod: &Pod, notice: Notice) -> Self {
        let former = condition(pod);
        let status = if notice.reason.is_captured() { "True" } else { "False" };
        let reason = former.and_then(|former| former.reason.as_deref());
        Self {
            uid: uid(pod),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            turns: former.is_none_or(|former| former.status != status),
            tells: reason != Some(notice.reason.as_str()),
            notice,
        }
    }

    /// Writes it. An error says what could not be written, and why.
    pub async fn write(&self, client: &Client, node: &str) -> Result<(), String> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let patch = Patch::Strategic(self.patch());
        match answered(pods.patch_status(&self.name, &PatchParams::default(), &patch)).await {
            Ok(_) => {}
            // Nobody will miss it.
            Err(Failure::Gone) => return Ok(()),
            Err(failure) => return Err(failure.told("patch", "pods/status", "patch")),
        }
        if !self.tells {
            return Ok(());
        }
        let events: Api<Event> = Api::namespaced(client.clone(), &self.namespace);
        let event = self.event(node);
        match answered(events.create(&PostParams::default(), &event)).await {
            Ok(_) | Err(Failure::Gone) => Ok(()),
            Err(failure) => Err(failure.told("create", "events", "create")),
        }
    }

    /// Conditions are merged by their type. With its uid no other pod of that name is meant.
    fn patch(&self) -> Value {
        let is_captured = self.notice.reason.is_captured();
        let mut condition = json!({
            "type": CONDITION,
            "status": if is_captured { "True" } else { "False" },
            "reason": self.notice.reason.as_str(),
            "message": self.notice.message,
        });
        if self.turns {
            condition["lastTransitionTime"] = format!("{:.0}", Timestamp::now()).into();
        }
        json!({
            "metadata": {"uid": self.uid, "annotations": {REDIRECTION: is_captured.then_some(ENABLED)}},
            "status": {"conditions": [condition]},
        })
    }

    fn event(&self, node: &str) -> Event {
        let now = Timestamp::now();
        let text = |text: &str| Some(text.to_owned());
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{COMPONENT}-")),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: text("v1"),
                kind: text("Pod"),
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                uid: Some(self.uid.clone()),
                ..ObjectReference::default()
            },
            type_: text(if self.notice.reason.is_good() { "Normal" } else { "Warning" }),
            reason: text(self.notice.reason.as_str()),
            message: Some(self.notice.message.clone()),
            source: Some(EventSource { component: text(COMPONENT), host: text(node) }),
            reporting_component: text(COMPONENT),
            reporting_instance: text(node),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        }
    }
}

enum Failure {
    Gone,
    Forbidden(String),
    Other(String),
}

impl Failure {
    fn told(self, what: &str, resource: &str, verb: &str) -> String {
        match self {
            Failure::Forbidden(message) => format!(
                "{what} {resource}: forbidden; a ClusterRole of this program's service account must have the rule \
                 {{apiGroups: [\"\"], resources: [{resource}], verbs: [{verb}]}}: {message}"
            ),
            Failure::Other(message) => format!("{what} {resource}: {message}"),
            Failure::Gone => format!("{what} {resource}: the pod is gone"),
        }
    }
}

async fn answered<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match timeout(TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            404 => Failure::Gone,
            403 => Failure::Forbidden(status.message.clone()),
            code => Failure::Other(format!("the API server answers {code}: {}", status.message)),
        }),
        Ok(Err(error)) => Err(Failure::Other(loam_rt::explain(&error))),
        Err(_) => Err(Failure::Other(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}
