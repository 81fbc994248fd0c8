//! Orders to the process that holds a cluster: one line each, on a socket in the cluster's directory.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The answer to an order that was carried out; any other one says why it was not.
pub const DONE: &str = "done";

/// Where the holder of the cluster in `work` listens.
pub fn socket(work: &Path) -> PathBuf {
    work.join("control")
}

/// Gives an order to the holder of the cluster in `work`: `down`, `stop PART` or `start PART`.
pub fn order(work: &Path, order: &str) -> Result<()> {
    let socket = socket(work);
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("nobody holds {}", work.display()))?;
    writeln!(stream, "{order}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("hear from the holder of the cluster")?;
    if answer.trim() != DONE {
        bail!("{order}: {}", if answer.is_empty() { "the holder of the cluster ended" } else { answer.trim() });
    }
    Ok(())
}
