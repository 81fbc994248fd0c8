//! The chart with which this program was built.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Its files by name.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// Sets of values that come with it: `values-NAME.yaml`.
pub fn profiles() -> impl Iterator<Item = &'static str> {
    FILES.iter().filter_map(|(name, _)| name.strip_prefix("values-")?.strip_suffix(".yaml"))
}

/// The chart as a directory, which is gone when this is dropped.
#[derive(Debug)]
pub struct Unpacked(PathBuf);

impl Unpacked {
    /// Writes it where temporary files are, for nobody else to change.
    pub fn new() -> io::Result<Self> {
        let unique = format!("loam-chart-{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        let unpacked = Self(std::env::temp_dir().join(unique));
        // Fails where somebody else made it.
        fs::DirBuilder::new().mode(0o700).create(&unpacked.0)?;
        for (name, content) in FILES {
            let path = unpacked.0.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&unpacked.0))?;
            fs::write(path, content)?;
        }
        Ok(unpacked)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file with the values of a profile.
    pub fn profile(&self, name: &str) -> PathBuf {
        self.0.join(format!("values-{name}.yaml"))
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // A leftover in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_whole_while_it_is_needed_and_gone_after() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart");
        let unpacked = Unpacked::new().unwrap();
        let directory = unpacked.path().to_owned();
        for name in ["Chart.yaml", "values.yaml", "templates/_helpers.tpl", ".helmignore"] {
            assert_eq!(fs::read(directory.join(name)).unwrap(), fs::read(source.join(name)).unwrap(), "{name}");
        }
        for profile in profiles() {
            assert!(unpacked.profile(profile).exists(), "{profile}");
        }
        drop(unpacked);
        assert!(!directory.exists());
    }
}
