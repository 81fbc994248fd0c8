//! The processes of this node, as far as they tell where pods are and how pods resolve names.
//!
//! Whoever is in a pod decides what its processes are and what its files say, and root looks at them here. So a process
//! is looked at through a descriptor of its directory in `/proc`, which never comes to stand for another one, and a file
//! of a pod is found within the pod's root directory and opened only when it is known to be a file.

pub mod cgroup;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};
use rustix::io::Errno;

use crate::pods::Uid;

/// Most processes that are looked at: a thousand for each of a hundred pods, and some for the node.
const MAX_PROCESSES: usize = 1 << 17;

/// As much of a file of `/proc` as is read: the mounts of a node with thousands of volumes.
const MAX_BYTES: u64 = 4 << 20;

/// As much of a pod's resolv.conf as is read: the kubelet writes a search list of at most 2,048 characters, and the pod's
/// record, which has it, stays readable.
const MAX_RESOLV_CONF_BYTES: u64 = 8 << 10;

/// How often a path of a pod is looked up anew that changed meanwhile.
const MAX_LOOKUPS: usize = 3;

/// A `/proc` in which all processes of the node are.
#[derive(Debug, Clone)]
pub struct Processes(PathBuf);

/// A process of a pod, with what was found through it.
#[derive(Debug)]
pub struct Found {
    /// Where the pod's network namespace is.
    pub netns: PathBuf,
    /// The oldest process of the pod that is in it: where there is one, the one that keeps the sandbox and runs nothing of
    /// the pod's.
    process: OwnedFd,
}

/// A pod has processes, and its network namespace cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "open the network namespace of the pod's process {pid}: {source}; the agent needs the capability SYS_PTRACE, and no \
     AppArmor or SELinux profile in its way"
)]
pub struct HiddenError {
    pid: u32,
    source: io::Error,
}

impl Processes {
    /// Those of a mounted `/proc`.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self(proc.into())
    }

    /// Looks for pods among all processes. A pod that is not in the answer has no process in a network namespace of its own.
    pub fn find(&self, pods: &BTreeSet<Uid>) -> BTreeMap<Uid, Result<Found, HiddenError>> {
        let mut processes: BTreeMap<Uid, Vec<(u64, u32)>> = BTreeMap::new();
        for pid in self.pids() {
            let Ok(process) = self.open(pid) else { continue };
            if let Some(pod) = pod_of(&process).filter(|pod| pods.contains(pod))
                && let Some(started) = started(&process)
            {
                processes.entry(pod).or_default().push((started, pid));
            }
        }
        let nodes = self.node_namespaces();
        let mounted = self.mounted();
        let mut found = BTreeMap::new();
        for (pod, mut processes) in processes {
            processes.sort_unstable();
            let mut looked = processes.into_iter().filter_map(|(_, pid)| self.look(&pod, pid, &nodes, &mounted));
            if let Some(first) = looked.next() {
                found.insert(pod, first);
            }
        }
        found
    }

    /// Where the network namespace with this inode number is mounted on the node.
    pub fn mounted_at(&self, inode: u64) -> Option<PathBuf> {
        self.mounted().remove(&inode).filter(|path| is_inode(path, inode))
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(MAX_PROCESSES)
    }

    fn open(&self, pid: u32) -> rustix::io::Result<OwnedFd> {
        open(self.0.join(pid.to_string()), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// What a process says about its pod; none if it is not the pod's any more or not in the pod's network namespace.
    fn look(
        &self,
        pod: &Uid,
        pid: u32,
        nodes: &[u64],
        mounted: &HashMap<u64, PathBuf>,
    ) -> Option<Result<Found, HiddenError>> {
        let process = self.open(pid).ok()?;
        if pod_of(&process).as_ref() != Some(pod) {
            return None;
        }
        let inode = match netns(&process) {
            Ok(inode) => inode,
            Err(Errno::NOENT | Errno::SRCH) => return None,
            Err(error) => return Some(Err(HiddenError { pid, source: error.into() })),
        };
        if nodes.contains(&inode) {
            return None;
        }
        // What the runtime mounted stays for as long as the sandbox does, whatever becomes of the process.
        let mounted = mounted.get(&inode).filter(|path| is_inode(path, inode));
        let netns = mounted.cloned().unwrap_or_else(|| self.0.join(format!("{pid}/ns/net")));
        Some(Ok(Found { netns, process }))
    }

    /// The network namespaces that are never a pod's: the node's and ours.
    fn node_namespaces(&self) -> Vec<u64> {
        let paths = [self.0.join("1/ns/net"), self.0.join("self/ns/net")];
        paths.iter().filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect()
    }

    /// Where network namespaces are mounted on the node, by inode number.
    fn mounted(&self) -> HashMap<u64, PathBuf> {
        let node = self.0.join("1");
        let text = File::open(node.join("mountinfo")).and_then(|file| read(file, MAX_BYTES)).unwrap_or_default();
        namespaces(&text, &node.join("root"))
    }
}

impl Found {
    /// What the pod's resolv.conf says; none if it has none yet. Whoever keeps files in the pod's stead, as file systems
    /// in user space do, decides how long this takes.
    pub fn resolv_conf(&self) -> io::Result<Option<String>> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.process, "root", directory, Mode::empty())?;
        let file = match lookup(&root, "etc/resolv.conf") {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            found => found?,
        };
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        read(File::from(open(path, flags, Mode::empty())?), MAX_RESOLV_CONF_BYTES).map(Some)
    }
}

/// Finds a path below a directory, wherever its links lead there. Nothing is opened, so no device or pipe notices.
fn lookup(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let find = || {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)
    };
    let mut tries = (1..MAX_LOOKUPS).map(|_| find());
    tries.find(|found| !matches!(found, Err(Errno::AGAIN))).unwrap_or_else(find)
}

/// The pod that a process belongs to.
fn pod_of(process: &OwnedFd) -> Option<Uid> {
    cgroup::pod(&read_at(process, "cgroup").ok()?)
}

/// When a process started, in ticks since the machine did.
fn started(process: &OwnedFd) -> Option<u64> {
    let stat = read_at(process, "stat").ok()?;
    // The command may have anything in it, and ends with the last parenthesis. The fields after it begin with the third.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Inode number of a process's network namespace.
fn netns(process: &OwnedFd) -> rustix::io::Result<u64> {
    let file = openat(process, "ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fstat(file)?.st_ino)
}

fn is_inode(path: &Path, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.ino() == inode)
}

fn read_at(directory: impl AsFd, name: &str) -> io::Result<String> {
    read(File::from(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?), MAX_BYTES)
}

fn read(file: File, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The network namespaces in a file `/proc/PID/mountinfo`, as paths below the root directory of that process.
fn namespaces(mountinfo: &str, root: &Path) -> HashMap<u64, PathBuf> {
    let namespace = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let inode = fields.next()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        // What has characters that are spelled otherwise there is none of the runtimes'.
        let path = fields.next().filter(|path| !path.contains('\\'))?.strip_prefix('/')?;
        Some((inode, root.join(path)))
    };
    mountinfo.lines().filter_map(namespace).collect()
}

#[cfg(test)]
mod tests;
