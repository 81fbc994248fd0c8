//! `loam install`, `upgrade` and `uninstall`: the chart, handed to Helm.

use std::ffi::OsString;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use loam_manifest::enrol::namespace_in;
use serde::Serialize;

use crate::args;
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
    let namespaces: Vec<Namespace> = session.cluster.list(None, None).await?;
    let enrolled: Vec<String> =
        namespaces.iter().filter(|n| namespace_in(n)).filter_map(|n| n.metadata.name.clone()).collect();
    if !enrolled.is_empty() && !args.unenroll {
        return Err(Fault::new(
            Code::StillEnrolled,
            "uninstall the mesh",
            format!("connections of pods in the mesh would be cut; enrolled are {}", named(&enrolled)),
            "loam uninstall --unenroll",
        ));
    }
    for name in enrolled {
        let (dry_run, wait) = (false, true);
        enroll::run(session, &args::Enroll { namespace: name, dry_run, wait, timeout: args.timeout }, false).await?;
    }
    let mut words: Vec<OsString> = vec!["uninstall".into(), RELEASE.into(), "--wait".into()];
    words.extend(timeout(args.timeout));
    words.extend(place(session, common));
    helm::run(&words)?;
    Ok(Done { what: What::Uninstalled, namespace: session.system.clone(), version: OWN, manifests: None })
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
    let said = helm::run(&words(session, common, args, verb, more, &chart))?;
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
