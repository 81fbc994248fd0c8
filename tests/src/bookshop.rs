//! The bookshop of `deploy/samples` on a Kubernetes cluster, and its visitors.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Kubectl, PodState};
use crate::eventually;

/// The manifests that a user applies.
const MANIFESTS: &str = include_str!("../../deploy/samples/bookinfo/kubernetes.yaml");
/// The namespace they make.
pub const NAMESPACE: &str = "bookinfo";
/// Longest start of all its pods, and longest time until they are gone.
const SETTLE: Duration = Duration::from_secs(120);
/// Longest visit: the requests take seconds, a busy machine takes longer to start a pod.
const VISIT: Duration = Duration::from_secs(60);

/// Brings a namespace into the mesh.
const ENROLMENT: &str = "istio.io/dataplane-mode";
/// Longest way of all pods into the mesh or out of it.
const ENROLLED: Duration = Duration::from_secs(60);

/// A deployed shop.
#[derive(Debug)]
pub struct Bookshop<'a> {
    kubectl: &'a Kubectl,
}

/// A visitor under way.
#[derive(Debug)]
pub struct Visitor<'a> {
    kubectl: &'a Kubectl,
    pod: String,
    seconds: u32,
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

    /// Its pods, without visitors.
    pub fn pods(&self) -> Result<Vec<PodState>> {
        let mut pods: Vec<_> = self.objects("pods")?.iter().map(PodState::of).collect();
        pods.retain(|pod| !pod.name.starts_with("visitor"));
        pods.sort();
        Ok(pods)
    }

    /// Brings it into the mesh, or takes it out, and waits until that is true of every pod.
    pub fn enrol(&self, enrolled: bool) -> Result<()> {
        let label = if enrolled { format!("{ENROLMENT}=ambient") } else { format!("{ENROLMENT}-") };
        self.kubectl.run(&["label", "--overwrite", "namespace", NAMESPACE, &label])?;
        eventually(ENROLLED, || {
            let pods = self.pods()?;
            let odd: Vec<_> = pods.iter().filter(|pod| pod.captured != enrolled).map(|pod| &pod.name).collect();
            ensure!(!pods.is_empty() && odd.is_empty(), "captured should be {enrolled} for {odd:?}");
            Ok(())
        })
    }

    /// Sends a visitor to the page from a pod on `node`: `requests` in a second.
    pub fn visit(&self, node: &str, requests: u32) -> Result<Visit> {
        self.send(node, &format!("productpage.{NAMESPACE}:9080"), requests, 1)?.ended()
    }

    /// Sends a visitor from a pod on `node` to the page at `address`: `rate` requests a second, for so many seconds.
    pub fn send(&self, node: &str, address: &str, rate: u32, seconds: u32) -> Result<Visitor<'a>> {
        let name = format!("visitor-{node}");
        let url = format!("http://{address}/productpage");
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
                    "args": ["traffic", "--json", "--url", url, "--rate", rate.to_string(), "--seconds", seconds.to_string()],
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }],
            },
        });
        self.kubectl.apply(&pod.to_string())?;
        Ok(Visitor { kubectl: self.kubectl, pod: name, seconds })
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

impl Visitor<'_> {
    /// Waits until it has come.
    pub fn wait_until_under_way(&self) -> Result<()> {
        self.wait_for(&["Running", "Succeeded", "Failed"], VISIT)
    }

    /// Waits until it has left.
    pub fn ended(self) -> Result<Visit> {
        let name = &self.pod;
        let ended = self.wait_for(&["Succeeded", "Failed"], VISIT + Duration::from_secs(self.seconds.into()));
        let log = self.call(&["logs", name]);
        self.call(&["delete", "pod", name])?;
        ended?;
        let log = log?;
        let Some(line) = log.lines().rfind(|l| l.starts_with('{')) else { bail!("{name} said {log:?}") };
        serde_json::from_str(line).with_context(|| format!("read {line:?}"))
    }

    fn wait_for(&self, phases: &[&str], limit: Duration) -> Result<()> {
        eventually(limit, || {
            let phase = self.call(&["get", "pod", &self.pod, "--output", "jsonpath={.status.phase}"])?;
            ensure!(phases.contains(&phase.as_str()), "{} is {phase}", self.pod);
            Ok(())
        })
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["--namespace", NAMESPACE], arguments].concat())
    }
}

/// The image that the manifests name.
pub fn image() -> Result<&'static str> {
    MANIFESTS.lines().find_map(|l| l.trim().strip_prefix("image: ")).context("the manifests name no image")
}
