//! `loam version`: what runs in the cluster, beside this program.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fault::Fault;
use crate::node::version;
use crate::output::{Look, Report};
use crate::session::{Mesh, Session};
use crate::style::Tone;
use crate::table::{Cell, Table};

/// The version of this program.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// Versions of every part.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    client: &'static str,
    /// By pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    controllers: BTreeMap<String, String>,
    /// By node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, String>,
}

/// Of this program alone.
pub fn own() -> Versions {
    Versions { client: OWN, controllers: BTreeMap::new(), nodes: BTreeMap::new() }
}

/// Of everything.
pub async fn all(session: &Session) -> Result<Versions, Fault> {
    Ok(of(&session.mesh().await?))
}

fn of(mesh: &Mesh) -> Versions {
    let name = |pod: &k8s_openapi::api::core::v1::Pod| pod.metadata.name.clone().unwrap_or_default();
    Versions {
        controllers: mesh.controller_pods.iter().map(|pod| (name(pod), version(pod, ""))).collect(),
        nodes: mesh.nodes.iter().map(|(node, pod)| (node.clone(), pod.version.clone())).collect(),
        ..own()
    }
}

impl Report for Versions {
    fn text(&self, look: Look) -> String {
        let mut table = Table::new(["PART", "WHERE", "VERSION"]);
        table.row(["program".into(), "here".into(), self.client.into()]);
        let controllers = self.controllers.iter().map(|of| ("controller", of));
        for (part, (place, version)) in controllers.chain(self.nodes.iter().map(|of| ("node", of))) {
            let tone = if version == self.client { Tone::Plain } else { Tone::Doubtful };
            table.row([part.into(), place.into(), Cell::toned(version, tone)]);
        }
        table.text(look.style)
    }
}
