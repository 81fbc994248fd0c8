//! A subtree of the machine's cgroup hierarchies: connect hooks attach to that of v2, so that no process outside is
//! touched; a Kubernetes node also needs the controllers, which older machines keep in hierarchies of v1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Longest death of all processes of a group: a Kubernetes node on a busy machine has many.
const REMOVAL: Duration = Duration::from_secs(20);

/// Where the machine's cgroup v2 hierarchy is mounted.
pub fn mount() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    find(&table).context("no cgroup v2 file system is mounted")
}

fn find(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// A mounted hierarchy of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// Where the machine has it.
    pub mount: PathBuf,
    /// What to ask for to mount it again.
    pub options: String,
}

/// The machine's hierarchies of cgroup v1; none where v2 has all controllers.
pub fn legacy() -> Result<Vec<Legacy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(find_legacy(&table))
}

fn find_legacy(mountinfo: &str) -> Vec<Legacy> {
    let mut found: Vec<Legacy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mut filesystem = filesystem.split(' ');
        let (Some("cgroup"), Some(options)) = (filesystem.next(), filesystem.nth(1)) else { continue };
        let Some(mount) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
        // How it is mounted is told together with what it is.
        let is_kind =
            |o: &&str| !["rw", "ro", "xattr", "clone_children"].contains(o) && !o.starts_with("release_agent=");
        let kind: Vec<&str> = options.split(',').filter(is_kind).collect();
        let named = kind.iter().any(|o| o.starts_with("name="));
        let options = if named { format!("none,{}", kind.join(",")) } else { kind.join(",") };
        if !found.iter().any(|l| l.options == options) {
            found.push(Legacy { mount, options });
        }
    }
    found
}

/// Makes the group `dir` and lets groups below it have processes and limits of their own.
pub fn make_parent(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
    let above = dir.parent().context("the root is no parent")?;
    if dir.join("cpuset.cpus").exists() && dir.join("cgroup.clone_children").exists() {
        // In v1 a new group has no processors until somebody gives it some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(dir.join(file), fs::read(above.join(file))?)?;
        }
        fs::write(dir.join("cgroup.clone_children"), "1")?;
    }
    // In v2 a group has the controllers that the one above it hands down.
    for group in [above, dir] {
        let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        let wanted: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
        if !wanted.is_empty() {
            fs::write(group.join("cgroup.subtree_control"), wanted.join(" "))
                .with_context(|| format!("hand down the cgroup controllers of {}", group.display()))?;
        }
    }
    Ok(())
}

/// Ends every process of `root`'s subtree and removes it. A subtree that is gone is fine.
pub fn remove(root: &Path) -> io::Result<()> {
    match fs::write(root.join("cgroup.kill"), "1") {
        // Those of v1 cannot kill; whoever is in one is in one of v2 as well.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !root.exists() => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::PermissionDenied => {}
        other => other?,
    }
    // The kernel kills at once, but a dying process holds its cgroup until it is done.
    let end = Instant::now() + REMOVAL;
    loop {
        match remove_empty(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
}

fn remove_empty(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_version_is_found_beside_the_first() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find(table), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn hierarchies_of_the_first_version_are_known_by_what_they_control() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                     34 31 0:29 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let cpu = Legacy { mount: "/sys/fs/cgroup/cpu,cpuacct".into(), options: "cpu,cpuacct".into() };
        let systemd = Legacy { mount: "/sys/fs/cgroup/systemd".into(), options: "none,name=systemd".into() };
        assert_eq!(find_legacy(table), [cpu, systemd]);
    }
}
