//! `loam waypoint delete`: takes waypoints away.

use k8s_openapi::api::core::v1::{Namespace, Service};
use loam_kube::AskError;
use serde::Serialize;

use super::gateway::Gateway;
use super::{Note, USE_LABEL, named, nothing};
use crate::args::waypoint::Delete;
use crate::fault::Fault;
use crate::output::{Look, Report};
use crate::session::Session;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Deleted {
    namespace: String,
    deleted: Vec<String>,
    /// Those that were not there.
    missing: Vec<String>,
    notes: Vec<Note>,
}

impl Deleted {
    /// Whether all that were named were there.
    pub fn complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Takes waypoints away, and tells who still names them.
pub async fn run(session: &Session, namespace: &str, args: &Delete) -> Result<Deleted, Fault> {
    let (chosen, mut missing) = choose(&super::all(session, Some(namespace)).await?, args);
    let mut deleted = Vec::new();
    for name in chosen {
        match session.cluster.delete::<Gateway>(Some(namespace), &name).await? {
            true => deleted.push(name),
            false => missing.push(name),
        }
    }
    let object: Option<Namespace> = if_allowed(session.cluster.get(None, namespace).await)?;
    let services: Vec<Service> = if_allowed(session.cluster.list(Some(namespace), Some(USE_LABEL)).await)?;
    let notes = left_behind(namespace, &deleted, object.as_ref(), &services);
    Ok(Deleted { namespace: namespace.to_owned(), deleted, missing, notes })
}

/// Names of the waypoints that are meant, and of those that are not there.
fn choose(waypoints: &[Gateway], args: &Delete) -> (Vec<String>, Vec<String>) {
    if args.names.is_empty() {
        let revision = args.revision.as_deref();
        let meant = waypoints.iter().filter(|gateway| revision.is_none() || gateway.revision() == revision);
        return (meant.map(|gateway| gateway.name().to_owned()).collect(), Vec::new());
    }
    let mut names = args.names.clone();
    names.sort();
    names.dedup();
    names.into_iter().partition(|name| waypoints.iter().any(|gateway| gateway.name() == name))
}

/// Who may delete a waypoint need not be allowed to see who names it.
fn if_allowed<T: Default>(answer: Result<T, AskError>) -> Result<T, Fault> {
    match answer {
        Err(AskError::Forbidden { .. }) => Ok(T::default()),
        answer => Ok(answer?),
    }
}

/// Who of the namespace names a waypoint that is gone.
fn left_behind(own: &str, deleted: &[String], namespace: Option<&Namespace>, services: &[Service]) -> Vec<Note> {
    let gone = |metadata| {
        let (of, name) = named(metadata, own)?;
        (of == own && deleted.iter().any(|deleted| deleted == name)).then(|| name.to_owned())
    };
    let note = |who: String, waypoint: String, labelled: String| Note {
        message: format!(
            "{who} names waypoint {waypoint}, which is gone: until it is back, connections that have to pass it are refused."
        ),
        remedy: format!("kubectl label {labelled} {USE_LABEL}-"),
    };
    let namespace = namespace.and_then(|namespace| gone(&namespace.metadata));
    let namespace = namespace.map(|waypoint| note(format!("Namespace {own}"), waypoint, format!("namespace {own}")));
    let services = services.iter().filter_map(|service| {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let waypoint = gone(&service.metadata)?;
        Some(note(format!("Service {own}/{name}"), waypoint, format!("service --namespace {own} {name}")))
    });
    namespace.into_iter().chain(services).collect()
}

impl Report for Deleted {
    fn text(&self, look: Look) -> String {
        let Self { namespace, deleted, missing, notes } = self;
        if deleted.is_empty() && missing.is_empty() {
            return nothing(Some(namespace));
        }
        let mut text = String::new();
        text.extend(deleted.iter().map(|name| format!("Waypoint {namespace}/{name} is deleted.\n")));
        text.extend(missing.iter().map(|name| format!("There is no waypoint {namespace}/{name}.\n")));
        text.extend(notes.iter().map(|note| note.text(look)));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waypoint(name: &str, revision: &str) -> Gateway {
        let labels = if revision.is_empty() { json!({}) } else { json!({"istio.io/rev": revision}) };
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}})).unwrap()
    }

    #[test]
    fn those_that_are_meant_are_deleted_and_no_others() {
        let waypoints = [waypoint("a", ""), waypoint("b", "v1"), waypoint("c", "v2")];
        let chosen = |names: &[&str], all, revision: Option<&str>| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            choose(&waypoints, &Delete { names, all, revision: revision.map(str::to_owned) })
        };
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&["b", "x", "a", "b"], false, None), (list(&["a", "b"]), list(&["x"])));
        assert_eq!(chosen(&[], true, None), (list(&["a", "b", "c"]), list(&[])));
        assert_eq!(chosen(&[], false, Some("v1")), (list(&["b"]), list(&[])));
        assert_eq!(chosen(&[], true, Some("v3")), (list(&[]), list(&[])));
    }

    #[test]
    fn who_still_names_what_is_gone_is_told() {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "shop", "labels": {USE_LABEL: "w"}}})).unwrap();
        let service = |name: &str, labels: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let services = [
            service("own", json!({USE_LABEL: "w"})),
            service("other", json!({USE_LABEL: "x"})),
            service("foreign", json!({USE_LABEL: "w", "istio.io/use-waypoint-namespace": "infra"})),
        ];
        let told = |deleted: &[&str]| -> Vec<String> {
            let deleted: Vec<String> = deleted.iter().map(|name| (*name).to_owned()).collect();
            left_behind("shop", &deleted, Some(&namespace), &services).into_iter().map(|note| note.remedy).collect()
        };
        let expected = [
            "kubectl label namespace shop istio.io/use-waypoint-",
            "kubectl label service --namespace shop own istio.io/use-waypoint-",
        ];
        assert_eq!(told(&["w"]), expected);
        assert!(told(&["y"]).is_empty());
    }
}
