//! What is wrong with the manifests, as values that can be compared, counted and printed.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::object::Key;

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was written is not in force.
    Error,
    /// Something is ignored that may well be meant to be.
    Note,
}

/// One thing that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// The file below the directory; empty when it is about the directory itself.
    pub file: Arc<str>,
    /// The line in the file, counted from 1, where one is known.
    pub line: Option<u32>,
    /// The object it is about, where its name could be read.
    pub object: Option<Key>,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, what was done about it, and why.
    pub message: String,
}

/// Longest message: parsers quote their input, and the input is anybody's.
const MAX_MESSAGE_CHARS: usize = 400;

impl Problem {
    /// A problem of no particular object. Control characters go, and what is too long is cut.
    pub fn new(severity: Severity, file: &Arc<str>, line: Option<u32>, message: &str) -> Self {
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let mut text: String = message.chars().map(clean).take(MAX_MESSAGE_CHARS).collect();
        if message.chars().nth(MAX_MESSAGE_CHARS).is_some() {
            text.push_str("...");
        }
        Self { file: Arc::clone(file), line, object: None, severity, message: text }
    }

    /// The same about an object.
    #[must_use]
    pub fn about(mut self, object: Key) -> Self {
        self.object = Some(object);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}
