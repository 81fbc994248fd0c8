//! The end of an uninstall: waits until the pods that clean up have done so on every node, and takes back what the
//! objects of pods say.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use loam_rt::shutdown::Shutdown;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::AwaitCleanup;
use crate::notices::{Notice, Reason, Writing};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the API server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pods that are listed at a time.
const PAGE: u32 = 500;

/// Returns when every node is clean and every pod says so. Whoever started this ends it when that takes too long.
pub async fn run(config: &AwaitCleanup) -> Result<()> {
    let client = loam_kube::client().await?;
    nodes(&client, config).await;
    pods(&client).await
}

/// Returns when every node is clean.
async fn nodes(client: &Client, config: &AwaitCleanup) {
    let AwaitCleanup { namespace, daemon_set } = config;
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let mut told = None;
    loop {
        let answer = timeout(ANSWER_TIMEOUT, sets.get(daemon_set)).await.context("the API server does not answer");
        match answer.and_then(|set| Ok(set?)) {
            Ok(set) => {
                let progress = Progress::of(&set);
                if told != progress {
                    let Progress { clean, nodes } = progress.unwrap_or_default();
                    info!(clean, nodes, "nodes that are clean; kubectl get pods --output wide shows the others");
                    told = progress;
                }
                if progress.is_some_and(|progress| progress.clean == progress.nodes) {
                    return;
                }
            }
            Err(error) => warn!(error = %format!("{error:#}"), namespace, daemon_set, "cannot see who is done"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lets every pod say that it is not in the mesh: nobody is left who would.
async fn pods(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut failed = 0;
    loop {
        let page = timeout(ANSWER_TIMEOUT, pods.list(&params)).await.context("list pods: no answer")?;
        let page = page.context("list pods")?;
        for pod in page.items.iter().filter(|pod| Notice::is_on(pod)) {
            let notice = Notice::new(Reason::NotInMesh, "the mesh was uninstalled");
            let writing = Writing { tells: false, ..Writing::new(pod, notice) };
            if let Err(error) = writing.write(client, "").await {
                warn!(namespace = writing.namespace, pod = writing.name, error, "a pod still says that it is captured");
                failed += 1;
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    ensure!(failed == 0, "{failed} pods still say that they are captured");
    Ok(())
}

/// Does nothing until it is told to end.
pub async fn rest() -> Result<()> {
    Shutdown::on_signals().context("listen for signals")?.asked().await;
    Ok(())
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    clean: i32,
    nodes: i32,
}

impl Progress {
    /// Nothing while nobody has counted the nodes.
    fn of(set: &DaemonSet) -> Option<Self> {
        let status = set.status.as_ref()?;
        let counted = status.observed_generation.is_some() && status.observed_generation >= set.metadata.generation;
        counted.then_some(Self { clean: status.number_ready, nodes: status.desired_number_scheduled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_nobody_counted_yet_are_not_taken_for_none() {
        let set = |text: &str| serde_json::from_str::<DaemonSet>(text).unwrap();
        let counts = r#""currentNumberScheduled":0,"numberMisscheduled":0"#;
        let new = format!(
            r#"{{"metadata":{{"generation":1}},"status":{{"desiredNumberScheduled":0,"numberReady":0,{counts}}}}}"#
        );
        assert_eq!(Progress::of(&set(&new)), None);
        let seen = format!(
            r#"{{"metadata":{{"generation":1}},"status":{{"observedGeneration":1,"desiredNumberScheduled":2,"numberReady":1,{counts}}}}}"#
        );
        assert_eq!(Progress::of(&set(&seen)), Some(Progress { clean: 1, nodes: 2 }));
    }
}
