//! `loam check`: whether a cluster can have the mesh, or whether the mesh in it is well.

mod rules;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use loam_kube::{Permission, Version};
use serde::Serialize;

use crate::code::Code;
use crate::fault::Fault;
use crate::names::CONTROLLER_LABELS;
use crate::output::{Look, Report};
use crate::session::{Mesh, Session};
use crate::style::Tone;

/// Marks the Deployments of another mesh.
const LINKERD_LABELS: &str = "linkerd.io/control-plane-component";

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth a look.
    Warning,
    /// Not as it must be.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it belongs to.
    group: &'static str,
    level: Level,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    /// How it is.
    message: String,
    /// What to type.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Finding {
    fn ok(group: &'static str, message: impl Into<String>) -> Self {
        Self { group, level: Level::Ok, code: None, message: message.into(), remedy: String::new() }
    }

    fn failed(group: &'static str, code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { group, level: Level::Failed, code: Some(code), message: message.into(), remedy: remedy.into() }
    }

    fn warning(group: &'static str, code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::failed(group, code, message, remedy) }
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub struct Checked {
    findings: Vec<Finding>,
    failed: usize,
    warnings: usize,
}

impl Checked {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self { failed: count(Level::Failed), warnings: count(Level::Warning), findings }
    }

    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.failed == 0
    }
}

/// What is looked at before an installation.
struct Cluster {
    version: Version,
    nodes: Vec<Node>,
    /// The namespace of the mesh, if it is there.
    system: Option<Namespace>,
    /// Those with a label of a mesh.
    deployments: Vec<Deployment>,
    daemons: Vec<DaemonSet>,
    /// Rights, and whether whoever asks has them.
    rights: Vec<(Permission, bool)>,
}

/// What is looked at after it.
struct Installation {
    cluster: Cluster,
    mesh: Mesh,
    kinds: Vec<CustomResourceDefinition>,
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
}

/// Looks at what an installation needs.
pub async fn before(session: &Session) -> Result<Checked, Fault> {
    let cluster = cluster(session, rules::to_install(&session.system)).await?;
    Ok(Checked::new(rules::before(&session.system, &cluster)))
}

/// Looks at an installation.
pub async fn after(session: &Session) -> Result<Checked, Fault> {
    let mesh = session.installed().await?;
    let cluster = cluster(session, rules::to_look(&session.system)).await?;
    let (kinds, namespaces, pods) = tokio::try_join!(
        session.cluster.list(None, None),
        session.cluster.list(None, None),
        session.cluster.list(None, None)
    )?;
    let installation = Installation { cluster, mesh, kinds, namespaces, pods };
    Ok(Checked::new(rules::after(&session.system, &installation)))
}

async fn cluster(session: &Session, rights: Vec<Permission>) -> Result<Cluster, Fault> {
    let api = &session.cluster;
    let version = api.version().await?;
    let (nodes, system, istio, linkerd, daemons) = tokio::try_join!(
        api.list(None, None),
        api.get(None, &session.system),
        api.list::<Deployment>(None, Some(CONTROLLER_LABELS)),
        api.list::<Deployment>(None, Some(LINKERD_LABELS)),
        api.list(None, None),
    )?;
    let mut asked = Vec::new();
    for permission in rights {
        let has = api.may(&permission).await?;
        asked.push((permission, has));
    }
    let deployments = istio.into_iter().chain(linkerd).collect();
    Ok(Cluster { version, nodes, system, deployments, daemons, rights: asked })
}

impl Report for Checked {
    fn text(&self, look: Look) -> String {
        let mut text = String::new();
        let mut group = "";
        for finding in &self.findings {
            if finding.group != group {
                group = finding.group;
                text.push_str(&format!("{}\n", look.style.paint(Tone::Heading, group)));
            }
            let (word, tone) = match finding.level {
                Level::Ok => ("ok", Tone::Good),
                Level::Warning => ("warning", Tone::Doubtful),
                Level::Failed => ("FAILED", Tone::Bad),
            };
            let code = finding.code.map(|code| format!(" [{code}]")).unwrap_or_default();
            let pad = " ".repeat(9 - word.len());
            text.push_str(&format!("  {}{pad}{}{code}\n", look.style.paint(tone, word), finding.message));
            for line in look.typed(&finding.remedy).lines() {
                text.push_str(&format!("           do: {line}\n"));
            }
        }
        let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        text.push_str(&format!(
            "\n{}, {}, {} ok\n",
            count(self.failed, "failure", "failures"),
            count(self.warnings, "warning", "warnings"),
            self.findings.len() - self.failed - self.warnings
        ));
        text
    }
}
