//! Where manifests come from, as written on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A source of Kubernetes objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: a directory of manifests.
    Dir(PathBuf),
    /// `kubernetes`: an API server.
    Kubernetes,
}

/// A source that is not written as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source: write kubernetes for an API server, or dir:PATH for a directory of manifests")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(s: &str) -> Result<Self, SourceError> {
        match s.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            None if s == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err(SourceError(s.chars().take(256).collect())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Dir(path) => write!(f, "dir:{}", path.display()),
            Source::Kubernetes => f.write_str("kubernetes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_as_it_is_written() {
        for text in ["dir:/m", "dir:a:b", "kubernetes"] {
            assert_eq!(text.parse::<Source>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "dir:", "dir", "kubernetes:", "/m"] {
            assert!(text.parse::<Source>().is_err(), "{text:?}");
        }
    }
}
