//! Where the built programs are.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The packages whose programs the lab runs; each program has its package's name.
pub const PACKAGES: [&str; 8] = [
    "loam-agent",
    "loam-cni",
    "loam-ztunnel",
    "loam-waypoint",
    "loam-controller",
    "loam-bookinfo",
    "loam-lab",
    "loam-echo",
];

/// Names the directory of the programs when they are not beside the running one.
pub const DIR_VARIABLE: &str = "LOAM_BIN_DIR";

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// From here on this process runs the programs in `dir`, such as those built for release.
pub fn choose_dir(dir: PathBuf) -> Result<()> {
    CHOSEN.set(dir).map_err(|_| anyhow!("the directory of the programs is chosen already"))
}

/// The directory that holds the built programs.
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = CHOSEN.get() {
        return Ok(dir.clone());
    }
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("find this program")?;
    let dir = exe.parent().context("this program has no directory")?;
    // Cargo puts test programs one directory deeper.
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf())
}

/// The built program `name`.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if !Path::new(&path).is_file() {
        bail!("{} is not built: run `cargo xtask test`, or `cargo build -p {name}`", path.display());
    }
    Ok(path)
}
