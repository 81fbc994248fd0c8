//! What a capture on the nodes' ends of the pods' links shows to a person.

use loam_tests::report::{Captured, Flow};

use super::cast::Names;
use crate::term::Term;

/// Bytes of a record that are shown.
const SHOWN: usize = 16;

/// The first readable request between two pods of the shop.
pub(crate) fn readable(seen: &Captured, names: Names<'_>) -> Option<(String, String)> {
    let is_request = |f: &&Flow| f.first.starts_with(b"GET ") && names.is_member(f.from.ip());
    // A call from service to service says more than one from the visitor.
    let inner = |f: &&Flow| is_request(f) && !f.first.starts_with(b"GET /productpage");
    let flow = seen.flows.iter().find(inner).or_else(|| seen.flows.iter().find(is_request))?;
    let line = String::from_utf8_lossy(&flow.first).lines().next().unwrap_or_default().to_owned();
    Some((route(flow, names), line))
}

/// The first bytes of a tunnel.
pub(crate) fn sealed(seen: &Captured, names: Names<'_>) -> Option<(String, String)> {
    let flow = seen.flows.iter().find(|f| f.to.port() == 15008)?;
    let hex: Vec<String> = flow.first.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect();
    let kind = match flow.first.first() {
        Some(0x16) => "TLS handshake",
        Some(0x17) => "TLS data",
        _ => "?",
    };
    Some((route(flow, names), format!("{} ...  {kind}", hex.join(" "))))
}

/// Packets of readable HTTP between pods of the shop.
pub(crate) fn readable_packets(seen: &Captured, names: Names<'_>) -> u64 {
    let inside = seen.http.iter().filter(|(from, to, _)| names.is_member(*from) && names.is_member(*to));
    inside.map(|(.., packets)| packets).sum()
}

fn route(flow: &Flow, names: Names<'_>) -> String {
    format!("{} -> {}:{}", names.of(flow.from.ip()), names.of(flow.to.ip()), flow.to.port())
}

/// One line of the wire.
pub(crate) fn show(term: Term, (route, bytes): &(String, String)) {
    println!("  {}  {}", term.dim(route), term.accent(bytes));
}
