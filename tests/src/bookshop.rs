//! The bookshop of `deploy/samples` on a Kubernetes cluster, and its visitors.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::Kubectl;
use crate::eventually;

/// The manifests that a user applies.
const MANIFESTS: &str = include_str!("../../deploy/samples/bookinfo/kubernetes.yaml");
/// The namespace they make.
pub const NAMESPACE: &str = "bookinfo";
/// Longest start of all its pods, and longest time until they are gone.
const SETTLE: Duration = Duration::from_secs(120);
/// Longest visit: the requests take seconds, a busy machine takes longer to start a pod.
const VISIT: Duration = Duration::from_secs(60);

/// A deployed shop.
#[derive(Debug)]
pub struct Bookshop<'a> {
    kubectl: &'a Kubectl,
}

/// What a visitor saw.
#[derive(Debug, Deserialize)]
pub struct Visit {
    /// Requests sent.
    pub requests: u64,
    /// Requests answered with a page.
    pub ok: u64,
    /// The others, by what became of them.
    pub failures: BTreeMap<String, u64>,
    /// Pages by the pod of reviews that took part.
    pub reviewed_by: BTreeMap<String, u64>,
}

impl Visit {
    /// An error unless every request was answered.
    pub fn success(&self) -> Result<()> {
        ensure!(
            self.ok == self.requests,
            "{} of {} failed: {:?}",
            self.requests - self.ok,
            self.requests,
            self.failures
        );
        Ok(())
    }
}

impl<'a> Bookshop<'a> {
    /// Deploys it and waits until every pod is ready.
    pub fn open(kubectl: &'a Kubectl) -> Result<Self> {
        kubectl.apply(MANIFESTS)?;
        let shop = Self { kubectl };
        eventually(SETTLE, || shop.all_are_available())?;
        Ok(shop)
    }

    /// Deletes it and waits until it is gone.
    pub fn close(self) -> Result<()> {
        self.kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
        eventually(SETTLE, || {
            let left = self.kubectl.run(&["get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name"])?;
            ensure!(left.trim().is_empty(), "{} is still there", left.trim());
            Ok(())
        })
    }

    fn all_are_available(&self) -> Result<()> {
        let deployments = self.objects("deployments")?;
        ensure!(!deployments.is_empty(), "nothing is deployed");
        for deployment in deployments {
            let (wanted, is) = (&deployment["spec"]["replicas"], &deployment["status"]["availableReplicas"]);
            ensure!(wanted == is, "{} has {is} of {wanted} pods", deployment["metadata"]["name"]);
        }
        Ok(())
    }

    /// The names of the nodes that its pods are on, each once.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> =
            self.objects("pods")?.iter().filter_map(|p| p["spec"]["nodeName"].as_str().map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// How often the containers of its pods were started again.
    pub fn restarts(&self) -> Result<u64> {
        let pods = self.objects("pods")?;
        let containers = pods.iter().filter_map(|p| p["status"]["containerStatuses"].as_array()).flatten();
        Ok(containers.filter_map(|c| c["restartCount"].as_u64()).sum())
    }

    /// Sends a visitor to the page from a pod on `node`: `requests` in a second.
    pub fn visit(&self, node: &str, requests: u32) -> Result<Visit> {
        let name = format!("visitor-{node}");
        let rate = requests.to_string();
        let url = format!("http://productpage.{NAMESPACE}:9080/productpage");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "visitor",
                    "image": image()?,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["traffic", "--json", "--url", url, "--rate", rate, "--seconds", "1"],
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }],
            },
        });
        self.kubectl.apply(&pod.to_string())?;
        let place = ["--namespace", NAMESPACE];
        let path = "jsonpath={.status.phase}";
        let ended = eventually(VISIT, || {
            let phase = self.kubectl.run(&[&place[..], &["get", "pod", &name, "--output", path]].concat())?;
            ensure!(["Succeeded", "Failed"].contains(&phase.as_str()), "{name} is {phase}");
            Ok(())
        });
        let log = self.kubectl.run(&[&place[..], &["logs", &name]].concat());
        self.kubectl.run(&[&place[..], &["delete", "pod", &name]].concat())?;
        ended?;
        let log = log?;
        let Some(line) = log.lines().rfind(|l| l.starts_with('{')) else { bail!("{name} said {log:?}") };
        serde_json::from_str(line).with_context(|| format!("read {line:?}"))
    }

    fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        let text = self.kubectl.run(&["get", kind, "--namespace", NAMESPACE, "--output=json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("kubectl gave no list of {kind} but {other}"),
        }
    }
}

/// The image that the manifests name.
fn image() -> Result<&'static str> {
    MANIFESTS.lines().find_map(|l| l.trim().strip_prefix("image: ")).context("the manifests name no image")
}
