//! Who called whom, from the lines that the ztunnels wrote about each connection.

use std::collections::BTreeMap;

use loam_tests::Mesh;
use serde_json::Value;

/// One caller and one called service, as the ztunnels prove and count them.
#[derive(Debug, Default)]
struct Sum {
    connections: u64,
    sent: u64,
    received: u64,
    milliseconds: Vec<u64>,
}

/// A table of all calls, heading first.
pub(crate) fn table(mesh: &Mesh) -> Vec<Vec<String>> {
    let mut sums: BTreeMap<[String; 4], Sum> = BTreeMap::new();
    for (_, line) in mesh.ztunnel_logs() {
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let (from, to) = (text("src.identity"), text("dst.identity"));
        // Each connection inside the mesh has a line at both ends; one of them is enough. A caller without an
        // identity is only seen by the receiving end.
        let is_wanted = match text("direction").as_str() {
            "outbound" => !to.is_empty(),
            "inbound" => from.is_empty(),
            _ => false,
        };
        if !is_wanted || line.get("error").is_some() {
            continue;
        }
        let caller = match text("src.workload") {
            name if name.is_empty() => text("src.addr").rsplit_once(':').map_or("?".into(), |(ip, _)| ip.to_owned()),
            name => name,
        };
        let sum = sums.entry([caller, short(&from), text("dst.workload"), short(&to)]).or_default();
        sum.connections += 1;
        let number = |key: &str| line[key].as_u64().or_else(|| line[key].as_str()?.parse().ok()).unwrap_or_default();
        // Seen from the called end, the caller sent what was received there.
        let (sent, received) = match text("direction").as_str() {
            "outbound" => (number("bytes_sent"), number("bytes_recv")),
            _ => (number("bytes_recv"), number("bytes_sent")),
        };
        sum.sent += sent;
        sum.received += received;
        sum.milliseconds.extend(text("duration").trim_end_matches("ms").parse::<u64>());
    }
    let heading = ["caller", "proven name", "called", "proven name", "calls", "sent", "received", "median"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for ([caller, from, called, to], mut sum) in sums {
        sum.milliseconds.sort_unstable();
        let median = sum.milliseconds.get(sum.milliseconds.len() / 2).copied().unwrap_or_default();
        let counts = [sum.connections.to_string(), bytes(sum.sent), bytes(sum.received), format!("{median} ms")];
        rows.push([[caller, from, called, to], counts].concat());
    }
    rows
}

/// What all identities of the shop begin with.
pub(crate) const COMMON: &str = "spiffe://cluster.local/ns/bookinfo/sa/";

/// An identity without what all of them share.
fn short(identity: &str) -> String {
    match identity.strip_prefix(COMMON) {
        Some(rest) => rest.to_owned(),
        None if identity.is_empty() => "none".to_owned(),
        None => identity.to_owned(),
    }
}

fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{} kB", n / 1000),
        _ => format!("{} MB", n / 1_000_000),
    }
}
