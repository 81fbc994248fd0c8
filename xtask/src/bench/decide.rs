//! What decisions cost: functions over a snapshot, measured without a network by examples of the crate they are in.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::goal::{Goal, Metric};
use crate::cargo;
use crate::term::Term;

/// A decision and the example that measures it. The example says what it found as a line of JSON, with keys that end in
/// `_ns`, or as lines of text that end in a name, a colon and nanoseconds.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) name: &'static str,
    what: &'static str,
    example: &'static str,
    /// For every case.
    pub(crate) goal: Goal,
}

pub(crate) static ALL: [Decision; 3] = [
    Decision {
        name: "judge",
        what: "policy check, 10,000 policies",
        example: "judge",
        goal: Goal::new(Metric::Nanoseconds, 2000.0),
    },
    Decision {
        name: "pick",
        what: "endpoint pick, 10,000 endpoints",
        example: "pick",
        goal: Goal::new(Metric::Nanoseconds, 2000.0),
    },
    Decision {
        name: "route",
        what: "rule of a request, 10,000 routes",
        example: "route",
        goal: Goal::new(Metric::Nanoseconds, 2000.0),
    },
];

/// What a decision took.
#[derive(Debug, Serialize)]
pub(crate) struct Decided {
    #[serde(serialize_with = "by_name")]
    pub(crate) decision: &'static Decision,
    pub(crate) cases: Vec<Case>,
}

/// One shape of what is decided about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) nanoseconds: f64,
}

fn by_name<S: serde::Serializer>(decision: &&'static Decision, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(decision.name)
}

/// Builds the example and runs it.
pub(crate) fn measure(term: Term, decision: &'static Decision) -> Result<Decided> {
    let what = format!("{} (compiles it the first time)", decision.what);
    let cases = term.step(&what, || {
        let arguments = ["run", "--quiet", "--locked", "--release", "--package", "loam-core", "--example"];
        let mut command = cargo();
        command.args(arguments).arg(decision.example).stderr(Stdio::inherit());
        let output = command.output().context("run cargo")?;
        ensure!(output.status.success(), "the example {} of loam-core failed", decision.example);
        let said = String::from_utf8_lossy(&output.stdout);
        let cases = parse(&said);
        ensure!(!cases.is_empty(), "the example {} of loam-core said no nanoseconds: {said:?}", decision.example);
        Ok(cases)
    })?;
    Ok(Decided { decision, cases })
}

impl Decided {
    /// The slowest case.
    pub(crate) fn slowest(&self) -> Option<&Case> {
        self.cases.iter().max_by(|a, b| a.nanoseconds.total_cmp(&b.nanoseconds))
    }

    /// For the table.
    pub(crate) fn what(&self) -> &'static str {
        self.decision.what
    }
}

fn parse(said: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for line in said.lines() {
        if let Ok(Value::Object(object)) = serde_json::from_str(line) {
            let case = |(key, value): (&String, &Value)| {
                Some(Case { name: key.strip_suffix("_ns")?.to_owned(), nanoseconds: value.as_f64()? })
            };
            cases.extend(object.iter().filter_map(case));
        } else if let Some((name, figures)) = line.split_once(": ")
            && let Some(nanoseconds) = figures.split_once(" ns").and_then(|(n, _)| n.parse().ok())
        {
            cases.push(Case { name: name.split_whitespace().collect::<Vec<_>>().join(" "), nanoseconds });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, nanoseconds: f64) -> Case {
        Case { name: name.to_owned(), nanoseconds }
    }

    #[test]
    fn both_kinds_of_examples_are_understood() {
        let judge =
            "10000 policies apply; ns per verdict\nport       Namespace Deny: 173 ns, 8% denied, built in 9ms\n";
        assert_eq!(parse(judge), [case("port Namespace Deny", 173.0)]);
        let pick = "{\"endpoints\":10000,\"any_ns\":151.5,\"affinity_ns\":9000.0}\n";
        assert_eq!(parse(pick), [case("affinity", 9000.0), case("any", 151.5)]);
    }

    #[test]
    fn the_slowest_case_is_judged() {
        let cases = vec![case("any", 100.0), case("weighted", 300.0), case("failover", 200.0)];
        assert_eq!(Decided { decision: &ALL[1], cases }.slowest(), Some(&case("weighted", 300.0)));
    }
}
