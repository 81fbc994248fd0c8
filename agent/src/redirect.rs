//! The kernel programs: loading, attaching, pinning, and taking over what is pinned already.
//!
//! Everything is pinned below `<bpffs>/loam`, so that it works on when this process is gone. A successor keeps what it
//! finds: a link's program is swapped only when its instructions differ, and nothing of a connection is touched.

mod hooks;
mod object;
mod pins;
mod probes;
mod steer;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError};
use loam_ebpf_common::dns::Asked;
use loam_ebpf_common::layout::{self, Entrance, Pod};
use loam_ebpf_common::probe::Connection;

use crate::sys::bpf_link;
use object::Object;

pub use hooks::HookFacts;
pub use pins::Pins;
pub use steer::SteerFacts;

/// The form of the programs that this build has, as `status` shows it.
pub const FORM: &str = "socket hooks and sk_lookup, kernel 5.18 or newer";

/// The kernel is older than a helper that the programs call (`bpf_set_retval`).
pub const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Why the redirect cannot be set up or looked at.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The kernel refused a program and is older than [`OLDEST_KERNEL`]. Its release, and what it said.
    #[error("kernel {0} is too old: Loam needs {major}.{minor} or newer", major = OLDEST_KERNEL.0, minor = OLDEST_KERNEL.1)]
    KernelTooOld(String, #[source] Box<RedirectError>),
    /// Not root, or a container without the capabilities.
    #[error(
        "loading eBPF programs is not permitted: run the agent as root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    NotPermitted,
    /// The directory is something else.
    #[error("{0} is not on a bpf file system: `mount -t bpf bpf {0}` makes it one")]
    NotBpffs(PathBuf),
    /// The directory is something else.
    #[error("{0} is not a cgroup v2 directory: name the root of the cgroup2 mount, or the node's own part of it")]
    NotCgroup(PathBuf),
    /// More than one process would count as the kubelet.
    #[error(
        "{0} has cgroups below it ({1}), whose processes would pass for the kubelet: the kubelet needs a cgroup of its own"
    )]
    NotLeaf(PathBuf, PathBuf),
    /// There can be one for each bpf file system.
    #[error("another agent already works with {0}")]
    Busy(PathBuf),
    /// Pinned by a version that laid it out differently.
    #[error(
        "map {map} is pinned with another layout ({found}, not {expected}): run `loam-agent cleanup` and start again"
    )]
    Layout {
        /// Its name.
        map: &'static str,
        /// Type, key bytes, value bytes, entries.
        found: String,
        /// The same of ours.
        expected: String,
    },
    /// Every place is taken.
    #[error("the map of pods is full ({max} pods)", max = layout::MAX_PODS)]
    Full,
    /// A file or a pin.
    #[error("{what} {path}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A call about a link or program.
    #[error("{0}")]
    Kernel(&'static str, #[source] io::Error),
    /// The object, or the kernel's opinion of it.
    #[error("load the eBPF programs")]
    Load(#[from] EbpfError),
    /// See `source`.
    #[error("{0}")]
    Program(&'static str, #[source] ProgramError),
    /// See `source`.
    #[error("{0}")]
    Map(&'static str, #[source] MapError),
    /// The object lacks something that this build expects in it.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
}

/// The redirect of one node.
pub struct Redirect {
    pins: Pins,
    object: Object,
    hooks: hooks::Hooks,
    steer: steer::Template,
    probes: probes::Probes,
    pods: HashMap<MapData, u64, Pod>,
    listeners: MapData,
    exempt: MapData,
    /// Held as long as this lives: nobody else works with the same pins.
    _lock: File,
}

impl Redirect {
    /// Loads the programs and attaches the hooks of sockets, or takes over those that are pinned.
    pub fn open(bpffs: &Path, cgroup: &Path) -> Result<Self, RedirectError> {
        // Distributions bring what is new to old kernels, so a number is no reason not to try.
        Self::load(bpffs, cgroup).map_err(|error| match error {
            RedirectError::Program(..) | RedirectError::Load(_) => blame_age(error),
            error => error,
        })
    }

    fn load(bpffs: &Path, cgroup: &Path) -> Result<Self, RedirectError> {
        let pins = Pins::create(bpffs)?;
        let lock = pins.lock()?;
        let cgroup = hooks::Cgroup::open(cgroup)?;
        let object = Object::new(&pins)?;
        let mut loaded = object.load()?;
        let maps = shared_maps(&mut loaded)?;
        let mut shared = [0; layout::SHARED.len()];
        for (to, map) in shared.iter_mut().zip(&maps) {
            *to = map.info().map_err(|e| RedirectError::Map("look at a shared map", e))?.id();
        }
        let [pods, listeners, _, exempt, _] = maps;
        let steer = steer::Template::new(&mut loaded, shared)?;
        let probes = probes::Probes::new(&mut loaded, &shared)?;
        // Last, because these are attached: where the kernel refuses any program, nothing is to be.
        let hooks = hooks::Hooks::attach(&mut loaded, &pins, cgroup, &shared)?;
        let pods = HashMap::try_from(Map::HashMap(pods)).map_err(|e| RedirectError::Map("open map PODS", e))?;
        Ok(Self { pins, object, hooks, steer, probes, pods, listeners, exempt, _lock: lock })
    }

    /// The maps that the keeper needs: LISTENERS and EXEMPT.
    pub fn stores(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.listeners.fd().as_fd(), self.exempt.fd().as_fd())
    }

    /// How the hooks of sockets are, attached again if they were not.
    pub fn check_hooks(&mut self) -> Result<HookFacts, RedirectError> {
        let (pins, object) = (&self.pins, &self.object);
        self.hooks.check(pins, object)
    }

    /// Has new connections in a pod's network namespace go to its listeners. Keeps what does so already.
    pub fn steer(&mut self, pod: &Entrance, netns: BorrowedFd<'_>, inode: u64) -> Result<SteerFacts, RedirectError> {
        self.steer.attach(&self.object, &self.pins, pod, netns, inode)
    }

    /// Takes the processes of this cgroup for the kubelet, or nobody. Says whether anything had to be changed.
    pub fn follow_kubelet(&mut self, cgroup: Option<&Path>) -> Result<bool, RedirectError> {
        match cgroup {
            Some(cgroup) => self.probes.follow(&self.object, &self.pins, cgroup),
            None => self.probes.leave(&self.pins).map(|()| false),
        }
    }

    /// What the kernel has for the pod with this index.
    pub fn steer_facts(&self, pod: &Entrance, inode: u64) -> Result<SteerFacts, RedirectError> {
        self.steer.look(&self.pins, pod, inode)
    }

    /// Lets new connections in the pod's network namespace find their sockets as if there were no mesh.
    pub fn unsteer(&mut self, index: u32) -> Result<(), RedirectError> {
        self.pins.detach(&self.pins.steer(index))
    }

    /// Has the hooks give to the ztunnel what the namespace with this cookie opens and, as the pod says, asks.
    pub fn capture(&mut self, cookie: u64, pod: Pod) -> Result<(), RedirectError> {
        self.pods.insert(cookie, pod, 0).map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => RedirectError::Full,
            _ => RedirectError::Map("write map PODS", error),
        })
    }

    /// Undoes [`Self::capture`].
    pub fn release(&mut self, cookie: u64) -> Result<(), RedirectError> {
        match self.pods.remove(&cookie) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(call)) if call.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RedirectError::Map("write map PODS", error)),
        }
    }

    /// The pod as which the namespace with this cookie is captured.
    pub fn captured(&self, cookie: u64) -> Result<Option<Pod>, RedirectError> {
        match self.pods.get(&cookie, 0) {
            Ok(pod) => Ok(Some(pod)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(RedirectError::Map("read map PODS", error)),
        }
    }

    /// Every captured namespace: cookie and index.
    pub fn all_captured(&self) -> Result<Vec<(u64, u32)>, RedirectError> {
        let read = |entry: Result<(u64, Pod), MapError>| entry.map(|(cookie, pod)| (cookie, pod.index()));
        self.pods.iter().map(read).collect::<Result<_, _>>().map_err(|e| RedirectError::Map("read map PODS", e))
    }

    /// Indexes that have a pinned steer program.
    pub fn all_steered(&self) -> Result<Vec<u32>, RedirectError> {
        self.pins.steered()
    }
}

/// Detaches everything that is pinned below `bpffs`, the captures first, and takes the pins away.
pub fn remove_all(bpffs: &Path) -> Result<(), RedirectError> {
    let Some(pins) = Pins::find(bpffs)? else { return Ok(()) };
    let _lock = pins.lock()?;
    pins.remove_all()
}

/// The maps of [`layout::SHARED`], in that order.
fn shared_maps(loaded: &mut Ebpf) -> Result<[MapData; layout::SHARED.len()], RedirectError> {
    let mut take = |name: &'static str| match loaded.take_map(name) {
        Some(Map::HashMap(map) | Map::LruHashMap(map) | Map::SockMap(map) | Map::SkStorage(map)) => Ok(map),
        _ => Err(RedirectError::Missing(name)),
    };
    let [pods, listeners, probes, exempt, asked] = layout::SHARED.map(&mut take);
    let (pods, listeners, probes, exempt, asked) = (pods?, listeners?, probes?, exempt?, asked?);
    // A pinned map is taken as it is: see that it is the one that this build would make.
    check_layout(layout::PODS, &pods, (8, size_of::<Pod>() as u32, layout::MAX_PODS))?;
    check_layout(layout::LISTENERS, &listeners, (4, 4, layout::MAX_LISTENERS))?;
    check_layout(layout::PROBES, &probes, (size_of::<Connection>() as u32, 4, layout::MAX_PROBES))?;
    check_layout(layout::EXEMPT, &exempt, (4, 4, 0))?;
    check_layout(layout::ASKED, &asked, (4, size_of::<Asked>() as u32, 0))?;
    Ok([pods, listeners, probes, exempt, asked])
}

fn check_layout(name: &'static str, map: &MapData, expected: (u32, u32, u32)) -> Result<(), RedirectError> {
    let info = map.info().map_err(|e| RedirectError::Map("look at a pinned map", e))?;
    let found = (info.key_size(), info.value_size(), info.max_entries());
    if found == expected {
        return Ok(());
    }
    let text = |(key, value, entries)| format!("{key}-byte keys, {value}-byte values, {entries} entries");
    Err(RedirectError::Layout { map: name, found: text(found), expected: text(expected) })
}

/// For `map_err`: what was tried with a program.
fn failed(what: &'static str) -> impl Fn(ProgramError) -> RedirectError {
    move |error| RedirectError::Program(what, error)
}

/// Whether a program is the one we would load: the same instructions with the same shared maps.
fn is_same(program: u32, tag: u64, shared: &[u32], least: usize) -> bool {
    bpf_link::program(program)
        .is_ok_and(|info| info.tag == tag && shared.iter().filter(|map| info.maps.contains(map)).count() == least)
}

/// Says of an old kernel that its age is why it refused.
fn blame_age(error: RedirectError) -> RedirectError {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) if !is_new_enough(&release) => RedirectError::KernelTooOld(release.trim().into(), Box::new(error)),
        _ => error,
    }
}

/// A release that cannot be read says nothing of age.
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_KERNEL,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number_and_not_by_text() {
        for (release, expected) in [
            ("5.18.0-1-amd64\n", true),
            ("5.17.15", false),
            ("5.4.0-200-generic", false),
            ("4.19.0", false),
            ("6.1.0-13-cloud-amd64", true),
            ("10.0", true),
            ("unknown", true),
        ] {
            assert_eq!(is_new_enough(release), expected, "{release}");
        }
    }

    #[test]
    fn an_old_kernel_is_named_with_what_is_needed() {
        let refused = RedirectError::Kernel("load a hook", io::Error::from_raw_os_error(libc::EINVAL));
        let error = RedirectError::KernelTooOld("5.15.0".into(), Box::new(refused));
        assert_eq!(error.to_string(), "kernel 5.15.0 is too old: Loam needs 5.18 or newer");
        assert!(std::error::Error::source(&error).is_some_and(|e| e.to_string() == "load a hook"));
    }
}
