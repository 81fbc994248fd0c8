//! `loam waypoint list`: which waypoints there are.

use serde::Serialize;

use super::gateway::Gateway;
use super::nothing;
use crate::args::waypoint::List;
use crate::fault::Fault;
use crate::output::{Look, Report};
use crate::session::Session;
use crate::style::Tone;
use crate::table::{Cell, Table};

/// What a waypoint does not say of itself.
const DEFAULT: &str = "default";

/// Waypoints of a namespace, or of all.
#[derive(Debug, Serialize)]
pub struct Listed {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    waypoints: Vec<Row>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    namespace: String,
    name: String,
    revision: String,
    #[serde(rename = "for")]
    traffic: String,
    programmed: String,
}

/// Finds waypoints.
pub async fn run(session: &Session, namespace: &str, args: &List) -> Result<Listed, Fault> {
    let namespace = (!args.all_namespaces).then_some(namespace);
    let waypoints = super::all(session, namespace).await?.iter().map(row).collect();
    Ok(Listed { namespace: namespace.map(str::to_owned), waypoints })
}

fn row(gateway: &Gateway) -> Row {
    Row {
        namespace: gateway.namespace().to_owned(),
        name: gateway.name().to_owned(),
        revision: gateway.revision().unwrap_or(DEFAULT).to_owned(),
        traffic: gateway.traffic().unwrap_or(DEFAULT).to_owned(),
        programmed: gateway.programmed().to_owned(),
    }
}

impl Report for Listed {
    fn text(&self, look: Look) -> String {
        if self.waypoints.is_empty() {
            return nothing(self.namespace.as_deref());
        }
        let all = self.namespace.is_none();
        let heading = ["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"];
        let first = usize::from(!all);
        let mut table = Table::new(heading.into_iter().skip(first));
        for Row { namespace, name, revision, traffic, programmed } in &self.waypoints {
            let tone = if programmed == "True" { Tone::Good } else { Tone::Doubtful };
            let cells: [Cell; 5] =
                [namespace.into(), name.into(), revision.into(), traffic.into(), Cell::toned(programmed, tone)];
            table.row(cells.into_iter().skip(first));
        }
        table.text(look.style)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_row_says_what_a_waypoint_says_of_itself() {
        let row = |labels: &Value, status: &Value| {
            let metadata = json!({"namespace": "shop", "name": "w", "generation": 2, "labels": labels});
            let Row { revision, traffic, programmed, .. } =
                row(&serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap());
            [revision, traffic, programmed]
        };
        let programmed = |status: &str, seen: i64| {
            json!({"conditions": [{"type": "Programmed", "status": status, "observedGeneration": seen,
                                   "reason": "r", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}]})
        };
        let labels = json!({"istio.io/waypoint-for": "all", "istio.io/rev": "v1"});
        assert_eq!(row(&labels, &programmed("True", 2)), ["v1", "all", "True"]);
        assert_eq!(row(&json!({}), &programmed("False", 2)), ["default", "default", "False"]);
        assert_eq!(row(&json!({}), &programmed("True", 1)), ["default", "default", "Unknown"]);
        assert_eq!(row(&json!({}), &json!({})), ["default", "default", "Unknown"]);
    }
}
