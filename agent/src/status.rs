//! What the agent knows, as a file that anybody may read at any time, and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cleanup::is_running;
use crate::config;
use crate::enrol::{PodFacts, Timing};
use crate::pods::Uid;
use crate::pods::record::write_atomically;
use crate::pods::registry::{Registry, State};
use crate::redirect::HookFacts;

/// The file inside the run directory.
pub const FILE: &str = "status.json";

/// Everything, at one moment.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When this was written.
    pub written_at: Timestamp,
    /// How long it took to load and attach, or to take over.
    pub start_ms: f64,
    /// Which programs are in use.
    pub programs: &'static str,
    /// The node's hooks.
    pub hooks: Option<HookFacts>,
    /// Whether the keeper can be asked.
    pub keeper: bool,
    /// What is wrong with the node as a whole or with its manifests.
    pub problems: Vec<String>,
    /// The pods that belong to the mesh here.
    pub pods: Vec<PodStatus>,
}

/// One pod.
#[derive(Debug, Serialize)]
pub struct PodStatus {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why it is not further, or what is wrong; empty if nothing is.
    pub reason: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Path of its network namespace.
    pub netns: String,
    /// Cookie of that.
    pub netns_cookie: Option<u64>,
    /// Its number on this node.
    pub index: Option<u32>,
    /// What the kernel and the keeper have for it, as of `checked_at`.
    pub kernel: Option<PodFacts>,
    /// When it was looked at.
    pub checked_at: Option<Timestamp>,
    /// How long its enrolment took; none if it was taken over.
    pub timing: Option<Timing>,
}

/// What is remembered of a pod beside the registry.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// See [`PodStatus::kernel`].
    pub facts: Option<PodFacts>,
    /// See [`PodStatus::checked_at`].
    pub checked_at: Option<Timestamp>,
    /// See [`PodStatus::timing`].
    pub timing: Option<Timing>,
}

/// The pods of a registry, with what is remembered of them.
pub fn pods(registry: &Registry, memory: &BTreeMap<Uid, Memory>) -> Vec<PodStatus> {
    let pod = |view: crate::pods::registry::View<'_>| {
        let memory = memory.get(view.uid).cloned().unwrap_or_default();
        let spec = view.place.map(|place| &place.spec);
        let (namespace, name) = view.title.split_once('/').unwrap_or(("", view.title));
        let mut reason = view.reason.to_owned();
        if reason.is_empty()
            && let Some(facts) = memory.facts.as_ref().filter(|_| view.state == State::Enrolled)
        {
            reason = facts.problems.join("; ");
        }
        PodStatus {
            uid: view.uid.to_string(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            state: view.state,
            reason,
            addresses: spec.map(|spec| spec.addresses.clone()).unwrap_or_default(),
            netns: spec.map(|spec| spec.netns.display().to_string()).unwrap_or_default(),
            netns_cookie: view.place.and_then(|place| place.cookie),
            index: view.place.map(|place| place.index),
            kernel: memory.facts,
            checked_at: memory.checked_at,
            timing: memory.timing,
        }
    };
    registry.views().map(pod).collect()
}

/// Writes the file.
pub fn write(run_dir: &Path, status: &Status) -> io::Result<()> {
    write_atomically(&run_dir.join(FILE), &serde_json::to_vec_pretty(status)?)
}

/// Prints the file as `loam-agent status` was asked to.
pub fn print(config: &config::Status) -> anyhow::Result<()> {
    let path = config.run_dir.join(FILE);
    let content = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = match config.output {
        config::Output::Json => content,
        config::Output::Table => table(&content, is_running(&config.run_dir)).context("read the status")?,
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// As much of the file as the table needs: it may come from another version.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Read {
    node: String,
    pid: u32,
    written_at: Option<Timestamp>,
    programs: String,
    hooks: Option<ReadHooks>,
    keeper: bool,
    problems: Vec<String>,
    pods: Vec<ReadPod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReadHooks {
    links: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReadPod {
    namespace: String,
    name: String,
    state: String,
    reason: String,
    index: Option<u32>,
    netns_cookie: Option<u64>,
    kernel: Option<ReadFacts>,
    checked_at: Option<Timestamp>,
    timing: Option<Timing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReadFacts {
    captured: bool,
    dns: bool,
    steer: ReadSteer,
    routed: bool,
    listening: Option<bool>,
    serving: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReadSteer {
    tag: String,
    attached: bool,
}

/// The file's content as text for people. `running` is whether an agent is at work.
pub fn table(content: &str, running: bool) -> Result<String, serde_json::Error> {
    let status: Read = serde_json::from_str(content)?;
    let mut out = String::new();
    let written = status.written_at.map_or_else(|| "?".to_owned(), |at| format!("{at:.0}"));
    let who = match running {
        true => format!("agent {}", status.pid),
        false => "the agent is NOT running; this is the last it knew".to_owned(),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "node {}: {who}, written {written}", status.node);
    let hooks = status.hooks.unwrap_or_default();
    let _ = writeln!(
        out,
        "programs: {}; {} of {} hooks attached; keeper: {}",
        status.programs,
        hooks.links.iter().filter(|&&link| link != 0).count(),
        hooks.links.len(),
        if status.keeper { "connected" } else { "not reached" },
    );
    for problem in &status.problems {
        let _ = writeln!(out, "problem: {problem}");
    }
    let heading = [
        "POD",
        "STATE",
        "INDEX",
        "NETNS COOKIE",
        "CONNECT",
        "DNS",
        "STEER",
        "ROUTES",
        "LISTEN",
        "ZTUNNEL",
        "CHECKED",
        "ENROLLED IN",
        "REASON",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(status.pods.into_iter().map(row));
    let mut widths = [0; 13];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    Ok(out)
}

fn row(pod: ReadPod) -> [String; 13] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let yes = |good: bool| if good { "yes" } else { "NO" }.to_owned();
    let facts = pod.kernel.as_ref();
    [
        format!("{}/{}", pod.namespace, pod.name),
        pod.state,
        or_dash(pod.index.map(|index| index.to_string())),
        or_dash(pod.netns_cookie.map(|cookie| cookie.to_string())),
        or_dash(facts.map(|facts| yes(facts.captured))),
        or_dash(facts.map(|facts| if facts.dns { "on" } else { "off" }.to_owned())),
        or_dash(facts.map(|facts| if facts.steer.attached { facts.steer.tag.clone() } else { "NO".to_owned() })),
        or_dash(facts.map(|facts| yes(facts.routed))),
        or_dash(facts.and_then(|facts| facts.listening).map(yes)),
        or_dash(facts.and_then(|facts| facts.serving).map(yes)),
        or_dash(pod.checked_at.map(|at| at.strftime("%H:%M:%S").to_string())),
        or_dash(pod.timing.map(|timing| format!("{:.1} ms", timing.total_ms))),
        pod.reason,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::{FORM, SteerFacts};

    #[test]
    fn the_table_shows_each_pod_as_the_file_has_it() {
        let facts = PodFacts {
            captured: true,
            dns: true,
            steer: SteerFacts { link: 5, tag: "00ab".into(), attached: true, current: true, configured: true },
            routed: false,
            listening: Some(true),
            serving: None,
            problems: vec!["IPv4: the rule for marked packets is missing".into()],
            repairable: true,
        };
        let pod = PodStatus {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            state: State::Enrolled,
            reason: "IPv4: the rule for marked packets is missing".into(),
            addresses: vec!["10.0.0.7".parse().unwrap()],
            netns: "/run/netns/web".into(),
            netns_cookie: Some(4100),
            index: Some(3),
            kernel: Some(facts),
            checked_at: Some(Timestamp::UNIX_EPOCH),
            timing: Some(Timing { total_ms: 12.34, ..Timing::default() }),
        };
        let status = Status {
            node: "n1".into(),
            pid: 7,
            started_at: Timestamp::UNIX_EPOCH,
            written_at: Timestamp::UNIX_EPOCH,
            start_ms: 20.0,
            programs: FORM,
            hooks: Some(HookFacts {
                names: vec!["sendmsg4", "connect4"],
                links: vec![0, 2],
                tags: vec!["aa".into(), "bb".into()],
                repaired: vec![],
            }),
            keeper: true,
            problems: vec!["shop.yaml:3: bad".into()],
            pods: vec![pod],
        };
        let text = serde_json::to_string(&status).unwrap();
        let table = table(&text, true).unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = table.lines().map(words).collect();
        assert_eq!(lines[0], "node n1: agent 7, written 1970-01-01T00:00:00Z");
        assert!(lines[1].contains("1 of 2 hooks attached; keeper"), "{}", lines[1]);
        assert_eq!(lines[2], "problem: shop.yaml:3: bad");
        assert_eq!(
            lines[4],
            "shop/web enrolled 3 4100 yes on 00ab NO yes - 00:00:00 12.3 ms IPv4: the rule for marked packets is missing"
        );
    }

    #[test]
    fn a_file_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(table("{}", false).unwrap().contains("NOT running"));
        assert!(table("[", false).is_err());
    }
}
