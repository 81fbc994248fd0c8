//! The hooks of sockets, attached to the node's cgroup.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use loam_ebpf_common::layout::SHARED;
use rustix::fs::{fstat, fstatfs};
use serde::Serialize;

use super::object::Object;
use super::{Pins, RedirectError, failed, is_same};
use crate::sys::bpf_link::{self, Attached};

/// `f_type` of cgroup v2, linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// A hook: the name of its program and of its pin, and how many of the shared maps the program uses.
struct Hook {
    name: &'static str,
    maps: usize,
}

const fn hook(name: &'static str, maps: usize) -> Hook {
    Hook { name, maps }
}

/// Every hook. Those that capture come after those that show what was asked, so that no answer is seen with another
/// sender than the server that was asked; they go in the reverse order.
const HOOKS: [Hook; 10] = [
    hook("recvmsg4", 1),
    hook("recvmsg6", 1),
    hook("getpeername4", 1),
    hook("getpeername6", 1),
    hook("getsockname4", 2),
    hook("getsockname6", 2),
    hook("sendmsg4", 4),
    hook("sendmsg6", 4),
    hook("connect4", 4),
    hook("connect6", 4),
];

/// When the hook with this name is taken away, from 0; none if there is no such hook.
pub(super) fn rank(name: &str) -> Option<usize> {
    HOOKS.iter().rev().position(|hook| hook.name == name)
}

/// The cgroup whose processes are seen.
pub(super) struct Cgroup {
    pub(super) dir: File,
    pub(super) id: u64,
}

impl Cgroup {
    pub(super) fn open(path: &Path) -> Result<Self, RedirectError> {
        let failed = |source| RedirectError::Path { what: "open the cgroup", path: path.into(), source };
        let dir = File::open(path).map_err(failed)?;
        if fstatfs(&dir).map_err(|e| failed(e.into()))?.f_type as u64 != CGROUP2_MAGIC {
            return Err(RedirectError::NotCgroup(path.into()));
        }
        let id = fstat(&dir).map_err(|e| failed(e.into()))?.st_ino;
        Ok(Self { dir, id })
    }
}

/// What the kernel has of the hooks, in one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookFacts {
    /// Their names.
    pub names: Vec<&'static str>,
    /// The numbers of their links; 0 for one that is not attached.
    pub links: Vec<u32>,
    /// The tags of their programs.
    pub tags: Vec<String>,
    /// Those that had to be attached again.
    pub repaired: Vec<&'static str>,
}

/// All hooks.
pub(super) struct Hooks {
    cgroup: Cgroup,
    tags: [u64; HOOKS.len()],
    shared: [u32; SHARED.len()],
}

impl Hooks {
    pub(super) fn attach(
        loaded: &mut Ebpf,
        pins: &Pins,
        cgroup: Cgroup,
        shared: &[u32; SHARED.len()],
    ) -> Result<Self, RedirectError> {
        let mut hooks = Self { cgroup, tags: [0; HOOKS.len()], shared: *shared };
        // All are in the kernel before the first one is attached, for it may refuse the last one.
        for (at, hook) in HOOKS.iter().enumerate() {
            hooks.tags[at] = program(loaded, hook.name)?.info().map_err(failed("look at a hook"))?.tag();
        }
        for at in 0..HOOKS.len() {
            hooks.put(loaded, pins, at)?;
        }
        Ok(hooks)
    }

    /// Looks at all hooks and attaches again what is not as it should be.
    pub(super) fn check(&mut self, pins: &Pins, object: &Object) -> Result<HookFacts, RedirectError> {
        let mut repaired = Vec::new();
        let mut links = Vec::with_capacity(HOOKS.len());
        for (at, hook) in HOOKS.iter().enumerate() {
            let mut found = self.find(pins, at)?;
            if found.as_ref().is_none_or(|found| !found.good) {
                self.put(&mut object.load()?, pins, at)?;
                repaired.push(hook.name);
                found = self.find(pins, at)?;
            }
            links.push(found.map_or(0, |found| found.id));
        }
        let names = HOOKS.iter().map(|hook| hook.name).collect();
        Ok(HookFacts { names, links, tags: self.tags.iter().map(|tag| format!("{tag:016x}")).collect(), repaired })
    }

    /// Makes one hook be there: keeps it, or swaps its program, or attaches it.
    fn put(&self, loaded: &mut Ebpf, pins: &Pins, at: usize) -> Result<(), RedirectError> {
        let name = HOOKS[at].name;
        let pin = pins.hook(name);
        match self.find(pins, at)? {
            Some(found) if found.good => return Ok(()),
            Some(found) if found.here => {
                let program = program(loaded, name)?;
                let fd = program.fd().map_err(failed("find a hook"))?;
                let link = bpf_link::open(&pin).map_err(|e| RedirectError::Kernel("open a pinned hook", e))?;
                return bpf_link::update(link.as_fd(), fd.as_fd())
                    .map_err(|e| RedirectError::Kernel("swap the program of a hook", e));
            }
            Some(_) | None => {}
        }
        let program = program(loaded, name)?;
        // A link leaves room for others beside it in any case; asking for it is an error.
        let id = program.attach(&self.cgroup.dir, CgroupAttachMode::Single).map_err(failed("attach a hook"))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed("keep a hook"))?
            .try_into()
            .map_err(|_| RedirectError::Missing("link for a hook"))?;
        // What is pinned there is attached elsewhere or nowhere, and goes only after its successor is in force.
        pins.remove(&pin)?;
        pins.hold(link, pin)
    }

    fn find(&self, pins: &Pins, at: usize) -> Result<Option<Found>, RedirectError> {
        let Some(link) = pins.open(&pins.hook(HOOKS[at].name))? else { return Ok(None) };
        let info = bpf_link::link(link.as_fd()).map_err(|e| RedirectError::Kernel("look at a hook", e))?;
        let here = info.attached == Attached::Cgroup(self.cgroup.id);
        let good = here && is_same(info.program, self.tags[at], &self.shared, HOOKS[at].maps);
        Ok(Some(Found { id: info.id, here, good }))
    }
}

/// A pinned hook.
struct Found {
    id: u32,
    /// It is attached to our cgroup.
    here: bool,
    /// And its program is ours.
    good: bool,
}

/// The program, in the kernel.
fn program<'a>(loaded: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, RedirectError> {
    let program = loaded.program_mut(name).ok_or(RedirectError::Missing(name))?;
    let program: &mut CgroupSockAddr = program.try_into().map_err(failed("find a hook"))?;
    if program.fd().is_err() {
        program.load().map_err(failed("load a hook"))?;
    }
    Ok(program)
}
