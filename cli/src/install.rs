//! `loam install`, `upgrade` and `uninstall`: the chart, handed to Helm.

use std::ffi::OsString;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use loam_manifest::enrol::{Wish, namespace_in};
use serde::Serialize;

use crate::args;
use crate::capture::ended;
use crate::chart::Unpacked;
use crate::code::Code;
use crate::enroll;
use crate::fault::Fault;
use crate::helm;
use crate::output::{Look, Report};
use crate::session::Session;
use crate::version::OWN;

/// The name of the release.
const RELEASE: &str = "loam";

/// Namespaces that are named in a refusal.
const MAX_NAMED: usize = 5;

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    what: What,
    namespace: String,
    version: &'static str,
    /// What would be applied, where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Installed,
    Upgraded,
    Uninstalled,
}

/// Installs the mesh.
pub async fn install(session: &Session, common: &args::Common, args: &args::Install) -> Result<Done, Fault> {
    let mesh = session.mesh().await?;
    if mesh.controller.is_some() || mesh.daemons.is_some() {
        let what = format!("install the mesh in namespace {}", session.system);
        return Err(Fault::new(Code::Installed, what, "it is installed there already", "loam upgrade"));
    }
    apply(session, common, &args.chart, "install", &["--create-namespace"], What::Installed)
}

/// Brings the mesh to the version of this program, with the values that were set before and those that are set now.
pub async fn upgrade(session: &Session, common: &args::Common, args: &args::Chart) -> Result<Done, Fault> {
    session.installed().await?;
    apply(session, common, args, "upgrade", &["--reset-then-reuse-values"], What::Upgraded)
}

/// Takes the mesh away.
pub async fn uninstall(session: &Session, common: &args::Common, args: &args::Uninstall) -> Result<Done, Fault> {
    session.installed().await?;
    let (namespaces, pods): (Vec<Namespace>, Vec<Pod>) =
        tokio::try_join!(session.cluster.list(None, None), session.cluster.list(None, None))?;
    let enrolled: Vec<String> =
        namespaces.iter().filter(|n| namespace_in(n)).filter_map(|n| n.metadata.name.clone()).collect();
    let namespaces = enrolled.iter().map(|name| format!("namespace {name}"));
    let all: Vec<String> = namespaces.chain(alone(&pods, &enrolled).iter().map(|pod| format!("pod {pod}"))).collect();
    if !all.is_empty() && !args.unenroll {
        return Err(Fault::new(
            Code::StillEnrolled,
            "uninstall the mesh",
            format!("connections of pods in the mesh would be cut; enrolled are {}", named(&all)),
            "loam uninstall --unenroll",
        ));
    }
    for name in enrolled {
        let (dry_run, wait) = (false, true);
        let unenroll = args::Enroll { namespace: name, dry_run, wait, timeout: args.timeout };
        enroll::run(session, &unenroll, false).await.map_err(still_leaving)?;
    }
    let mut words: Vec<OsString> = vec!["uninstall".into(), RELEASE.into(), "--wait".into()];
    words.extend(timeout(args.timeout));
    words.extend(place(session, common));
    helm::run(&words, RELEASE, &session.system)?;
    Ok(Done { what: What::Uninstalled, namespace: session.system.clone(), version: OWN, manifests: None })
}

/// Pods that ask for the mesh themselves, outside these namespaces. Their labels come from whoever makes them, so they are
/// let go when the nodes are cleaned.
fn alone(pods: &[Pod], enrolled: &[String]) -> Vec<String> {
    let asks = pods.iter().filter(|pod| Wish::of(pod) == Wish::In && !ended(pod)).filter_map(|pod| {
        let (namespace, name) = (pod.metadata.namespace.as_ref()?, pod.metadata.name.as_ref()?);
        (!enrolled.contains(namespace)).then(|| format!("{namespace}/{name}"))
    });
    asks.collect()
}

/// A namespace that does not get rid of the mesh need not keep anybody from removing it: its label is gone already.
fn still_leaving(fault: Fault) -> Fault {
    match fault.code {
        Code::Late => Fault { remedy: format!("{}\nloam uninstall", fault.remedy), ..fault },
        _ => fault,
    }
}

fn named(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMED { format!("{shown} and {} more", names.len() - MAX_NAMED) } else { shown }
}

fn apply(
    session: &Session,
    common: &args::Common,
    args: &args::Chart,
    verb: &str,
    more: &[&str],
    what: What,
) -> Result<Done, Fault> {
    let files = |error: std::io::Error| Fault::new(Code::Files, "unpack the chart", error.to_string(), "df -h /tmp");
    let chart = Unpacked::new().map_err(files)?;
    let said = helm::run(&words(session, common, args, verb, more, &chart), RELEASE, &session.system)?;
    let manifests = args.dry_run.then_some(said);
    Ok(Done { what, namespace: session.system.clone(), version: OWN, manifests })
}

/// What Helm is told.
fn words(
    session: &Session,
    common: &args::Common,
    args: &args::Chart,
    verb: &str,
    more: &[&str],
    chart: &Unpacked,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![verb.into(), RELEASE.into(), chart.path().into()];
    words.extend(more.iter().map(OsString::from));
    // What comes later counts for more.
    for profile in &args.profile {
        words.extend(["--values".into(), chart.profile(profile).into()]);
    }
    for file in &args.values {
        words.extend(["--values".into(), file.into()]);
    }
    for value in &args.set {
        words.extend(["--set".into(), value.into()]);
    }
    if args.dry_run {
        words.push("--dry-run=server".into());
    }
    if args.wait {
        words.push("--wait".into());
        words.extend(timeout(args.timeout));
    }
    words.extend(place(session, common));
    words
}

fn timeout(time: Duration) -> [OsString; 2] {
    ["--timeout".into(), format!("{}s", time.as_secs()).into()]
}

/// Where Helm does it: the same cluster and namespace.
fn place(session: &Session, common: &args::Common) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["--namespace".into(), (&session.system).into()];
    if let Some(path) = &common.kubeconfig {
        words.extend(["--kubeconfig".into(), path.into()]);
    }
    if let Some(context) = &common.context {
        words.extend(["--kube-context".into(), context.into()]);
    }
    words
}

impl Report for Done {
    fn text(&self, look: Look) -> String {
        if let Some(manifests) = &self.manifests {
            return manifests.clone();
        }
        let Self { namespace, version, .. } = self;
        match self.what {
            What::Installed => format!(
                "Loam {version} is installed in namespace {namespace}. Nothing is in the mesh yet.\n\n{}\n{}\n",
                look.typed("loam check"),
                look.typed("loam enroll NAMESPACE --wait")
            ),
            What::Upgraded => {
                format!("Loam in namespace {namespace} is brought to {version}.\n\n{}\n", look.typed("loam check"))
            }
            What::Uninstalled => format!(
                "Loam is uninstalled from namespace {namespace}. Policies and the mesh's own authority are kept.\n"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_ask_for_the_mesh_themselves_are_told_once() {
        let pod = |namespace: &str, name: &str, mode: &str, phase: &str| -> Pod {
            let yaml = format!(
                "{{metadata: {{namespace: {namespace}, name: {name}, labels: {{istio.io/dataplane-mode: {mode}}}}}, \
                 status: {{phase: {phase}}}}}"
            );
            serde_saphyr::from_str(&yaml).unwrap()
        };
        let pods = [
            pod("shop", "a", "ambient", "Running"),
            pod("lone", "b", "ambient", "Running"),
            pod("lone", "c", "none", "Running"),
            pod("lone", "d", "ambient", "Succeeded"),
        ];
        assert_eq!(alone(&pods, &["shop".into()]), ["lone/b"]);
    }

    #[test]
    fn a_namespace_that_leaves_slowly_does_not_keep_the_mesh_from_being_removed() {
        let fault = |code| Fault::new(code, "wait", "not yet", "loam status shop");
        assert_eq!(still_leaving(fault(Code::Late)).remedy, "loam status shop\nloam uninstall");
        assert_eq!(still_leaving(fault(Code::Forbidden)).remedy, "loam status shop");
    }
}
