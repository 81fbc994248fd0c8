//! Patterns for texts of a request: exact, by beginning, end or regular expression, or merely there.

use std::fmt;
use std::sync::Arc;

use regex::RegexBuilder;

/// Longest regular expression, in bytes.
pub const MAX_REGEX_BYTES: usize = 1024;

/// Largest compiled regular expression, in bytes. Repetitions of repetitions grow far beyond their text.
pub const MAX_REGEX_SIZE: usize = 256 * 1024;

/// A regular expression that must match the whole text. It has RE2's syntax and takes time linear in the text.
#[derive(Debug, Clone)]
pub struct Regex {
    text: Arc<str>,
    compiled: regex::Regex,
}

/// Why a regular expression is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// Longer than [`MAX_REGEX_BYTES`].
    #[error("regular expression of {0} bytes is longer than {MAX_REGEX_BYTES}")]
    TooLong(usize),
    /// Compiled it is larger than [`MAX_REGEX_SIZE`].
    #[error("regular expression {0:?} grows beyond {MAX_REGEX_SIZE} bytes when it is compiled")]
    TooLarge(Arc<str>),
    /// It is no regular expression.
    #[error("regular expression {text:?}: {why}")]
    Syntax {
        /// The expression.
        text: Arc<str>,
        /// What is wrong with it.
        why: String,
    },
}

impl Regex {
    /// Compiles `text`.
    pub fn new(text: &str) -> Result<Self, RegexError> {
        if text.len() > MAX_REGEX_BYTES {
            return Err(RegexError::TooLong(text.len()));
        }
        // Alone first: "a)(b" would be legal inside the group.
        let compiled = build(text).and_then(|_| build(&format!(r"\A(?:{text})\z")));
        match compiled {
            Ok(compiled) => Ok(Self { text: text.into(), compiled }),
            Err(regex::Error::CompiledTooBig(_)) => Err(RegexError::TooLarge(text.into())),
            Err(error) => Err(RegexError::Syntax { text: text.into(), why: last_line(&error) }),
        }
    }

    /// Whether it matches all of `text`.
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn build(text: &str) -> Result<regex::Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(MAX_REGEX_SIZE).dfa_size_limit(MAX_REGEX_SIZE).build()
}

/// The error itself; the lines before draw the expression.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Regex {}

impl fmt::Display for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A pattern for a text that may be absent. Nothing matches an absent text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of patterns say it")]
pub enum Pattern {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Regex(Regex),
    Present,
}

impl Pattern {
    /// Whether `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::Exact(exact) => text == &**exact,
            Pattern::Prefix(prefix) => text.starts_with(&**prefix),
            Pattern::Suffix(suffix) => text.ends_with(&**suffix),
            Pattern::Regex(regex) => regex.matches(text),
            Pattern::Present => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_the_whole_text() {
        let regex = Regex::new("/v[0-9]+|/w").unwrap();
        for (text, fits) in [("/v1", true), ("/w", true), ("/v1/x", false), ("x/w", false), ("/v1\n", false)] {
            assert_eq!(regex.matches(text), fits, "{text:?}");
        }
    }

    #[test]
    fn an_expression_that_is_wrong_or_too_large_is_refused() {
        for text in ["(", "a)(b", "[z-a]", r"\1", "(?=x)"] {
            assert!(matches!(Regex::new(text), Err(RegexError::Syntax { .. })), "{text:?}");
        }
        assert_eq!(Regex::new(&"a".repeat(1025)), Err(RegexError::TooLong(1025)));
        assert!(matches!(Regex::new("((((a{99}){99}){99}){99})"), Err(RegexError::TooLarge(_))));
    }
}
