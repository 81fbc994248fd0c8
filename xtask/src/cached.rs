//! What takes minutes to build, kept until what it is made from changes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::images;

/// Where programs are below a kept directory.
pub(crate) const PROGRAMS: &str = "bin";

/// What something is made from.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    /// Directory, below cargo's, in which it is kept.
    pub(crate) place: &'a str,
    pub(crate) source: &'a Path,
    /// Files of the source that make a difference.
    pub(crate) files: &'a [&'a str],
    /// What else does, in words.
    pub(crate) how: &'a str,
}

impl Recipe<'_> {
    /// The directory of the built thing; where there is none, `build` fills an empty one, whose programs are in [`PROGRAMS`].
    pub(crate) fn ensure(&self, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let dir = images::directory(self.place).join(self.key()?);
        if !dir.join(PROGRAMS).exists() {
            let partial = dir.with_extension("partial");
            fs::create_dir_all(partial.join(PROGRAMS)).with_context(|| format!("make {}", partial.display()))?;
            build(&partial)?;
            fs::rename(&partial, &dir).with_context(|| format!("keep {}", dir.display()))?;
            forget_others(&dir);
        }
        Ok(dir)
    }

    /// All of it in a few letters.
    fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for file in self.files {
            let path = self.source.join(file);
            hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        hash.update(self.how);
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Some hundred megabytes for each version would add up. Those that a running cluster has open stay on disk until it ends.
fn forget_others(dir: &Path) {
    let others = dir.parent().into_iter().flat_map(|above| fs::read_dir(above).into_iter().flatten().flatten());
    for other in others.map(|e| e.path()).filter(|path: &PathBuf| path != dir && path.join(PROGRAMS).is_dir()) {
        let _ = fs::remove_dir_all(other);
    }
}
