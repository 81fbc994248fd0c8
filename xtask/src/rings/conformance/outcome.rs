//! How tests of the suite ended, from what the test program prints.

use std::time::Duration;

use crate::rings::End;

/// What the test program puts before lines that are about tests.
pub(super) const MARK: char = '\u{16}';
/// The test that the suite's tests are parts of.
const ALL: &str = "TestConformance";
/// How the names of tests of meshes begin. All others are skipped.
const MESH: &str = "Mesh";
/// The test that needs no mesh, only that its endpoints reach each other.
const NEEDS_NO_MESH: &str = "MeshBasic";

/// A line that is about the end of a test.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A test of meshes ended.
    Test(Outcome),
    /// A case of the test that is under way failed.
    FailedCase(String),
    /// All of the suite ended.
    Finished,
}

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) end: End,
    pub(super) time: Duration,
}

impl Outcome {
    /// What counts, and why when it is not what the suite says: without a mesh a test that passes is a bad one.
    pub(super) fn judge(&self, without_mesh: bool) -> (End, &'static str) {
        match self.end {
            End::Passed if without_mesh && self.name != NEEDS_NO_MESH => (End::Failed, "  passes without a mesh"),
            End::Failed if without_mesh && self.name != NEEDS_NO_MESH => (End::Passed, "  fails without a mesh"),
            End::Passed | End::Failed => (self.end, ""),
            // A test that the suite leaves out is one that nobody asked for and nobody looked at.
            End::Skipped => (End::Failed, "  was left out"),
        }
    }
}

/// Reads a line such as `--- PASS: TestConformance/MeshBasic (0.52s)`.
pub(super) fn read(line: &str) -> Option<Told> {
    let (word, rest) = line.trim().strip_prefix("--- ")?.split_once(": ")?;
    let (name, time) = rest.rsplit_once(" (")?;
    let end = match word {
        "PASS" => End::Passed,
        "FAIL" => End::Failed,
        "SKIP" => End::Skipped,
        _ => return None,
    };
    if name == ALL {
        return Some(Told::Finished);
    }
    let name = name.strip_prefix(ALL)?.strip_prefix('/')?;
    if !name.starts_with(MESH) {
        return None;
    }
    match name.split_once('/') {
        None => {
            let seconds = time.strip_suffix("s)")?.parse().ok()?;
            Some(Told::Test(Outcome { name: name.to_owned(), end, time: Duration::try_from_secs_f64(seconds).ok()? }))
        }
        Some((_, case)) => (end == End::Failed).then(|| Told::FailedCase(case.replace('_', " "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, end: End, milliseconds: u64) -> Outcome {
        Outcome { name: name.into(), end, time: Duration::from_millis(milliseconds) }
    }

    #[test]
    fn tests_of_meshes_their_failed_cases_and_the_end_are_read_and_nothing_else() {
        for (line, told) in [
            ("--- PASS: TestConformance/MeshBasic (0.52s)", Some(Told::Test(outcome("MeshBasic", End::Passed, 520)))),
            (
                "    --- SKIP: TestConformance/MeshPorts (0.00s)",
                Some(Told::Test(outcome("MeshPorts", End::Skipped, 0))),
            ),
            (
                "--- FAIL: TestConformance/MeshPorts/1_request_to_'echo-v1:8080/' (30.02s)",
                Some(Told::FailedCase("1 request to 'echo-v1:8080/'".into())),
            ),
            ("--- PASS: TestConformance/MeshPorts/0_request (0.20s)", None),
            ("--- SKIP: TestConformance/GatewayModifyListeners (0.00s)", None),
            ("--- FAIL: TestConformance (187.31s)", Some(Told::Finished)),
            ("=== RUN   TestConformance/MeshBasic", None),
            ("    pod.go:64: --- PASS is what it says", None),
            ("FAIL", None),
        ] {
            assert_eq!(read(line), told, "{line}");
        }
    }

    #[test]
    fn without_a_mesh_only_reaching_each_other_may_work() {
        for (name, end, with, without) in [
            ("MeshBasic", End::Passed, End::Passed, End::Passed),
            ("MeshBasic", End::Failed, End::Failed, End::Failed),
            ("MeshPorts", End::Passed, End::Passed, End::Failed),
            ("MeshPorts", End::Failed, End::Failed, End::Passed),
            ("MeshPorts", End::Skipped, End::Failed, End::Failed),
        ] {
            let outcome = outcome(name, end, 0);
            assert_eq!((outcome.judge(false).0, outcome.judge(true).0), (with, without), "{outcome:?}");
        }
    }
}
