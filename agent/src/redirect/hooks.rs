//! The connect hooks, attached to the node's cgroup.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use rustix::fs::{fstat, fstatfs};
use serde::Serialize;

use super::object::Object;
use super::{Pins, RedirectError, is_same};
use crate::sys::bpf_link::{self, Attached};

/// `f_type` of cgroup v2, linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Names of the programs and of their pins.
const HOOKS: [&str; 2] = ["connect4", "connect6"];

/// The cgroup whose processes are seen.
pub(super) struct Cgroup {
    dir: File,
    id: u64,
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

/// What the kernel has of one connect hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookFacts {
    /// The numbers of the links, connect4 first.
    pub links: [u32; 2],
    /// The tags of their programs.
    pub tags: [String; 2],
    /// Those that had to be attached again.
    pub repaired: Vec<&'static str>,
}

/// Both hooks.
pub(super) struct Hooks {
    cgroup: Cgroup,
    tags: [u64; 2],
    shared: [u32; 3],
}

impl Hooks {
    pub(super) fn attach(
        loaded: &mut Ebpf,
        pins: &Pins,
        cgroup: Cgroup,
        shared: &[u32; 3],
    ) -> Result<Self, RedirectError> {
        let mut hooks = Self { cgroup, tags: [0; 2], shared: *shared };
        for (at, name) in HOOKS.into_iter().enumerate() {
            hooks.tags[at] = program(loaded, name)?.info().map_err(failed("look at a connect hook"))?.tag();
            hooks.put(loaded, pins, at)?;
        }
        Ok(hooks)
    }

    /// Looks at both hooks and attaches again what is not as it should be.
    pub(super) fn check(&mut self, pins: &Pins, object: &Object) -> Result<HookFacts, RedirectError> {
        let mut repaired = Vec::new();
        for (at, name) in HOOKS.into_iter().enumerate() {
            if self.find(pins, at)?.is_none_or(|found| !found.good) {
                self.put(&mut object.load()?, pins, at)?;
                repaired.push(name);
            }
        }
        let mut links = [0; 2];
        for (at, id) in links.iter_mut().enumerate() {
            *id = self.find(pins, at)?.map_or(0, |found| found.id);
        }
        Ok(HookFacts { links, tags: self.tags.map(|tag| format!("{tag:016x}")), repaired })
    }

    /// Makes one hook be there: keeps it, or swaps its program, or attaches it.
    fn put(&self, loaded: &mut Ebpf, pins: &Pins, at: usize) -> Result<(), RedirectError> {
        let name = HOOKS[at];
        let pin = pins.hook(name);
        match self.find(pins, at)? {
            Some(found) if found.good => return Ok(()),
            Some(found) if found.here => {
                let program = program(loaded, name)?;
                let fd = program.fd().map_err(failed("find a connect hook"))?;
                let link = bpf_link::open(&pin).map_err(|e| RedirectError::Kernel("open a pinned connect hook", e))?;
                return bpf_link::update(link.as_fd(), fd.as_fd())
                    .map_err(|e| RedirectError::Kernel("swap the program of a connect hook", e));
            }
            Some(_) | None => {}
        }
        let program = program(loaded, name)?;
        // A link leaves room for others beside it in any case; asking for it is an error.
        let id = program.attach(&self.cgroup.dir, CgroupAttachMode::Single).map_err(failed("attach a connect hook"))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed("keep a connect hook"))?
            .try_into()
            .map_err(|_| RedirectError::Missing("link for a connect hook"))?;
        // What is pinned there is attached elsewhere or nowhere, and goes only after its successor is in force.
        pins.remove(&pin)?;
        link.pin(&pin).map(drop).map_err(|error| RedirectError::Path {
            what: "pin the connect hook",
            path: pin,
            source: io::Error::other(error),
        })
    }

    fn find(&self, pins: &Pins, at: usize) -> Result<Option<Found>, RedirectError> {
        let link = match bpf_link::open(&pins.hook(HOOKS[at])) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RedirectError::Kernel("open a pinned connect hook", error)),
        };
        let info = bpf_link::link(link.as_fd()).map_err(|e| RedirectError::Kernel("look at a connect hook", e))?;
        let here = info.attached == Attached::Cgroup(self.cgroup.id);
        // A connect hook uses all three shared maps.
        let good = here && is_same(info.program, self.tags[at], &self.shared, self.shared.len());
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
    let program: &mut CgroupSockAddr = program.try_into().map_err(failed("find a connect hook"))?;
    if program.fd().is_err() {
        program.load().map_err(failed("load a connect hook"))?;
    }
    Ok(program)
}

fn failed(what: &'static str) -> impl Fn(aya::programs::ProgramError) -> RedirectError {
    move |error| RedirectError::Program(what, error)
}
