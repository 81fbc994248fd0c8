//! The hook of the kubelet's sockets, attached to the kubelet's own cgroup: it notes what the kubelet opens, so that its
//! probes reach applications past the mesh.

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, SockOps};
use loam_ebpf_common::layout::SHARED;

use super::hooks::Cgroup;
use super::object::Object;
use super::{Pins, RedirectError, failed, is_same};
use crate::sys::bpf_link::{self, Attached};

/// Name of the program and of its pin.
pub(super) const PROGRAM: &str = "kubelet";

/// The program uses one of the shared maps.
const MAPS: usize = 1;

/// The hook, wherever the kubelet is.
pub(super) struct Probes {
    tag: u64,
    shared: [u32; SHARED.len()],
}

impl Probes {
    pub(super) fn new(loaded: &mut Ebpf, shared: &[u32; SHARED.len()]) -> Result<Self, RedirectError> {
        let tag = program(loaded)?.info().map_err(failed("look at the kubelet's hook"))?.tag();
        Ok(Self { tag, shared: *shared })
    }

    /// Makes the hook be at this cgroup and nowhere else. Says whether anything had to be done.
    pub(super) fn follow(&self, object: &Object, pins: &Pins, cgroup: &Path) -> Result<bool, RedirectError> {
        let cgroup = leaf(cgroup)?;
        let pin = pins.hook(PROGRAM);
        let mut fresh = None;
        if let Some(link) = pins.open(&pin)? {
            let info =
                bpf_link::link(link.as_fd()).map_err(|e| RedirectError::Kernel("look at the kubelet's hook", e))?;
            let here = info.attached == Attached::Cgroup(cgroup.id);
            if here && is_same(info.program, self.tag, &self.shared, MAPS) {
                return Ok(false);
            }
            if here {
                let loaded = fresh.insert(object.load()?);
                let fd = program(loaded)?.fd().map_err(failed("find the kubelet's hook"))?;
                bpf_link::update(link.as_fd(), fd.as_fd())
                    .map_err(|e| RedirectError::Kernel("swap the program of the kubelet's hook", e))?;
                return Ok(true);
            }
        }
        let program = program(fresh.insert(object.load()?))?;
        let id = program.attach(&cgroup.dir, CgroupAttachMode::Single).map_err(failed("attach the kubelet's hook"))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed("keep the kubelet's hook"))?
            .try_into()
            .map_err(|_| RedirectError::Missing("link for the kubelet's hook"))?;
        // Whoever has the former cgroup now is not the kubelet.
        pins.detach(&pin)?;
        pins.hold(link, pin)?;
        Ok(true)
    }

    /// Takes the hook away: nobody is the kubelet.
    pub(super) fn leave(&self, pins: &Pins) -> Result<(), RedirectError> {
        pins.detach(&pins.hook(PROGRAM))
    }
}

/// The cgroup, if it is the kubelet's alone: processes of cgroups below it would count as the kubelet, too, and with the
/// root of all cgroups every process would.
fn leaf(path: &Path) -> Result<Cgroup, RedirectError> {
    let cgroup = Cgroup::open(path)?;
    let unread = |source| RedirectError::Path { what: "list the cgroup", path: path.into(), source };
    for entry in std::fs::read_dir(path).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        if entry.file_type().map_err(unread)?.is_dir() {
            return Err(RedirectError::NotLeaf(path.into(), entry.file_name().into()));
        }
    }
    Ok(cgroup)
}

/// The program, in the kernel.
fn program(loaded: &mut Ebpf) -> Result<&mut SockOps, RedirectError> {
    let program = loaded.program_mut(PROGRAM).ok_or(RedirectError::Missing(PROGRAM))?;
    let program: &mut SockOps = program.try_into().map_err(failed("find the kubelet's hook"))?;
    if program.fd().is_err() {
        program.load().map_err(failed("load the kubelet's hook"))?;
    }
    Ok(program)
}
