//! What the guest's console says: which tests passed, and why the first one did not.

use std::fmt;

use loam_tests::testing::SKIPPED;

/// Begin and end of a test, each with its number; the end with the exit status. `init.sh` writes them.
const BEGIN: &str = "LOAM begin ";
const END: &str = "LOAM end ";
/// The guest has done all that it was to do.
const DONE: &str = "LOAM done";

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
    /// It was not run, or the guest ended in the middle of it.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "yes",
            Self::Failed => "no",
            Self::Unknown => "-",
        })
    }
}

/// A kernel's run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// One for each test.
    pub(super) verdicts: Vec<Verdict>,
    /// Why not everything passed.
    pub(super) why: Option<String>,
}

/// Reads a console on which `tests` tests were to run.
pub(super) fn read(text: &str, tests: usize) -> Ran {
    let mut verdicts = vec![Verdict::Unknown; tests];
    let mut why = None;
    let mut said: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if line.starts_with(BEGIN) {
            said.clear();
        } else if let Some((number, status)) = line.strip_prefix(END).and_then(|rest| rest.split_once(' ')) {
            let skipped = said.iter().find_map(|line| line.split_once(SKIPPED)).map(|(_, what)| what);
            let passed = status == "0" && skipped.is_none();
            if let Some(verdict) = number.parse().ok().and_then(|n: usize| verdicts.get_mut(n)) {
                *verdict = if passed { Verdict::Passed } else { Verdict::Failed };
            }
            if !passed && why.is_none() {
                why = Some(skipped.map_or_else(|| reason(&said), str::to_owned));
            }
            said.clear();
        } else {
            said.push(line);
        }
    }
    if why.is_none() && !text.contains(DONE) {
        let last = said.iter().rev().find(|line| !line.is_empty()).copied().unwrap_or("nothing");
        why = Some(format!("it ended before the tests did; the last that it said was: {last}"));
    }
    Ran { verdicts, why }
}

/// What a test's output says of its failure: the verifier's last word where it had one, else the panic's.
fn reason(said: &[&str]) -> String {
    // The verifier ends with how much it looked at, and what it dislikes is in the line before.
    let verifier = said.iter().position(|line| line.starts_with("processed ") && line.contains(" insns"));
    let verifier = verifier.and_then(|at| said[..at].iter().rev().find(|line| !line.is_empty()));
    let too_old = said.iter().find_map(|line| line.find("is too old").map(|_| line.trim()));
    let panic = said.iter().position(|line| line.contains(" panicked at ")).and_then(|at| said.get(at + 1));
    let found = [too_old, verifier.copied()];
    let found: Vec<&str> = found.into_iter().flatten().collect();
    match (found.is_empty(), panic) {
        (false, _) => found.join("; "),
        (true, Some(panic)) => (*panic).to_owned(),
        (true, None) => "it says nothing of why".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_has_the_verdict_that_its_end_gives() {
        let text = "LOAM begin 0\r\ntest result: ok.\r\nLOAM end 0 0\r\nLOAM begin 1\r\n\
                    thread 'x' panicked at tests/a.rs:1:2:\r\n10.0.0.1:80: timed out\r\nLOAM end 1 101\r\nLOAM done\r\n";
        let expected = Ran {
            verdicts: vec![Verdict::Passed, Verdict::Failed, Verdict::Unknown],
            why: Some("10.0.0.1:80: timed out".into()),
        };
        assert_eq!(read(text, 3), expected);
    }

    #[test]
    fn the_word_of_the_verifier_is_the_reason() {
        let text = "LOAM begin 0\n--- node-a.keeper (exit status 1), stderr\nload a hook: kernel 5.17.0 is too old\n\
                    17: (85) call bpf_set_retval#187\nunknown func bpf_set_retval#187\nprocessed 17 insns (limit 1000000)\n\
                    thread 'x' panicked at tests/a.rs:1:2:\nthe keeper ended\nLOAM end 0 101\nLOAM done\n";
        let why = read(text, 1).why.expect("a reason");
        assert!(why.contains("is too old") && why.ends_with("unknown func bpf_set_retval#187"), "{why}");
    }

    #[test]
    fn a_test_that_skips_itself_has_not_passed_and_a_guest_that_dies_says_where() {
        let skipped = format!("LOAM begin 0\n{SKIPPED}needs BPF\nLOAM end 0 0\nLOAM done\n");
        assert_eq!(read(&skipped, 1), Ran { verdicts: vec![Verdict::Failed], why: Some("needs BPF".into()) });
        let dead = read("LOAM begin 0\nKernel panic - not syncing\n", 1);
        assert_eq!(dead.verdicts, [Verdict::Unknown]);
        assert!(dead.why.is_some_and(|why| why.ends_with("Kernel panic - not syncing")));
    }
}
