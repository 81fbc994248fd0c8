//! The mesh on a Kubernetes cluster, as Helm installs it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{CHART, Kubectl};
use crate::{cgroup, eventually};

/// Namespace of the mesh.
pub const NAMESPACE: &str = "istio-system";
/// Name of the release.
const NAME: &str = "loam";
/// Longest work of Helm: pods start twice as slowly on a busy machine.
const TIMEOUT: &str = "180s";
/// Longest end of pods whose connections have ended.
const ENDING: Duration = Duration::from_secs(90);

/// An installed mesh.
#[derive(Debug)]
pub struct Release<'a> {
    kubectl: &'a Kubectl,
}

impl<'a> Release<'a> {
    /// Installs it, or makes what is there as the chart has it.
    pub fn install(kubectl: &'a Kubectl) -> Result<Self> {
        let release = Self { kubectl };
        release.upgrade(&[])?;
        Ok(release)
    }

    /// Installs it with these settings beside the chart's own, and waits until everything is ready.
    pub fn upgrade(&self, settings: &[&str]) -> Result<()> {
        let mut arguments = vec!["upgrade", "--install", NAME, CHART, "--namespace", NAMESPACE, "--create-namespace"];
        arguments.extend(["--wait", "--timeout", TIMEOUT]);
        let place = of_place(self.kubectl)?;
        let settings = place.iter().map(String::as_str).chain(settings.iter().copied());
        arguments.extend(settings.flat_map(|setting| ["--set", setting]));
        self.kubectl.helm(&arguments).map(drop)
    }

    /// Goes back to what was before the last upgrade.
    pub fn roll_back(&self) -> Result<()> {
        self.kubectl.helm(&["rollback", NAME, "--namespace", NAMESPACE, "--wait", "--timeout", TIMEOUT]).map(drop)
    }

    /// Waits until the pods of all nodes are ready.
    pub fn wait_until_ready(&self) -> Result<()> {
        let wait = ["rollout", "status", "daemonset/ztunnel", "--namespace", NAMESPACE, "--timeout", "20s"];
        eventually(ENDING, || self.kubectl.run(&wait).map(drop))
    }

    /// Replaces the pods of all nodes, as an upgrade does, and waits until the new ones are ready.
    pub fn replace_nodes(&self) -> Result<()> {
        let before = self.node_pods()?;
        self.kubectl.run(&["rollout", "restart", "daemonset/ztunnel", "--namespace", NAMESPACE])?;
        self.wait_until_ready()?;
        let after = self.node_pods()?;
        let kept: Vec<_> = after.iter().filter(|pod| before.contains(pod)).collect();
        ensure!(kept.is_empty(), "the rollout left {kept:?} as they were");
        Ok(())
    }

    /// Replaces the controller, and waits until the new one is ready and the former one is gone.
    pub fn replace_controller(&self) -> Result<()> {
        let before = self.controllers()?;
        self.kubectl.run(&["rollout", "restart", "deployment/istiod", "--namespace", NAMESPACE])?;
        let wait = ["rollout", "status", "deployment/istiod", "--namespace", NAMESPACE, "--timeout", "20s"];
        eventually(ENDING, || self.kubectl.run(&wait).map(drop))?;
        eventually(ENDING, || {
            let now = self.controllers()?;
            ensure!(
                !now.is_empty() && !now.iter().any(|pod| before.contains(pod)),
                "{before:?} are still among {now:?}"
            );
            Ok(())
        })
    }

    fn controllers(&self) -> Result<Vec<String>> {
        let get = ["get", "pods", "--namespace", NAMESPACE, "--selector=app=istiod", "--output=name"];
        Ok(self.kubectl.run(&get)?.lines().map(str::to_owned).collect())
    }

    /// Takes it away, and waits until its pods are gone.
    pub fn uninstall(self) -> Result<()> {
        Self::absent(self.kubectl)
    }

    /// Takes away what another test may have installed.
    pub fn absent(kubectl: &Kubectl) -> Result<()> {
        let uninstall = ["uninstall", NAME, "--ignore-not-found", "--namespace", NAMESPACE];
        kubectl.helm(&[&uninstall[..], &["--wait", "--timeout", TIMEOUT]].concat())?;
        eventually(ENDING, || {
            let left = kubectl.run(&["get", "pods", "--namespace", NAMESPACE, "--output=name"])?;
            ensure!(left.trim().is_empty(), "{} are still there", left.trim());
            Ok(())
        })
    }

    /// What the proxies of all nodes said.
    pub fn proxy_logs(&self) -> Result<String> {
        let which = ["--selector=app=ztunnel", "--container=istio-proxy", "--tail=-1"];
        self.kubectl.run(&[&["logs", "--namespace", NAMESPACE], &which[..]].concat())
    }

    /// The pods of the nodes' DaemonSet that are to stay, and how often their containers were started again.
    pub fn node_pods(&self) -> Result<Vec<(String, u64)>> {
        let get = ["get", "pods", "--namespace", NAMESPACE, "--selector=app=ztunnel", "--output=json"];
        let list: Value = serde_json::from_str(&self.kubectl.run(&get)?)?;
        let pods = list["items"].as_array().context("kubectl gave no list of pods")?;
        let read = |pod: &Value| {
            let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
            let restarts = containers.filter_map(|container| container["restartCount"].as_u64()).sum();
            (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), restarts)
        };
        Ok(pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(read).collect())
    }
}

/// The same, for commands that somebody types. Empty on most clusters.
pub fn flags_of_place(kubectl: &Kubectl) -> Result<String> {
    Ok(of_place(kubectl)?.iter().map(|setting| format!(" --set {setting}")).collect())
}

/// What the chart must know about the nodes of our own clusters: where cgroup v2 is beside v1.
fn of_place(kubectl: &Kubectl) -> Result<Vec<String>> {
    let hybrid = kubectl.is_ours() && !cgroup::legacy()?.is_empty();
    Ok(if hybrid { vec!["node.cgroup=/sys/fs/cgroup/unified".to_owned()] } else { Vec::new() })
}
