//! The second act: rules for who may call whom, and an endpoint that dies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loam_tests::report::PingPong;
use loam_tests::{Mesh, Pod, Process, eventually};
use serde_json::Value;

use super::cast::{self, Cast, NAMESPACE, PORT, Shop};
use crate::term::Term;

/// Port of a server beside the shop's own, to which a connection is kept open.
const TALK: u16 = 7001;
/// Longest time between writing a rule and its effect.
const RULE_LIMIT: Duration = Duration::from_secs(5);
/// Requests per second and length of the visit during which an endpoint dies.
const RATE: u32 = 50;
const SECONDS: u32 = 4;
/// What `loam-lab get` may take.
const GET_LIMIT: Duration = Duration::from_secs(10);

/// Performs it.
pub(crate) fn perform(term: Term, mesh: &Mesh, cast: &Cast, shop: &Shop, reviewers: &[Process]) -> Result<()> {
    deny(term, mesh, cast)?;
    strict(term, mesh, cast)?;
    lose_an_endpoint(term, mesh, cast, shop, reviewers)
}

/// One caller is denied, also on the connection it has open.
fn deny(term: Term, mesh: &Mesh, cast: &Cast) -> Result<()> {
    term.heading("A rule: the visitor may not call productpage");
    let (port, url) = (TALK.to_string(), page(&cast.productpage));
    let server = cast.productpage.tool(&["serve", "--talk", &port])?;
    server.wait_for_output("serving", GET_LIMIT)?;
    let open = cast.visitor.tool(&["pingpong", &cast.productpage.at(TALK).to_string()])?;
    open.wait_for_output("connected", GET_LIMIT)?;

    let written = Instant::now();
    mesh.manifests().write("rule-no-visitor.yaml", &no_visitor())?;
    // The connection that was open notices by itself; new ones are refused from the same moment on.
    let cut: PingPong = open.report(RULE_LIMIT)?;
    let took = written.elapsed();
    let error = cut.error.context("the open connection ended, and not because of the rule")?;
    let took = format!("{} ms", took.as_millis());
    println!("  the open connection of the visitor ended after {} ({error})", term.good(&took));
    ensure!(get(&cast.visitor, &url)?.is_none(), "the visitor still gets its pages");
    ensure!(get(&cast.outsider, &url)?.is_some(), "the rule hit someone else too");
    println!("  its next one was refused; the outsider, whom the rule does not name, still gets pages");
    explain(term, mesh, "no-visitor")?;

    mesh.manifests().remove("rule-no-visitor.yaml")?;
    eventually(RULE_LIMIT, || {
        ensure!(get(&cast.visitor, &url)?.is_some(), "the rule is gone and the visitor still refused");
        Ok(())
    })
}

/// Nobody without a proven identity is let in.
fn strict(term: Term, mesh: &Mesh, cast: &Cast) -> Result<()> {
    term.heading("A rule: whoever calls the shop must prove who it is (STRICT)");
    let url = page(&cast.productpage);
    mesh.manifests().write("rule-strict.yaml", &strict_everywhere())?;
    eventually(RULE_LIMIT, || {
        ensure!(get(&cast.outsider, &url)?.is_none(), "the outsider still gets pages in the clear");
        Ok(())
    })?;
    ensure!(get(&cast.visitor, &url)?.is_some(), "the visitor, who proves its name, is refused");
    println!("  the outsider is {}; the visitor still gets its pages", term.good("refused"));
    explain(term, mesh, "strict")?;
    mesh.manifests().remove("rule-strict.yaml")?;
    eventually(RULE_LIMIT, || {
        ensure!(get(&cast.outsider, &url)?.is_some(), "the rule is gone and the outsider still refused");
        Ok(())
    })
}

/// An endpoint dies in the middle of a visit, before anybody is told.
fn lose_an_endpoint(term: Term, mesh: &Mesh, cast: &Cast, shop: &Shop, reviewers: &[Process]) -> Result<()> {
    term.heading("An accident: one of three reviews is killed, and nobody has told the mesh");
    let victim = reviewers.get(1).context("there is no second reviewer")?;
    let to = format!("http://{}/api/v1/products/0/reviews", shop.productpage.at(PORT));
    let visit = cast::traffic(&cast.visitor, &to, RATE, SECONDS)?;
    let deadline = Instant::now() + Duration::from_secs(u64::from(SECONDS) / 2);
    eventually(GET_LIMIT, || {
        ensure!(Instant::now() >= deadline, "the visit has not reached its middle");
        Ok(())
    })?;
    victim.kill()?;
    let summary = cast::summary(&visit, SECONDS)?;
    let text = format!("{} of {} requests answered", summary.ok, summary.requests);
    if summary.ok != summary.requests {
        bail!("{text}: {:?}\n{}", summary.failures, last_lines(mesh, 6));
    }
    println!("  {}, median {:.1} ms: each was tried elsewhere", term.good(&text), summary.latency_ms.p50);
    Ok(())
}

/// Shows how a ztunnel explains its last denial.
fn explain(term: Term, mesh: &Mesh, policy: &str) -> Result<()> {
    let text = eventually(Duration::from_secs(5), || {
        denial(mesh, policy).with_context(|| format!("no ztunnel names {policy:?}"))
    })?;
    println!("  the ztunnel says why: {}", term.accent(&text));
    Ok(())
}

/// What a ztunnel said last of a connection that ended because of this.
pub(crate) fn denial(mesh: &Mesh, because: &str) -> Option<String> {
    mesh.ztunnel_logs().into_iter().rev().find_map(|(_, line)| {
        let line: Value = serde_json::from_str(&line).ok()?;
        let error = line["error"].as_str()?;
        error.contains(because).then(|| error.to_owned())
    })
}

fn last_lines(mesh: &Mesh, n: usize) -> String {
    let lines = mesh.ztunnel_logs();
    lines[lines.len().saturating_sub(n)..].iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n")
}

fn page(pod: &Pod) -> String {
    format!("http://{}/productpage", pod.at(PORT))
}

/// The page that a pod gets, if it gets one.
pub(crate) fn get(pod: &Pod, url: &str) -> Result<Option<String>> {
    let output = pod.tool(&["get", url])?.output(GET_LIMIT)?;
    Ok(output.success().ok())
}

fn no_visitor() -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-visitor
  namespace: {NAMESPACE}
spec:
  action: DENY
  rules:
  - from:
    - source:
        principals: [\"cluster.local/ns/{NAMESPACE}/sa/bookinfo-visitor\"]
"
    )
}

fn strict_everywhere() -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: {NAMESPACE}
spec:
  mtls:
    mode: STRICT
"
    )
}
