//! `loam waypoint status`: how waypoints fare, as their conditions say at this moment.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use super::gateway::Gateway;
use super::{no_waypoint, nothing};
use crate::args::waypoint::Status;
use crate::fault::Fault;
use crate::output::{Look, Report};
use crate::session::Session;
use crate::style::Tone;
use crate::table::{Cell, Table};

/// How waypoints of a namespace fare.
#[derive(Debug, Serialize)]
pub struct Told {
    namespace: String,
    waypoints: Vec<View>,
}

#[derive(Debug, Serialize)]
struct View {
    name: String,
    programmed: bool,
    conditions: Vec<Condition>,
    /// Why it is not programmed.
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    /// What to type about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Told {
    /// Whether all of them are programmed.
    pub fn programmed(&self) -> bool {
        self.waypoints.iter().all(|waypoint| waypoint.programmed)
    }
}

/// Finds out how waypoints fare.
pub async fn run(session: &Session, namespace: &str, args: &Status) -> Result<Told, Fault> {
    let mut gateways = super::all(session, Some(namespace)).await?;
    let is_there = |name: &&String| gateways.iter().any(|gateway| gateway.name() == name.as_str());
    let missing: Vec<String> = args.names.iter().filter(|name| !is_there(name)).cloned().collect();
    if !missing.is_empty() {
        return Err(no_waypoint("find waypoints", namespace, &missing));
    }
    gateways.retain(|gateway| args.names.is_empty() || args.names.iter().any(|name| name == gateway.name()));
    Ok(Told { namespace: namespace.to_owned(), waypoints: gateways.iter().map(view).collect() })
}

fn view(gateway: &Gateway) -> View {
    let obstacle = gateway.obstacle();
    let programmed = obstacle.is_none();
    let (why, remedy) = obstacle.map(|obstacle| (obstacle.why, obstacle.remedy)).unwrap_or_default();
    View { name: gateway.name().to_owned(), programmed, conditions: gateway.conditions().to_vec(), why, remedy }
}

impl Report for Told {
    fn text(&self, look: Look) -> String {
        if self.waypoints.is_empty() {
            return nothing(Some(&self.namespace));
        }
        let mut table = Table::new(["NAME", "TYPE", "STATUS", "REASON", "MESSAGE"]);
        for View { name, conditions, .. } in &self.waypoints {
            if conditions.is_empty() {
                table.row([name.into(), "".into(), "".into(), "".into(), "".into()]);
            }
            for Condition { type_, status, reason, message, .. } in conditions {
                let tone = if status == "True" { Tone::Good } else { Tone::Doubtful };
                table.row([name.into(), type_.into(), Cell::toned(status, tone), reason.into(), message.into()]);
            }
        }
        let mut text = table.text(look.style);
        for View { name, why, remedy, .. } in self.waypoints.iter().filter(|waypoint| !waypoint.programmed) {
            text.push_str(&format!("\nWaypoint {}/{name} is not programmed: {why}\n", self.namespace));
            for line in look.typed(remedy).lines() {
                text.push_str(&format!("  do: {line}\n"));
            }
        }
        text
    }
}
