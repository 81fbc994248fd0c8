//! The other ztunnel of a run: whose it is, by what it says of itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use loam_tests::Lab;
use serde::Serialize;

/// Names the program of another ztunnel, to be measured in the same run.
const VARIABLE: &str = "LOAM_BENCH_ZTUNNEL";

/// How its help begins, before its version in parentheses.
const ISTIO_HELP: &str = "Istio Ztunnel (";

/// Name of the variant that Istio's ztunnel carries.
pub(crate) const ISTIO: &str = "istio";

/// Another ztunnel.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Other {
    pub(crate) program: PathBuf,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// How a ztunnel is driven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Kind {
    /// By our keeper: another build of ours.
    LikeOurs,
    /// Istio's, which makes its own sockets in the pods.
    Istio { version: String },
}

impl Other {
    /// What the environment names.
    pub(crate) fn find(lab: &Lab) -> Result<Option<Self>> {
        let Some(program) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return Ok(None) };
        let find = || {
            let program = fs::canonicalize(&program)?;
            let help = lab.run(&[path_text(&program)?, "--help"])?;
            let Some(kind) = Kind::of(&help.stdout) else {
                bail!(
                    "its --help is that of no ztunnel that can be measured: neither of one that is driven as ours is \
                     (--run-dir, --xds-address, --ca-root) nor of Istio's. It says {:?}",
                    help.stdout.lines().chain(help.stderr.lines()).find(|line| !line.trim().is_empty())
                );
            };
            Ok(Some(Self { program, kind }))
        };
        find().with_context(|| format!("{VARIABLE}={}", program.display()))
    }

    /// Name of its variant.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::LikeOurs => "other",
            Kind::Istio { .. } => ISTIO,
        }
    }
}

impl Kind {
    fn of(help: &str) -> Option<Self> {
        if ["--run-dir", "--xds-address", "--ca-root"].iter().all(|flag| help.contains(flag)) {
            return Some(Self::LikeOurs);
        }
        let version = help.lines().find_map(|line| line.trim().strip_prefix(ISTIO_HELP)?.strip_suffix(')'))?;
        Some(Self::Istio { version: version.to_owned() })
    }
}

/// A path as an argument.
pub(crate) fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ztunnel_is_known_by_its_help() {
        let ours = "Options:\n  --node <NODE>\n  --run-dir <RUN_DIR>\n  --xds-address <A>\n  --ca-root <CA_ROOT>\n";
        assert_eq!(Kind::of(ours), Some(Kind::LikeOurs));
        let istio = "\nIstio Ztunnel (version.BuildInfo{Version:\"1.30.0\"})\n\nCommands:\nproxy (default) - Start\n";
        assert_eq!(Kind::of(istio), Some(Kind::Istio { version: "version.BuildInfo{Version:\"1.30.0\"}".to_owned() }));
        assert_eq!(Kind::of("Usage: true [ignored command line arguments]\n"), None);
    }
}
