//! What runs in a cluster and what does not.

use anyhow::{Result, bail};
use loam_tests::cluster::{Kubectl, Seen, kubeconfig};
use serde_json::Value;

use crate::term::Term;

/// Shows parts, nodes and the pods that are not ready; an error when something is amiss.
pub(crate) fn run(term: Term, seen: &Seen, kubectl: &Kubectl) -> Result<()> {
    let mut amiss = Vec::new();
    term.heading("Parts");
    let mut rows = vec![vec!["PART".to_owned(), "PROCESS".to_owned()]];
    for component in seen.components() {
        let process = component.pid.map_or_else(|| "does not run".to_owned(), |pid| pid.to_string());
        if component.pid.is_none() {
            amiss.push(format!("{} does not run", component.name));
        }
        rows.push(vec![component.name, process]);
    }
    term.table(&rows);
    let nodes: Value = serde_json::from_str(&kubectl.run(&["get", "nodes", "--output", "json"])?)?;
    let pods: Value = serde_json::from_str(&kubectl.run(&["get", "pods", "--all-namespaces", "--output", "json"])?)?;
    term.heading("Nodes");
    let mut rows = vec![["NODE", "READY", "ADDRESS", "VERSION"].map(str::to_owned).to_vec()];
    for node in items(&nodes) {
        let ready = condition(node, "Ready");
        if ready != "True" {
            amiss.push(format!("{} is not ready", text(&node["metadata"]["name"])));
        }
        let address = text(&node["status"]["addresses"][0]["address"]);
        rows.push(vec![
            text(&node["metadata"]["name"]),
            ready,
            address,
            text(&node["status"]["nodeInfo"]["kubeletVersion"]),
        ]);
    }
    term.table(&rows);
    let mut rows = vec![["NAMESPACE", "POD", "NODE", "PHASE", "WHY"].map(str::to_owned).to_vec()];
    for pod in items(&pods) {
        if condition(pod, "Ready") == "True" || pod["status"]["phase"] == "Succeeded" {
            continue;
        }
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        amiss.push(format!("pod {namespace}/{name} is not ready"));
        rows.push(vec![namespace, name, text(&pod["spec"]["nodeName"]), text(&pod["status"]["phase"]), why(pod)]);
    }
    let all = items(&pods).len();
    if rows.len() > 1 {
        term.heading(&format!("Pods that are not ready, of {all}"));
        term.table(&rows);
    } else {
        println!("\n  {} all {all} pods are ready", term.good("✓"));
    }
    println!("  {}", term.dim(&format!("files and logs: {}", seen.work().display())));
    println!("  {}", term.dim(&format!("KUBECONFIG={}", kubeconfig(seen.work()).display())));
    if !amiss.is_empty() {
        bail!("{}", amiss.join("; "));
    }
    Ok(())
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|c| c["type"] == kind).map_or_else(|| "-".into(), |c| text(&c["status"]))
}

/// Why a pod is not ready, in the words of its containers or of the scheduler.
fn why(pod: &Value) -> String {
    let states = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waiting = states.iter().find_map(|s| s["state"]["waiting"]["reason"].as_str());
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = conditions.iter().find_map(|c| (c["status"] == "False").then(|| c["message"].as_str()).flatten());
    waiting.or(told).unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_waits_says_why() {
        let pulling = json!({"status": {
            "containerStatuses": [{"state": {"waiting": {"reason": "ErrImageNeverPull"}}}],
            "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status"}],
        }});
        assert_eq!(why(&pulling), "ErrImageNeverPull");
        assert_eq!(condition(&pulling, "Ready"), "False");
        let unscheduled =
            json!({"status": {"conditions": [{"status": "False", "message": "0/2 nodes are available"}]}});
        assert_eq!(why(&unscheduled), "0/2 nodes are available");
    }
}
