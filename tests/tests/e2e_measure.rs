//! How long it takes until a change is true: what is printed are figures, and what is asserted is that each came true.
//! Figures of a machine that does something else beside say nothing.
#![expect(clippy::print_stdout, reason = "a test's output is read by the runner")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::{Api, Forward, Kubectl, PodState, Watch, get_json};
use loam_tests::eventually;
use loam_tests::release::{self, Release};
use loam_tests::report::Percentiles;
use loam_tests::tenant::{SETTLE, Tenant, talking};
use loam_tests::testing::{MEASURED, on_cluster};
use serde_json::{Value, json};

/// Pods on each node that take turns: so many that each rests for longer than the agent leaves an object that it wrote alone.
const PODS: usize = 15;
/// Changes that are timed.
const SAMPLES: usize = 50;
/// Port of a proxy's administration.
const ADMIN: u16 = 15000;
/// Longest wait for one change.
const KNOWN: Duration = Duration::from_secs(60);

fn nodes(kubectl: &Kubectl) -> Result<Vec<String>> {
    let path = r#"jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}"#;
    Ok(kubectl.run(&["get", "nodes", "--output", path])?.lines().map(str::to_owned).collect())
}

fn tell(what: &str, times: Vec<Duration>) {
    let (samples, us) = (times.len(), times.iter().map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
    let Percentiles { p50, p99, max, .. } = Percentiles::of(us.collect());
    let ms = |us: u64| us as f64 / 1e3;
    println!("{MEASURED}{what}: {samples} times, p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", ms(p50), ms(p99), ms(max));
}

/// Waits until the object of a pod says whether it is captured.
fn says(watch: &mut Watch, pod: &str, captured: bool) -> Result<()> {
    loop {
        let state = PodState::of(&watch.change().with_context(|| format!("captured should be {captured} for {pod}"))?);
        if state.name == pod && state.captured == captured {
            return Ok(());
        }
    }
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_labelled_pod_is_captured() {
    on_cluster(|kubectl| {
        Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "measure-e2e")?;
        kubectl.run(&["label", "namespace", tenant.name(), "istio.io/dataplane-mode-"])?;
        let mut pods = Vec::new();
        for node in nodes(kubectl)? {
            for number in 0..PODS {
                let pod = format!("pod-{node}-{number}");
                tenant.pod(&pod, &node, &[talking("server")])?;
                pods.push(pod);
            }
        }
        eventually(SETTLE, || {
            let odd: Vec<_> = tenant.states()?.into_iter().filter(|pod| !pod.ready || pod.captured).collect();
            ensure!(odd.is_empty(), "not ready, or captured without a label: {odd:?}");
            Ok(())
        })?;
        let api = Api::open()?;
        let collection = format!("/api/v1/namespaces/{}/pods", tenant.name());
        let label = |pod: &str, mode: Value| {
            let labels = json!({"metadata": {"labels": {"istio.io/dataplane-mode": mode}}});
            api.merge(&format!("{collection}/{pod}"), &labels)
        };
        let mut times = Vec::new();
        // Each gets its label and loses it again, in turn: a pod that left a moment ago would be on its way out.
        for pod in pods.iter().cycle().take(SAMPLES) {
            let mut watch = api.watch(&collection)?;
            says(&mut watch, pod, false)?;
            let begun = Instant::now();
            label(pod, "ambient".into())?;
            says(&mut watch, pod, true)?;
            times.push(begun.elapsed());
            label(pod, Value::Null)?;
        }
        tell("from a label to a pod that says that it is captured", times);
        tenant.leave()
    });
}

/// Waits until a proxy knows a thing of this kind that is as it should be.
fn knows(proxy: &Forward, kind: &str, is_right: impl Fn(&Value) -> bool) -> Result<()> {
    eventually(KNOWN, || {
        let dump = get_json(proxy.address(), "/config_dump")?;
        let things = dump[kind].as_array().with_context(|| format!("the dump has no {kind}"))?;
        ensure!(things.iter().any(&is_right), "none of {} {kind} is the one", things.len());
        Ok(())
    })
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_changed_object_is_known_to_a_proxy() {
    on_cluster(|kubectl| {
        let release = Release::install(kubectl)?;
        let tenant = Tenant::enter(kubectl, "measure-e2e")?;
        let node = nodes(kubectl)?.into_iter().next().context("there is no node")?;
        tenant.server("pod", &node)?;
        let (name, _) = release.node_pods()?.into_iter().next().context("there is no proxy")?;
        let proxy = Forward::to(release::NAMESPACE, &name, ADMIN)?;
        let api = Api::open()?;
        let place = format!("/api/v1/namespaces/{}", tenant.name());
        let (mut services, mut pods) = (Vec::new(), Vec::new());
        for number in 0..SAMPLES {
            let service = format!("service-{number}");
            let object = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": service},
                "spec": {"ports": [{"port": 80}]},
            });
            let begun = Instant::now();
            api.create(&format!("{place}/services"), &object)?;
            knows(&proxy, "services", |known| known["name"] == *service && known["namespace"] == tenant.name())?;
            services.push(begun.elapsed());

            let version = format!("v{number}");
            let begun = Instant::now();
            api.merge(&format!("{place}/pods/pod"), &json!({"metadata": {"labels": {"version": version}}}))?;
            let is_ours = |known: &Value| known["name"] == "pod" && known["namespace"] == tenant.name();
            knows(&proxy, "workloads", |known| is_ours(known) && known["canonicalRevision"] == *version)?;
            pods.push(begun.elapsed());
        }
        tell("from a service to a proxy that knows it, give or take 20 ms", services);
        tell("from a pod's label to a proxy that knows it, give or take 20 ms", pods);
        tenant.leave()
    });
}
