//! Cuts a file into its documents, so that a mistake in one of them cannot hide the others.

use serde::de::IgnoredAny;

/// How a file is written, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Yaml,
    Json,
}

impl Format {
    /// The format of a file, or `None` for a file that is not a manifest.
    pub(crate) fn of(file_name: &str) -> Option<Self> {
        if file_name.starts_with('.') {
            return None;
        }
        match file_name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// One document and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// Line of the file on which `text` begins, counted from 1.
    pub(crate) line: u32,
}

/// A place that cannot be read, and why.
pub(crate) type Fault = (u32, String);

/// The documents of `text`, and the place after which nothing could be told apart.
pub(crate) fn split(format: Format, text: &str) -> (Vec<Document<'_>>, Option<Fault>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => (split_yaml(text), None),
        Format::Json => split_json(text),
    }
}

/// YAML 1.2.2, 9.1.2: a `---` or `...` at the start of a line is never content, not even within a block scalar, so
/// the cut needs no parser and survives any mistake inside a document.
fn split_yaml(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at, mut blank) = (0, 1, 0, true);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let begins = is_marker(line, "---");
        let ends = is_marker(line, "...");
        if begins || ends {
            if !blank {
                documents.push(Document { text: &text[start..at], line: start_line });
            }
            (start, start_line) = if begins { (at, number) } else { (at + line.len(), number + 1) };
            blank = true;
        }
        if !ends {
            blank &= is_blank(if begins { &line[3..] } else { line });
        }
        at += line.len();
    }
    if !blank {
        documents.push(Document { text: &text[start..], line: start_line });
    }
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Nothing, a comment, or a directive such as `%YAML 1.2`.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.starts_with('%')
}

fn split_json(text: &str) -> (Vec<Document<'_>>, Option<Fault>) {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut from, mut line) = (0, 1);
    loop {
        let skipped = text[from..].len() - text[from..].trim_start().len();
        line += newlines(&text[from..from + skipped]);
        from += skipped;
        match values.next() {
            None => return (documents, None),
            Some(Ok(_)) => {
                let to = values.byte_offset();
                documents.push(Document { text: &text[from..to], line });
                line += newlines(&text[from..to]);
                from = to;
            }
            // The line of the error is counted from the start of the text.
            Some(Err(e)) => return (documents, Some((u32::try_from(e.line()).unwrap_or(line), without_place(&e)))),
        }
    }
}

fn newlines(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|b| *b == b'\n').count()).unwrap_or(u32::MAX)
}

/// The message without "at line L column C": the place is told apart, and in the file's own lines.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(format: Format, text: &str) -> Vec<(u32, &str)> {
        split(format, text).0.into_iter().map(|d| (d.line, d.text.trim())).collect()
    }

    #[test]
    fn yaml_is_cut_at_its_markers_and_empty_documents_are_dropped() {
        let cases: &[(&str, &[(u32, &str)])] = &[
            ("", &[]),
            ("a: 1", &[(1, "a: 1")]),
            ("\u{feff}a: 1", &[(1, "a: 1")]),
            ("# only\n\n", &[]),
            ("---\na: 1\n---\nb: 2\n", &[(1, "---\na: 1"), (3, "---\nb: 2")]),
            ("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1"), (2, "---\r\nb: 2")]),
            ("---\n---\n# x\n---\nb: 2", &[(4, "---\nb: 2")]),
            ("%YAML 1.2\n---\na: 1\n...\n# tail\n", &[(2, "---\na: 1")]),
            ("--- {a: 1}\n...\nb: 2\n", &[(1, "--- {a: 1}"), (3, "b: 2")]),
            ("a: |\n  ---\n  x\n--- # y\nb: ---\n", &[(1, "a: |\n  ---\n  x"), (4, "--- # y\nb: ---")]),
            ("----\na: 1\n", &[(1, "----\na: 1")]),
        ];
        for (text, expected) in cases {
            assert_eq!(lines(Format::Yaml, text), *expected, "{text:?}");
        }
    }

    #[test]
    fn json_documents_follow_each_other_and_a_fault_names_its_line() {
        let text = "{\"a\":1}\n\n {\n\"b\":\n2}\n\n[oops";
        let (documents, fault) = split(Format::Json, text);
        assert_eq!(documents.iter().map(|d| d.line).collect::<Vec<_>>(), [1, 3]);
        let (line, message) = fault.unwrap();
        assert_eq!(line, 7, "{message}");
        assert!(!message.contains("line"), "{message}");
    }

    #[test]
    fn only_visible_files_with_a_known_ending_are_manifests() {
        assert_eq!(Format::of("a.yaml"), Some(Format::Yaml));
        assert_eq!(Format::of("a.b.yml"), Some(Format::Yaml));
        assert_eq!(Format::of("a.json"), Some(Format::Json));
        for name in [".a.yaml", "a.yaml~", "yaml", "a.yaml.swp", "README.md", "..data", ""] {
            assert_eq!(Format::of(name), None, "{name:?}");
        }
    }
}
