//! Becomes another program, in a network namespace and in cgroups.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Replaces this process; returns only to say why it could not.
pub(crate) fn run(netns: Option<&Path>, cgroups: &[PathBuf], argv: &[String]) -> Result<()> {
    for cgroup in cgroups {
        fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("enter {}", cgroup.display()))?;
    }
    if let Some(netns) = netns {
        enter(netns)?;
    }
    let (program, arguments) = argv.split_first().context("no program is given")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("run {program}"))
}

/// Moves this thread into the network namespace of a file.
pub(crate) fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {}", netns.display()))
}
