//! A PeerAuthentication, field by field.

use std::collections::BTreeMap;

use loam_manifest::{Located, Value};

use super::{Labels, selector};
use crate::policy::pattern;
use crate::policy::reader::{At, Flaws, quoted};

/// What matters about it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerAuthentication {
    /// Which workloads it is about; without labels, all of its namespace, or of the mesh for the root namespace.
    pub selector: Labels,
    /// What holds for all ports; `None` for what holds above.
    pub mode: Option<Mode>,
    /// What holds for a port, where that is something else.
    pub ports: BTreeMap<u16, Option<Mode>>,
}

/// Whether connections need mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of Istio's modes say it")]
pub enum Mode {
    Strict,
    Permissive,
    Disable,
}

/// Reads one. With flaws, what comes back is the closed reading: mutual TLS wherever it may be about.
pub fn read(spec: &Located, flaws: &mut Flaws) -> PeerAuthentication {
    let before = flaws.count();
    let whole = At::of(spec, "spec");
    if spec.value == Value::Null {
        whole.flaw(flaws, "is missing: write \"spec: {mtls: {mode: STRICT}}\"");
        return closed(Labels::default());
    }
    let mut fields = whole.fields(flaws);
    let selector = fields.take("selector");
    let selector = selector.map_or(Some(Labels::default()), |at| selector::read(&at, "matchLabels", flaws));
    let of_all = fields.take("mtls").and_then(|at| mode(&at, flaws));
    let mut ports = BTreeMap::new();
    if let Some(at) = fields.take("portLevelMtls") {
        if selector.as_ref().is_some_and(Labels::is_empty) {
            at.flaw(flaws, "needs a selector: write one, or set the mode of all ports");
        }
        for (port, value) in of_ports(&at, flaws) {
            ports.insert(port, mode(&value, flaws));
        }
    }
    fields.finish(flaws);
    match flaws.count() == before {
        true => PeerAuthentication { selector: selector.unwrap_or_default(), mode: of_all, ports },
        false => closed(selector.unwrap_or_default()),
    }
}

fn closed(selector: Labels) -> PeerAuthentication {
    PeerAuthentication { selector, mode: Some(Mode::Strict), ports: BTreeMap::new() }
}

fn of_ports<'a>(at: &At<'a>, flaws: &mut Flaws) -> Vec<(u16, At<'a>)> {
    let Value::Map(entries) = &at.value.value else {
        at.flaw(flaws, format_args!("is {}, and should be a map of ports", at.value.value.word()));
        return Vec::new();
    };
    let mut ports = Vec::new();
    for (port, value) in entries {
        let value = At { value, path: format!("{}[{}]", at.path, quoted(port)) };
        match pattern::port(port) {
            Ok(port) => ports.push((port, value)),
            Err(why) => value.flaw(flaws, why),
        }
    }
    ports
}

/// `{mode: STRICT}`; nothing and `UNSET` leave it to what holds above.
fn mode(at: &At<'_>, flaws: &mut Flaws) -> Option<Mode> {
    let mut fields = at.fields(flaws);
    let mode = fields.take("mode").and_then(|at| {
        at.parse(flaws, |text| match text {
            "STRICT" => Ok(Some(Mode::Strict)),
            "PERMISSIVE" => Ok(Some(Mode::Permissive)),
            "DISABLE" => Ok(Some(Mode::Disable)),
            "UNSET" => Ok(None),
            _ => Err("is not a mode: write STRICT, PERMISSIVE, DISABLE or UNSET"),
        })
    });
    fields.finish(flaws);
    mode.flatten()
}
