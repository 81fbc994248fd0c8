//! `loam waypoint apply`: makes a waypoint, and puts it in front of its namespace.

use k8s_openapi::api::core::v1::Namespace;
use loam_kube::AskError;
use loam_manifest::enrol::{MODE_LABEL, namespace_in};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::gateway::{CLASS, Gateway, Obstacle, manifest};
use super::{Note, USE_LABEL, USE_NAMESPACE_LABEL, named, no_gateway_api, no_waypoint};
use crate::args::waypoint::{Apply, Wanted};
use crate::code::Code;
use crate::enroll::PAUSE;
use crate::fault::Fault;
use crate::output::{Look, Report};
use crate::session::Session;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Applied {
    namespace: String,
    name: String,
    /// Whether it was waited for.
    programmed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    enrolment: Option<Enrolment>,
    notes: Vec<Note>,
}

/// What became of the labels of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Enrolment {
    /// They name the waypoint.
    Labelled,
    /// They did so before.
    Already,
}

/// Makes a waypoint, or makes it what is asked for.
pub async fn run(session: &Session, namespace: &str, args: &Apply) -> Result<Applied, Fault> {
    let name = &args.wanted.name;
    let found = session.namespace(namespace).await?;
    let change = match args.enroll_namespace {
        true => enrolment(&found, args)?,
        false => None,
    };
    if let Some(gateway) = session.cluster.get(Some(namespace), name).await? {
        refuse_other(&gateway, &args.wanted)?;
    }
    let object = manifest(Some(namespace), &args.wanted);
    session.cluster.apply::<Gateway>(Some(namespace), name, &object).await.map_err(|e| refused(e, namespace, args))?;
    if args.wait {
        wait(session, namespace, args).await?;
    }
    // What names a waypoint that is not there is refused.
    if let Some(change) = &change {
        session.cluster.patch::<Namespace>(None, namespace, change, false).await?;
    }
    let enrolment = args.enroll_namespace.then_some(match change {
        Some(_) => Enrolment::Labelled,
        None => Enrolment::Already,
    });
    let notes = if args.enroll_namespace { notes(&found) } else { Vec::new() };
    Ok(Applied { namespace: namespace.to_owned(), name: name.clone(), programmed: args.wait, enrolment, notes })
}

/// How the labels of a namespace change when a waypoint of its own is put in front of it; `None` where they name it.
fn enrolment(namespace: &Namespace, args: &Apply) -> Result<Option<Value>, Fault> {
    let own = namespace.metadata.name.as_deref().unwrap_or_default();
    let waypoint = args.wanted.name.as_str();
    match named(&namespace.metadata, own) {
        Some(current) if current == (own, waypoint) => return Ok(None),
        Some((of, other)) if !args.overwrite => {
            return Err(Fault::new(
                Code::OtherWaypoint,
                format!("put waypoint {own}/{waypoint} in front of namespace {own}"),
                format!("its label {USE_LABEL} says {of}/{other}, and nothing was changed"),
                format!("{} --enroll-namespace --overwrite", typed("apply", own, &args.wanted)),
            ));
        }
        Some(_) | None => {}
    }
    let labels = json!({USE_LABEL: waypoint, USE_NAMESPACE_LABEL: null});
    Ok(Some(json!({"metadata": {"labels": labels}})))
}

/// What else there is to say to whoever puts a waypoint in front of a namespace.
fn notes(namespace: &Namespace) -> Vec<Note> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "Namespace {name} lacks the label {MODE_LABEL}=ambient: its pods are outside the mesh unless they ask for it \
         themselves, and who is outside does not pass the waypoint."
    );
    if namespace_in(namespace) { Vec::new() } else { vec![Note { message, remedy: format!("loam enroll {name}") }] }
}

/// What was made for something else is not made a waypoint.
fn refuse_other(gateway: &Gateway, wanted: &Wanted) -> Result<(), Fault> {
    if gateway.is_waypoint() {
        return Ok(());
    }
    let (namespace, name) = (gateway.namespace(), gateway.name());
    let wanted = Wanted { name: format!("{name}-waypoint"), ..wanted.clone() };
    Err(Fault::new(
        Code::OtherGateway,
        format!("apply waypoint {namespace}/{name}"),
        format!("there is a Gateway of that name, of class {} instead of {CLASS}", gateway.class()),
        typed("apply", namespace, &wanted),
    ))
}

fn refused(error: AskError, namespace: &str, args: &Apply) -> Fault {
    match error {
        AskError::Missing(why) => no_gateway_api(format!("apply waypoint {namespace}/{}", args.wanted.name), why),
        AskError::Conflict(_) => {
            let take_over = "kubectl apply --server-side --force-conflicts --filename -";
            Fault { remedy: format!("{} | {take_over}", typed("generate", namespace, &args.wanted)), ..error.into() }
        }
        other => other.into(),
    }
}

/// The command that does something with what is asked for.
fn typed(verb: &str, namespace: &str, wanted: &Wanted) -> String {
    let mut command = format!("loam waypoint {verb} --namespace {namespace} --name {}", wanted.name);
    if let Some(traffic) = wanted.traffic {
        command.push_str(&format!(" --for {}", traffic.as_str()));
    }
    if !wanted.revision.is_empty() {
        command.push_str(&format!(" --revision {}", wanted.revision));
    }
    command
}

/// Waits until the waypoint is programmed, or until that needs somebody else.
async fn wait(session: &Session, namespace: &str, args: &Apply) -> Result<(), Fault> {
    let name = &args.wanted.name;
    let end = Instant::now() + args.timeout;
    loop {
        let Some(gateway) = session.cluster.get::<Gateway>(Some(namespace), name).await? else {
            return Err(no_waypoint(awaited(namespace, name), namespace, std::slice::from_ref(name)));
        };
        let Some(obstacle) = gateway.obstacle() else { return Ok(()) };
        if obstacle.lasts || Instant::now() + PAUSE > end {
            return Err(unprogrammed(obstacle, namespace, args));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn awaited(namespace: &str, name: &str) -> String {
    format!("wait until waypoint {namespace}/{name} is programmed")
}

fn unprogrammed(obstacle: Obstacle, namespace: &str, args: &Apply) -> Fault {
    let mut why = match obstacle.lasts {
        true => format!("{}\nwaiting does not help", obstacle.why),
        false => format!("after {} s {}", args.timeout.as_secs(), obstacle.why),
    };
    if args.enroll_namespace {
        why.push_str(&format!("\nthe labels of namespace {namespace} are left as they were"));
    }
    Fault::new(Code::NotProgrammed, awaited(namespace, &args.wanted.name), why, obstacle.remedy)
}

impl Report for Applied {
    fn text(&self, look: Look) -> String {
        let Self { namespace, name, programmed, enrolment, notes } = self;
        let state = if *programmed { "programmed" } else { "applied" };
        let mut text = format!("Waypoint {namespace}/{name} is {state}.\n");
        text.push_str(&match enrolment {
            Some(Enrolment::Labelled) => format!("Namespace {namespace} is labelled {USE_LABEL}={name}.\n"),
            Some(Enrolment::Already) => format!("Namespace {namespace} has the label {USE_LABEL}={name} already.\n"),
            None => String::new(),
        });
        text.extend(notes.iter().map(|note| note.text(look)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::waypoint::Traffic;

    fn namespace(labels: &Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    fn args(overwrite: bool) -> Apply {
        let wanted = Wanted { name: "w".into(), traffic: Some(Traffic::All), revision: "v1".into() };
        Apply { wanted, enroll_namespace: true, overwrite, wait: true, timeout: std::time::Duration::from_secs(1) }
    }

    #[test]
    fn the_labels_of_a_namespace_change_only_when_nobody_else_decided() {
        let change = json!({"metadata": {"labels": {USE_LABEL: "w", USE_NAMESPACE_LABEL: null}}});
        let changed = || Some(Some(change.clone()));
        for (labels, overwrite, expected) in [
            (json!({}), false, changed()),
            (json!({USE_LABEL: ""}), false, changed()),
            // Beside a waypoint of its own it would name a foreign one.
            (json!({USE_NAMESPACE_LABEL: "infra"}), false, changed()),
            (json!({USE_LABEL: "w"}), false, Some(None)),
            (json!({USE_LABEL: "w"}), true, Some(None)),
            (json!({USE_LABEL: "w", USE_NAMESPACE_LABEL: "shop"}), false, Some(None)),
            (json!({USE_LABEL: "other"}), false, None),
            (json!({USE_LABEL: "none"}), false, None),
            (json!({USE_LABEL: "w", USE_NAMESPACE_LABEL: "infra"}), false, None),
            (json!({USE_LABEL: "other"}), true, changed()),
            (json!({USE_LABEL: "w", USE_NAMESPACE_LABEL: "infra"}), true, changed()),
        ] {
            let answer = enrolment(&namespace(&labels), &args(overwrite));
            if let Err(fault) = &answer {
                assert_eq!(fault.code, Code::OtherWaypoint);
            }
            assert_eq!(answer.ok(), expected, "{labels} {overwrite}");
        }
    }

    #[test]
    fn who_owns_the_fields_of_a_gateway_loses_them_only_by_force() {
        let args = args(false);
        let fault = refused(AskError::Conflict("apply /w: conflict with \"kubectl\"".into()), "shop", &args);
        assert_eq!((fault.code, fault.why.as_str()), (Code::Refused, "conflict with \"kubectl\""));
        let expected = "loam waypoint generate --namespace shop --name w --for all --revision v1 | \
                        kubectl apply --server-side --force-conflicts --filename -";
        assert_eq!(fault.remedy, expected);
        let fault = refused(AskError::Missing("apply /w: not found".into()), "shop", &args);
        assert_eq!(fault.code, Code::NoGatewayApi);
    }
}
