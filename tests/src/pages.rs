//! Command blocks of the book's getting-started pages. Each is run by a test, or says before it why it cannot be.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What is before a block that cannot be run by a test.
const NOT_RUN: &str = "<!-- not run: ";

/// The pages that lead from nothing to mutual TLS, each on another kind of cluster. What can be run of them is the same.
pub const FOR_NEWCOMERS: [&str; 3] = ["kind.md", "k3s.md", "cloud.md"];
/// The page that goes on from there.
pub const ON_A_CLUSTER: &str = "kubernetes.md";
/// The page whose commands need no cluster.
pub const ON_ONE_MACHINE: &str = "one-machine.md";

/// A fenced block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its page.
    pub page: String,
    /// Line of its first command, from 1.
    pub line: usize,
    /// What is typed.
    pub script: String,
    /// Why no test runs it.
    pub not_run: Option<String>,
}

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The blocks of a page below `docs/pages`, in its order.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let path = repository().join("docs/pages").join(page);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    read(page, &text)
}

fn read(page: &str, text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut not_run = None;
    for (number, line) in text.lines().enumerate() {
        match &mut open {
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => block.script.push_str(&format!("{line}\n")),
            None if line == "```sh" => {
                let (page, not_run) = (page.to_owned(), not_run.take());
                open = Some(Block { page, line: number + 2, script: String::new(), not_run });
            }
            None => {
                if let Some(why) = not_run.take() {
                    bail!("{page}:{number}: {why:?} is said of no block");
                }
                not_run = line.strip_prefix(NOT_RUN).map(|rest| rest.trim_end_matches("-->").trim().to_owned());
            }
        }
    }
    if let Some(block) = open {
        bail!("{page}:{}: the block does not end", block.line);
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most commands until mutual TLS is seen.
    const MOST_COMMANDS: usize = 8;

    /// Every block that no test runs: its page, and how it begins.
    const NOT_RUN_BLOCKS: [(&str, &str); 11] = [
        ("one-machine.md", "cargo xtask cluster up"),
        ("kind.md", "kind create cluster"),
        ("kind.md", "cargo xtask images"),
        ("kind.md", "for image in"),
        ("kind.md", "cargo install"),
        ("k3s.md", "cargo xtask images"),
        ("k3s.md", "for image in"),
        ("k3s.md", "cargo install"),
        ("cloud.md", "cargo xtask images"),
        ("cloud.md", "for image in"),
        ("cloud.md", "cargo install"),
    ];

    fn all() -> Vec<Block> {
        let pages = [ON_ONE_MACHINE, ON_A_CLUSTER].into_iter().chain(FOR_NEWCOMERS);
        pages.flat_map(|page| blocks(page).unwrap()).collect()
    }

    #[test]
    fn a_block_that_no_test_runs_says_why_and_is_listed() {
        let all = all();
        let kept: Vec<&Block> = all.iter().filter(|block| block.not_run.is_some()).collect();
        for block in &kept {
            let why = block.not_run.as_deref().unwrap_or_default();
            println!(
                "not run: {}:{}: {} ({why})",
                block.page,
                block.line,
                block.script.lines().next().unwrap_or_default()
            );
            assert!(!why.is_empty(), "{block:?} does not say why");
            let is_listed =
                NOT_RUN_BLOCKS.iter().any(|(page, begin)| block.page == *page && block.script.starts_with(begin));
            assert!(is_listed, "{block:?} is not listed");
        }
        assert_eq!(kept.len(), NOT_RUN_BLOCKS.len(), "a listed block is gone, or is run now");
        assert!(all.len() - kept.len() >= kept.len(), "more blocks are passed over than run");
    }

    #[test]
    fn a_newcomer_needs_few_commands_and_no_name_of_a_pod() {
        let run = |page: &str| -> Vec<String> {
            let blocks = blocks(page).unwrap().into_iter();
            blocks.filter(|block| block.not_run.is_none()).map(|block| block.script).collect()
        };
        for page in FOR_NEWCOMERS {
            let blocks = blocks(page).unwrap();
            assert_eq!(run(page), run(FOR_NEWCOMERS[0]), "{page} is not the page that is run");
            assert!(blocks.len() <= MOST_COMMANDS, "{page} has {} commands", blocks.len());
            assert!(blocks.last().is_some_and(|block| block.script.starts_with("loam status")), "{page}");
        }
        for block in all() {
            assert!(
                !block.script.contains("pod/") && !block.script.contains("POD"),
                "{block:?} needs the name of a pod"
            );
        }
    }

    #[test]
    fn blocks_are_read_with_what_is_said_before_them() {
        let text =
            "<!-- not run: no Docker -->\n```sh\nkind create cluster\n```\n\n```yaml\na: b\n```\n```sh\na\nb\n```\n";
        let found = read("p.md", text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].line, found[0].not_run.as_deref()), (3, Some("no Docker")));
        assert_eq!((found[1].script.as_str(), &found[1].not_run), ("a\nb\n", &None));
        assert!(read("p.md", "<!-- not run: why -->\n\ntext\n").is_err());
        assert!(read("p.md", "```sh\na\n").is_err());
    }
}
