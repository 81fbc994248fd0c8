//! The roots for everybody who calls the control plane: a ConfigMap in every namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use loam_kube::{Client, Objects, Selection};
use loam_manifest::{Change, Kind, Object};
use loam_rt::explain;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Name of the ConfigMap, as pods mount it.
const NAME: &str = "istio-ca-root-cert";
/// The key in it.
const KEY: &str = "root-cert.pem";
/// Marks what is ours, as Istio does.
const LABEL: (&str, &str) = ("istio.io/config", "true");

/// Between two namespaces that are looked at: ten a second, whatever happens.
const PACE: Duration = Duration::from_millis(100);
/// A namespace that was well is looked at again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Keeps the roots in every namespace, while `leads` says so, for as long as it is polled.
pub async fn keep(client: Client, roots: String, mut leads: watch::Receiver<bool>) {
    let mut namespaces = Objects::stream(&client, [Selection::all(Kind::Namespace)]);
    let mut due = Due::default();
    let mut troubled = BTreeSet::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            update = namespaces.next() => match update {
                Some(update) => update.changes.into_iter().for_each(|change| due.change(change)),
                None => return,
            },
            changed = leads.changed() => if changed.is_err() {
                return;
            },
            _ = pace.tick(), if *leads.borrow() => {
                let Some(namespace) = due.next(Instant::now()) else { continue };
                match repair(&client, &namespace, &roots).await {
                    Ok(()) => drop(troubled.remove(&namespace)),
                    Err(error) => if due.times.contains_key(&namespace) && troubled.insert(Arc::clone(&namespace)) {
                        tracing::warn!(%namespace, error, "the roots cannot be published");
                    },
                }
                troubled.retain(|namespace| due.times.contains_key(namespace));
            }
        }
    }
}

/// Which namespaces are to be looked at, and from when on.
#[derive(Debug, Default)]
struct Due {
    times: BTreeMap<Arc<str>, Option<Instant>>,
    order: BTreeSet<(Option<Instant>, Arc<str>)>,
}

impl Due {
    fn change(&mut self, change: Change) {
        match change {
            Change::Applied(Object::Namespace(namespace)) => {
                let metadata = namespace.metadata;
                let name: Arc<str> = metadata.name.unwrap_or_default().into();
                // Nothing can be made in one that is being deleted.
                match metadata.deletion_timestamp {
                    Some(_) => self.set(&name, None),
                    None if self.times.contains_key(&name) => {}
                    None => self.set(&name, Some(None)),
                }
            }
            Change::Deleted(key) => self.set(&key.name, None),
            Change::Applied(_) => {}
        }
    }

    fn set(&mut self, name: &Arc<str>, time: Option<Option<Instant>>) {
        if let Some(old) = self.times.remove(name) {
            self.order.remove(&(old, Arc::clone(name)));
        }
        if let Some(time) = time {
            self.times.insert(Arc::clone(name), time);
            self.order.insert((time, Arc::clone(name)));
        }
    }

    /// The one that waits longest; new ones first.
    fn next(&mut self, now: Instant) -> Option<Arc<str>> {
        let (time, name) = self.order.first().cloned()?;
        if time.is_some_and(|time| now < time) {
            return None;
        }
        self.set(&name, Some(Some(now + AGAIN)));
        Some(name)
    }
}

/// Looks at one namespace and puts right what is not.
async fn repair(client: &Client, namespace: &str, roots: &str) -> Result<(), String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let work = async {
        let params = PostParams::default();
        match maps.get_opt(NAME).await? {
            None => maps.create(&params, &wanted(None, roots)).await.map(drop),
            Some(found) if is_right(&found, roots) => Ok(()),
            Some(found) => maps.replace(NAME, &params, &wanted(Some(found), roots)).await.map(drop),
        }
    };
    match timeout(DEADLINE, work).await {
        Ok(Ok(())) => Ok(()),
        // Somebody else was faster; the next look tells whether it is right.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(format!(
            "ConfigMap {NAME}: forbidden; a ClusterRole of this program's service account must have the rule {{apiGroups: \
             [\"\"], resources: [configmaps], verbs: [get, create, update]}}: {}",
            status.message
        )),
        Ok(Err(error)) => Err(format!("ConfigMap {NAME}: {}", explain(&error))),
        Err(_) => Err(format!("ConfigMap {NAME}: no answer within {} s", DEADLINE.as_secs())),
    }
}

fn is_right(found: &ConfigMap, roots: &str) -> bool {
    let data = found.data.as_ref().and_then(|data| data.get(KEY));
    let labels = found.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL.0));
    data.is_some_and(|text| text == roots) && labels.is_some_and(|value| value == LABEL.1)
}

/// What the ConfigMap shall be. What others put beside the roots stays.
fn wanted(found: Option<ConfigMap>, roots: &str) -> ConfigMap {
    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
    let mut map = found.unwrap_or_else(|| ConfigMap { metadata, ..ConfigMap::default() });
    map.data.get_or_insert_default().insert(KEY.to_owned(), roots.to_owned());
    map.metadata.labels.get_or_insert_default().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
    map
}

#[cfg(test)]
mod tests;
