//! `loam config`: what the proxy of a node knows, and whether it is what the controller serves.

pub mod diff;
pub mod get;
mod items;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::code::Code;
use crate::fault::Fault;
use crate::names::CONTROLLER_LABELS;
use crate::node::{NodePod, is_ready};
use crate::session::{Mesh, Session};

/// The mesh on the node that is meant. `command` is what was typed, to be typed again with a node.
fn node<'a>(mesh: &'a Mesh, named: Option<&str>, command: &str) -> Result<&'a NodePod, Fault> {
    match named {
        Some(name) => mesh.nodes.get(name).ok_or_else(|| {
            let why = format!("the mesh runs on {}", names(&mesh.nodes));
            Fault::new(Code::NoNode, format!("find the mesh on node {name}"), why, "loam status")
        }),
        None => {
            let mut all = mesh.nodes.values();
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                (Some(first), Some(_)) => Err(Fault::new(
                    Code::WhichNode,
                    "choose a node",
                    format!("the mesh runs on {}", names(&mesh.nodes)),
                    format!("{command} --node {}", first.node),
                )),
                (None, _) => {
                    let why = "the mesh runs on no node";
                    Err(Fault::new(Code::NoNode, "choose a node", why, "loam check"))
                }
            }
        }
    }
}

/// Most nodes that are named.
const MAX_NAMED: usize = 10;

fn names(nodes: &BTreeMap<String, NodePod>) -> String {
    let shown = nodes.keys().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match nodes.len().checked_sub(MAX_NAMED) {
        _ if nodes.is_empty() => "no node".to_owned(),
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// The name of a pod of the controller that can be asked.
async fn controller(session: &Session) -> Result<String, Fault> {
    let pods: Vec<Pod> = session.cluster.list(Some(&session.system), Some(CONTROLLER_LABELS)).await?;
    let ready = pods.iter().find(|pod| is_ready(pod)).and_then(|pod| pod.metadata.name.clone());
    ready.ok_or_else(|| {
        let why = format!("of {} pods in namespace {} none is ready", pods.len(), session.system);
        Fault::new(Code::NoController, "find the controller", why, "loam check")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_need_not_be_named_where_there_is_one() {
        let mesh = |names: &[&str]| {
            let node = |name: &&str| ((*name).to_owned(), NodePod { node: (*name).to_owned(), ..NodePod::default() });
            Mesh { nodes: names.iter().map(node).collect(), ..Mesh::default() }
        };
        let code =
            |names: &[&str], named| node(&mesh(names), named, "loam x").map(|n| n.node.clone()).map_err(|f| f.code);
        assert_eq!(code(&["a"], None), Ok("a".to_owned()));
        assert_eq!(code(&["a", "b"], Some("b")), Ok("b".to_owned()));
        assert_eq!(code(&["a", "b"], None), Err(Code::WhichNode));
        assert_eq!(code(&["a"], Some("c")), Err(Code::NoNode));
        assert_eq!(code(&[], None), Err(Code::NoNode));
        let many: Vec<String> = (10..22).map(|i| format!("n{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(node(&mesh(&many), Some("x"), "").unwrap_err().why.ends_with("n19 and 2 more"));
    }
}
