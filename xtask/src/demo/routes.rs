//! The third act: a waypoint that decides request by request, and what happens without it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::waypoint::Waypoint;
use loam_tests::{Lab, Mesh, eventually};
use serde_json::Value;

use super::cast::{Cast, NAMESPACE, PORT, Shop};
use super::rules::{denial, get};
use crate::term::Term;

/// Longest time between a change and its effect.
const LIMIT: Duration = Duration::from_secs(5);
/// Requests of a sample. Shares are exact over every such number that the weights divide.
const SAMPLE: usize = 40;
/// What the route gives each of the two versions, of a hundred.
const WEIGHTS: [usize; 2] = [75, 25];

/// Performs it.
pub(crate) fn perform(term: Term, lab: &Lab, mesh: &Mesh, cast: &Cast, shop: &Shop) -> Result<()> {
    term.heading("A waypoint for reviews: a proxy that reads requests, in a pod of its own");
    let [old, new] = cast.versions();
    for (version, pod) in [("v1", old), ("v3", new)] {
        mesh.manifests().service(NAMESPACE, &format!("reviews-{version}"), &[(PORT, PORT)], &[pod])?;
    }
    let waypoint = Waypoint::declare(lab, mesh, NAMESPACE, "waypoint")?;
    let process = term.step("its pod runs, and the service is bound to it: one label", || {
        let process = waypoint.start(mesh, 0)?;
        waypoint.bind(mesh, &shop.reviews)?;
        Ok(process)
    })?;

    mesh.manifests().write("route-reviews.yaml", &route())?;
    let ask = || get(&cast.visitor, &format!("http://{}/reviews/0", shop.reviews.at(PORT)));
    let answered = eventually(LIMIT, || {
        let mut answered: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..SAMPLE {
            *answered.entry(reviewer(&ask()?.context("a request was refused")?)?).or_default() += 1;
        }
        let wanted = WEIGHTS.map(|weight| Some(weight * SAMPLE / 100));
        let got = [old, new].map(|pod| answered.get(pod.name()).copied());
        ensure!(got == wanted, "{SAMPLE} requests were answered by {answered:?}");
        Ok(answered)
    })?;
    let shares: Vec<String> = answered.iter().map(|(pod, count)| format!("{count} by {pod}")).collect();
    println!("  a route with weights {WEIGHTS:?}: {SAMPLE} requests, {}", term.good(&shares.join(", ")));

    process.kill()?;
    mesh.manifests().endpoints(&waypoint.service, &[])?;
    let why = eventually(LIMIT, || {
        ensure!(ask()?.is_none(), "requests pass beside the waypoint that was killed");
        denial(mesh, "waypoint").context("no ztunnel names the waypoint")
    })?;
    println!("  the waypoint is killed: requests are {}, they never pass beside it", term.good("refused"));
    println!("  the ztunnel says why: {}", term.accent(&why));
    waypoint.release(mesh, &shop.reviews)?;
    eventually(LIMIT, || ask()?.context("the label is gone and requests are still refused").map(drop))?;
    println!("  the label is taken away: requests go straight to the pods again");
    Ok(())
}

/// Which pod answered.
fn reviewer(answer: &str) -> Result<String> {
    let opinions: Value = serde_json::from_str(answer).with_context(|| format!("reviews answered {answer:?}"))?;
    Ok(opinions["podname"].as_str().context("reviews do not say who they are")?.to_owned())
}

fn route() -> String {
    let [old, new] = WEIGHTS;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: reviews
  namespace: {NAMESPACE}
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: reviews
    port: {PORT}
  rules:
  - backendRefs:
    - name: reviews-v1
      port: {PORT}
      weight: {old}
    - name: reviews-v3
      port: {PORT}
      weight: {new}
"
    )
}
