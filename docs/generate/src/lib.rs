//! The pages of the reference, written from what the programs say of themselves: a page cannot tell what is not so.

mod flags;
mod reasons;

/// A page of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its file below `docs/pages`.
    pub file: &'static str,
    /// What is in it, as Markdown.
    pub text: String,
}

/// Every page.
pub fn pages() -> Vec<Page> {
    vec![
        Page { file: "reference/reasons.md", text: reasons::page() },
        Page { file: "reference/flags.md", text: flags::page() },
    ]
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_pages_say_what_the_programs_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pages");
        for page in pages() {
            let written = std::fs::read_to_string(root.join(page.file)).unwrap_or_default();
            assert!(written == page.text, "{} is not fresh: run cargo run --package loam-docs", page.file);
        }
    }

    #[test]
    fn a_bar_does_not_end_a_cell() {
        assert_eq!(cell("plain|json\nor both"), "plain\\|json or both");
    }
}
