//! `loam config diff`: what nodes know otherwise than the controller serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{controller, node};
use crate::args::Diff;
use crate::fault::Fault;
use crate::names::{CONTROLLER_PORT, PROXY_PORT};
use crate::node::NodePod;
use crate::output::{Look, Report};
use crate::session::Session;
use crate::style::Tone;
use crate::table::{Cell, Table};

/// What is on its way arrives meanwhile: a difference counts when it is there twice.
const SETTLE: Duration = Duration::from_secs(2);

/// Longest value that a table shows.
const MAX_SHOWN: usize = 40;

/// Kinds that both sides know: the key of the list, what it is called, and what identifies an item.
const KINDS: [(&str, &str, &[&str]); 3] = [
    ("workloads", "workload", &["uid"]),
    ("services", "service", &["namespace", "hostname"]),
    ("policies", "policy", &["namespace", "name"]),
];

/// What nodes know otherwise.
#[derive(Debug, Serialize)]
pub struct Compared {
    controller: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    node: String,
    /// What both agree on.
    same: usize,
    differences: Vec<Difference>,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Difference {
    kind: &'static str,
    name: String,
    #[serde(flatten)]
    how: How,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "how", rename_all = "camelCase")]
enum How {
    /// The node does not know it.
    Missing,
    /// The controller does not serve it any more.
    Left,
    /// A field has another value.
    Other { field: String, controller: String, node: String },
}

impl Compared {
    /// Whether there is no difference.
    pub fn agrees(&self) -> bool {
        self.nodes.iter().all(|node| node.differences.is_empty())
    }
}

/// Compares the nodes that are meant with the controller.
pub async fn run(session: &Session, args: &Diff) -> Result<Compared, Fault> {
    let mesh = session.installed().await?;
    let chosen: Vec<&NodePod> = match &args.node {
        Some(name) => vec![node(&mesh, Some(name), "loam config diff")?],
        None => mesh.nodes.values().collect(),
    };
    let controller = controller(session).await?;
    let mut nodes = look(session, &controller, &chosen).await?;
    if nodes.iter().any(|node| !node.differences.is_empty()) {
        tokio::time::sleep(SETTLE).await;
        let before = nodes;
        nodes = look(session, &controller, &chosen).await?;
        for (now, before) in nodes.iter_mut().zip(&before) {
            now.differences.retain(|difference| before.differences.contains(difference));
        }
    }
    Ok(Compared { controller, nodes })
}

/// Asks one after another: answers are large, and nodes are many.
async fn look(session: &Session, controller: &str, chosen: &[&NodePod]) -> Result<Vec<Node>, Fault> {
    let served: Value = session.ask(controller, CONTROLLER_PORT, "/debug/workloads").await?;
    let mut nodes = Vec::new();
    for pod in chosen {
        let known: Value = session.ask(&pod.pod, PROXY_PORT, "/config_dump").await?;
        let (same, differences) = compare(&served, &known);
        nodes.push(Node { node: pod.node.clone(), same, differences });
    }
    Ok(nodes)
}

/// How many items are the same, and what is not.
fn compare(served: &Value, known: &Value) -> (usize, Vec<Difference>) {
    let (mut same, mut differences) = (0, Vec::new());
    for (list, kind, identity) in KINDS {
        let (served, known) = (index(&served[list], identity), index(&known[list], identity));
        for name in served.keys().chain(known.keys()).collect::<BTreeSet<_>>() {
            let hows = match (served.get(name), known.get(name)) {
                (Some(served), Some(known)) => fields(served, known),
                (Some(_), None) => vec![How::Missing],
                (None, _) => vec![How::Left],
            };
            same += usize::from(hows.is_empty());
            differences.extend(hows.into_iter().map(|how| Difference { kind, name: name.clone(), how }));
        }
    }
    (same, differences)
}

fn index<'a>(list: &'a Value, identity: &[&str]) -> BTreeMap<String, &'a Value> {
    let name = |item: &Value| identity.iter().filter_map(|key| item[*key].as_str()).collect::<Vec<_>>().join("/");
    list.as_array().into_iter().flatten().map(|item| (name(item), item)).collect()
}

/// The fields in which two items differ.
fn fields(served: &Value, known: &Value) -> Vec<How> {
    let (Some(served), Some(known)) = (served.as_object(), known.as_object()) else { return Vec::new() };
    let other = |(field, served): (&String, &Value)| {
        let known = known.get(field).unwrap_or(&Value::Null);
        (known != served).then(|| How::Other {
            field: field.clone(),
            controller: served.to_string(),
            node: known.to_string(),
        })
    };
    let gone = known.iter().filter(|(field, _)| !served.contains_key(*field)).map(|(field, known)| How::Other {
        field: field.clone(),
        controller: Value::Null.to_string(),
        node: known.to_string(),
    });
    served.iter().filter_map(other).chain(gone).collect()
}

impl Report for Compared {
    fn text(&self, look: Look) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if !text.is_empty() {
                text.push('\n');
            }
            let count = node.differences.len();
            if count == 0 {
                let agrees = look.style.paint(Tone::Good, "the same");
                text.push_str(&format!(
                    "Node {}: {agrees} as {} serves ({} items).\n",
                    node.node, self.controller, node.same
                ));
                continue;
            }
            let differs = look.style.paint(Tone::Bad, if count == 1 { "1 difference" } else { "differences" });
            let of = if count == 1 { String::new() } else { format!("{count} ") };
            text.push_str(&format!("Node {}: {of}{differs} from what {} serves.\n\n", node.node, self.controller));
            let mut table = Table::new(["KIND", "NAME", "FIELD", "CONTROLLER", "NODE"]);
            for difference in &node.differences {
                table.row(row(difference, look.wide()));
            }
            text.push_str(&table.text(look.style));
        }
        text
    }
}

fn row(difference: &Difference, wide: bool) -> [Cell; 5] {
    let shown = |value: &str| match wide || value.chars().count() <= MAX_SHOWN {
        true => value.to_owned(),
        false => value.chars().take(MAX_SHOWN).chain("...".chars()).collect(),
    };
    let (field, controller, node) = match &difference.how {
        How::Missing => (String::new(), "serves it".to_owned(), Cell::toned("does not know it", Tone::Bad)),
        How::Left => (String::new(), "does not serve it".to_owned(), Cell::toned("still knows it", Tone::Bad)),
        How::Other { field, controller, node } => (field.clone(), shown(controller), shown(node).into()),
    };
    [difference.kind.into(), (&difference.name).into(), field.into(), controller.into(), node]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_compared_by_identity_and_field_by_field() {
        let workload = |uid: &str, status: &str| json!({"uid": uid, "status": status, "node": "n"});
        let served = json!({
            "workloads": [workload("a", "Healthy"), workload("b", "Healthy"), workload("c", "Healthy")],
            "policies": [{"namespace": "shop", "name": "p", "rules": 1}],
        });
        let known = json!({
            "workloads": [workload("c", "Unhealthy"), workload("a", "Healthy"), workload("old", "Healthy")],
            "policies": [{"namespace": "shop", "name": "p", "rules": 1, "new": true}],
        });
        let (same, differences) = compare(&served, &known);
        let told: Vec<_> = differences.iter().map(|d| (d.kind, d.name.as_str(), &d.how)).collect();
        let other = |field: &str, controller: &str, node: &str| How::Other {
            field: field.into(),
            controller: controller.into(),
            node: node.into(),
        };
        assert_eq!(same, 1);
        assert_eq!(
            told,
            [
                ("workload", "b", &How::Missing),
                ("workload", "c", &other("status", "\"Healthy\"", "\"Unhealthy\"")),
                ("workload", "old", &How::Left),
                ("policy", "shop/p", &other("new", "null", "true")),
            ]
        );
    }
}
