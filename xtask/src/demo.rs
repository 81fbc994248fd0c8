//! The demonstration: a small shop on two nodes, before and after its namespace joins the mesh.

mod calls;
mod cast;
mod routes;
mod rules;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loam_tests::capture::Capture;
use loam_tests::mesh::Options;
use loam_tests::{Lab, Mesh, Pod, bin, eventually, sweep};
use serde_json::Value;

use crate::term::{Term, seconds};
use crate::{build, setup};
use cast::{Cast, NAMESPACE, Names, PORT, Shop};

/// Requests per second of the visitor.
const RATE: u32 = 25;
/// How long the shop is watched before it joins.
const BEFORE_SECONDS: u32 = 2;
/// Lines of each log shown when something goes wrong.
const SHOWN_LINES: usize = 12;
/// Longest time that `--keep` keeps asking for pages.
const KEEP_SECONDS: u32 = 86_400;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave it running, with the commands to explore it
    #[arg(long)]
    keep: bool,
    /// Seconds of traffic inside the mesh
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// Builds, performs, and takes everything away again.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let term = Term::new();
    setup::ensure_lab(if arguments.keep { "demo --keep" } else { "demo" })?;
    setup::ensure()?;
    for path in sweep::sweep() {
        println!("removed what a killed lab left in {}", path.display());
    }
    build::programs(term)?;

    let start = Instant::now();
    let lab = Lab::new()?;
    let result = perform(term, &lab, arguments, start);
    if result.is_err() {
        eprintln!("\n{}", lab.logs(SHOWN_LINES));
    }
    lab.close();
    result
}

fn perform(term: Term, lab: &Lab, arguments: &Arguments, start: Instant) -> Result<()> {
    term.heading("Two nodes in a network of their own, which leads nowhere else");
    let cast = term.step("pods made: network namespaces, joined by bridges", || Cast::create(lab))?;
    let options = Options { ztunnel: vec!["--log-format".into(), "json".into()], ..Options::default() };
    let mesh =
        term.step("controller, and on each node keeper, agent and ztunnel", || Mesh::start_with(lab, &options))?;
    let shop = cast.declare(lab, &mesh)?;
    let reviewers =
        term.step("the shop is open: productpage, details, reviews v1-v3, ratings", || cast.perform(&shop))?;
    for node in lab.nodes() {
        let pods = cast.everyone().into_iter().filter(|p| p.node() == node.name());
        let names: Vec<String> = pods.map(|p| format!("{} {}", p.name(), term.dim(&p.v4().to_string()))).collect();
        println!("  {}  {}", node.name(), names.join("  "));
    }

    before(term, lab, &cast, &shop)?;
    join(term, &mesh, &cast)?;
    after(term, lab, &mesh, &cast, &shop, arguments.seconds)?;
    rules::perform(term, &mesh, &cast, &shop, &reviewers)?;
    routes::perform(term, lab, &mesh, &cast, &shop)?;

    println!("\n{}", term.dim(&format!("Done in {}.", seconds(start.elapsed()))));
    if arguments.keep { keep(term, lab, &cast, &shop) } else { next(term) }
}

fn before(term: Term, lab: &Lab, cast: &Cast, shop: &Shop) -> Result<()> {
    term.heading("Before: what anybody on the wire can read");
    let names = Names { cast, shop };
    let captures = Capture::on_all(&lab.nodes())?;
    let visit = cast::visit(&cast.visitor, shop.productpage.at(PORT), RATE, BEFORE_SECONDS)?;
    let summary = cast::summary(&visit, BEFORE_SECONDS)?;
    let seen = Capture::finish_all(captures)?;
    let line = wire::readable(&seen, names).context("the capture saw no request: the shop does not work")?;
    wire::show(term, &line);
    let packets = wire::readable_packets(&seen, names);
    println!("  {} pages, median {:.1} ms; {packets} packets of readable HTTP", summary.ok, summary.latency_ms.p50);
    Ok(())
}

fn join(term: Term, mesh: &Mesh, cast: &Cast) -> Result<()> {
    term.heading(&format!("The namespace joins: label {NAMESPACE} istio.io/dataplane-mode=ambient"));
    let members = cast.members();
    let looks = term.step("no program is restarted, no connection is cut", || {
        mesh.manifests().namespace(NAMESPACE, true)?;
        mesh.wait_for_state(&members, "enrolled")?;
        // What the kernel has is looked at a moment after it was given.
        members.iter().map(|pod| looked_at(mesh, pod)).collect::<Result<Vec<_>>>()
    })?;
    let heading =
        ["pod", "state", "namespace cookie", "connect hook", "steering program", "rules", "listeners", "took"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (pod, status) in members.iter().zip(looks) {
        let kernel = &status["kernel"];
        let text = |value: &Value| match value {
            Value::String(s) => s.clone(),
            Value::Null => "?".to_owned(),
            other => other.to_string(),
        };
        let yes = |value: &Value| if value == true { "yes" } else { "NO" }.to_owned();
        let took = status["timing"]["total_ms"].as_f64().map_or_else(|| "?".into(), |ms| format!("{ms:.0} ms"));
        rows.push(vec![
            pod.name().to_owned(),
            text(&status["state"]),
            text(&status["netns_cookie"]),
            yes(&kernel["captured"]),
            text(&kernel["steer"]["tag"]),
            yes(&kernel["routed"]),
            yes(&kernel["listening"]),
            took,
        ]);
    }
    term.table(&rows);
    Ok(())
}

/// The agent's entry of a pod, once it has looked at what the kernel has for it.
fn looked_at(mesh: &Mesh, pod: &Pod) -> Result<Value> {
    eventually(Duration::from_secs(10), || {
        let status = mesh.pod_status(pod)?;
        ensure!(status["kernel"]["captured"] == true, "{} is not captured: {status}", pod.name());
        Ok(status)
    })
}

fn after(term: Term, lab: &Lab, mesh: &Mesh, cast: &Cast, shop: &Shop, time: u32) -> Result<()> {
    term.heading("After: the same requests, each end with a name");
    let names = Names { cast, shop };
    let captures = Capture::on_all(&lab.nodes())?;
    let inside = cast::visit(&cast.visitor, shop.productpage.at(PORT), RATE, time)?;
    let outside = cast::visit(&cast.outsider, cast.productpage.at(PORT), 1, time)?;
    let (inside, outside) = term.step(&format!("{RATE} pages per second for {time} s"), || {
        Ok((cast::summary(&inside, time)?, cast::summary(&outside, time)?))
    })?;
    let seen = Capture::finish_all(captures)?;
    // The last connections are written down when they have ended.
    std::thread::sleep(Duration::from_millis(300));
    term.table(&calls::table(mesh));
    println!("  {}", term.dim(&format!("a name is short for {}NAME, proven by a certificate", calls::COMMON)));
    let all_ok = inside.ok == inside.requests && outside.ok == outside.requests;
    let pages = format!("{} of {} pages", inside.ok + outside.ok, inside.requests + outside.requests);
    let paint = if all_ok { Term::good } else { Term::bad };
    println!(
        "  {}, median {:.1} ms, 99 of 100 within {:.1} ms",
        paint(term, &pages),
        inside.latency_ms.p50,
        inside.latency_ms.p99
    );

    term.heading("After: what anybody on the wire can read");
    let line = wire::sealed(&seen, names).context("the capture saw no tunnel")?;
    wire::show(term, &line);
    let readable = wire::readable_packets(&seen, names);
    let tunnelled = seen.payload_bytes.get(&15008).copied().unwrap_or_default();
    let verdict = format!("{readable} packets of readable HTTP between pods of the mesh");
    let paint = if readable == 0 { Term::good } else { Term::bad };
    println!("  {}, {} kB inside TLS 1.3", paint(term, &verdict), tunnelled / 1000);
    println!("  {}", term.dim("(the outsider's own requests stay readable: it is not in the mesh, and has no name)"));
    if !all_ok || readable > 0 || seen.dropped > 0 {
        bail!("not as it should be: {:?} {:?}, {} packets lost", inside.failures, outside.failures, seen.dropped);
    }
    Ok(())
}

fn next(term: Term) -> Result<()> {
    term.heading("Where to look next");
    println!("  {}   the same, left running for you to explore", term.accent("cargo xtask demo --keep"));
    println!("  {}          what is promised, tested on this machine", term.accent("cargo xtask test"));
    println!("  ARCHITECTURE.md           how it works");
    Ok(())
}

fn keep(term: Term, lab: &Lab, cast: &Cast, shop: &Shop) -> Result<()> {
    let visitor = cast::visit(&cast.visitor, shop.productpage.at(PORT), 2, KEEP_SECONDS)?;
    let (programs, entrance) = (bin::dir()?, lab.entrance()?);
    let (programs, enter, work) = (programs.display(), entrance.display(), lab.work().display());
    let get = |place: &str, url: &str| format!("{enter} {place} {programs}/loam-lab get http://{url}");
    term.heading("It keeps running, with two pages per second. In another terminal, as root:");
    let say = |what: &str, command: String| println!("  {}\n    {}", term.dim(what), term.accent(&command));
    say("what the kernel says about each pod", format!("{programs}/loam-agent status --run-dir {work}/node-a/run"));
    say("every connection with both identities", format!("tail -f {work}/logs/*ztunnel*.out"));
    say("a page, fetched by the visitor", get("visitor", &format!("{}/productpage", shop.productpage.at(PORT))));
    say("what a ztunnel knows", get("node-a", "127.0.0.1:15000/config_dump"));
    say("its metrics", get("node-a", "127.0.0.1:15020/metrics"));
    say("the wire", format!("{enter} node-a tcpdump -ni any -X port 15008"));
    say("a shell in a pod", format!("{enter} productpage-v1 bash"));
    say("the manifests: take the label away and watch", format!("$EDITOR {work}/manifests/namespace-{NAMESPACE}.yaml"));
    println!("\n  Ctrl-C ends it and leaves nothing behind.");
    let end = visitor.wait(Duration::from_secs(u64::from(KEEP_SECONDS)))?;
    bail!("the visitor ended: {end}")
}
